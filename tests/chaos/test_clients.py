"""Clients that leave, or stay and do nothing: neither costs more than it has to."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.table import row
from tests.kit.raw_client import Client
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, get_json, running

#: One request at a time.
SERIAL = """
[[route]]
path = "/generate"
concurrency = 1
max_queue_time_s = 600.0
[[route]]
path = "/generate_stream"
concurrency = 1
max_queue_time_s = 600.0
"""
#: A token takes so long that nothing ends while the test looks.
SLOW = ("--tokens-per-second", "2")


def stats(worker: Worker) -> dict[str, Any]:
    """What the model server knows."""
    return dict(get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats"))


def request(worker: Worker, path: str, tokens: int, **payload: Any) -> bytes:
    """A good one."""
    payload = {"inputs": "x", "parameters": {"max_new_tokens": tokens}} | payload
    body = json.dumps({"auth_data": worker.auth(), "payload": payload}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), len(body)) + body


def fin(client: Client) -> None:
    client.socket.close()


def half_close(client: Client) -> None:
    """Says that it sends no more, and waits for the answer: this counts as leaving."""
    client.socket.shutdown(socket.SHUT_WR)
    while piece := client.socket.recv(65_536):
        assert not piece.endswith(b"\r\n0\r\n\r\n"), "a whole answer"
    client.socket.close()


@row(
    25,
    "a client leaves while its request waits, runs or streams",
    seen="nothing: nobody is there. A client that closes only its sending side counts as gone, too:"
    " its connection is closed without an answer.",
    does="takes a waiting request out of the queue unseen by the model server; closes the model"
    " server's connection of one that runs, and gives its place to the next at once. Counted as"
    " cancelled (499).",
)
def test_row_25_leaves(tmp_path: Path) -> None:
    with running(tmp_path, routes=SERIAL, model_flags=SLOW) as worker:
        for times, leave in enumerate((fin, Client.reset, half_close), 1):
            leaves(worker, leave, times)


def leaves(worker: Worker, leave: Callable[[Client], None], times: int) -> None:
    """Three clients leave in this way, which is the ``times``-th; a fourth stays."""

    def waiting() -> int:
        return int(worker.status()["queue"]["waiting"])

    def sent(path: str, tokens: int = 10_000) -> Client:
        client = Client(worker)
        client.send(request(worker, path, tokens))
        return client

    runs = sent("/generate")
    wait_until(lambda: stats(worker)["running"] == 1, what="the first to run")
    before = stats(worker)
    waits = sent("/generate")
    wait_until(lambda: waiting() == 1, what="the second to wait")
    leave(waits)
    wait_until(lambda: waiting() == 0, what="it to be taken out of the queue")
    streams = sent("/generate_stream")
    wait_until(lambda: waiting() == 1, what="the stream to wait")
    assert stats(worker)["requests"] == before["requests"]

    leave(runs)
    # The place is free at once: the stream begins, though the first would run for an hour.
    while b"data:" not in (piece := streams.socket.recv(65_536)):
        assert piece
    assert stats(worker)["cancelled"] == 2 * times - 1
    leave(streams)
    wait_until(lambda: stats(worker)["cancelled"] == 2 * times, what="the model to be told")

    last = sent("/generate", tokens=1)
    assert last.answer().status == 200
    last.socket.close()
    told = stats(worker)
    assert (told["requests"], told["finished"], told["running"]) == (3 * times, times, 0)
    wait_until(
        lambda: worker.members()["ingress-0"]["gauges"]["connections"] == 0,
        what="no connection to be left",
    )


@row(
    25,
    "a client reads its answer slowly",
    seen="its answer, as fast as it reads.",
    does="leaves what it cannot read where it is: the model server's socket fills and the model"
    " server waits; this worker holds limits.stream_credit_bytes of each stream.",
)
def test_row_25_reads_slowly(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        members = ("ingress-0", "backend_adapter")
        before = {name: rss(worker.pid(name)) for name in members}
        clients = [endless(worker) for _ in range(4)]

        def stalled() -> bool:
            """The model produces nothing more, because nobody takes it."""
            seen = stats(worker)["served_tokens"]
            time.sleep(1.0)  # the passing of time is what is looked at
            return bool(seen > 1000 and stats(worker)["served_tokens"] == seen)

        wait_until(stalled, 90.0, "the model to be slowed down")
        grown = {name: rss(worker.pid(name)) - before[name] for name in members}
        assert all(size < 24 * 2**20 for size in grown.values()), grown
        seen = stats(worker)["served_tokens"]
        reader = clients[0]
        wait_until(
            lambda: reader.recv(65_536) and stats(worker)["served_tokens"] > seen,
            what="the model to go on as the client reads",
        )
        for client in clients:
            client.close()
        wait_until(lambda: stats(worker)["running"] == 0, what="the slots to be free")


@row(
    25,
    "a client never reads its answer, and never closes",
    seen="its connection is cut after limits.write_timeout_s in which it has read nothing.",
    does="closes the model server's connection with it: the place is free.",
)
def test_row_25_never_reads(tmp_path: Path) -> None:
    with running(tmp_path, settings=("limits.write_timeout_s=1.0",)) as worker:
        clients = [endless(worker) for _ in range(4)]
        wait_until(lambda: stats(worker)["requests"] == 4, what="all of them to run")
        wait_until(lambda: stats(worker)["cancelled"] == 4, what="all of them to be cut")
        assert stats(worker)["running"] == 0
        for client in clients:
            with pytest.raises(ConnectionResetError):  # what it missed is not passed off as whole
                read_all(client)
            client.close()
        # An answer that ends with its connection: not even the death of the process fakes an end.
        with Client(worker) as old:
            data = request(worker, "/v1/completions", 0, prompt="x", max_tokens=65_536, stream=True)
            old.send(data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            assert old.socket.recv(10).startswith(b"HTTP/1.1 2")
            worker.kill("ingress-0")
            with pytest.raises(ConnectionResetError):
                read_all(old.socket)


def endless(worker: Worker) -> socket.socket:
    """A client with little room that asks for a long stream and reads nothing."""
    payload = {"prompt": "x", "max_tokens": 65_536, "stream": True}
    data = request(worker, "/v1/completions", 0, **payload)
    with Client(worker) as shape:
        address = shape.socket.getpeername()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(address)
    client.sendall(data)
    return client


def read_all(client: socket.socket) -> None:
    while client.recv(65_536):
        pass


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


HEAD = b"POST /generate HTTP/1.1\r\nHost: a\r\n"
#: What each sends at first, what it then repeats a byte of now and then, and the status it gets
#: (0: the connection just ends).
DRIPS: dict[str, tuple[bytes, bytes, int]] = {
    "silence": (b"", b"", 0),
    "empty lines": (b"", b"\r\n", 0),
    "a head": (b"POST /gene", b"a", 408),
    "a header without an end": (HEAD + b"X: ", b"a", 408),
    "a head, then silence": (HEAD, b"", 408),
    "a body": (HEAD + b"Content-Length: 1000\r\n\r\n", b"a", 408),
    "a body, then silence": (HEAD + b"Content-Length: 1000\r\n\r\n{", b"", 408),
    "a body that waits for 100": (
        HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n", b"", 408,
    ),
    "chunks of a byte": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", 408),
    "a chunk's extension": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a", 408),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a", 408),
    "silence after an answer": (b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n", b"", 404),
}  # fmt: skip
TIMEOUTS = ("limits.header_timeout_s=1.5", "limits.body_timeout_s=1.5", "limits.keepalive_s=1.5")


@row(
    25,
    "a client sends a byte a minute, or nothing",
    seen="408 timeout_reading where a request had begun, then the connection is closed; an idle"
    " connection is closed without a word.",
    does="gives a head limits.header_timeout_s as a whole, a body limits.body_timeout_s between two"
    " pieces and at least 4 KiB a second as a whole, an idle connection limits.keepalive_s.",
)
def test_row_25_a_byte_a_minute(tmp_path: Path) -> None:
    with running(tmp_path, settings=TIMEOUTS) as worker, ExitStack() as stack:
        clients = {name: stack.enter_context(Client(worker)) for name in DRIPS}
        told = dict.fromkeys(DRIPS, b"")
        for name, client in clients.items():
            client.send(DRIPS[name][0])
        names = {client.socket: name for name, client in clients.items()}
        end, turn = time.monotonic() + DEADLINE_S, 0
        while names:
            assert time.monotonic() < end, f"still open: {sorted(names.values())}"
            for one in select.select(list(names), [], [], 0.2)[0]:
                name = names[one]
                try:
                    piece = one.recv(65_536)
                except ConnectionResetError:
                    piece = b""  # a drip has crossed the end
                told[name] += piece
                if not piece:
                    del names[one]
            for one, name in names.items():
                drip = DRIPS[name][1]
                if drip:
                    try:
                        one.send(drip[turn % len(drip) :][:1])
                    except (BrokenPipeError, ConnectionResetError):
                        pass  # the next look reads the rest
            turn += 1
        for name, (_, _, status) in DRIPS.items():
            answers = told[name].removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert answers.startswith(b"HTTP/1.1 %d " % status if status else b""), (name, answers)
            assert (status == 408) == (b'"kind":"timeout_reading"' in answers), name
            assert bool(answers) == bool(status), (name, answers)
        with Client(worker) as client:
            client.send(request(worker, "/generate", 1))
            assert client.answer().status == 200
        assert stats(worker)["requests"] == 1
