"""Pure: the open sessions of the worker.

A session binds a client to this worker for a while: as long as it is open, and until its
expiration, requests that name it are taken. Law: a session that was opened is closed exactly once,
by its end or by its expiration. Opening one that is open already changes nothing.

Source of the meanings: the public PyWorker. Bounds: the number that the settings say, and
``MAX_BYTES`` for all of them. Times are monotonic seconds. This module knows no clock, no
socket, and not what a request is.
"""

from __future__ import annotations

import msgspec

#: Over all sessions.
MAX_BYTES = 64 * 2**20
#: What the smallest one costs, its account and its file's name included.
OWN_BYTES = 2048


class Session(msgspec.Struct):
    """One session. Whoever knows ``session_id`` and ``auth`` may ask about it, and end it."""

    session_id: str
    auth: bytes  #: digest of the auth_data that made it
    auth_data: bytes  #: JSON, as it is shown again
    lifetime_s: float  #: a whole number stays one, as it is shown again
    workload: float
    request_idx: int
    on_close_route: str | None  #: path on the model server
    on_close_payload: bytes | None  #: JSON, as it is shown again
    names_itself: bool  #: that payload holds a session_id already
    created_at: float  #: wall-clock seconds
    opened_at: float
    expires_at: float
    requests: int = 0  #: taken so far
    account: int = 0  #: key of its row in the accounts
    closing: bool = False  #: it is closed, but the model server has not heard of it

    @property
    def size_bytes(self) -> int:
        """What the client gave, and what it costs to keep it."""
        return OWN_BYTES + len(self.auth_data) + len(self.on_close_payload or b"")

    @property
    def expiration(self) -> float:
        """Wall-clock seconds."""
        return self.created_at + (self.expires_at - self.opened_at)


def closing_words(session: Session) -> bytes:
    """What the model server is told: what the client gave, and which session it is.

    The client's JSON is put together, not read again.
    """
    payload = session.on_close_payload
    name = b'"session_id": "%b"}' % session.session_id.encode()
    if payload is None or payload == b"null":
        return b"{" + name
    if not payload.startswith(b"{"):
        return b'{"payload": %b, %b' % (payload, name)
    if session.names_itself:
        return payload
    return payload[:-1] + (b"" if payload == b"{}" else b", ") + name


class Sessions:
    """All that are open, by id. ``most``: so many at once; 0: as many as their bytes allow."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.open: dict[str, Session] = {}
        self.size_bytes = 0

    def add(self, session: Session, besides_bytes: int = 0) -> bool:
        """Open one. False: there are as many as may be, or as large, with ``besides_bytes`` of
        others that are closed and still kept.
        """
        if session.session_id in self.open:
            return True
        full = self._most and len(self.open) >= self._most
        if full or self.size_bytes + besides_bytes + session.size_bytes > MAX_BYTES:
            return False
        self.open[session.session_id] = session
        self.size_bytes += session.size_bytes
        return True

    def use(self, session_id: str) -> Session | None:
        """A request inside it: it stays open for its lifetime longer. None: it is not open."""
        session = self.open.get(session_id)
        if session is not None:
            session.expires_at += session.lifetime_s
            session.requests += 1
        return session

    def remove(self, session_id: str) -> Session | None:
        """Close it. None: it is not open."""
        session = self.open.pop(session_id, None)
        if session is not None:
            self.size_bytes -= session.size_bytes
        return session

    def expired(self, now: float) -> list[Session]:
        """Those whose time is over; they stay until they are removed. O(n)."""
        return [session for session in self.open.values() if now > session.expires_at]
