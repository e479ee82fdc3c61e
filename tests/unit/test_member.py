"""The hands of one child, on real processes."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from supervisor import lifecycle, member, process_tree
from supervisor.logs import Capture
from supervisor.member import Member, Program
from supervisor.messages import ChildState
from supervisor.restart import Policy
from tests.kit.wait import wait_until_async

POLICY = Policy(
    budget=3, window_s=600, first_delay_s=0, max_delay_s=1, stable_s=60, start_timeout_s=600,
    stop_timeout_s=600,
)  # fmt: skip
Scene = Callable[[Member], Awaitable[None]]


def play(scene: Scene, code: str, ask_to_stop: Callable[[float], bool] | None = None) -> None:
    """Run ``scene`` with a member whose process is this Python ``code``."""

    async def main() -> None:
        run_id = f"member-{os.getpid()}-{id(scene):x}"
        program = Program(
            [sys.executable, "-c", code],
            dict(os.environ),
            "",
            lambda _, fd, ring: Capture(fd, ring=ring),
        )
        child = Member(
            "child", program, POLICY, run_id, on_change=lambda _: None, on_give_up=lambda _: None,
            ask_to_stop=ask_to_stop,
        )  # fmt: skip
        try:
            child.feed(lifecycle.Start())
            await scene(child)
        finally:
            process_tree.sweep(run_id)
            await wait_until_async(lambda: child.process is None, what="the process to be reaped")
            child.close()

    asyncio.run(main())


async def until_said(child: Member, text: str) -> None:
    def said() -> bool:
        return child.capture is not None and text in child.capture.ring.since(0)[0]

    await wait_until_async(said, what=f"the child to say {text!r}")


def test_a_process_that_never_beat_is_told_to_stop_by_signal() -> None:
    """What it is asked over the control socket would go to the session of the one before it."""
    asked: list[float] = []

    def ask(deadline_s: float) -> bool:
        asked.append(deadline_s)
        return True

    async def scene(child: Member) -> None:
        await until_said(child, "up")
        child.feed(lifecycle.Stop(600.0))
        await wait_until_async(lambda: child.state is ChildState.STOPPED, what="its end")
        assert child.last_exit == "killed by signal 15 (SIGTERM)"

    play(scene, "print('up', flush=True); import time; time.sleep(600)", ask)
    assert asked == []


def test_the_lines_of_a_process_outlive_its_restart() -> None:
    async def scene(child: Member) -> None:
        await until_said(child, "up")
        first = child.life.pid
        child.feed(lifecycle.Restart())
        await wait_until_async(lambda: child.life.pid not in (0, first), what="the next process")
        await wait_until_async(
            lambda: child.ring.since(0)[0].count("up") == 2, what="the next one to say it too"
        )
        lines = child.ring.since(0)[0]
        assert lines == ["up", "--- restart asked for; start 2 ---", "up"]
        assert child.capture is not None
        assert child.ring.since(child.capture.begins)[0] == ["up"], "what is new is known"
        child.feed(lifecycle.Stop(600.0))
        await wait_until_async(lambda: child.state is ChildState.STOPPED, what="its end")

    play(scene, "print('up', flush=True); import time; time.sleep(600)")


def test_a_process_that_beat_is_asked() -> None:
    asked: list[float] = []

    async def scene(child: Member) -> None:
        await until_said(child, "up")
        child.beaten_at = 0.0
        child.feed(lifecycle.Stop(600.0))
        assert child.state is ChildState.STOPPING
        child.feed(lifecycle.StopDeadline())
        await wait_until_async(lambda: child.state is ChildState.STOPPED, what="its end")

    def ask(deadline_s: float) -> bool:
        asked.append(deadline_s)
        return True

    play(scene, "print('up', flush=True); import time; time.sleep(600)", ask)
    assert asked == [600.0]


def test_leftovers_that_cannot_be_killed_are_looked_at_ever_less_often_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process in the driver's hands may stay for hours; each look reads all of /proc."""
    looks: list[float] = []
    left = 1

    def sweep_once(*_: object, **__: object) -> int:
        looks.append(asyncio.get_running_loop().time())
        return left

    monkeypatch.setattr(member, "UNKILLABLE_S", 0.5)

    async def scene(child: Member) -> None:
        nonlocal left
        monkeypatch.setattr(process_tree, "sweep_once", sweep_once)
        await wait_until_async(lambda: len(looks) >= 6, what="six looks")
        pauses = [after - before for before, after in pairwise(looks)]
        assert pauses[-1] > 8 * member.SWEEP_EVERY_S
        await wait_until_async(lambda: "cannot be killed" in caplog.text, what="a word")
        left = 0
        await wait_until_async(lambda: child.state is not ChildState.BACKOFF, what="a new life")
        monkeypatch.undo()

    play(scene, "pass")
    assert caplog.text.count("cannot be killed") == 1


def test_a_death_after_the_end_of_the_run_is_answered_by_no_restart() -> None:
    """The run kills what is left, and the loop turns a few times more before it is closed."""

    async def scene(child: Member) -> None:
        await until_said(child, "up")
        process = child.process
        assert process is not None
        child.close()
        process.kill_tree()
        await wait_until_async(
            lambda: bool(select.select([process.pidfd], [], [], 0)[0]), what="its death"
        )
        for _ in range(10):
            await asyncio.sleep(0.01)  # turns of the loop, in which it could hear of that
        assert child.process is process and child.life.generation == 1
        process.reap()
        child.process = None

    play(scene, "print('up', flush=True); import time; time.sleep(600)")
