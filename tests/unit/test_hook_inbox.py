"""Questions in the hook host: begun only while somebody waits for their answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from backend_adapter.hook_messages import Prepare, Prepared, Refused, Sample
from ingress.hooks.config import BenchmarkConfig, HandlerConfig, WorkerConfig
from ingress.hooks.handlers import build
from ingress.hooks.inbox import Inbox
from ingress.hooks.threads import HookThreads
from tests.kit.wait import wait_until_async

BODY = b'{"payload": {"n": %d}}'


class Scene:
    """An inbox whose one hook notes what it was asked, and waits where it is told to."""

    def __init__(self, timeout_s: float, held_bytes: int) -> None:
        self.seen: list[int] = []
        self.gate = threading.Event()
        self.answers: list[tuple[str, Prepared | Refused]] = []
        self.threads = HookThreads(asyncio.get_running_loop())
        how = BenchmarkConfig(generator=lambda: {"n": 99})
        handler = HandlerConfig("/a", request_parser=self.parse, benchmark_config=how)
        config = WorkerConfig(model_server_url="http://127.0.0.1:1", handlers=[handler])
        self.hooked = build(config)["/a"]
        self.inbox = Inbox(
            self.threads,
            lambda peer, answer: self.answers.append((peer, answer)),
            timeout_s=timeout_s,
            held_bytes=held_bytes,
            body_bytes=1000,
        )

    def parse(self, payload: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(payload["n"])
        if payload["n"] == 0:
            self.gate.wait(60)
        return payload

    def ask(self, number: int, n: int | None = None, peer: str = "ingress-0") -> None:
        body = BODY % (number if n is None else n)
        self.inbox.ask(peer, self.hooked, Prepare(number, "/a", body))

    @property
    def answered(self) -> list[tuple[str, int]]:
        return [(peer, answer.id) for peer, answer in self.answers]


def play(
    script: Callable[[Scene], Awaitable[None]], timeout_s: float = 30.0, held_bytes: int = 1000
) -> None:
    async def main() -> None:
        scene = Scene(timeout_s, held_bytes)
        try:
            await script(scene)
        finally:
            scene.gate.set()
            scene.threads.close()

    asyncio.run(main())


def test_a_forgotten_question_is_not_begun_and_holds_nothing() -> None:
    async def script(scene: Scene) -> None:
        scene.ask(0)
        held = scene.inbox.held_bytes
        for number in (1, 2, 3):
            scene.ask(number)
        scene.inbox.forget("ingress-0", 1)
        scene.inbox.forget("ingress-1", 2)  # somebody else's
        scene.inbox.forget("ingress-0", 7)  # never asked
        assert scene.inbox.held_bytes == 3 * held and scene.threads.waiting == 2
        await wait_until_async(lambda: len(scene.answers) == 2)
        assert scene.seen == [0, 2, 3]
        scene.inbox.forget("ingress-0", 0)  # in its thread: it goes on, unheard
        assert scene.inbox.held_bytes == held
        scene.gate.set()
        await wait_until_async(lambda: scene.inbox.held_bytes == 0)
        assert scene.answered == [("ingress-0", 2), ("ingress-0", 3)]

    play(script)


def test_a_question_that_has_waited_too_long_is_not_begun() -> None:
    async def script(scene: Scene) -> None:
        scene.ask(0)
        held = scene.inbox.held_bytes
        scene.ask(1)
        scene.inbox.ask("backend_adapter", scene.hooked, Sample(5, "/a"))
        await wait_until_async(lambda: scene.inbox.held_bytes == held)
        assert scene.threads.waiting == 0
        scene.gate.set()
        await wait_until_async(lambda: scene.inbox.held_bytes == 0)
        assert scene.seen == [0] and scene.answered == [("ingress-0", 0)]
        scene.ask(2)
        await wait_until_async(lambda: len(scene.answers) == 2)

    play(script, timeout_s=0.05)  # far below what the calls behind a call wait for it


def test_a_sender_that_is_gone_asked_nothing_and_may_ask_anew() -> None:
    async def script(scene: Scene) -> None:
        scene.ask(0)
        held = scene.inbox.held_bytes
        for number in (1, 2):
            scene.ask(number)
        scene.ask(3, peer="ingress-1")
        scene.inbox.forget_peer("ingress-0")
        assert scene.inbox.held_bytes == 2 * held
        scene.ask(0, n=4)  # a new session, with the same number
        scene.gate.set()
        await wait_until_async(lambda: scene.inbox.held_bytes == 0)
        assert scene.seen == [0, 3, 4]
        assert scene.answered == [("ingress-1", 3), ("ingress-0", 0)]

    play(script)


def test_bytes_of_the_forgotten_make_room() -> None:
    async def script(scene: Scene) -> None:
        scene.ask(0)
        scene.ask(1)
        scene.ask(2)
        assert [answer.kind for _, answer in scene.answers if isinstance(answer, Refused)] == [
            "memory"
        ]
        scene.inbox.forget("ingress-0", 1)
        scene.ask(3)
        await wait_until_async(lambda: ("ingress-0", 3) in scene.answered)
        scene.inbox.ask("ingress-0", None, Prepare(4, "/b", b"{}"))
        assert isinstance(scene.answers[-1][1], Refused)

    play(script, held_bytes=2 * len(BODY % 1))
