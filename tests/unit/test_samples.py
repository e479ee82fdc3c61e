"""Where a benchmark's payloads come from."""

from __future__ import annotations

import time

from backend_adapter.hook_messages import Prepared, Refused, Sample
from backend_adapter.samples import Fixed, Payload, Samples
from supervisor.messages import Message

PAYLOAD = Payload(b"{}", b"", 1.0)
Outcome = list[Payload] | str


class Play:
    """Samples, and a session that may stand."""

    def __init__(self) -> None:
        self.samples = Samples(10.0)
        self.samples.send = self.send
        self.up = True
        self.asked: list[Sample] = []
        self.got: list[Outcome] = []

    def send(self, message: Message) -> bool:
        assert isinstance(message, Sample)
        if self.up:
            self.asked.append(message)
        return self.up

    def draw(self, count: int) -> None:
        self.samples.draw("/a", count, self.got.append)

    def answer(self, *messages: Sample) -> None:
        self.samples.answered([Prepared(each.id, 1.0, b"{}") for each in messages])


def test_the_payload_of_the_settings_is_the_same_each_time() -> None:
    got: list[Outcome] = []
    source = Fixed([PAYLOAD])
    source.draw("/a", 3, got.append)
    source.let_go()
    assert got == [[PAYLOAD] * 3]


def test_each_payload_is_asked_for() -> None:
    play = Play()
    play.draw(3)
    assert [each.route for each in play.asked] == ["/a"] * 3
    play.answer(*play.asked[:2])
    assert play.got == []
    play.answer(play.asked[2], play.asked[2])
    assert play.got == [[PAYLOAD] * 3]


def test_what_was_let_go_is_never_answered() -> None:
    play = Play()
    play.draw(1)
    play.samples.let_go()
    play.answer(*play.asked)
    play.samples.expire(time.monotonic() + 100)
    assert play.got == []


def test_a_refusal_ends_the_draw() -> None:
    play = Play()
    play.draw(2)
    play.samples.answered([Refused(play.asked[0].id, "hook_failed", "no generator")])
    assert play.got == ["no payload for the benchmark: no generator"]
    play.answer(play.asked[1])
    assert len(play.got) == 1


def test_a_new_session_asks_for_what_is_left() -> None:
    play = Play()
    play.up = False
    play.draw(2)
    assert play.asked == []
    play.up = True
    play.samples.link_up()
    play.answer(play.asked[0])
    play.samples.link_down()
    play.samples.link_up()
    assert len(play.asked) == 3
    play.answer(play.asked[1])  # of the session before
    assert play.got == []
    play.answer(play.asked[2])
    assert play.got == [[PAYLOAD] * 2]
    play.samples.link_up()
    assert len(play.asked) == 3


def test_nobody_waits_for_ever() -> None:
    play = Play()
    play.draw(1)
    play.samples.expire(time.monotonic() + 9.0)
    assert play.got == []
    play.samples.expire(time.monotonic() + 11.0)
    assert play.got == ["worker.py made no payload for the benchmark within 10 s"]
