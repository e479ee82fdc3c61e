"""Strange bytes on the sockets between the processes: whoever gets them drops them and lives on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from backend_adapter.hook_messages import Prepare, ToHooks
from backend_adapter.messages import Cancel, Submit, ToAdapter
from reporter.messages import Events, ToReporter, Totals
from supervisor.batch import pack
from supervisor.messages import Beat, ToSupervisor
from tests.chaos.table import row
from tests.compat.bench import Bench, on_the_bench
from tests.kit.wait import wait_until

SCRIPT = """
from vastai import Worker, WorkerConfig, HandlerConfig, LogActionConfig
Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
    handlers=[HandlerConfig("/echo", workload_calculator=lambda payload: 5.0)],
    log_action_config=LogActionConfig(on_load=["READY"]),
)).run()
"""
#: who binds which
SOCKETS = {
    "control": "supervisor",
    "events": "reporter",
    "jobs": "backend_adapter",
    "hooks": "hooks",
}
#: One honest message of each socket, which is a foreign one on the others.
WORDS = {
    "control": Beat(pid=1, ready=True),
    "events": Events("nobody", 1, 1, [], [], Totals(0.0, 0.0, 0.0, 0.0, 0.0, 0), {}),
    "jobs": Submit(1, "/x", "/x", 0, 1.0, 1.0, float("inf"), 4096),
    "hooks": Prepare(1, "/echo", b"{}"),
}
UNIONS: dict[str, Any] = {
    "control": ToSupervisor,
    "events": ToReporter,
    "jobs": ToAdapter,
    "hooks": ToHooks,
}
_encode = msgspec.msgpack.encode


class Stranger:
    """Somebody on one socket who may reach it, and does not speak its language."""

    def __init__(self, directory: str, name: str) -> None:
        self.path = os.path.join(directory, name)
        self._context = zmq.Context()
        self.open()

    def open(self) -> None:
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IDENTITY, b"stranger")
        self.socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self.socket.connect(f"ipc://{self.path}")

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def says(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def hears(self) -> tuple[int, int, int, list[Any]]:
        """The next header that is no answer to a keepalive."""
        frame = msgspec.msgpack.decode(self.socket.recv())
        return (*frame[:3], frame[3])  # type: ignore[return-value]

    def session(self, epoch: int) -> int:
        """Greet, and return the epoch of the session."""
        self.says(pack((epoch, 0, 0)))
        while True:
            theirs, to, number, _ = self.hears()
            if (to, number) == (epoch, 0) and theirs:
                return theirs


def malformed(name: str) -> list[tuple[bytes, ...]]:
    """Messages that are none, each of one frame unless that is what is wrong with it."""
    honest = _encode((7, 0, 0, [WORDS[name]]))
    tag, *rest = msgspec.to_builtins(WORDS[name])
    return [
        (b"",),
        (b"\xc1" * 40,),
        (os.urandom(5000),),
        (b'{"json": true}',),
        (_encode((1, 2)),),
        (_encode(("one", 0, 0, [])),),
        (_encode((1.5, 0, 0, [])),),
        (_encode((2**70 % 2**64, -(2**40), "x", [])),),
        (b"\x94\x01\x00\x00" + b"\x91" * 5000,),  # nested without end
        (_encode((7, 0, 0, [[tag]])),),  # fields are missing that never had a default
        (_encode((7, 0, 0, [[99, *rest]])),),  # a word of a later version
        (_encode((7, 0, 0, [[tag, *([{}] * len(rest))]])),),
        (b"\x94\x01\x00\x00\xdf\xff\xff\xff\xff",),  # says that 4 billion messages follow
        *((honest[:size],) for size in range(1, len(honest), max(1, len(honest) // 12))),
        (honest, b"and one frame more"),
    ]


def counted(bench: Bench) -> dict[str, int]:
    return dict(bench.status()["malformed"])


@contextmanager
def honest_traffic(bench: Bench) -> Iterator[Callable[[], int]]:
    """One request after the other; each has to succeed. Gives how many have so far."""
    stop, done, wrong = threading.Event(), [], []

    def asks() -> None:
        while not stop.is_set():
            status, _, body = bench.ask("/echo", {"n": len(done)})
            (done if status == 200 else wrong).append(body)

    thread = threading.Thread(target=asks)
    thread.start()
    try:
        yield lambda: len(done)
    finally:
        stop.set()
        thread.join(60)
    assert not wrong


@row(
    21,
    "malformed, truncated, oversized or foreign messages, and raw bytes, on each of the four"
    " sockets between the processes",
    seen="`status` counts what was dropped, by the process that got it (`malformed` in"
    " `status --json`); clients see nothing",
    does="drops the message and goes on; refuses batches of a session that it does not know; ends"
    " the connection of whoever sends a frame above the limit (that is not counted), or other bytes"
    " than ZeroMQ's",
)
def test_row_21_strange_messages_on_the_sockets(tmp_path: Path) -> None:
    with on_the_bench(tmp_path, SCRIPT) as bench:
        bench.until_ready()
        directory = bench.facts()["runtime_dir"]
        before = {m["name"]: (m["pid"], m["restarts"]) for m in bench.status()["members"]}
        assert set(counted(bench).values()) == {0}
        with honest_traffic(bench) as done:
            sent = {name: tell_nonsense(directory, name) for name in SOCKETS}
            expected = {who: sent[name] for name, who in SOCKETS.items()}
            wait_until(
                lambda: {who: counted(bench)[who] for who in expected} == expected,
                what=f"each message to be counted: {expected}, not {counted(bench)}",
            )
            for name in SOCKETS:
                throw_things(directory, name)
            so_far = done()
            wait_until(lambda: done() > so_far + 20, what="honest traffic to go on")
        assert "messages that are none of ours" in bench.say("status").stdout
        status = bench.status()
        assert {m["name"]: (m["pid"], m["restarts"]) for m in status["members"]} == before
        ingress = next(m for m in status["members"] if m["name"] == "ingress-0")
        assert ingress["gauges"]["redelivered"] == 0, "an honest session was broken"
        assert bench.until_served(so_far) >= 5.0 * so_far


def tell_nonsense(directory: str, name: str) -> int:
    """Everything that is wrong, to one socket; how many of the messages are to be counted."""
    stranger = Stranger(directory, name)
    try:
        messages = malformed(name)
        for frames in messages:
            stranger.says(*frames)
        # a batch of a session that nobody knows is refused, not counted
        stranger.says(pack((5, 6, 1), [WORDS[name]]))
        while stranger.hears()[:3] != (0, 5, 0):
            pass
        # words of other sockets, inside a session as good as any: no batch of it is taken
        foreign = [word for other, word in WORDS.items() if other != name and not fits(name, word)]
        for epoch, word in enumerate(foreign, 11):
            theirs = stranger.session(epoch)
            stranger.says(pack((epoch, theirs, 1), [word]))
            stranger.says(pack((epoch, theirs, 2)))  # behind it there is a gap: the session ends
            while stranger.hears()[:3] != (0, epoch, 0):
                pass
        return len(messages) + len(foreign)
    finally:
        stranger.close()


def throw_things(directory: str, name: str) -> None:
    """A frame that is too long, and bytes of no protocol; whoever comes next is served.

    Some of the latter look like frames of old versions of ZeroMQ, which are counted as messages.
    """
    stranger = Stranger(directory, name)
    try:
        stranger.session(76)
        stranger.says(bytes(66 * 2**20))
        raw(stranger.path)
        stranger.socket.close()
        stranger.open()
        assert stranger.session(77)
    finally:
        stranger.close()


def fits(name: str, word: Any) -> bool:
    """By chance, these bytes are a message of that socket, too."""
    try:
        msgspec.msgpack.decode(_encode(word), type=UNIONS[name])
    except msgspec.MsgspecError:
        return False
    return True


def raw(path: str) -> None:
    """Not even ZeroMQ."""
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 70_000, b""):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(10)
            plain.connect(path)
            try:
                plain.sendall(data)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(4096):
                    pass
            except OSError:
                pass  # it was thrown out


@row(
    21,
    "a message of an older version on a socket between the processes",
    seen="nothing: it is understood",
    does="fills what it does not have with defaults, and ignores fields that came later",
    on="the messages alone, no processes",
)
def test_row_21_messages_of_another_version_are_understood() -> None:
    cancel = msgspec.msgpack.decode(_encode([2, 7, "a field of tomorrow"]), type=Submit | Cancel)
    assert cancel == Cancel(7)
    old = [1, *msgspec.to_builtins(WORDS["jobs"])[1:9]]
    submit = msgspec.msgpack.decode(_encode(old), type=Submit | Cancel)
    assert submit == WORDS["jobs"]
