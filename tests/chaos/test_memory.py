"""What the worker holds for its clients is bounded, whatever they do; and all of it is let go.

The limits are set low, so that the bound of each process shows; ``docs/memory.md`` has the formula
that these figures follow.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.ports import free_port
from tests.chaos.table import row
from tests.kit.flood import Reply, Sender, clients
from tests.kit.memory import MIB, SMALL, Peaks, watched
from tests.kit.wait import wait_until
from tests.kit.worker import ROUTES, Worker, post_json, running

#: What a process may grow by itself, whatever it holds: its allocator's slack, its connections.
SLACK = 24 * MIB
BODY = 10 * 10**6


@contextmanager
def hoarder(directory: Path, *settings: str) -> Iterator[tuple[Worker, Sender, str]]:
    """A worker in front of a model server that answers nothing until it is told to."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.kit.hoarding_model", str(port)]
    url = f"http://127.0.0.1:{port}"
    toml = f'[model]\ncommand = {json.dumps(command)}\nurl = "{url}"\n'
    limits = (
        *SMALL, "queue.max_jobs=1000", "limits.buffered_bytes=16777216",
        "limits.body_bytes=33554432", *settings,
    )  # fmt: skip
    routes = ROUTES.replace("[[route]]", "[[route]]\nmax_queue_time_s = inf")
    with running(directory, toml=toml, routes=routes, settings=limits) as worker:
        yield worker, Sender(worker.url, worker.auth()), url


def gauges(worker: Worker, name: str = "ingress-0") -> dict[str, Any]:
    """What a member says of itself."""
    return dict(worker.members()[name]["gauges"])


def spooled(worker: Worker) -> list[Path]:
    """Every file of a body."""
    return [path for path in (worker.state_dir / "spool").rglob("*") if path.is_file()]


def settled(worker: Worker, tasks: list[Future[Any]]) -> list[Future[Any]]:
    """Wait until each is answered or taken; those that are taken."""

    def taken() -> list[Future[Any]]:
        in_flight = gauges(worker)["in_flight"]
        waiting = [task for task in tasks if not task.done()]
        return waiting if len(waiting) == in_flight else []

    return wait_until(taken, 60.0, "every request to be refused or taken")


def let_go(worker: Worker, peaks: Peaks) -> None:
    """Nothing is held any more, and what was is the system's again."""

    def nothing() -> bool:
        ingress, adapter = gauges(worker), gauges(worker, "backend_adapter")
        held = ingress["buffered_bytes"], ingress["spooled_bytes"], adapter["held_bytes"]
        return held == (0, 0, 0) and not spooled(worker)

    wait_until(nothing, what="everything to be let go")
    for name, before in peaks.before.items():
        wait_until(lambda n=name, b=before: peaks.now()[n] < b + SLACK, what=f"{name} to shrink")


def refused_for_memory(reply: Reply) -> bool:
    """It was refused as it should be: typed, and with a time to come back."""
    return (reply.status, reply.kind) == (503, "memory") and b"\r\nretry-after: 1\r\n" in (
        reply.headers
    )


@row(
    34,
    "a flood of large bodies, in chunks and at once, in front of a model server that is slow",
    seen="what has room is answered; the rest gets a 503 `memory` with Retry-After before its body"
    " is read; a body of 4 GB gets a 413 `body_too_large`",
    does="writes large bodies to files as they come and sends them on piece by piece; no process"
    " holds one whole, and a file goes with its request",
)
def test_row_34_large_bodies_cost_disk_and_not_memory(tmp_path: Path) -> None:
    limit = "limits.spool_bytes=200000000"
    with hoarder(tmp_path, limit) as (worker, sender, model), clients() as start:
        with watched(worker) as peaks:
            giant = start(sender.post(4 * 2**30)).result(30.0)
            assert (giant.status, giant.kind) == (413, "body_too_large")
            assert giant.sent < 64 * MIB  # sockets hold it, or it is thrown away: for 2 s at most
            tasks = [start(sender.post(BODY, chunked=number % 4 == 3)) for number in range(40)]
            taken = settled(worker, tasks)
            assert 10 <= len(taken) <= 20
            refused = [task for task in tasks if task not in taken]
            assert all(refused_for_memory(task.result()) for task in refused)
            wait_until(lambda: len(spooled(worker)) == len(taken))
            taken.append(start(sender.post(1000)))
            wait_until(lambda: gauges(worker)["in_flight"] == len(taken))
            post_json(f"{model}/release", {})
            replies = [task.result(60.0) for task in taken]
        assert all(reply.kind == "ok" for reply in replies)
        *large, small = [json.loads(reply.body) for reply in replies]
        assert {(one["bytes"], one["digest"]) for one in large} == {sender.payload(BODY)}
        assert (small["bytes"], small["digest"]) == sender.payload(1000)
        # one body at a time is mapped while it is looked at; the rest is pieces
        assert peaks.grown("ingress-0") < 16 * MIB + BODY + SLACK, peaks.highest
        assert peaks.grown("backend_adapter") < SLACK, peaks.highest
        assert peaks.grown("supervisor") + peaks.grown("reporter") < SLACK, peaks.highest
        peaks.assert_as_stated()
        let_go(worker, peaks)


@row(
    34,
    "a flood of small bodies, uploads that crawl, and a queue process that is frozen meanwhile",
    seen="what has room is answered once, the rest gets a 503 `memory` with Retry-After; nothing is"
    " lost when the frozen process is replaced",
    does="counts every byte that it holds against `limits.buffered_bytes`, announced ones before"
    " they come; a message that waits for a frozen process is a second copy of it, never a third",
)
def test_row_34_small_bodies_are_counted_while_nobody_takes_them(tmp_path: Path) -> None:
    # without a disk, announced bodies take memory
    with hoarder(tmp_path, "limits.spool_bytes=0") as (worker, sender, model), clients() as start:
        with watched(worker) as peaks:
            # three bodies are announced, of a quarter of the room each, and nothing of them comes
            crawling = [start(sender.stall(sender.head(4 * MIB))) for _ in range(3)]
            wait_until(lambda: gauges(worker)["buffered_bytes"] >= 12 * MIB)
            adapter = worker.kill("backend_adapter", signal.SIGSTOP)
            tasks = [start(sender.post(15_000)) for _ in range(800)]
            worker.wait_replaced("backend_adapter", adapter)  # it was frozen until it was killed
            taken = settled(worker, tasks)
            assert 100 < len(taken) < 600
            refused = [task for task in tasks if task not in taken]
            assert all(refused_for_memory(task.result()) for task in refused)
            assert not any(task.done() for task in crawling)
            post_json(f"{model}/release", {})
            replies = [task.result(60.0) for task in taken]
        assert all(reply.kind == "ok" for reply in replies)
        bodies = [json.loads(reply.body) for reply in replies]
        assert {(one["bytes"], one["digest"]) for one in bodies} == {sender.payload(15_000)}
        assert peaks.grown("ingress-0") < 2 * 16 * MIB + SLACK, peaks.highest
        peaks.assert_as_stated()
        for task in crawling:  # their clients leave, and what they had announced is free
            task.cancel()
        let_go(worker, peaks)


@row(
    34,
    "clients that do not read the streams that they asked for",
    seen="those that have not read for longest are cut off; the others go on",
    does="holds at most `limits.unsent_bytes` for all of them, and reads no more of the model"
    " server",
)
def test_row_34_unread_streams_are_bounded(tmp_path: Path) -> None:
    with hoarder(tmp_path) as (worker, sender, _), clients() as go:
        request = sender.head(10, "/generate_stream") + b"".join(sender.pieces(10))
        with watched(worker) as peaks:
            for _ in range(80):
                go(sender.stall(request))
            wait_until(lambda: gauges(worker)["cut_readers"] > 20, 60.0, "some to be cut off")
        left = 80 - gauges(worker)["cut_readers"]
        assert left > 8
        assert peaks.grown("ingress-0") < 2 * 4 * MIB + SLACK, peaks.highest
        # one read of each that is held, and what a busy ingress has not taken of its credit yet
        assert peaks.grown("backend_adapter") < 80 * (320 + 256) * 2**10 + SLACK, peaks.highest
        peaks.assert_as_stated()
        wait_until(lambda: 0 < gauges(worker)["in_flight"] <= left, what="the cut to be gone")


@row(
    34,
    "the disk is full where large bodies go",
    seen="a large body gets a 503 `memory` with Retry-After that names the disk; small ones are"
    " answered as ever",
    does="looks for the room for a body before it reads any of it",
)
def test_row_34_a_full_disk_refuses_large_bodies_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "spool", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        with hoarder(tmp_path, f"limits.spool_dir={disk}") as (worker, sender, model):
            post_json(f"{model}/release", {})
            with clients() as start, watched(worker) as peaks:
                for chunked in (False, True):
                    reply = start(sender.post(BODY, chunked=chunked)).result(30.0)
                    assert refused_for_memory(reply)
                    assert b"disk" in reply.body
                    for size in (100, 2 * MIB):
                        reply = start(sender.post(size)).result(30.0)
                        assert json.loads(reply.body)["bytes"] == sender.payload(size)[0]
            peaks.assert_as_stated()
            wait_until(lambda: gauges(worker)["spooled_bytes"] == 0)
            wait_until(lambda: not [path for path in disk.rglob("*") if path.is_file()])
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert not list(disk.iterdir())


@row(
    34,
    "ingress, the queue process or everything is killed while large bodies lie in files",
    seen="a killed queue process costs no request; a killed ingress costs those that it held",
    does="sends the files again to the next queue process; no file outlives its ingress by more"
    " than its restart, nor the run by more than the next start",
)
def test_row_34_no_file_of_a_body_is_left(tmp_path: Path) -> None:
    with hoarder(tmp_path) as (worker, sender, model), clients() as start:
        with watched(worker) as peaks:
            tasks = [start(sender.post(BODY)) for _ in range(4)]
            wait_until(lambda: gauges(worker, "backend_adapter")["running"] == 4)
            adapter = worker.kill("backend_adapter")
            worker.wait_replaced("backend_adapter", adapter)
            assert len(spooled(worker)) == 4
            post_json(f"{model}/release", {})
            replies = [json.loads(task.result(60.0).body) for task in tasks]
            assert {(one["bytes"], one["digest"]) for one in replies} == {sender.payload(BODY)}
            post_json(f"{model}/hold", {})

            start(sender.post(BODY))
            wait_until(lambda: gauges(worker, "backend_adapter")["running"] == 1)
            ingress = worker.kill("ingress-0")
            worker.wait_replaced("ingress-0", ingress)
            wait_until(lambda: not spooled(worker))
        peaks.assert_as_stated()

        start(sender.post(BODY))
        wait_until(lambda: gauges(worker, "backend_adapter")["running"] == 1)
        wait_until(lambda: len(spooled(worker)) == 1)
        worker.process.kill()  # the others see it, and clean up
        worker.process.wait()
        wait_until(lambda: not worker.leftovers() and not spooled(worker))

        stale = worker.state_dir / "spool" / "lighterman-gone" / "ingress-0.1.1"
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"of a run that was killed with everyone in it")
        worker.start().wait_ready()
        assert not stale.exists()
