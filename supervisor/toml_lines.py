"""Pure: where a setting stands in a TOML text; for messages only, because the parser does not say.

Law: what is not found is given as the file alone, never as a wrong line of it.
"""

from __future__ import annotations

import re


class Lines:
    """Finds the line of a key in a TOML text, for messages only (the parser does not say)."""

    _header = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$")

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.split("\n")

    def find(self, section: str, name: str = "", nth: int | None = None) -> str:
        """``file:line`` of a section, or of a key in it; only ``file`` when it is well hidden.

        ``nth`` counts tables of the same name, from 0.
        """
        top = re.compile(rf"\s*[\"']?{re.escape(section)}[\"']?\s*[.=].*{re.escape(name)}")
        key = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[.=]")
        table: list[str] = []
        seen = -1
        for number, line in enumerate(self._lines, 1):
            if header := self._header.match(line):
                table = [part.strip(" \t\"'") for part in header[1].split(".")]
                seen += table == [section]
                hit = table[0] == section and (not name or table[1:2] == [name])
            elif table:
                hit = bool(name) and table == [section] and key.match(line) is not None
            else:
                hit = top.match(line) is not None
            if hit and nth in (None, max(seen, 0)):
                return f"{self._path}:{number}"
        return self._path
