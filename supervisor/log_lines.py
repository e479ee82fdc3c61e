"""One format for every log line of the worker, and secrets out of all of them.

Children log to stderr; the supervisor captures, shows and keeps it. Text for people:

    2026-11-23T09:16:01.123Z info    ingress-0  listening on 127.0.0.1:3000

or, on request, one JSON object a line. The hot path does not log at all.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from urllib.parse import quote

import msgspec

Mask = Callable[[str], str]
#: Characters of one line; a traceback may be longer than is useful.
MAX_LINE = 16_000
#: Control characters as their escapes, so that no text can rewrite or forge lines on a terminal.
_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


def masker(secrets: Iterable[str]) -> Mask:
    """A function that replaces every secret in a text by ``***``, also where it stands quoted."""
    known = [secret for secret in secrets if secret]
    forms = {form for secret in known for form in _written(secret)}
    hidden = sorted(forms, key=len, reverse=True)
    if not hidden:
        return lambda text: text

    def mask(text: str) -> str:
        for secret in hidden:
            if secret in text:
                text = text.replace(secret, "***")
        return text

    return mask


def _written(secret: str) -> tuple[str, ...]:
    """The ways in which it may stand in a text: as it is, quoted by Python or JSON, in a URL."""
    url = quote(secret, errors="surrogateescape")
    whole = quote(secret, safe="", errors="surrogateescape")
    return secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], url, whole


class Lines(logging.Formatter):
    """Formats a record for people, or as JSON; masked and bounded.

    JSON is one line. For people the lines after the first are indented, so that only a first line
    begins with a time.
    """

    def __init__(self, name: str, style: str, mask: Mask) -> None:
        super().__init__()
        self._name = name
        self._json = style == "json"
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        """The finished line, without its newline."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):  # logging itself would show it unmasked
            text = f"{record.msg} {record.args}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        text = self._mask(text)[:MAX_LINE].encode("utf-8", "backslashreplace").decode()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at, level = f"{moment}.{int(record.msecs):03d}Z", record.levelname.lower()
        if self._json:
            fields = {"time": at, "level": level, "process": self._name, "message": text}
            return msgspec.json.encode(fields).decode()
        text = text.translate(_VISIBLE).replace("\n", "\n    ")
        return f"{at} {level:<7} {self._name:<15} {text}"


def configure(name: str, style: str, level: str, mask: Mask) -> None:
    """Send everything this process logs to stderr, in the one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(name, style, mask))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for noisy in ("aiohttp", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
    # what strangers send to the admin port is answered, not told with a traceback
    logging.getLogger("aiohttp.server").setLevel("CRITICAL")
