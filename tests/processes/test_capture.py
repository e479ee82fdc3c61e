"""A real child floods its output: it is never held up, and neither is the loop that drains it."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

import pytest
import uvloop

from supervisor import logs, process_tree
from supervisor.log_file import RotatingFile
from supervisor.logs import Capture
from tests.kit.wait import DEADLINE_S, wait_until_async

ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize(("flood_bytes", "line_bytes"), [(100 << 20, 0), (16 << 20, 80)])
def test_a_flood_is_drained(tmp_path: Path, flood_bytes: int, line_bytes: int) -> None:
    uvloop.run(drain_a_flood(tmp_path, flood_bytes, line_bytes))
    kept = sum(one.stat().st_size for one in tmp_path.iterdir())
    assert kept <= 3 * (1 << 20) + logs.READ_BYTES


async def drain_a_flood(tmp_path: Path, flood_bytes: int, line_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    flood = ["-m", "tests.kit.misbehaving", "flood", str(flood_bytes), str(line_bytes)]
    process = process_tree.spawn(
        [sys.executable, *flood],
        env=dict(os.environ),
        cwd=ROOT,
        run_id=uuid.uuid4().hex,
        name="model",
    )
    path = tmp_path / "model.log"
    file = RotatingFile(str(path), max_bytes=1 << 20, keep=2)
    capture = Capture(process.output_fd, file=file)
    ended, exited = asyncio.Event(), asyncio.Event()
    wake_ups = turns = 0

    def readable() -> None:
        nonlocal wake_ups
        wake_ups += 1
        if not capture.on_readable():
            loop.remove_reader(capture.fd)
            ended.set()

    def take_turn() -> None:
        """Something else that the loop has to do."""
        nonlocal turns
        turns += 1
        if not ended.is_set():
            loop.call_soon(take_turn)

    loop.add_reader(capture.fd, readable)
    loop.add_reader(process.pidfd, exited.set)
    take_turn()
    await wait_until_async(ended.is_set, 3 * DEADLINE_S, "the end of the flood")
    await wait_until_async(exited.is_set, what="the child's end")
    loop.remove_reader(process.pidfd)
    capture.close()
    file.close()

    assert process.reap().describe() == "exit 0"
    assert wake_ups >= flood_bytes // (logs.READS_AT_ONCE * logs.READ_BYTES)
    assert turns >= wake_ups // 2
    assert capture.ring.since(0)[0][-1] == "done"
    dropped = flood_bytes - logs.MAX_LINE_BYTES if line_bytes == 0 else 0
    assert capture.splitter.dropped_bytes == dropped
