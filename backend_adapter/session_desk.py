"""The hands of sessions: answers the calls about them, and does what follows from their end.

Law: each call is answered once, unless its caller is gone. A session that is closed takes its
requests with it, ends its account, which counts as one request of the engine until then, and tells
the model server so where its client wished that: for at most ``ON_CLOSE_S``, and again by the
adapter after this one if this one dies meanwhile. ``sessions.py`` knows which are open; it must not
know how a job runs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from backend_adapter.messages import Answer, FromAdapter, Rejected, SessionCall
from backend_adapter.model_client import ModelClient, ProbeResult
from backend_adapter.session_files import SessionFiles
from backend_adapter.session_mirror import SessionMirror
from backend_adapter.sessions import Session, Sessions, closing_words
from reporter.messages import SESSION_ROUTE, Outcome
from reporter.producer_ledger import UNTOLD_IDX, ProducerLedger

#: Between two looks at expirations, as clients know it from the public PyWorker.
SWEEP_EVERY_S = 5.0
ON_CLOSE_S = 10.0
#: Ends that the model server is told of at the same time; the others wait for their turn.
ON_CLOSE_AT_ONCE = 32
#: Files that are written anew per sweep; the others have their turn at the next one.
SAVED_AT_ONCE = 500
JSON_TYPE = b"content-type: application/json\r\n"
_log = logging.getLogger("backend_adapter")


class SessionDesk:
    """Every session.

    Args:
        most: open at once; 0: no limit but memory.
        client: of the model server.
        ledger: where each counts as one request.
        files: keep them for an adapter after this one.
        mirror: shows them to a worker.py.
        send: answers a process by its name.
        revoke: ends the requests of a session.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        most: int,
        client: ModelClient,
        ledger: ProducerLedger,
        files: SessionFiles,
        mirror: SessionMirror,
        *,
        send: Callable[[str, FromAdapter], Any],
        revoke: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = Sessions(most)
        self._client = client
        self._ledger = ledger
        self._files = files
        self._mirror = mirror
        mirror.open = self._sessions.open
        self._send = send
        self._revoke = revoke
        self._clock = clock
        #: closed, but the model server has not heard of it yet: session, and who waits for that
        self._closing: dict[str, tuple[Session, list[tuple[str, int]]]] = {}
        self._closing_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(ON_CLOSE_AT_ONCE)
        self._used: dict[str, Session] = {}  # since they were saved, or not saved yet
        self._draining = False

    @property
    def open(self) -> int:
        """How many are."""
        return len(self._sessions.open)

    def restore(self) -> None:
        """Go on with what an adapter before this one had open, and end what it was ending.

        The engine was told that their requests are over, when that one's account ended; as load
        they go on. Each gets its lifetime anew: nobody could use it meanwhile.
        """
        now = self._clock()
        for session in self._files.load():
            if session.closing:
                self._tell_model(session)
                continue
            session.expires_at = max(session.expires_at, now + session.lifetime_s)
            session.account = self._ledger.open(UNTOLD_IDX, session.workload, now, counted=False)
            if self._sessions.add(session):
                self._mirror.changed(session.session_id)
            else:  # the settings allow fewer now
                self._files.drop(session)
                self._end_account(session, Outcome.CANCELLED, 429)
        if self.open:
            _log.info("%d sessions go on", self.open)

    # ------------------------------------------------------------------ calls

    def on_call(self, peer: str, call: SessionCall) -> None:
        """Answer, now or when what follows is done."""
        caller = (peer, call.id)
        if call.call == "create":
            self._create(caller, call)
            return
        session = self._sessions.open.get(call.session_id)
        ending = self._closing.get(call.session_id)
        if session is None and ending is not None and call.call == "end":
            session = ending[0]
        if session is None:
            if call.call == "health":
                self._answer(caller, 200, _json({"ok": False}))
            else:
                text = "no such session is open on this worker; create one"
                self._reject(caller, "unknown_session", text)
        elif not hmac.compare_digest(call.auth, session.auth):
            text = "session_auth is not the auth_data that made this session"
            self._reject(caller, "bad_token", text)
        elif call.call == "health":
            self._answer(caller, 200, _json({"ok": True}))
        elif call.call == "get":
            self._answer(caller, 200, _shown(session))
        elif ending is not None:
            ending[1].append(caller)
        else:
            self._close(session, caller)

    def caller_gone(self, peer: str) -> None:
        """Whoever has its name next has not called."""
        for _, callers in self._closing.values():
            callers[:] = [caller for caller in callers if caller[0] != peer]

    def _create(self, caller: tuple[str, int], call: SessionCall) -> None:
        session = self._sessions.open.get(call.session_id)
        if session is None:
            if self._draining:
                text = "the worker is stopping; create the session elsewhere"
                self._reject(caller, "draining", text)
                return
            session = self._new(call)
            if session is None:
                closing = f" and {len(self._closing)} closing" if self._closing else ""
                text = f"{self.open} sessions are open{closing}: no other may be; retry later"
                self._reject(caller, "too_many_sessions", text, 1.0)
                return
        shown = {"session_id": session.session_id, "expiration": session.expiration}
        self._answer(caller, 201, _json(shown))

    def _new(self, call: SessionCall) -> Session | None:
        self._close_expired()
        now = self._clock()
        session = Session(
            session_id=call.session_id,
            auth=call.auth,
            auth_data=call.body[: call.auth_bytes],
            lifetime_s=call.lifetime_s,
            workload=call.workload,
            request_idx=call.request_idx,
            on_close_route=call.on_close_route,
            on_close_payload=call.body[call.auth_bytes :] or None,
            names_itself=call.names_itself,
            created_at=time.time(),
            opened_at=now,
            expires_at=now + call.lifetime_s,
            account=self._ledger.open(call.request_idx, call.workload, now, call.reqnum),
        )
        if not self._sessions.add(session, self._closing_bytes):
            self._end_account(session, Outcome.REJECTED, 429)
            return None
        self._save(session)
        self._mirror.changed(session.session_id)
        return session

    def use(self, session_id: str) -> bool:
        """A request inside a session has come. False: there is none such."""
        session = self._sessions.use(session_id)
        if session is None:
            return False
        self._used[session_id] = session
        self._mirror.changed(session.session_id)
        return True

    def _answer(self, caller: tuple[str, int], status: int, body: bytes) -> None:
        peer, number = caller
        self._send(peer, Answer(number, status, JSON_TYPE, self._clock(), body))

    def _reject(
        self, caller: tuple[str, int], kind: str, text: str, retry_after_s: float = 0.0
    ) -> None:
        peer, number = caller
        self._send(peer, Rejected(number, kind, text, retry_after_s))

    # ------------------------------------------------------------------ ends

    def sweep(self) -> None:
        """Close what has expired, save what was used, or is gone. Call every ``SWEEP_EVERY_S``."""
        self._close_expired()
        if self._sessions.open and not self._files.there:
            self._used.update(self._sessions.open)  # somebody removed them: all are written anew
        for session_id in list(islice(self._used, SAVED_AT_ONCE)):
            session = self._used.pop(session_id)
            if session_id in self._sessions.open:
                self._save(session)

    def _save(self, session: Session) -> None:
        if not self._files.save(session):
            self._used[session.session_id] = session  # the next sweep tries again

    def _close_expired(self) -> None:
        for session in self._sessions.expired(self._clock()):
            self._close(session)

    async def drain(self, last: asyncio.Event) -> None:
        """Open none any more; return when what follows from the ends before is done.

        ``last``: is set when no adapter comes after this one; then every session is closed.
        """
        self._draining = True
        waits = asyncio.create_task(last.wait())
        try:
            while True:
                if last.is_set():
                    for session in list(self._sessions.open.values()):
                        self._close(session)
                if not self._tasks:
                    return
                await asyncio.wait(
                    [*self._tasks, *([] if last.is_set() else [waits])],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            waits.cancel()

    def stop(self) -> None:
        """Begin nothing more."""
        for task in self._tasks:
            task.cancel()

    def _close(self, session: Session, *callers: tuple[str, int]) -> None:
        self._sessions.remove(session.session_id)
        self._used.pop(session.session_id, None)
        self._end_account(session, Outcome.SUCCESS, 200)
        self._revoke(session.session_id)
        self._mirror.changed(session.session_id)
        if session.on_close_route is None:
            self._files.drop(session)
            self._ended(session, callers)
        else:
            session.closing = True
            self._files.save(session)
            self._tell_model(session, *callers)

    def _ended(self, session: Session, callers: tuple[tuple[str, int], ...]) -> None:
        for caller in callers:
            done = {"ended": True, "removed_session": session.session_id}
            self._answer(caller, 200, _json(done))

    def _tell_model(self, session: Session, *callers: tuple[str, int]) -> None:
        self._closing[session.session_id] = session, list(callers)
        self._closing_bytes += session.size_bytes
        task = asyncio.create_task(self._on_close(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_close(self, session: Session) -> None:
        route = session.on_close_route or ""
        async with self._turns:
            try:
                result = await self._client.post(
                    route, JSON_TYPE, closing_words(session), ON_CLOSE_S
                )
            except ValueError as error:
                result = ProbeResult(0, str(error))
        if not result.ok:
            path = route.partition("?")[0]  # what follows may be a secret
            what = result.error or f"it answered {result.status}"
            _log.warning("the model server was not told of a session's end at %s: %s", path, what)
        self._files.drop(session)
        _, callers = self._closing.pop(session.session_id)
        self._closing_bytes -= session.size_bytes
        self._ended(session, tuple(callers))

    def _end_account(self, session: Session, outcome: Outcome, status: int) -> None:
        now = self._clock()
        began = session.opened_at if outcome is Outcome.SUCCESS else 0.0
        self._ledger.close(
            session.account, outcome, now, route=SESSION_ROUTE, status=status, started_at=began
        )


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
