"""The demo model server: ``python -m supervisor.demo.model``.

Responsible for its routes and its life. It really generates text (a Markov chain over
words, learnt at start from ``corpus.md``), speaks TGI's and OpenAI's HTTP API, and misbehaves when
told to. Its law: what a client sees is what the real servers would do, and what a fault breaks,
``/demo/stats`` and ``/demo/fault`` still tell (unless the event loop itself is blocked).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from supervisor.demo import sabotage
from supervisor.demo.bodies import BadBody
from supervisor.demo.desk import Desk
from supervisor.demo.faults import (
    START_ONLY,
    AnyFault,
    BadResponse,
    Crash,
    CrashOnStart,
    Faults,
    FloodLog,
    ForgetPort,
    Hang,
    HangEventLoop,
    LeaveGrandchild,
    MidStreamCrash,
    MidStreamFault,
    NoReadyLine,
    RefuseTerm,
    Slow,
    Status,
    StopAfterHealth,
    kind_of,
    parse_body,
)
from supervisor.demo.generation import Generation
from supervisor.demo.markov import Markov, Token
from supervisor.demo.model_api import Context, Parser, Refusal, Request, Result
from supervisor.demo.model_flags import flags
from supervisor.demo.serving import Server, give_up, say, stop_signal
from supervisor.demo.tally import Tally
from supervisor.demo.voice_openai import openai_error, parse_chat, parse_completion
from supervisor.demo.voice_tgi import parse_generate, parse_generate_stream

PARSERS: dict[str, Parser] = {
    "/generate": parse_generate,
    "/generate_stream": parse_generate_stream,
    "/v1/completions": parse_completion,
    "/v1/chat/completions": parse_chat,
}

CORPUS = Path(__file__).with_name("corpus.md")


class ModelServer:
    """The routes, and what they share."""

    def __init__(self, args: argparse.Namespace, server: Server, journal: int | None) -> None:
        self._args = args
        self._server = server
        self._journal = journal
        self._tally = Tally()
        self._faults = Faults()
        self._faults_changed = asyncio.Event()
        self._desk: Desk | None = None  #: None until loaded
        for fault in args.fault:
            self._faults.set(fault)

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(client_max_size=self._args.max_body_bytes)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for path in PARSERS:
            app.router.add_post(path, self._generate)
        app.router.add_get("/demo/stats", self._stats)
        app.router.add_post("/demo/fault", self._fault)
        return app

    def refuses_term(self) -> bool:
        """Whether SIGTERM is to be ignored now."""
        return RefuseTerm in self._faults

    async def load(self) -> None:
        """Get ready to generate, as slowly as the flags say."""
        say(f"INFO Loading model {self._args.model_name} (pid {os.getpid()})")
        for fault in self._args.fault:
            if isinstance(fault, CrashOnStart):
                await asyncio.sleep(fault.after_s)
                say("RuntimeError: Engine could not start (fault crash_on_start)")
                sabotage.crash(Crash(code=fault.code))
        for percent in (20, 40, 60, 80, 100):
            await asyncio.sleep(self._args.load_seconds / 5)
            say(f"INFO Loading weights {percent}%")
        self._desk = Desk(
            Markov(CORPUS.read_text(encoding="utf-8")),
            self._tally,
            slots=self._args.slots,
            tokens_per_s=self._args.tokens_per_second,
            first_token_s=self._args.first_token_ms / 1000,
        )
        if NoReadyLine not in self._faults:
            say(self._args.ready_line)
        for fault in self._args.fault:
            await self._carry_out(fault)

    # ------------------------------------------------------------------------- routes

    async def _health(self, request: web.Request) -> web.Response:
        match self._faults.for_health():
            case Hang():
                await self._hang()
            case StopAfterHealth():
                return web.Response(status=500)
            case Status(code=code):
                return web.Response(status=code)
            case Slow(delay_s=delay_s):
                await asyncio.sleep(delay_s)
            case None:
                pass
        return web.Response(status=503 if self._desk is None else 200)

    async def _models(self, request: web.Request) -> web.Response:
        await self._hang()
        card = {"id": self._args.model_name, "object": "model", "owned_by": "demo"}
        return _json({"object": "list", "data": [card]})

    async def _stats(self, request: web.Request) -> web.Response:
        desk = self._desk
        return _json(
            {
                "pid": os.getpid(),
                "model": self._args.model_name,
                "loaded": desk is not None,
                "running": desk.running if desk else 0,
                "waiting": desk.waiting if desk else 0,
                "faults": self._faults.active,
                **self._tally.view(),
            }
        )

    async def _fault(self, request: web.Request) -> web.StreamResponse:
        try:
            fault = parse_body(await request.read())
        except BadBody as error:
            return _json({"error": str(error)}, 422)
        if isinstance(fault, START_ONLY):
            return _json({"error": f"{kind_of(fault)} works only as --fault at start"}, 422)
        self._faults.set(fault)
        changed, self._faults_changed = self._faults_changed, asyncio.Event()
        changed.set()
        if isinstance(fault, Crash | HangEventLoop):
            # Nobody could answer afterwards: answer first.
            response = _json({"ok": True})
            await response.prepare(request)
            await response.write_eof()
            await sabotage.written()
            await self._carry_out(fault)
            return response
        done = await self._carry_out(fault)
        return _json({"ok": True, "faults": self._faults.active, **done})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        context = Context(
            self._args.model_name,
            uuid.uuid4().hex,
            int(time.time()),
            random.getrandbits(63),
        )
        try:
            if self._desk is None:
                raise openai_error(503, "ServiceUnavailable", "The model is still loading.")
            asked = PARSERS[request.path](body, context)
        except Refusal as refusal:
            self._tally.refused += 1
            return _json(refusal.body, refusal.status)
        self._tally.receive(asked.tag)
        self._note("received", asked.tag)
        try:
            response = await self._answer(request, asked, self._desk)
        except (asyncio.CancelledError, ConnectionError):
            self._tally.cancelled += 1
            say(f"INFO Request {asked.tag or context.id} cancelled: the client went away")
            raise
        except sabotage.CutOff:
            self._tally.failed += 1
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        if response.status == 200:
            self._tally.finish(asked.tag)
            self._note("finished", asked.tag)
        else:
            self._tally.failed += 1
        return response

    # ----------------------------------------------------------------------- answering

    async def _answer(self, request: web.Request, asked: Request, desk: Desk) -> web.StreamResponse:
        match self._faults.for_request():
            case Crash() as crash:
                sabotage.crash(crash)
            case Hang():
                await self._hang()
            case BadResponse() as fault:
                sabotage.answer_badly(request, fault)
            case Status(code=code):
                kind = "InternalServerError"
                return _json(openai_error(code, kind, "fault status").body, code)
            case Slow(delay_s=delay_s):
                await asyncio.sleep(delay_s)
            case None:
                pass
        cut = self._faults.for_generation()
        if asked.stream:
            return await self._stream(request, asked, desk, cut)
        words: list[Token] = []
        async with desk.slot(asked.ask) as generation:
            async for new in desk.steps(generation):
                await _cut_off(cut, len(words))
                words += new
        body = asked.voice.whole(_result(generation, words))
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self, request: web.Request, asked: Request, desk: Desk, cut: MidStreamFault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        voice = asked.voice
        sent = 0
        async with desk.slot(asked.ask) as generation:
            async for new in desk.steps(generation):
                await _cut_off(cut, sent)
                events = b""
                if not response.prepared:
                    await response.prepare(request)
                    events = voice.opening()
                last = new.pop() if generation.finish is not None and new else None
                for token in new:
                    events += voice.token(sent, token)
                    sent += 1
                if generation.finish is not None:
                    events += voice.closing(sent, last, _result(generation, []))
                if events:
                    await response.write(events)
        await response.write_eof()
        return response

    async def _hang(self) -> None:
        while Hang in self._faults:
            await self._faults_changed.wait()

    async def _carry_out(self, fault: AnyFault) -> dict[str, Any]:
        """Do at once what the fault does at once; what there is to say about it."""
        match fault:
            case Crash(after=0):
                sabotage.crash(fault)
            case HangEventLoop(for_s=for_s):
                time.sleep(for_s)  # noqa: ASYNC251 - blocking the loop is the fault
            case ForgetPort():
                await self._server.forget_port()
            case FloodLog():
                return {"written_bytes": await sabotage.flood(fault)}
            case LeaveGrandchild():
                listening = self._server.socket.fileno()
                return {"grandchild_pid": sabotage.leave_grandchild(fault, listening)}
            case _:
                pass
        return {}

    def _note(self, what: str, tag: str) -> None:
        if self._journal is not None and tag:
            os.write(self._journal, f"{what} {tag} {os.getpid()}\n".encode())


async def _cut_off(cut: MidStreamFault | None, words: int) -> None:
    """Carry the fault out when ``words`` words were handed out."""
    if cut is None or words < cut.after:
        return
    if isinstance(cut, MidStreamCrash):
        await sabotage.written()
        sabotage.kill_self()
    raise sabotage.CutOff


def _result(generation: Generation, words: list[Token]) -> Result:
    return Result(generation.text, words, generation.made, generation.finish or "length")


def _json(body: object, status: int = 200) -> web.Response:
    encoded = msgspec.json.encode(body)
    return web.Response(body=encoded, status=status, content_type="application/json")


async def _run(args: argparse.Namespace, server: Server, journal: int | None) -> None:
    model = ModelServer(args, server, journal)
    stop = stop_signal(model.refuses_term)
    await server.start(model.app())
    loading = asyncio.create_task(model.load())
    loading.add_done_callback(_raise_failure)
    try:
        await stop.wait()
        say("INFO Shutting down")
    finally:
        loading.cancel()
        await server.stop()


def _raise_failure(task: asyncio.Task[None]) -> None:
    """A server that cannot load is of no use to anyone."""
    if not task.cancelled() and task.exception() is not None:
        say(f"RuntimeError: Engine could not start: {task.exception()}")
        os._exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    args = flags().parse_args(argv)
    journal: int | None = None
    if args.journal:
        try:
            journal = os.open(args.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            give_up(f"cannot write the journal: {error}")
    uvloop.run(_run(args, Server(args.host, args.port), journal))


if __name__ == "__main__":
    main()
