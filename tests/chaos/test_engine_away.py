"""The engine is down, slow, or answers nonsense: requests do not notice, and reports stay exact."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from supervisor.plan import free_port
from tests.chaos.table import row
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, get_json, post_json, running

SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 5}}
WORK = 5.0
#: What the reporter may grow by itself, whatever waits: what it does for the first time.
REPORTER_GROWS_BYTES = 24 * 2**20
#: … and by each row that waits: a row takes some 350 bytes.
ROW_BYTES = 1024


def serve(worker: Worker, auth: dict[str, Any], count: int, at_once: int = 50) -> None:
    """So many requests, each of them answered."""

    async def scene() -> Counter[str]:
        seen: Counter[str] = Counter()
        for begin in range(0, count, at_once):
            async with Load(worker.url, auth) as load:
                for _ in range(min(at_once, count - begin)):
                    load.start("/generate", SHORT)
                seen += await load.outcomes()
        return seen

    assert asyncio.run(scene()) == {"ok": count}


class Engine:
    """A demo engine of the test's own: it can go and come back, with its key and its port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {"REPORT_ADDR": self.url, "MASTER_TOKEN": "t0k3n", "CONTAINER_ID": "5"}
        self._process: subprocess.Popen[bytes] | None = None

    def come(self) -> None:
        key = str(self._directory / "engine.pem")
        with (self._directory / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.demo.engine", "--port", str(self.port),
                 "--key", key],
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._answers, what="the engine")

    def go(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            get_json(f"{self.url}/demo/record")
        except OSError:
            return False
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Ended requests that this life of it was told of."""
        return list(get_json(f"{self.url}/demo/record")["requests"])

    def reports(self) -> list[dict[str, Any]]:
        """What this life of it was told of the worker's state, the oldest first."""
        return list(get_json(f"{self.url}/demo/record")["status"])

    def work(self) -> float:
        """Served workload that it was told of."""
        return float(sum(report["cur_perf"] for report in self.reports()))

    def until_told(self, requests: int) -> None:
        """Each request once, its work to the unit."""
        wait_until(lambda: len(self.rows()) >= requests, 60.0, "every row")
        wait_until(lambda: self.work() >= WORK * requests, 60.0, "all the work")
        assert len(self.rows()) == requests
        assert self.work() == WORK * requests
        (newest,) = self.reports()[-1:]
        assert newest["cur_load"] == 0 and newest["num_requests_working"] == 0


@contextmanager
def own_engine(directory: Path) -> Iterator[Engine]:
    engine = Engine(directory)
    engine.come()
    try:
        yield engine
    finally:
        engine.go()


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def gauge(worker: Worker, name: str) -> Any:
    return worker.members()["reporter"]["gauges"].get(name)


@row(
    20,
    "the engine is gone for long; meanwhile the reporter dies, and the whole worker is restarted",
    seen="requests are answered; `status` says why reports fail and how long ago the last one was"
    " taken; a worker that starts meanwhile is not ready, as it has no public key",
    does="keeps every ended request in the state directory, tries again with pauses of up to 30 s;"
    " the first report that is taken again holds all the work to the unit, and each request is"
    " named once",
)
def test_row_20_what_the_engine_missed_it_is_told_once(tmp_path: Path) -> None:
    with own_engine(tmp_path) as engine:
        settings = ("engine.retry_s=0.1", "engine.tries=1", "engine.report_every_s=1")
        worker = Worker(tmp_path, environ=engine.environ, settings=settings).start()
        try:
            worker.wait_ready()
            auth = worker.auth()
            serve(worker, auth, 10)
            engine.until_told(10)
            # a report whose answer is lost would come again: this is about those that never came
            count = len(engine.reports())
            wait_until(lambda: gauge(worker, "posted") >= count, what="its answers")
            engine.go()
            before = rss(worker.pid("reporter"))
            serve(worker, auth, 1000)
            wait_until(lambda: gauge(worker, "rows_waiting") == 1000, what="the rows to wait")
            some = rss(worker.pid("reporter"))
            serve(worker, auth, 3000)
            wait_until(lambda: gauge(worker, "rows_waiting") == 4000, what="more rows to wait")
            grown = rss(worker.pid("reporter")) - some
            assert some - before < REPORTER_GROWS_BYTES and grown < 3000 * ROW_BYTES, grown
            wait_until(lambda: "Cannot connect" in gauge(worker, "last_post_error"), what="word")
            assert worker.status()["ready"]
            old = worker.kill("reporter")
            worker.wait_replaced("reporter", old)
            serve(worker, auth, 10)
            wait_until(lambda: gauge(worker, "rows_waiting") == 4010, what="the rows to be there")
            assert worker.stop() == 0, worker.printed
            worker.start()
            wait_until(lambda: gauge_of(worker) == 4010, 60.0, "the rows of the worker before")
            wait_until(lambda: "no public key" in worker.status().get("reason", ""), what="the key")
            engine.come()
            worker.wait_ready()
            first = engine.reports()[0]
            done = ended_work(WORK * 4010)
            assert {name: first[name] for name in done} == done
            serve(worker, worker.auth(), 10)
            engine.until_told(4020)
            assert gauge(worker, "drift") == 0
        finally:
            if sys.exc_info()[0] is not None:
                print(worker.printed[-8000:])
            end(worker)


def ended_work(served: float) -> dict[str, Any]:
    """What a report says of work that is all done, in a run that has taken no request itself."""
    return {
        "new_load": served, "cur_perf": served, "rej_load": 0.0, "cur_load": 0.0,
        "num_requests_working": 0, "num_requests_recieved": 0, "working_request_idxs": [],
    }  # fmt: skip


def gauge_of(worker: Worker) -> Any:
    """Rows that wait in a worker that has just been started."""
    member = worker.members().get("reporter")
    return member and member["gauges"].get("rows_waiting")


@row(
    20,
    "the engine is overloaded (503), slower than engine.timeout_s, hangs up, or answers what is no"
    " JSON, also when asked for its key",
    seen="requests are answered, signatures are checked with the key that is known; `status` names"
    " the fault; the engine is told everything when it is well again",
    does="takes only a whole 2xx answer for a report that was taken; adds what was not taken to the"
    " next one",
)
def test_row_20_an_engine_that_answers_nonsense_costs_no_report(tmp_path: Path) -> None:
    settings = ("engine.retry_s=0.1", "engine.timeout_s=0.5", "engine.report_every_s=1")
    with (
        own_engine(tmp_path) as engine,
        running(tmp_path, settings=settings, environ=engine.environ) as worker,
    ):
        auth = worker.auth()
        for number, (kind, said) in enumerate(
            (("garbage", "no JSON"), ("slow", "no answer in 0.5 s"), ("down", "HTTP 503"),
             ("lose", "isconnect"))
        ):  # fmt: skip
            fault = {"kind": kind, "delay_s": 600.0} if kind == "slow" else {"kind": kind}
            post_json(f"{worker.engine}/demo/fault", fault)
            serve(worker, auth, 10)
            wait_until(lambda said=said: said in gauge(worker, "last_post_error"), what=said)  # type: ignore[misc]
            post_json(f"{worker.engine}/demo/fault", {"kind": "none"})
            requests = 10 * (number + 1)
            wait_until(lambda n=requests: told(worker)[0] >= n, 60.0, f"rows after {kind}")  # type: ignore[misc]
            wait_until(lambda n=requests: told(worker)[1] >= WORK * n, 60.0, f"work after {kind}")  # type: ignore[misc]
            assert told(worker) == (requests, WORK * requests)
        assert {member["restarts"] for member in worker.members().values()} == {0}


def until_accepted(worker: Worker) -> None:
    """An engine that was started anew has another key: one request, signed with it, is answered."""

    def accepted() -> bool:
        body = {"auth_data": worker.auth(), "payload": SHORT}
        return "generated_text" in post_json(f"{worker.url}/generate", body)

    wait_until(accepted, what="the new key to be known")


def told(worker: Worker) -> tuple[int, float]:
    """Rows and work that the local engine knows."""
    record = worker.record()
    return len(record["requests"]), sum(report["cur_perf"] for report in record["status"])


class Babble:
    """A port that answers every connection with ``words`` and a moment of silence."""

    def __init__(self, words: bytes) -> None:
        self._words = words
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked = 0
        self._thread = threading.Thread(target=self._babble)
        self._thread.start()

    def _babble(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked += 1
                connection.settimeout(5.0)
                try:
                    connection.recv(65_536)
                    connection.sendall(self._words)
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@row(
    20,
    "what answers at the engine's https address speaks no TLS, or floods",
    seen="requests are answered; `status` names the address and the fault; nothing is restarted",
    does="gives each post engine.timeout_s, reads at most 64 KiB of an answer, tries again with"
    " growing pauses",
)
def test_row_20_an_engine_that_speaks_no_tls(tmp_path: Path) -> None:
    babble = Babble(b"\x16\x03\x01" + b"\xff" * 300_000)
    environ = {
        "REPORT_ADDR": f"https://127.0.0.1:{babble.port}", "MASTER_TOKEN": "t0k3n",
        "CONTAINER_ID": "5", "UNSECURED": "true",
    }  # fmt: skip
    settings = ("engine.retry_s=0.1", "engine.timeout_s=2")
    worker = Worker(tmp_path, environ=environ, settings=settings).start()
    try:
        wait_until(lambda: worker.status()["ready"], 60.0, "requests to be taken")
        worker.facts()
        wait_until(lambda: "https://127.0.0.1" in gauge(worker, "last_post_error"), what="word")
        before = rss(worker.pid("reporter"))
        body = json.dumps({"payload": SHORT})
        for _ in range(50):
            connection = http.client.HTTPConnection(worker.url.removeprefix("http://"), timeout=60)
            connection.request("POST", "/generate", body)
            assert connection.getresponse().status == 200
            connection.close()
        asked = babble.asked
        wait_until(lambda: babble.asked > asked, what="another try")
        assert rss(worker.pid("reporter")) - before < REPORTER_GROWS_BYTES
        assert {member["restarts"] for member in worker.members().values()} == {0}
        assert "t0k3n" not in worker.printed
    finally:
        end(worker)
        babble.close()


@row(
    20,
    "the engine is started anew and has forgotten the worker",
    seen="clients are routed to the worker again",
    does="tells it everything that an engine has to know of a worker that is ready once more",
)
def test_row_20_an_engine_that_lost_its_memory_routes_here_again(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        old = worker.kill("engine")
        worker.wait_replaced("engine", old)
        until_accepted(worker)


@row(
    20,
    "the local engine is frozen (SIGSTOP): it takes connections and answers nobody",
    seen="requests are answered; `status` says why reports fail; then clients are routed again",
    does="kills and restarts it when it has answered no report for as long as three may take"
    " (engine.timeout_s); the reports that it missed follow at once",
)
def test_row_20_a_frozen_local_engine_is_replaced(tmp_path: Path) -> None:
    settings = ("engine.timeout_s=1", "engine.retry_s=0.1", "engine.report_every_s=1")
    with running(tmp_path, settings=settings) as worker:
        auth = worker.auth()
        old = worker.kill("engine", signal.SIGSTOP)
        serve(worker, auth, 10)
        wait_until(
            lambda: "no answer in 1 s" in gauge(worker, "last_post_error"), what="word of it"
        )
        worker.wait_replaced("engine", old)
        assert "answers none of them" in worker.members()["engine"]["last_exit"]
        until_accepted(worker)
        serve(worker, worker.auth(), 9)
        wait_until(lambda: told(worker) == (20, WORK * 20), 60.0, "all the reports")
        assert {n for n, m in worker.members().items() if m["restarts"]} == {"engine"}
