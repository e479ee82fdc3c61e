"""Pure: the jobs of this adapter between their Submit and their one terminal message.

The queue decides what runs, is refused or ends; a ``Run`` carries one response under credit. Here
the ingress's words are fed to both, and the queue's commands carried out. Law 1 seen from this
side: a run that was let go of is never heard of again, so whoever ends first (the response, a
cancellation, a deadline, the end of the session that it came by) is the only one that tells.

How a request travels, and what a broken connection says about the model server, is the hands'
matter. This module knows no sockets; time comes from ``clock``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from backend_adapter import jobs
from backend_adapter.capacity import Capacity
from backend_adapter.jobs import Job, Key
from backend_adapter.messages import (
    Cancel,
    Cancelled,
    Credit,
    Failed,
    FromAdapter,
    Rejected,
    SessionCall,
    Submit,
)
from backend_adapter.queue import Queue
from backend_adapter.run import Run, Sender


class Desk(Protocol):
    """The open sessions."""

    def use(self, session_id: str) -> bool:
        """A request inside a session has come. False: there is none such."""

    def on_call(self, peer: str, call: SessionCall) -> None:
        """Answer, now or later."""

    def caller_gone(self, peer: str) -> None:
        """Nobody waits for answers to this ingress any more."""


class Hands(Protocol):
    """What is done for the runs."""

    def send(self, peer: str, message: FromAdapter) -> object:
        """Send to an ingress; nothing is kept where it is gone."""

    def sender(self, job: Job) -> Sender:
        """The connections that a job is to be sent on."""

    def soon(self, callback: Callable[[str, str], None], kind: str, message: str) -> None:
        """Call back when what happens now is done."""

    def connection_lost(self, sender: Sender, sent: bool) -> None:
        """A connection broke before the response began: look at what is behind it."""

    def model_lost(self) -> None:
        """Nothing connects to the model server: look at it."""

    def emptied(self) -> None:
        """Nothing runs or waits. Told while the worker drains, perhaps more than once."""


class Runs:
    """Every job that was sent to the model server and is not told the end of, by its key.

    Args:
        clock: ``time.monotonic``.
    """

    def __init__(
        self, queue: Queue, capacity: Capacity, hands: Hands, clock: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._capacity = capacity
        self._hands = hands
        self._clock = clock
        self._draining = False
        self.open: dict[Key, Run] = {}
        self.leaving = 0
        self.desk: Desk

    # ------------------------------------------------------------------ the ingress's words

    def hear(self, peer: str, messages: Sequence[Any]) -> None:
        """What this ingress says, in order."""
        now = self._clock()
        for message in messages:
            kind = type(message)
            if kind is Submit:
                if message.session_id and not self.desk.use(message.session_id):
                    text = "its session is not open: it was closed, or has expired"
                    self._hands.send(peer, Rejected(message.id, "invalid_session", text))
                    continue
                self.carry_out(self._queue.submit(Job((peer, message.id), message), now))
            elif kind is Credit:
                run = self.open.get((peer, message.id))
                if run is not None:
                    run.grant(message.size)
            elif kind is Cancel:
                key = (peer, message.id)
                run = self.open.get(key)
                began = run.job.dispatched_at if run is not None else 0.0
                self._hands.send(peer, Cancelled(message.id, began))
                self.carry_out(self._queue.cancel(key, now))
                self._forget(key)  # complete, but not delivered
                self._check_empty()
            else:  # SessionCall
                self.desk.on_call(peer, message)

    def peer_gone(self, peer: str) -> None:
        """The session with this ingress ended: it submits again what it still wants."""
        self.carry_out(self._queue.cancel_peer(peer, self._clock()))
        for key in [key for key in self.open if key[0] == peer]:
            self._forget(key)
        self.desk.caller_gone(peer)
        self._check_empty()

    def drain(self) -> None:
        """Take nothing new; the hands hear when nothing runs or waits."""
        self._draining = True
        self._queue.drain()
        self._check_empty()

    # ------------------------------------------------------------------ the queue's commands

    def carry_out(self, commands: Sequence[jobs.Command]) -> None:
        """Do what the queue says, in its order."""
        for command in commands:
            if type(command) is jobs.Dispatch:
                self._dispatch(command.job)
            elif type(command) is jobs.Abort:
                self._abort(command.job)
            elif type(command) is jobs.Reject:
                self._reject(command)
            elif type(command) is jobs.Fail:
                job = command.job
                failed = Failed(job.submit.id, command.kind, command.message, job.dispatched_at)
                self.tell(job, failed)
            else:
                raise AssertionError(f"unknown command {command!r}")
        self._check_empty()

    def _dispatch(self, job: Job) -> None:
        sender = self._hands.sender(job)
        run = Run(self, job, sender)
        self.open[job.key] = run
        self._capacity.started(job.dispatched_at)
        try:
            sender.send(run.request)
        except ValueError as error:
            # told like any other broken request, but not before this dispatch has returned
            self._hands.soon(run.on_broken, "model_failed", str(error))

    def _abort(self, job: Job) -> None:
        run = self.open.get(job.key)
        if run is not None:
            run.client.cancel(run.request)
            self._forget(job.key)
            self._capacity.ended(0.0, job.dispatched_at, self._clock())

    def _forget(self, key: Key) -> bool:
        """Let go of a run, and of its body at once. False: it was not known."""
        run = self.open.pop(key, None)
        if run is None:
            return False
        run.release()
        return True

    def _reject(self, command: jobs.Reject) -> None:
        job = command.job
        self.tell(
            job,
            Rejected(
                job.submit.id,
                command.kind,
                command.message,
                command.retry_after_s,
                command.position,
            ),
        )

    def _check_empty(self) -> None:
        if self._draining and not (self._queue.waiting or self._queue.running or self.open):
            self._hands.emptied()

    # ------------------------------------------------------------------ what runs tell

    def tell(self, job: Job, message: FromAdapter) -> None:
        """Send to the ingress that the job came from."""
        self._hands.send(job.key[0], message)

    def began(self, run: Run) -> None:
        """The client is about to see the response's beginning."""
        self._queue.began(run.job.key)

    def ended(self, run: Run, status: int) -> None:
        """The model server is done with it."""
        now = self._clock()
        job = run.job
        # what it refused (4xx) was no work: a client may claim any workload for that
        worked = job.submit.workload if status < 400 else 0.0
        self._capacity.ended(worked, job.dispatched_at, now)
        if commands := self._queue.finished(job.key, status < 500, now):
            self.carry_out(commands)

    def delivered(self, run: Run) -> None:
        """The terminal message has been sent."""
        self._forget(run.job.key)
        self._check_empty()

    def lost(self, run: Run, sent: int, reason: str) -> None:
        """The connection broke before the response began: look at the model server at once."""
        if not self._let_go(run):
            return
        self._hands.connection_lost(run.client, sent > 0)
        self.carry_out(self._queue.lost(run.job.key, sent, reason, self._clock()))

    def unsent(self, run: Run, reason: str) -> None:
        """The model server behind the worker.py's host is away: look at it at once."""
        if self._let_go(run):
            self._hands.model_lost()
            now = self._clock()
            self.carry_out(self._queue.lost(run.job.key, 0, reason, now, behind=True))

    def broken(self, run: Run, kind: str, message: str) -> None:
        """The response can not be completed."""
        if self._let_go(run):
            self.carry_out(self._queue.broken(run.job.key, kind, message, self._clock()))

    def _let_go(self, run: Run) -> bool:
        """It runs no more. False: it had been let go of already."""
        if self.open.get(run.job.key) is not run:
            return False
        self._forget(run.job.key)
        self._capacity.ended(0.0, run.job.dispatched_at, self._clock())
        return True
