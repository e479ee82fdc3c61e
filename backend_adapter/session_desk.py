"""The hands of sessions: answers the calls about them, and does what follows from their end.

Law: each call is answered once. A session that is closed takes its requests with it, tells the
model server so where its client wished that (once, for at most ``ON_CLOSE_S``), and ends its
account, which counts as one request of the engine until then. ``sessions.py`` knows which are open;
it must not know how a job runs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from backend_adapter.hook_messages import OpenSession, OpenSessions
from backend_adapter.messages import Answer, FromAdapter, Rejected, SessionCall
from backend_adapter.model_client import ModelClient
from backend_adapter.session_files import SessionFiles
from backend_adapter.sessions import Session, Sessions
from reporter.messages import SESSION_ROUTE, Outcome
from reporter.producer_ledger import UNTOLD_IDX, ProducerLedger
from supervisor.messages import Message

#: Between two looks at expirations, as clients know it from the public PyWorker.
SWEEP_EVERY_S = 5.0
ON_CLOSE_S = 10.0
#: Between two tellings of the hook host, for each MiB of what is told; and at least.
TELL_EVERY_S = 0.05
JSON_TYPE = b"content-type: application/json\r\n"
_log = logging.getLogger("backend_adapter")


class SessionDesk:
    """Every session.

    Args:
        most: open at once; 0: no limit but memory.
        client: of the model server.
        ledger: where each counts as one request.
        files: keep them for an adapter after this one.
        send: answers a process by its name.
        revoke: ends the requests of a session.
    """

    def __init__(
        self,
        most: int,
        client: ModelClient,
        ledger: ProducerLedger,
        files: SessionFiles,
        *,
        send: Callable[[str, FromAdapter], Any],
        revoke: Callable[[str], None],
    ) -> None:
        self._sessions = Sessions(most)
        self._client = client
        self._ledger = ledger
        self._files = files
        self._send = send
        self._revoke = revoke
        self._loop = asyncio.get_running_loop()
        self._closing: set[asyncio.Task[None]] = set()
        self._used: dict[str, Session] = {}  # since they were saved
        self._draining = False
        #: hands a message to the hook host, where there is one; False: not now
        self.tell: Callable[[Message], bool] | None = None
        self._telling: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """How many are."""
        return len(self._sessions.open)

    def restore(self) -> None:
        """Go on with what an adapter before this one had open.

        The engine was told that their requests are over, when that one's account ended; as load
        they go on. Each gets its lifetime anew: nobody could use it meanwhile.
        """
        now = time.monotonic()
        for session in self._files.load():
            session.expires_at = max(session.expires_at, now + session.lifetime_s)
            session.account = self._ledger.open(UNTOLD_IDX, session.workload, now, counted=False)
            if not self._sessions.add(session):  # the settings allow fewer now
                self._files.drop(session)
                self._end_account(session, Outcome.CANCELLED, 429)
        if self.open:
            _log.info("%d sessions go on", self.open)

    # ------------------------------------------------------------------ calls

    def on_call(self, peer: str, call: SessionCall) -> None:
        """Answer, now or when what follows is done."""
        if self._draining:
            self._reject(peer, call, "draining", "the worker is stopping; create one elsewhere")
            return
        if call.call == "create":
            self._create(peer, call)
            return
        session = self._sessions.open.get(call.session_id)
        if call.call == "health" and session is None:
            self._answer(peer, call, 200, _json({"ok": False}))
        elif session is None:
            text = "no such session is open on this worker; create one"
            self._reject(peer, call, "unknown_session", text)
        elif not hmac.compare_digest(call.auth, session.auth):
            text = "session_auth is not the auth_data that made this session"
            self._reject(peer, call, "bad_token", text)
        elif call.call == "health":
            self._answer(peer, call, 200, _json({"ok": True}))
        elif call.call == "get":
            self._answer(peer, call, 200, _shown(session))
        else:
            done = _json({"ended": True, "removed_session": session.session_id})
            self._close(session, lambda: self._answer(peer, call, 200, done))

    def _create(self, peer: str, call: SessionCall) -> None:
        known = self._sessions.open.get(call.session_id)
        now = time.monotonic()
        if known is None:
            self.sweep()
        session = known or Session(
            session_id=call.session_id,
            auth=call.auth,
            auth_data=call.auth_data,
            lifetime_s=call.lifetime_s,
            workload=call.workload,
            request_idx=call.request_idx,
            on_close_route=call.on_close_route,
            on_close_payload=call.on_close_payload,
            on_close_body=call.on_close_body,
            created_at=time.time(),
            opened_at=now,
            expires_at=now + call.lifetime_s,
        )
        if known is None:
            session.account = self._ledger.open(call.request_idx, call.workload, now, call.reqnum)
            if not self._sessions.add(session):
                self._end_account(session, Outcome.REJECTED, 429)
                text = f"{self.open} sessions are open, which is the most that may; retry later"
                self._reject(peer, call, "too_many_sessions", text, 1.0)
                return
            self._files.save(session)
            self._changed()
        shown = {"session_id": session.session_id, "expiration": session.expiration}
        self._answer(peer, call, 201, _json(shown))

    def use(self, session_id: str) -> bool:
        """A request inside a session has come. False: there is none such."""
        session = self._sessions.use(session_id)
        if session is None:
            return False
        self._used[session_id] = session
        self._changed()
        return True

    def _answer(self, peer: str, call: SessionCall, status: int, body: bytes) -> None:
        self._send(peer, Answer(call.id, status, JSON_TYPE, time.monotonic(), body))

    def _reject(
        self, peer: str, call: SessionCall, kind: str, text: str, retry_after_s: float = 0.0
    ) -> None:
        self._send(peer, Rejected(call.id, kind, text, retry_after_s))

    # ------------------------------------------------------------------ ends

    def sweep(self) -> None:
        """Close what has expired, and save what was used. Call every ``SWEEP_EVERY_S``."""
        for session in self._sessions.expired(time.monotonic()):
            _log.info("a session has expired")
            self._close(session)
        used, self._used = self._used, {}
        for session in used.values():
            if session.session_id in self._sessions.open:
                self._files.save(session)

    async def drain(self, last: bool) -> None:
        """Answer no call any more; return when what follows from those before is done.

        ``last``: no adapter comes after this one, so that every session is closed.
        """
        self._draining = True
        if last:
            for session in list(self._sessions.open.values()):
                self._close(session)
        while self._closing:
            await asyncio.wait(self._closing)

    def stop(self) -> None:
        """Begin nothing more."""
        if self._telling is not None:
            self._telling.cancel()
        for task in self._closing:
            task.cancel()

    def _close(self, session: Session, then: Callable[[], None] = lambda: None) -> None:
        self._sessions.remove(session.session_id)
        self._files.drop(session)
        self._end_account(session, Outcome.SUCCESS, 200)
        self._revoke(session.session_id)
        self._changed()
        if session.on_close_route is None:
            then()
            return
        task = self._loop.create_task(self._on_close(session, session.on_close_route, then))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _on_close(self, session: Session, route: str, then: Callable[[], None]) -> None:
        result = await self._client.post(route, JSON_TYPE, session.on_close_body, ON_CLOSE_S)
        if not result.ok:
            what = result.error or f"it answered {result.status}"
            _log.warning("the model server was not told of a session's end at %s: %s", route, what)
        then()

    def _end_account(self, session: Session, outcome: Outcome, status: int) -> None:
        now = time.monotonic()
        began = session.opened_at if outcome is Outcome.SUCCESS else 0.0
        self._ledger.close(
            session.account, outcome, now, route=SESSION_ROUTE, status=status, started_at=began
        )

    # ------------------------------------------------------------------ for a worker.py

    def _changed(self) -> None:
        """Tell the hook host soon; the more there is to tell, the less often."""
        if self.tell is not None and self._telling is None:
            delay_s = TELL_EVERY_S * (1 + self._sessions.size_bytes / 2**20)
            self._telling = self._loop.call_later(delay_s, self.tell_all)

    def tell_all(self) -> None:
        """Tell the hook host which are open."""
        self._telling = None
        if self.tell is not None:
            self.tell(OpenSessions([_seen(each) for each in self._sessions.open.values()]))


def _shown(session: Session) -> bytes:
    """What ``get`` answers. What its client gave is put in as it is, not read again."""
    fields = {
        "session_id": _json(session.session_id),
        "auth_data": session.auth_data,
        "lifetime": _json(session.lifetime_s),
        "expiration": _json(session.expiration),
        "created_at": _json(session.created_at),
        "on_close_route": _json(session.on_close_route),
        "on_close_payload": session.on_close_payload or b"null",
    }
    return b"{%b}" % b", ".join(b'"%b": %b' % (k.encode(), v) for k, v in fields.items())


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _seen(session: Session) -> OpenSession:
    return OpenSession(
        session_id=session.session_id,
        lifetime_s=session.lifetime_s,
        auth_data=session.auth_data,
        expiration=session.expiration,
        created_at=session.created_at,
        on_close_route=session.on_close_route,
        on_close_payload=session.on_close_payload,
        request_idx=session.request_idx,
        requests=session.requests,
    )
