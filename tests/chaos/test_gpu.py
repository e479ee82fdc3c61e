"""GPUs that fail while the worker serves, by a library that says so in NVML's place."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor import process_tree
from tests.chaos.table import row
from tests.kit.fake_nvml import FakeNvml
from tests.kit.load import Load
from tests.kit.wait import wait_until
from tests.kit.worker import ROUTES, Worker, running

#: A stream takes six seconds, which is long beside what happens meanwhile; a request may wait one.
PACE = ("--tokens-per-second", "25")
STREAM: dict[str, Any] = {"prompt": "x", "max_tokens": 150, "stream": True}
UNARY: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
IMPATIENT = ROUTES.replace('path = "/generate"\n', 'path = "/generate"\nmax_queue_time_s = 1\n')
EVERY_S = 1.0
LOST, RESET_REQUIRED = 15, 16


def worker_with(nvml: FakeNvml, directory: Path) -> Any:
    return running(
        directory, model_flags=PACE, routes=IMPATIENT, environ=nvml.environ,
        settings=(f"model.gpu_watch_s={EVERY_S}",),
    )  # fmt: skip


def told(worker: Worker) -> str:
    """The error that the engine heard last."""
    entry = worker.record()["status"][-1]
    return str(entry.get("report", entry)["error_msg"])


def page(worker: Worker, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(worker.facts()["admin_url"] + path, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def readers(worker: Worker) -> list[int]:
    """The processes that ask NVML."""
    return [
        pid
        for pid in process_tree.find_run(worker.run_id)
        if b"backend_adapter.gpu_reader" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def during_a_stream(worker: Worker, meanwhile: Callable[[], None]) -> str:
    """How a stream ended during which something happened."""

    async def scene() -> str:
        async with Load(worker.url, worker.auth()) as load:
            task = load.start("/v1/completions", STREAM)
            await asyncio.to_thread(
                wait_until,
                lambda: worker.status()["queue"].get("running") == 1,
                what="the stream to run",
            )
            await asyncio.to_thread(meanwhile)
            assert not task.done(), "it was to happen while the stream runs"
            return (await task).kind

    return asyncio.run(scene())


def until_unready(worker: Worker, words: str) -> None:
    """Status, the engine and the page say so."""
    wait_until(lambda: words in worker.status().get("reason", ""), what=f"status to say {words}")
    wait_until(lambda: words in told(worker), what=f"the engine to hear {words}")

    def shown() -> bool:
        status, body = page(worker, "/readyz")
        return status == 503 and words in body

    wait_until(shown, what=f"the page to say {words}")


def until_well(worker: Worker) -> None:
    worker.wait_ready()
    wait_until(lambda: told(worker) == "", what="the engine to hear that it is over")


@row(
    27,
    "a GPU falls off the bus, or needs a reset",
    seen="the worker is not ready; `status`, `/readyz` and the engine show the GPU's index, name "
    "and NVML's own words. Requests that run go on; new ones wait, then get 503 `not_ready` with "
    "these words.",
    does="leaves the model server alone while the GPU cannot be used, since a restart would not "
    "help, and starts it again when the GPU is back.",
    on="an imitated NVML",
)
def test_row_27_a_gpu_that_fell_off_is_told_in_its_own_words(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path, count=2)
    nvml.set(used_1=8 << 30)
    with worker_with(nvml, tmp_path) as worker:
        wait_until(
            lambda: worker.status()["queue"].get("gpu_1") == "Fake H100, 8.0 of 80.0 GiB, 50% busy",
            what="status to show the GPUs",
        )
        labels = '{gpu="1",name="Fake H100"}'
        used = f"lighterman_gpu_memory_used_bytes{labels} 8.589934592e+09"
        wait_until(lambda: used in page(worker, "/metrics")[1], what="the metrics to show them")
        model, auth = worker.pid("model"), worker.auth()

        def fall_off() -> None:
            nvml.set(error_1=LOST)
            until_unready(worker, "GPU 1 (Fake H100): GPU is lost")

        assert during_a_stream(worker, fall_off) == "ok"

        async def refused() -> Any:
            async with Load(worker.url, auth) as load:
                return await load.start("/generate", UNARY)

        outcome = asyncio.run(refused())
        assert (outcome.kind, outcome.status) == ("not_ready", 503)
        assert b"GPU is lost" in outcome.body
        assert f"lighterman_gpu_usable{labels} 0.0" in page(worker, "/metrics")[1]
        assert worker.pid("model") == model, "a restart would not have helped"

        nvml.set(error_1=0)
        worker.wait_replaced("model", model)
        until_well(worker)
        assert worker.members()["model"]["restarts"] == 1


@row(
    27,
    "a GPU reports an uncorrectable memory error",
    seen="the worker is not ready until the model server has been started again; the engine hears "
    "the GPU's index, name and the error. Requests that run go on.",
    does="sends nothing new to the model server, whose memory on the GPU is lost, and starts it "
    "again once no request runs on it, or none makes progress.",
    on="an imitated NVML",
)
def test_row_27_an_uncorrectable_error_costs_one_restart_of_the_model(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    nvml.set(ecc_0=7)  # from before the worker's time
    with worker_with(nvml, tmp_path) as worker:
        wait_until(lambda: worker.status()["queue"].get("gpu_watch") == "on", what="the watch")
        model = worker.pid("model")
        nvml.xid(0, 13)  # an application's own fault, which is its own matter

        def strike() -> None:
            nvml.xid(0, 94)
            until_unready(worker, "GPU 0 (Fake H100): Xid 94: contained ECC error")
            nvml.set(ecc_0=8)  # the same error, seen in another way
            assert worker.pid("model") == model

        assert during_a_stream(worker, strike) == "ok"
        worker.wait_replaced("model", model)
        until_well(worker)
        member = worker.members()["model"]
        assert member["restarts"] == 1
        assert "Xid 94: contained ECC error" in member["last_exit"]
        assert "GPU 0 (Fake H100): Xid 13" in worker.printed


@row(
    27,
    "the GPU's driver hangs: NVML does not answer",
    seen="the worker is not ready; the error says for how many seconds NVML did not answer. "
    "Requests that run go on, heartbeats and pages too.",
    does="has a process of its own ask NVML (NVIDIA's management library), which can hang without "
    "harm; when it answers again, all is as it was",
    on="an imitated NVML",
)
def test_row_27_a_hanging_driver_hangs_nothing_of_ours(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    with worker_with(nvml, tmp_path) as worker:
        wait_until(lambda: worker.status()["queue"].get("gpu_watch") == "on", what="the watch")
        pids = {name: member["pid"] for name, member in worker.members().items()}

        def hang() -> None:
            nvml.set(hang=1)
            until_unready(worker, f"NVML did not answer in {2 * EVERY_S:g} s")
            unusable = 'lighterman_gpu_usable{gpu="0",name="Fake H100"} 0.0'
            wait_until(lambda: unusable in page(worker, "/metrics")[1], what="the metrics, too")

        assert during_a_stream(worker, hang) == "ok"
        nvml.set(hang=0)
        until_well(worker)
        assert {name: member["pid"] for name, member in worker.members().items()} == pids
        nvml.set(hang=1)
        until_unready(worker, "NVML did not answer")
        assert worker.stop() == 0
        assert worker.leftovers() == []


@row(
    27,
    "NVML disappears, or what asks it dies",
    seen="the worker stays ready; `status --json` says in `gpu_watch` why no GPU can be asked.",
    does="serves on, since nothing says that a GPU is unwell, and asks again later.",
    on="an imitated NVML",
)
def test_row_27_a_library_that_disappears_costs_nothing(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    with worker_with(nvml, tmp_path) as worker:

        def watch() -> str:
            return str(worker.status()["queue"].get("gpu_watch"))

        wait_until(lambda: watch() == "on", what="the watch")
        assert during_a_stream(worker, nvml.hide) == "ok"
        (reader,) = readers(worker)
        os.kill(reader, signal.SIGKILL)
        wait_until(lambda: "NVML Shared Library Not Found" in watch(), what="status to say so")
        wait_until(lambda: worker.status()["ready"] and told(worker) == "", what="ready")
        nvml.show()
        wait_until(lambda: watch() == "on", what="the watch to go on")
        wait_until(lambda: len(readers(worker)) == 1, what="one reader")
        adapter = worker.kill("backend_adapter")
        worker.wait_replaced("backend_adapter", adapter)
        wait_until(lambda: watch() == "on", what="the watch of the next adapter")
        wait_until(lambda: len(readers(worker)) == 1, what="the orphaned reader to end")
        assert worker.stop() == 0
        assert worker.leftovers() == []
