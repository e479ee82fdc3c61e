"""What crosses at the two ends of the jobs socket, one case at a time.

The machine of both ends (``tests/properties``) searches for orders of events; here are those that
it need not come upon in every run.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backend_adapter import jobs
from backend_adapter.jobs import Job
from backend_adapter.messages import Answer, Chunk, End, Failed, Head, Submit
from backend_adapter.response_headers import ResponseHead
from backend_adapter.run import Run
from backend_adapter.runs import Runs
from ingress.admission import Admission
from ingress.admission import Job as Promised
from ingress.answers import Answers
from reporter.producer_ledger import ProducerLedger
from supervisor.batch import Malformed
from supervisor.ends import ClientEnd, ServerEnd
from supervisor.link import DEAD_AFTER_S


class Model:
    """The connections to a model server, which only takes notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def send(self, request: Any) -> None:
        self.said.append("send")

    def cancel(self, request: Any) -> None:
        self.said.append("cancel")

    def pause(self, request: Any) -> None:
        self.said.append("pause")

    def resume(self, request: Any) -> None:
        self.said.append("resume")


class Hands(Model):
    """All that is done for the runs, and the queue and the capacity that are told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        note = self.said.append
        queue = SimpleNamespace(
            waiting=0, running=0,
            lost=lambda *_: note("queue.lost") or [], began=lambda _: None,
            finished=lambda *_: [],
        )  # fmt: skip
        capacity = SimpleNamespace(started=lambda _: None, ended=lambda *_: note("capacity.ended"))
        self.runs = Runs(queue, capacity, self, lambda: 5.0)  # type: ignore[arg-type]

    def sender(self, job: Job) -> Model:
        return self

    def tell(self, peer: str, message: Any) -> None:
        self.told.append(message)

    def connection_lost(self, sender: Any, sent: bool) -> None:
        self.said.append("connection_lost")


def submit(number: int, credit: int) -> Submit:
    return Submit(number, "/a", "/a", 0, 1.0, 60.0, 60.0, credit)


def job(credit: int = 100) -> Job:
    made = Job(("ingress-0", 7), submit(7, credit))
    made.dispatched_at = 1.0
    return made


def running(credit: int = 100) -> tuple[Hands, Run]:
    hands = Hands()
    hands.send = hands.tell  # type: ignore[method-assign, assignment]
    taken = job(credit)
    run = Run(hands.runs, taken, Model())
    hands.runs.open[taken.key] = run
    return hands, run


def head(length: int = -1) -> ResponseHead:
    return ResponseHead(200, b"", length, length < 0, False, False, False)


def test_credit_that_comes_early_or_is_not_waited_for_is_only_counted() -> None:
    hands, run = running(credit=4)
    run.grant(3)  # nothing has come yet
    run.on_head(head())
    run.grant(1)  # nothing is held, and the response goes on
    run.on_body(b"12345678")
    assert [m.body for m in hands.told if type(m) is Chunk] == [b"12345678"]
    assert isinstance(run.client, Model) and run.client.said == []


def test_without_any_credit_all_of_it_waits() -> None:
    hands, run = running(credit=0)
    run.on_head(head())
    run.on_body(b"12")
    run.on_end()
    assert not [m for m in hands.told if type(m) in (Chunk, End)]
    run.grant(2)
    assert [type(m) for m in hands.told[-2:]] == [Chunk, End]


def test_a_response_that_is_gathered_needs_no_credit() -> None:
    hands, run = running()
    run.on_head(head(2))
    run.grant(5)
    run.on_body(b"ok")
    run.on_end()
    assert [type(m) for m in hands.told] == [Answer]


def test_a_run_that_was_let_go_of_is_not_heard_of_again() -> None:
    hands, run = running()
    del hands.runs.open[run.job.key]
    hands.runs.lost(run, 1, "it broke")
    hands.runs.broken(run, "model_failed", "it broke")
    hands.runs.unsent(run, "nobody was there")
    hands.runs.carry_out([jobs.Abort(run.job)])
    assert hands.said == [] and hands.told == []


def test_a_command_that_nobody_knows_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="unknown command 7"):
        Hands().runs.carry_out([7])  # type: ignore[list-item]


def test_without_a_session_nothing_is_sent_and_ends_that_cross_are_void() -> None:
    ledger = ProducerLedger("ingress-0", 1)
    answers = Answers(Admission(10), ledger, 40)
    promised = Promised(submit(3, 100), SimpleNamespace(context=None), "/a", 0, -1, 0.0)
    answers.submit(promised)
    answers.grant(promised)  # nothing is owed
    answers.leave(promised, 1.0)
    answers.leave(promised, 1.0)
    answers.hear([End(3), Failed(3, "model_failed", "it broke")], 2.0)
    assert ledger.pending == 0.0


def test_who_reads_a_large_answer_as_it_comes_gets_more_credit_once() -> None:
    exchange = SimpleNamespace(context=None, writable=True, write=lambda _: None, unread_bytes=100)
    answers, granted = Answers(Admission(10), ProducerLedger("ingress-0", 1), 40), []
    answers.send = lambda message: granted.append(message) or True
    promised = Promised(submit(3, 100), exchange, "/a", 0, -1, 0.0)
    answers.submit(promised)

    def hear(size: int) -> int:
        del granted[:]
        answers.hear([Chunk(3, memoryview(bytes(size)))], 1.0)
        return sum(message.size for message in granted)

    assert [hear(9), hear(1), hear(40)] == [0, 10, 40]
    assert [hear(40), hear(40)] == [40, 40]  # the kernel may hold it all
    exchange.unread_bytes = 50
    exchange.writable = False
    assert hear(1) == 0  # it has stopped reading: trust must wait
    exchange.writable = True
    assert [hear(10), hear(40)] == [11 + 3 * 40, 40]


def test_what_is_no_work_and_fails_is_counted_as_a_refusal() -> None:
    ledger = ProducerLedger("ingress-0", 1)
    answers = Answers(Admission(10), ledger, 40)
    told: list[Any] = []
    exchange = SimpleNamespace(context=None, fail=told.append)
    answers.submit(Promised(submit(3, 100), exchange, "/session/get", 0, -1, 0.0))
    answers.hear([Failed(3, "adapter_down", "it is away")], 2.0)
    assert [problem.kind for problem in told] == ["adapter_down"]
    assert ledger._refused == {"adapter_down": 1} and ledger.pending == 0.0


def end(on_down: Any = None) -> ClientEnd:
    return ClientEnd(
        iter(range(1, 9)).__next__, lambda _: ((1, 0, 0), []), lambda _: True,
        lambda: None, lambda _: None, None, on_down,
    )  # fmt: skip


def test_a_message_of_more_frames_is_malformed() -> None:
    with pytest.raises(Malformed, match="one frame"):
        end().arrived([b"a", b"b"], 0.0)


def test_a_client_that_nobody_watches_greets_again_all_the_same() -> None:
    client = end()
    client.tick(0.0)
    client._down(1.0)
    assert not client.link.up


def test_clients_are_not_given_up_by_who_slept_itself() -> None:
    server = ServerEnd(
        iter(range(1, 9)).__next__, lambda _: ((4, 0, 0), []), lambda *_: True,
        lambda *_: None, None, None,
    )  # fmt: skip
    server.arrived([b"one", b""], 0.0)
    assert list(server.peers) == ["one"]
    server.slept(2 * DEAD_AFTER_S)
    server.tick(2 * DEAD_AFTER_S)
    assert list(server.peers) == ["one"]
    server.tick(4 * DEAD_AFTER_S)
    assert not server.peers


def test_an_answer_of_known_length_is_whole_with_its_last_byte() -> None:
    ended: list[str] = []
    exchange = SimpleNamespace(
        context=None, writable=True, write=lambda _: None, finish=lambda: ended.append("finish"),
        begin=lambda *_: None,
    )  # fmt: skip
    ledger = ProducerLedger("ingress-0", 1)
    answers = Answers(Admission(10), ledger, 40)
    key = ledger.open(1, 100.0, 0.0)
    promised = Promised(submit(3, 100), exchange, "/a", key, -1, 0.0)
    answers.submit(promised)
    answers.hear([Head(3, 200, b"", 0.5, 8), Chunk(3, memoryview(b"1234"))], 1.0)
    assert not ended
    answers.hear([Chunk(3, memoryview(b"5678"))], 1.0)
    answers.leave(promised, 1.5)  # it has read all of it
    answers.hear([End(3)], 2.0)
    assert (ended, ledger.served, ledger.cancelled) == (["finish"], 100.0, 0.0)
