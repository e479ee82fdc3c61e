"""The supervisor stands still for longer than anybody may be mute, and then goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor import control_client
from supervisor.link import DEAD_AFTER_S
from supervisor.settings import Settings
from tests.chaos.deaths import kinds, only_restarted, paced, rows, stream, unary
from tests.chaos.table import row
from tests.kit.load import Load, Outcome
from tests.kit.wait import wait_until, wait_until_async
from tests.kit.worker import Worker

RESTART = Settings().restart
#: For how long a process of ours may send no heartbeat.
PATIENCE_S = RESTART.beat_s * RESTART.missed_beats
#: Nobody hears of it for so long: longer than that, and than a connection between two processes.
FROZEN_S = max(PATIENCE_S, DEAD_AFTER_S) + 2.0
#: Afterwards: if it held its own pause against anybody, it would do so within this.
AFTERWARDS_S = PATIENCE_S + 2 * RESTART.beat_s


@contextmanager
def frozen(worker: Worker) -> Iterator[int]:
    """SIGSTOP to its supervisor, whose pid this is; SIGCONT afterwards."""
    pid = worker.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


async def asked_for(seconds: float, load: Load) -> list[Outcome]:
    """One request after the other for so long; how they ended."""
    end, outcomes = time.monotonic() + seconds, []
    while time.monotonic() < end:
        outcomes.append(await load.start("/generate", unary("meanwhile", 5)))
    return outcomes


async def scene(worker: Worker, auth: dict[str, Any]) -> list[Outcome]:
    """A stream that outlasts the pause, and requests during it and after it."""
    seconds = FROZEN_S + AFTERWARDS_S
    async with Load(worker.url, auth) as load:
        whole = load.start("/v1/completions", stream("through all of it", int(25 * seconds)))
        await wait_until_async(lambda: load.begun == 1, what="the stream to begin")
        with frozen(worker) as pid:
            outcomes = await asked_for(FROZEN_S, load)
            with pytest.raises(control_client.NoAnswer, match=rf"\(pid {pid}\) did not answer"):
                await asyncio.to_thread(
                    control_client.ask, str(worker.state_dir), "status", [], 0.5
                )
        outcomes += await asked_for(AFTERWARDS_S, load)
        return [await whole, *outcomes]


@row(
    3,
    "the supervisor is frozen (`kill -STOP`), and goes on later (`kill -CONT`)",
    seen="requests are answered and streams go on all the while; `status` says that the worker's "
    "pid does not answer, and works again afterwards",
    does="holds its own pause against nobody: no process is killed or restarted for it. One that "
    "ended meanwhile is started again as soon as the supervisor goes on",
)
def test_row_03_the_supervisor_is_frozen(tmp_path: Path) -> None:
    with paced(tmp_path) as worker:
        before = worker.members()
        outcomes = asyncio.run(scene(worker, worker.auth()))
        assert kinds(outcomes) == {"ok": len(outcomes)}
        assert outcomes[0].body.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: worker.status()["ready"], what="status to say ready")
        after = worker.members()
        assert {n: m["pid"] for n, m in after.items()} == {n: m["pid"] for n, m in before.items()}
        assert {member["restarts"] for member in after.values()} == {0}
        wait_until(lambda: len(rows(worker)) == len(outcomes), what="the engine to hear of all")
        assert set(rows(worker).values()) == {"Success"}

        with frozen(worker):
            os.kill(before["reporter"]["pid"], signal.SIGKILL)
        worker.wait_replaced("reporter", before["reporter"]["pid"])
        only_restarted(worker, "reporter", before)
