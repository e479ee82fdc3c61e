"""One small request's way through both processes, without sockets: what it costs, step by step.

    python -m tests.bench.hot_path [--opcodes] [--batch N]

The real rooms of ingress (connection, framing, envelope, signature, door, admission, answers,
accounts), of the session between the processes, and of the adapter (runs, queue, model
connection), wired to each other in one process; only the sockets are missing. Time says where to
look; the number of bytecodes that one request executes is the same on every machine, and
``tests/unit/test_hot_path.py`` holds it in a band.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvloop

from backend_adapter.capacity import Capacity
from backend_adapter.jobs import Job
from backend_adapter.messages import FromAdapter, Submit, ToAdapter
from backend_adapter.model_client import ModelClient
from backend_adapter.model_connection import Connection as ModelConnection
from backend_adapter.queue import Queue
from backend_adapter.runs import Runs
from ingress.admission import Admission
from ingress.answers import Answers
from ingress.auth import Authenticator
from ingress.connection import Connection
from ingress.door import Door
from ingress.envelope import decode
from ingress.http import Server
from ingress.management import Management
from ingress.questions import Questions
from ingress.routes import compile_routes
from reporter.producer_ledger import ProducerLedger
from supervisor.batch import unpacker
from supervisor.demo.signing import Signer
from supervisor.ends import ClientEnd, ServerEnd
from supervisor.settings import LimitSettings, RouteSettings, Workload

NAME = "ingress-0"
URL = "http://127.0.0.1:3000"
PAYLOAD = {"model": "m", "prompt": "hello world, how are you", "max_tokens": 64}
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Thu, 26 Nov 2026 04:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 61\r\nConnection: keep-alive\r\n\r\n"
    b'{"id":"cmpl-1","choices":[{"text":"hello world","index":0}]}\n'
)
STEPS = ("ingress takes", "ingress sends", "adapter takes", "adapter hears the model",
         "adapter sends", "ingress answers", "ingress accounts")  # fmt: skip


class Transport:
    """What is written goes nowhere, and is counted."""

    def __init__(self) -> None:
        self.writes = 0
        self.last: Any = b""

    def write(self, data: Any) -> None:
        self.writes += 1
        self.last = data

    def writelines(self, pieces: Any) -> None:
        self.writes += 1
        self.last = b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...

    def get_extra_info(self, name: str) -> None:
        return None


class Hands:
    """What the runs need of the adapter's process."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def send(self, peer: str, message: Any) -> bool:
        return self._rig.server.send(peer, message)

    def sender(self, job: Any) -> ModelClient:
        return self._rig.client

    def soon(self, *args: Any) -> None:
        raise AssertionError(args)

    def connection_lost(self, *args: Any) -> None:
        raise AssertionError(args)

    def model_lost(self) -> None:
        raise AssertionError

    def emptied(self) -> None:
        raise AssertionError


class Rig:
    """Both processes' rooms in one; ``batch`` requests pass in one turn of each loop, while so many
    others wait for something else."""

    def __init__(self, batch: int, waiting: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.to_adapter: list[bytes] = []
        self.to_ingress: list[bytes] = []
        # ----- ingress
        admission = Admission(10_000, 7)
        self.ledger = ProducerLedger(NAME, 1)
        self.answers = Answers(admission, self.ledger, 2**18)
        signer = Signer.generate("url")
        authenticator = Authenticator("signature", "any", URL, True, 100, 16)
        authenticator.set_key(signer.public_pem)
        route = RouteSettings(path="/v1/completions", workload=Workload(field="max_tokens"))
        door = Door(
            compile_routes([route]),
            authenticator,
            admission,
            self.ledger,
            Questions(30.0, 7),
            Management("t0ken", "/nowhere"),
            decode=decode,
            credit_bytes=2**20,
            ask=lambda message: False,
            answers=self.answers,
        )
        self._http = Server(door, LimitSettings(), loop)
        self.connections: list[Connection] = []
        self.transports: list[Transport] = []
        for _ in range(batch):
            connection, transport = Connection(self._http._shared), Transport()
            connection.connection_made(transport)  # type: ignore[arg-type]
            self.connections.append(connection)
            self.transports.append(transport)
        self.link = ClientEnd(
            lambda: 11, unpacker(FromAdapter), self._put, lambda: None,
            lambda messages: self.answers.hear(messages, time.monotonic()),
            self.answers.link_up, None,
        )  # fmt: skip
        self.answers.send = self.link.send
        # ----- adapter
        self.client = ModelClient("http://127.0.0.1:18000", loop, connect_timeout_s=5.0)
        self.models: list[ModelConnection] = []
        for _ in range(batch):
            model = ModelConnection(self.client, loop, None, True)  # type: ignore[arg-type]
            model.connection_made(Transport())  # type: ignore[arg-type]
            self.models.append(model)
            self.client._idle[model] = None
        queue = Queue(max_jobs=20_000, max_bytes=2**28, max_running=10_000, max_attempts=2)
        queue.set_capacity(1e9)
        capacity = Capacity(1e9)
        self.runs = Runs(queue, capacity, Hands(self), time.monotonic)
        self.server = ServerEnd(
            lambda: 13, unpacker(ToAdapter), self._put_back, self.runs.hear, None, None
        )
        queue.backend_up(time.monotonic())
        queue.hosted_down()
        for number in range(waiting):
            submit = Submit(number, "/other", "other", 0, 1.0, 1e6, 1e12, 2**20, hosted=True)
            assert not queue.submit(Job(("ingress-9", number), submit), time.monotonic())
        assert queue.waiting == waiting
        # ----- a session between them
        self.link.tick(time.monotonic())
        self._cross()
        self._cross_back()
        assert self.link.link.up
        auth = {
            "cost": 64, "endpoint": "e", "reqnum": 1, "request_idx": 1, "url": URL,
            "signature": signer.sign(cost=64, endpoint="e", reqnum=1, url=URL),
        }  # fmt: skip
        body = json.dumps({"auth_data": auth, "payload": PAYLOAD}).encode()
        self.request = (
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.steps: dict[str, Callable[[], None]] = dict(
            zip(
                STEPS,
                (
                    self._take, self.link.flush, self._cross, self._respond, self.server.flush,
                    self._cross_back, self._account,
                ),
                strict=True,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Stop the timers."""
        self._http.close()
        self.client._timer.cancel()

    def _put(self, frame: bytes) -> bool:
        self.to_adapter.append(frame)
        return True

    def _put_back(self, name: str, frame: bytes) -> bool:
        self.to_ingress.append(frame)
        return True

    def _take(self) -> None:
        for connection in self.connections:
            connection.data_received(self.request)

    def _cross(self) -> None:
        for frame in self.to_adapter:
            self.server.arrived([NAME.encode(), frame], time.monotonic())
        self.to_adapter.clear()

    def _respond(self) -> None:
        for model in self.models:
            model.data_received(RESPONSE)

    def _cross_back(self) -> None:
        for frame in self.to_ingress:
            self.link.arrived([frame], time.monotonic())
        self.to_ingress.clear()

    def _account(self) -> None:
        events = self.ledger.batch()
        if events is not None:
            self.ledger.acked(events.seq)

    def once(self) -> None:
        """One request on every connection."""
        for step in self.steps.values():
            step()

    def check(self) -> None:
        """Every client has its answer."""
        for transport in self.transports:
            assert transport.last.startswith(b"HTTP/1.1 200 OK"), transport.last
            assert transport.last.endswith(RESPONSE[-61:])


def times(rig: Rig, rounds: int) -> dict[str, float]:
    """Least microseconds per request of each step."""
    best = dict.fromkeys(STEPS, math.inf)
    clock = time.perf_counter
    for _ in range(rounds):
        for name, step in rig.steps.items():
            began = clock()
            step()
            best[name] = min(best[name], clock() - began)
    return {name: took * 1e6 / len(rig.connections) for name, took in best.items()}


def opcodes(rig: Rig) -> dict[str, Counter[str]]:
    """Bytecodes per request of each step, by function."""
    found: dict[str, Counter[str]] = {}
    counts: Counter[Any] = Counter()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            counts[frame.f_code] += 1
        return trace

    for name, step in rig.steps.items():
        counts = Counter()
        before = sys.gettrace()  # coverage, where it is measured
        sys.settrace(trace)
        try:
            step()
        finally:
            sys.settrace(before)
        found[name] = Counter()
        for code, count in counts.items():
            where = code.co_filename.rpartition("/")[2].removesuffix(".py")
            found[name][f"{where}.{code.co_qualname}"] += count
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--opcodes", action="store_true", help="bytecodes by function")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()

    async def measure() -> None:
        rig = Rig(args.batch)
        try:
            for _ in range(20):
                rig.once()
            rig.check()
            if args.opcodes:
                for name, counts in opcodes(rig).items():
                    print(f"{sum(counts.values()) / args.batch:8.1f}  {name}")
                    for where, count in counts.most_common(40):
                        print(f"{count / args.batch:16.1f}  {where}")
            took = times(rig, args.rounds)
            for name, each in took.items():
                print(f"{each:8.2f} µs  {name}")
            print(f"{sum(took.values()):8.2f} µs  all")
        finally:
            rig.close()

    uvloop.run(measure())


if __name__ == "__main__":
    main()
