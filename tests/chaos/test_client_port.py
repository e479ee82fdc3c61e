"""Clients that connect while the only ingress is away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.chaos.table import row
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, running

CLIENTS = 4
PAUSE_S = 0.005  # of each client, between two connections


class Comers:
    """Clients that connect anew for every request.

    ``outcomes``: statuses, and what failed before ("connect") or after it was connected ("answer").
    """

    def __init__(self, worker: Worker) -> None:
        self.outcomes: Counter[int | str] = Counter()
        self.going = True
        self._place = urlsplit(worker.url).netloc
        self._body = json.dumps({"auth_data": worker.auth(), "payload": {"inputs": "x"}})

    def come(self) -> None:
        """One client, until it is called off."""
        while self.going:
            self.outcomes[self._ask()] += 1
            time.sleep(PAUSE_S)

    def _ask(self) -> int | str:
        client = http.client.HTTPConnection(self._place, timeout=DEADLINE_S)
        try:
            client.connect()
        except OSError:
            return "connect"
        try:
            client.request("POST", "/generate", self._body)
            return client.getresponse().status
        except (OSError, http.client.HTTPException):
            return "answer"
        finally:
            client.close()

    def until_more_are_answered(self) -> None:
        """Some have been answered since."""
        before = self.outcomes[200]
        wait_until(lambda: self.outcomes[200] > before + CLIENTS, what="answers")


@contextmanager
def coming(worker: Worker, until_the_end: bool = False) -> Iterator[Comers]:
    """They come for as long as it is entered, and are answered; or the worker ends meanwhile."""
    comers = Comers(worker)
    threads = [threading.Thread(target=comers.come) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        comers.until_more_are_answered()
        yield comers
        if not until_the_end:
            comers.until_more_are_answered()
    finally:
        comers.going = False
        for thread in threads:
            thread.join()


def only_accepted_ones_break(directory: Path, number: int) -> None:
    """Of those who come while ingress gets this signal and is replaced."""
    with running(directory) as worker:
        with coming(worker) as comers:
            worker.wait_replaced("ingress-0", worker.kill("ingress-0", number))
        assert set(comers.outcomes) <= {200, "answer"}, comers.outcomes
        assert comers.outcomes["answer"] <= CLIENTS, comers.outcomes


@row(
    1,
    "the only ingress is killed (`kill -9`) while clients connect",
    seen="connections that it had accepted break; nobody is refused: who connects meanwhile is"
    " answered a moment later",
    does="keeps the port open itself, and lends it to each ingress in turn",
)
def test_row_01_who_connects_while_ingress_is_away_is_answered(tmp_path: Path) -> None:
    only_accepted_ones_break(tmp_path, signal.SIGKILL)


@row(
    3,
    "the only ingress is frozen (`kill -STOP`) while clients connect",
    seen="a pause of some seconds; only those break that it had accepted",
    does="as above; the next ingress accepts who waits",
)
def test_row_03_who_connects_while_ingress_is_frozen_is_answered(tmp_path: Path) -> None:
    only_accepted_ones_break(tmp_path, signal.SIGSTOP)


@row(
    23,
    "SIGTERM while the only ingress is being restarted, and clients wait for the next one",
    seen="503 `draining` with Retry-After, for who waits; what runs goes on to `worker.drain_s`",
    does="accepts who waits after all, and closes the port",
)
def test_row_23_who_waits_for_an_ingress_that_does_not_come_is_told(tmp_path: Path) -> None:
    with running(
        tmp_path, model_flags=("--tokens-per-second", "10"), settings=("worker.drain_s=4",)
    ) as worker:
        long = {"inputs": "x", "parameters": {"max_new_tokens": 80}}
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            auth = worker.auth()  # the engine names no worker that is not ready
            runs = pool.submit(_asked, worker, auth, "/generate_stream", long)
            wait_until(lambda: worker.members()["ingress-0"]["gauges"]["in_flight"])
            worker.command("restart", "ingress-0")
            wait_until(lambda: "draining: 1 " in _log(worker), what="it to accept nobody any more")
            waiting = [pool.submit(_asked, worker, auth, "/generate", {}) for _ in range(CLIENTS)]
            # a queue of the kernel has them, and they have asked
            wait_until(lambda: _unread(worker) == CLIENTS, what="them to wait")
            assert worker.members()["ingress-0"]["state"] == "stopping"
            assert worker.stop() == 0
            assert [one.result() for one in waiting] == [503] * CLIENTS
            runs.result()


@row(
    23,
    "SIGTERM just after the only ingress was killed, while clients wait for the next one",
    seen="who waits is answered, or gets 503 `draining` with Retry-After",
    does="waits up to 5 s for the next ingress, which tells them",
)
def test_row_23_who_waits_for_an_ingress_that_was_killed_is_told(tmp_path: Path) -> None:
    with (
        running(tmp_path, settings=("restart.first_delay_s=2",)) as worker,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        auth = worker.auth()
        worker.wait_replaced("ingress-0", worker.kill("ingress-0"))
        worker.kill("ingress-0")  # after the second death its successor is not started at once
        wait_until(lambda: worker.members()["ingress-0"]["state"] == "backoff", what="its death")
        short = {"inputs": "x"}
        waiting = [pool.submit(_asked, worker, auth, "/generate", short) for _ in range(CLIENTS)]
        wait_until(lambda: _unread(worker) == CLIENTS, what="them to wait")
        assert worker.stop() == 0
        assert {one.result() for one in waiting} <= {200, 503}


@row(
    23,
    "SIGTERM to all of our processes at once, as service managers send it, while clients connect",
    seen="each request is answered, or gets 503 `draining`; then connections are refused; exit 0",
    does="takes what comes within half a second for one wish; ingress waits a moment for the word"
    " that no other one comes",
)
def test_row_23_a_signal_to_all_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        pids = [worker.pid(name) for name in ("ingress-0", "backend_adapter", "reporter")]
        pids.insert(1, worker.process.pid)  # the word of it comes a moment after the signal
        with coming(worker, until_the_end=True) as comers:
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            assert worker.process.wait(DEADLINE_S) == 0
        assert set(comers.outcomes) <= {200, 503, "connect"}, comers.outcomes


def _wait_for_it(worker: Worker) -> None:
    """Until ingress has taken the one connection that there is."""
    wait_until(
        lambda: worker.members()["ingress-0"]["gauges"]["connections"] == 1, what="its connection"
    )


def _log(worker: Worker) -> str:
    return "\n".join(worker.command("logs", "ingress-0", "0")["lines"])


def _asked(worker: Worker, auth: Any, route: str, payload: dict[str, Any]) -> int:
    client = http.client.HTTPConnection(urlsplit(worker.url).netloc, timeout=DEADLINE_S)
    with closing(client):
        client.request("POST", route, json.dumps({"auth_data": auth, "payload": payload}))
        with client.getresponse() as answer:
            with suppress(http.client.IncompleteRead):
                answer.read()
            return answer.status


def _unread(worker: Worker) -> int:
    """Connections that wait to be accepted: the kernel's figure for a listening socket."""
    port = f":{urlsplit(worker.url).port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    queues = [line[4] for line in lines if line[1].endswith(port) and line[3] == "0A"]
    return sum(int(queue.partition(":")[2], 16) for queue in queues)


def _restart(worker: Worker) -> None:
    old = worker.pid("ingress-0")
    worker.command("restart", "ingress-0")
    worker.wait_replaced("ingress-0", old)


@row(
    23,
    "ingress ends while a client has connected, and not asked yet",
    seen="503 `draining` with Retry-After, and no reset",
    does="leaves the connection to its client for a second",
)
@pytest.mark.parametrize("ask", [False, True])
def test_row_23_who_has_connected_and_not_asked_is_told(ask: bool, tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        place = urlsplit(worker.url)
        assert place.hostname is not None and place.port is not None
        old = worker.pid("ingress-0")
        with socket.create_connection((place.hostname, place.port), DEADLINE_S) as client:
            _wait_for_it(worker)
            if ask:  # a part of it
                client.sendall(b"POST /generate HTTP/1.1\r\nhost:")
            worker.command("restart", "ingress-0")
            told = client.recv(65_536)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in told
            told_at = time.monotonic()
            wait_until(lambda: time.monotonic() > told_at + 0.3 or not psutil.pid_exists(old))
            assert psutil.pid_exists(old)
            client.sendall(b" x\r\n\r\n" if ask else b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert client.recv(65_536) == b""
        worker.wait_replaced("ingress-0", old)


@row(
    23,
    "one ingress is restarted (`restart ingress-0`), the only one or one of several",
    seen="nobody is refused: who connects is answered by another, or by the next one, when what"
    " runs has ended (`worker.drain_s` at most); 503 `draining` for who asks on a connection that"
    " closes",
    does="lets it finish what runs",
)
@pytest.mark.parametrize("processes", [1, 2])
def test_row_23_nobody_is_refused_while_an_ingress_is_restarted(
    processes: int, tmp_path: Path
) -> None:
    with running(tmp_path, settings=(f"worker.processes={processes}",)) as worker:
        with coming(worker) as comers:
            _restart(worker)
            comers.until_more_are_answered()
            _restart(worker)
        assert set(comers.outcomes) <= {200, 503}, comers.outcomes
        assert comers.outcomes[503] <= 2 * CLIENTS, comers.outcomes
