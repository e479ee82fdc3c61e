"""Pure: what is wrong, as the one ``error_msg`` of a report.

Law: every error is told once at least, and otherwise exactly as long as its cause lasts. Each
cause has a name (``model``, ``ingress-0``, ``engine-key``); setting it again replaces its text,
clearing it removes it, but only after a report with it was accepted.
"""

from __future__ import annotations

#: Characters of the joined text, and of one cause's text while it is kept.
MAX_CHARS = 1_000
#: Causes that are kept; names come from our own processes, this only bounds a fault of ours.
MAX_CAUSES = 64

#: Cause and text of each error that a report contains.
Snapshot = tuple[tuple[str, str], ...]


class Faults:
    """The current causes, in the order in which they appeared, and those not told in time."""

    __slots__ = ("_causes", "_gone", "_told")

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._told: set[str] = set()  #: causes whose present text was told
        self._gone: dict[str, str] = {}  #: cleared before anybody heard of them

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
        self._told.discard(cause)
        self._gone.pop(cause, None)
        return True

    def clear(self, cause: str) -> bool:
        """The cause is gone. True: something changed."""
        text = self._causes.pop(cause, None)
        if text is None:
            return False
        if cause in self._told:
            self._told.discard(cause)
        elif len(self._gone) < MAX_CAUSES:
            self._gone[cause] = text
        return True

    def snapshot(self) -> Snapshot:
        """What a report that is made now contains."""
        return (*self._gone.items(), *self._causes.items())

    def told(self, snapshot: Snapshot) -> bool:
        """A report with this was accepted. True: something is left out from now on."""
        left = False
        for cause, text in snapshot:
            if self._causes.get(cause) == text:
                self._told.add(cause)
            elif self._gone.get(cause) == text:
                del self._gone[cause]
                left = True
        return left

    @property
    def text(self) -> str:
        """``cause: text`` joined by ``; ``; "" when nothing is wrong. At most 1,000 characters."""
        return _joined(self.snapshot())

    @property
    def current(self) -> str:
        """The same without what is over and only still to be told: for who looks now."""
        return _joined(tuple(self._causes.items()))


def _joined(causes: Snapshot) -> str:
    joined = "; ".join(f"{cause}: {text}" for cause, text in causes)
    return joined if len(joined) <= MAX_CHARS else joined[: MAX_CHARS - 1] + "…"
