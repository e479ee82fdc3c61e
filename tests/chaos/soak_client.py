"""The clients of the soak: one request, one outcome, every byte looked at.

HTTP by hand, so that a client can leave in the middle, read slowly, and tell a clean end from a
broken one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.soak_mix import LEAVERS, STREAMS, Ask, Oracle

#: Nothing may take longer: every wait of the worker has a deadline below it.
DEADLINE_S = 150.0
CONNECT_DEADLINE_S = 60.0
_SLOW_BYTES, _SLOW_PAUSE_S = 1_024, 0.06
_ERROR_EVENT = b'\n\ndata: {"error"'


@dataclass
class Answer:
    """What came back. ``status`` 0: nothing did; ``complete``: it ended as HTTP says it must."""

    status: int = 0
    body: bytes = b""
    complete: bool = False
    keep_alive: bool = False


@dataclass
class Seen:
    """One request and its one outcome.

    Attributes:
        outcome: ``ok``, ``left``, the kind of a typed error, ``broken:KIND`` for a stream that
            ended with a visible error, ``cut`` (the connection broke), ``unanswered``,
            ``nonsense`` (an answer that cannot be).
        fault: ``swapped`` or ``disordered``; "" is well.
        began_at, ended_at: monotonic.
    """

    ask: Ask
    outcome: str
    status: int
    fault: str
    began_at: float
    ended_at: float
    detail: str = ""


class Client:
    """Asks one worker.

    Args:
        url: of the worker.
        auth: auth_data that the engine signed for it.
    """

    def __init__(self, url: str, auth: dict[str, Any], oracle: Oracle) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._auth = auth
        self._oracle = oracle
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seen: list[Seen] = []
        self.refused_connections = 0

    def close(self) -> None:
        """Let go of the connections that are kept."""
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()

    async def ask(self, ask: Ask) -> Seen:
        """Ask, and remember what came of it."""
        reader, writer, began_at = await self._connected(slow=ask.kind == "slow")
        answer, left, late = Answer(), False, False
        try:
            async with asyncio.timeout(ask.leave_after_s or DEADLINE_S):
                await self._exchange(reader, writer, ask, answer)
        except TimeoutError:
            left, late = ask.kind in LEAVERS, ask.kind not in LEAVERS
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # what was read says the rest
        ended_at = time.monotonic()
        if answer.complete and answer.keep_alive and ask.idx % 2:
            self._idle.append((reader, writer))
        else:
            writer.transport.abort() if ask.idx % 3 else writer.close()
        seen = Seen(ask, "", answer.status, "", began_at, ended_at)
        if late:
            seen.outcome = "unanswered"
        else:
            judge(seen, answer, left, self._oracle.answer)
        self.seen.append(seen)
        return seen

    async def _connected(
        self, *, slow: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, float]:
        """A connection, kept or new, and when it was looked for. A port that is closed is tried
        again: nothing was asked there."""
        while self._idle and not slow:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer, time.monotonic()
            writer.transport.abort()
        end = time.monotonic() + CONNECT_DEADLINE_S
        while True:
            began_at = time.monotonic()
            sock = socket.socket()
            sock.setblocking(False)
            if slow:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            try:
                await asyncio.get_running_loop().sock_connect(sock, (self._host, self._port))
                reader, writer = await asyncio.open_connection(sock=sock, limit=16_384)
                return reader, writer, began_at
            except OSError:
                sock.close()
                self.refused_connections += 1
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask, answer: Answer
    ) -> None:
        body = json.dumps(self._body(ask)).encode()
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (ask.route.encode(), len(body), body)
        )
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        answer.status = int(lines[0].split(b" ")[1])
        answer.keep_alive = fields.get(b"connection") != b"close"
        if b"content-length" in fields:
            await _read(reader, int(fields[b"content-length"]), ask, answer)
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await _read(reader, size, ask, answer)
                await reader.readexactly(2)
            await reader.readexactly(2)
        answer.complete = True

    def _body(self, ask: Ask) -> dict[str, Any]:
        if ask.kind == "end":
            return ask.session
        auth = {**self._auth, "cost": ask.work, "request_idx": ask.idx, "reqnum": ask.idx}
        if ask.kind == "forged":
            auth["signature"] = auth["signature"][::-1]
        body = {"auth_data": auth, "payload": ask.payload}
        if ask.kind == "create":
            ask.session["session_auth"] = auth
        elif ask.session:
            body["session_id"] = ask.session["session_id"]
        return body


async def _read(reader: asyncio.StreamReader, size: int, ask: Ask, answer: Answer) -> None:
    """Whatever comes is kept, complete or not."""
    while size:
        part = await reader.read(min(size, _SLOW_BYTES))
        if not part:
            raise asyncio.IncompleteReadError(b"", size)
        before = len(answer.body)
        answer.body += part
        size -= len(part)
        if ask.kind == "slow" and before // _SLOW_BYTES != len(answer.body) // _SLOW_BYTES:
            await asyncio.sleep(_SLOW_PAUSE_S)  # reading slowly is what this client is for


def judge(seen: Seen, answer: Answer, left: bool, right: Callable[[Ask], bytes]) -> None:
    """Say what the answer amounts to. ``right``: gives the body that it must have."""
    ask, body = seen.ask, answer.body
    if answer.status >= 400 and answer.complete:
        try:
            error = json.loads(body)["error"]
            seen.outcome, seen.detail = error["kind"], error["message"]
        except (ValueError, LookupError, TypeError):
            seen.outcome, seen.detail = "nonsense", repr(body[:200])
        return
    if not answer.status or answer.status >= 400:
        seen.outcome = "left" if left else "cut"
        return
    if ask.kind in ("create", "end"):
        _judge_call(seen, answer)
        return
    if answer.complete:
        seen.outcome = "ok"
        if body != right(ask):
            seen.fault = "disordered" if ask.kind in STREAMS else "swapped"
            seen.detail = repr(body[:200])
        return
    begun, error, rest = body.rpartition(_ERROR_EVENT)
    if not error:
        begun, seen.outcome = body, "left" if left else "cut"
    else:
        with suppress(ValueError, LookupError, TypeError):
            told = json.loads(_ERROR_EVENT[8:] + rest)["error"]
            seen.outcome, seen.detail = f"broken:{told['kind']}", told["message"]
        if not seen.outcome:
            seen.outcome = "left" if left else "cut"
    if not right(ask).startswith(begun):
        seen.fault = "disordered"
        seen.detail = repr(begun[-300:])


def _judge_call(seen: Seen, answer: Answer) -> None:
    if not answer.complete:
        seen.outcome = "cut"
        return
    seen.outcome = "ok"
    with suppress(ValueError):
        told = json.loads(answer.body)
        if seen.ask.kind == "create" and "session_id" in told:
            seen.ask.session["session_id"] = told["session_id"]
            return
        if told == {"ended": True, "removed_session": seen.ask.session["session_id"]}:
            return
    seen.fault, seen.detail = "swapped", repr(answer.body[:200])
