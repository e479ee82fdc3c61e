"""What the engine hears of the public PyWorker and of ours, from the same requests.

Both run the same worker.py in front of the same model server, and are sent the same script. What
they tell is printed side by side (``pytest -s``); what must agree is asserted, and so is every
difference, each with its reason: docs/migration.md has the same list for people.

The peer looks once a second whether it has something to report, and resets its figures when the
report was answered: what happens while one is under way is lost there (one test shows just that).
So each step of the script begins the moment a report has come, a second before the next.
"""

from __future__ import annotations

import copy
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.compat.bench import on_the_bench
from tests.interop.peer import PEER, TOKEN, the_peer
from tests.kit.recording_engine import RecordingEngine, Told
from tests.kit.wait import wait_until

pytest.importorskip("vastai.serverless.server.worker")

TEXT = """
from vastai import Worker, WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig

async def fails(**params):
    raise KeyError("x")

def count(payload):
    return payload.get("n", 1)

def handler(route, **more):
    return HandlerConfig(route, allow_parallel_requests=True, workload_calculator=count, **more)

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
    model_healthcheck_url="/health",
    handlers=[
        handler("/plain", max_queue_time=None,
                benchmark_config=BenchmarkConfig(dataset=[{"n": 2}], runs=1, concurrency=2)),
        handler("/broken"),
        handler("/fails", remote_function=fails),
        handler("/impatient", max_queue_time=0.0),
    ],
    log_action_config=LogActionConfig(on_load=["READY"], on_error=["KABOOM"]),
)).run()
"""
OURS = 78
NUMBER, TEXT_KIND, LIST = "number", "text", "list"


@dataclass
class Side:
    """One of the two workers, as the engine and its clients see it."""

    worker: int
    engine: RecordingEngine
    model_port: int
    url: str = ""
    #: what was seen on the way, by name
    seen: dict[str, Any] = field(default_factory=dict)
    #: what it had told at the end of the script
    after: Told = field(default_factory=Told)

    @property
    def told(self) -> Told:
        return self.engine.of(self.worker)

    def connect(self) -> http.client.HTTPConnection:
        url = urlsplit(self.url)
        return http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)

    def body(self, idx: int, payload: Any, **changed: Any) -> str:
        auth = {**self.engine.auth(self.url, idx), **changed}
        return json.dumps({"auth_data": auth, "payload": payload})

    def ask(self, route: str, idx: int, payload: Any, **changed: Any) -> int:
        """One request; the status of its answer."""
        connection = self.connect()
        try:
            connection.request("POST", route, self.body(idx, payload, **changed))
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def reported(self, step: Callable[[], Any], *idxs: int) -> Any:
        """Do it; then wait until a report has come after it, and these requests have ended."""
        before = len(self.told.statuses)
        result = step()
        wait_until(lambda: len(self.told.statuses) > before, what=f"a report of {self.worker}")
        self.ended(*idxs)
        return result

    def ended(self, *idxs: int) -> None:
        """Wait until the engine has been told that these have ended."""

        def told() -> bool:
            return {*idxs} <= {row["request_idx"] for row in self.told.rows}

        wait_until(told, what=f"{idxs} of {self.worker} to end")

    def row(self, idx: int) -> dict[str, Any]:
        [row] = [row for row in self.after.rows if row["request_idx"] == idx]
        return row

    @contextmanager
    def held(self, idx: int, n: int) -> Iterator[list[int]]:
        """A request that runs, and has been reported, until the block ends; its status."""
        name, got = f"{self.worker}-{idx}", list[int]()
        payload = {"held": name, "n": n}

        def work() -> None:
            got.append(self.ask("/plain", idx, payload))

        thread = threading.Thread(target=work, daemon=True)
        self.reported(thread.start)
        wait_until(
            lambda: self.told.statuses[-1]["working_request_idxs"] == [idx], what="it to run"
        )
        yield got
        before = len(self.told.statuses)
        self.release(name)
        thread.join(60)
        self.idle(before)

    def idle(self, before: int = 0) -> None:
        """Wait until its last report, after so many of them, says that nothing runs."""
        wait_until(
            lambda: (
                self.told.statuses[before:] and not self.told.statuses[-1]["working_request_idxs"]
            ),
            what="a report that nothing runs",
        )

    def release(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.model_port, timeout=60)
        try:
            connection.request("GET", f"/release/{name}")
            assert connection.getresponse().status == 200
        finally:
            connection.close()


@contextmanager
def both(directory: Path) -> Iterator[tuple[Side, Side, Path]]:
    """The peer and ours, ready, and the log of their model server."""
    with RecordingEngine() as engine:
        env = {
            "REPORT_ADDR": engine.url,
            "MASTER_TOKEN": TOKEN,
            "CONTAINER_ID": str(OURS),
        }
        with on_the_bench(directory, TEXT, signatures=True, **env) as bench:
            # one after the other: each measures alone
            bench.until_ready()
            with the_peer(directory / "peer", directory / "worker.py", engine.url):
                sides = tuple(Side(id, engine, bench.model_port) for id in (PEER, OURS))
                for side in sides:
                    wait_until(
                        lambda s=side: s.told.statuses and s.told.statuses[-1]["max_perf"],
                        60, "a report that it is ready",
                    )  # fmt: skip
                    side.url = side.told.statuses[-1]["url"]
                yield sides[0], sides[1], directory / "model.log"


def script(side: Side) -> Side:
    """The same for both. Every n is another power of two: a sum says what is in it."""
    seen = side.seen
    for idx, n in ((0, 1024), (1, 1), (2, 2), (3, 4)):  # the first finds out when reports come
        assert side.reported(lambda i=idx, n=n: side.ask("/plain", i, {"n": n})) == 200
    seen["broken"] = side.reported(lambda: side.ask("/broken", 4, {"n": 8}))
    seen["fails"] = side.reported(lambda: side.ask("/fails", 5, {"n": 16}))
    with side.held(6, 32) as got:
        seen["while one runs"] = side.told.statuses[-1]
        seen["impatient"] = side.reported(lambda: side.ask("/impatient", 7, {"n": 64}))
    assert got == [200]
    seen["bad signature"] = side.ask("/plain", 8, {"n": 128}, signature="bm9uZQ==")
    seen["no payload"] = side.ask("/plain", 9, "no object")
    with left(side, 10, 256):
        # at once: the peer subtracts what was cancelled from the same report's new load, or never
        assert side.reported(lambda: side.ask("/plain", 11, {"n": 512})) == 200
    side.ended(*range(8), 10, 11)
    side.idle()
    side.after = copy.deepcopy(side.told)
    return side


@contextmanager
def left(side: Side, idx: int, n: int) -> Iterator[None]:
    """A client that has gone away while its request ran."""
    name, url = f"{side.worker}-{idx}", urlsplit(side.url)
    body = side.body(idx, {"held": name, "n": n}).encode()
    head = b"POST /plain HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection((url.hostname, url.port)) as client:
        side.reported(lambda: client.sendall(head + body))
        wait_until(
            lambda: side.told.statuses[-1]["working_request_idxs"] == [idx], what="it to run"
        )
    yield
    side.ended(idx)
    side.release(name)


def kind(value: Any) -> str:
    if isinstance(value, list):
        return LIST
    return TEXT_KIND if isinstance(value, str) else NUMBER


def shown(peer: Side, ours: Side) -> None:
    """The two side by side."""
    figures = ("new_load", "rej_load", "cur_perf")
    rows: list[tuple[str, Any, Any]] = [
        (f"sum of {name}", peer.after.sum(name), ours.after.sum(name)) for name in figures
    ]
    last = (peer.after.statuses[-1], ours.after.statuses[-1])
    rows += [(f"last {name}", last[0][name], last[1].get(name)) for name in last[0]]
    rows.append(("reports with a loadtime", *(loaded(side) for side in (peer, ours))))
    rows.append(("reports", len(peer.after.statuses), len(ours.after.statuses)))
    for idx in sorted({row["request_idx"] for side in (peer, ours) for row in side.after.rows}):
        rows.append((f"request {idx}", outcome(peer, idx), outcome(ours, idx)))
    for name in peer.seen:
        if name != "while one runs":
            rows.append((f"answer: {name}", peer.seen[name], ours.seen[name]))
    print()
    for name, one, two in (("", "the public PyWorker", "ours"), *rows):
        print(f"{name:<32} {one!s:<40.40} {two!s:<40.40}")


def loaded(side: Side) -> int:
    return sum(1 for status in side.after.statuses if status["loadtime"])


def outcome(side: Side, idx: int) -> str:
    rows = [row for row in side.after.rows if row["request_idx"] == idx]
    return ", ".join(f"{row['status']} ({'ok' if row['success'] else 'not ok'})" for row in rows)


@dataclass
class Scene:
    """Both, after the script."""

    peer: Side
    ours: Side
    log: Path

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.peer, self.ours


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with both(tmp_path_factory.mktemp("reports")) as (peer, ours, log):
        with ThreadPoolExecutor() as pool:
            list(pool.map(script, (peer, ours)))
        shown(peer, ours)
        yield Scene(peer, ours, log)


def test_fields_and_types_of_a_report(scene: Scene) -> None:
    for peer, ours in zip(scene.peer.after.statuses, scene.ours.after.statuses, strict=False):
        assert {name: kind(value) for name, value in ours.items()} == {
            name: kind(value) for name, value in peer.items()
        }
    for side in scene.sides:
        for status in side.after.statuses:
            assert status["id"] == side.worker and status["mtoken"] == TOKEN
            assert (status["cur_capacity"], status["max_capacity"]) == (0, 0)
            assert status["error_msg"] == ""
            assert status["url"] == side.url
    # different: its own version there, PYWORKER_VERSION here
    assert scene.peer.after.statuses[-1]["version"] == "1.1.0"
    assert scene.ours.after.statuses[-1]["version"] == "0"


def test_sums_of_load(scene: Scene) -> None:
    peer, ours = scene.peer.after, scene.ours.after
    accepted = 1024 + 1 + 2 + 4 + 8 + 16 + 32 + 512
    # the one whose client left (256) came and went
    assert peer.sum("new_load") == ours.sum("new_load") == accepted
    # different: a model server's 500 (8) counts as served there; the function that raised (16),
    # whose 500 is the worker's own, does not
    assert ours.sum("cur_perf") == accepted - 8 - 16
    assert peer.sum("cur_perf") == accepted - 16
    # different: a bad signature (128) counts as load that was turned away there, though nobody
    # knows whose it is: whoever can reach the port could have the engine start workers
    assert ours.sum("rej_load") == 64
    assert peer.sum("rej_load") == 64 + 128
    assert peer.statuses[-1]["num_requests_recieved"] == 11
    assert ours.statuses[-1]["num_requests_recieved"] == 10
    for side in scene.sides:
        assert side.after.statuses[-1]["max_perf"] > 0


def test_the_load_time(scene: Scene) -> None:
    """Different: in every report there; here once, and again when the engine was away."""
    for side in scene.sides:
        first = next(status for status in side.after.statuses if status["max_perf"])
        assert first["loadtime"] > 0
    assert loaded(scene.ours) == 1
    assert loaded(scene.peer) == sum(1 for s in scene.peer.after.statuses if s["max_perf"])


def test_while_one_runs(scene: Scene) -> None:
    for side in scene.sides:
        status = side.seen["while one runs"]
        assert status["working_request_idxs"] == [6]
        assert status["num_requests_working"] == 1
        assert status["cur_load"] == 32
        assert side.after.statuses[-1]["working_request_idxs"] == []
        assert side.after.statuses[-1]["cur_load"] == 0


def test_ended_requests(scene: Scene) -> None:
    expected = {
        0: "Success", 1: "Success", 2: "Success", 3: "Success", 5: "Error", 6: "Success",
        7: "Rejected", 10: "Cancelled", 11: "Success",
    }  # fmt: skip
    for side in scene.sides:
        rows = {row["request_idx"]: row["status"] for row in side.after.rows}
        assert len(rows) == len(side.after.rows), "each is told once"
        assert {idx: rows[idx] for idx in expected} == expected
        for row in side.after.rows:
            assert row["success"] == (row["status"] in ("Success", "Cancelled"))
            if row["status"] == "Success":
                assert 0 < row["entered_queue_at"] <= row["work_started_at"]
                assert row["work_started_at"] <= row["work_completed_at"]
        assert {post["worker_id"] for post in side.after.posts} == {side.worker}
        assert 9 not in rows, "what was no request is nobody's business"
    peer, ours = scene.peer, scene.ours
    # different, as in the sums
    assert (peer.row(4)["status"], ours.row(4)["status"]) == ("Success", "Error")
    assert peer.row(8)["status"] == "Rejected"
    assert 8 not in {row["request_idx"] for row in ours.after.rows}
    assert [set(row) for row in peer.after.rows[:1]] == [set(row) for row in ours.after.rows[:1]]
    for side in scene.sides:  # its client left while it ran
        assert side.row(10)["work_completed_at"] == 0
        assert 0 < side.row(10)["entered_queue_at"] <= side.row(10)["work_started_at"]
    for side in scene.sides:  # never begun
        assert side.row(7)["work_started_at"] == side.row(7)["work_completed_at"] == 0
        assert side.row(7)["entered_queue_at"] > 0


def test_what_happens_while_a_report_is_under_way(scene: Scene) -> None:
    """Different: the peer sets its figures to 0 when the report was answered, ours tells what has
    come since the last one that was acknowledged."""
    for side, kept in ((scene.ours, 1 + 2 + 4 + 8), (scene.peer, 1 + 4 + 8)):
        before = side.told.sum("cur_perf")
        side.reported(lambda s=side: s.ask("/plain", 19, {"n": 8}))
        with side.engine.hold(side.worker, lambda s=side: s.ask("/plain", 20, {"n": 1})):
            assert side.ask("/plain", 21, {"n": 2}) == 200
            held = len(side.told.statuses)
        side.idle(held)
        side.reported(lambda s=side: s.ask("/plain", 22, {"n": 4}), 22)
        wait_until(
            lambda s=side, b=before, k=kept: s.told.sum("cur_perf") - b >= k,
            what=f"{kept} to be told",
        )  # fmt: skip
        assert side.told.sum("cur_perf") - before == kept


def test_an_error_line_and_its_end(scene: Scene) -> None:
    """Different: the line itself here; and it ends, with a ready line or a good probe later."""
    line = "12:00 KABOOM in the boiler"

    def errors(side: Side) -> list[str]:
        return [status["error_msg"] for status in side.told.statuses]

    with scene.log.open("a") as log:
        log.write(f"{line}\n")
    said = f"model: the model server's log says: {line}"
    wait_until(lambda: said in errors(scene.ours), what="our error")
    theirs = scene.log.parent / "peer" / "log"
    wait_until(lambda: "line indicating error" in theirs.read_text(), what="the peer to see it")
    scene.peer.reported(lambda: scene.peer.ask("/plain", 29, {"n": 1}), 29)
    assert errors(scene.peer)[-1] == "KABOOM"
    with scene.log.open("a") as log:
        log.write("READY again\n")
    wait_until(lambda: errors(scene.ours)[-1] == "", what="the end of the error")
    for side, last in ((scene.ours, ""), (scene.peer, "KABOOM")):
        side.reported(lambda s=side: s.ask("/plain", 30, {"n": 1}), 30)
        assert errors(side)[-1] == last
