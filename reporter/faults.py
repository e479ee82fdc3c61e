"""Pure: what is wrong right now, as the one ``error_msg`` of a report.

Law: an error is told exactly as long as its cause lasts. Each cause has a name (``model``,
``ingress-0``, ``engine-key``); setting it again replaces its text, clearing it removes it.
"""

from __future__ import annotations

#: Characters of the joined text, and of one cause's text while it is kept.
MAX_CHARS = 1_000
#: Causes that are kept; names come from our own processes, this only bounds a fault of ours.
MAX_CAUSES = 64


class Faults:
    """The current causes, in the order in which they appeared."""

    __slots__ = ("_causes",)

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}

    def set(self, cause: str, text: str) -> bool:
        """Note that ``cause`` is wrong; an empty text clears it. True: something changed.

        The text must be masked already.
        """
        if not text:
            return self.clear(cause)
        text = " ".join(text.split())[:MAX_CHARS]
        if self._causes.get(cause) == text:
            return False
        if cause not in self._causes and len(self._causes) >= MAX_CAUSES:
            return False
        self._causes[cause] = text
        return True

    def clear(self, cause: str) -> bool:
        """The cause is gone. True: something changed."""
        return self._causes.pop(cause, None) is not None

    @property
    def text(self) -> str:
        """``cause: text`` joined by ``; ``; "" when nothing is wrong. At most 1,000 characters."""
        joined = "; ".join(f"{cause}: {text}" for cause, text in self._causes.items())
        return joined if len(joined) <= MAX_CHARS else joined[: MAX_CHARS - 1] + "…"
