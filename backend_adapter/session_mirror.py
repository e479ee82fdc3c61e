"""Shows the open sessions to the process that holds a worker.py: ``worker.backend.sessions``.

What changed is told soon and together, each session in a message of its own; when a session of the
socket begins, all of them are. It must not know what a session is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from backend_adapter.hook_messages import SessionGone, SessionsAnew, SessionSeen
from backend_adapter.sessions import Session
from supervisor.messages import Message

#: Seconds between a change and its telling.
TELL_AFTER_S = 0.05


class SessionMirror:
    """``tell`` hands a message to the hook host; None: there is no hook host."""

    def __init__(self) -> None:
        self.tell: Callable[[Message], bool] | None = None
        #: those that are open, by id: its owner's own
        self.open: Mapping[str, Session] = {}
        self._changed: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, session_id: str) -> None:
        """It was opened, used or closed."""
        if self.tell is not None:
            self._changed[session_id] = None
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._flush)

    def link_up(self) -> None:
        """A session of the socket began: whoever listens knows nothing yet, or too much."""
        if self.tell is not None:
            self.tell(SessionsAnew())
            self._changed = dict.fromkeys(self.open)
            self._flush()

    def stop(self) -> None:
        """Begin nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changed, self._changed = self._changed, {}
        for session_id in changed:
            session = self.open.get(session_id)
            if self.tell is not None:  # where no session of the socket stands, ``link_up`` tells
                self.tell(SessionGone(session_id) if session is None else _seen(session))


def _seen(session: Session) -> SessionSeen:
    return SessionSeen(
        session_id=session.session_id,
        lifetime_s=session.lifetime_s,
        expiration=session.expiration,
        created_at=session.created_at,
        on_close_route=session.on_close_route,
        on_close_payload=session.on_close_payload,
        request_idx=session.request_idx,
        requests=session.requests,
        body=session.auth_data,
    )
