"""The questions that a hook host was asked: who waits for which, and what they hold.

Law: a question is begun only while somebody waits for its answer. One that its sender forgot, whose
sender's session ended, or that has waited for ``timeout_s`` frees its place and its bytes at once,
and is not answered; one that is in a thread already goes on to its end, unheard.

Bounds: the bodies that wait, or are in a hook, hold at most ``held_bytes``; the payload objects
that wait for their job are a cache with a bound of its own. It must not know sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from backend_adapter.hook_messages import Prepare, Prepared, Refused, Sample
from ingress.hooks import calls
from ingress.hooks.handlers import Hooked
from ingress.hooks.payload import ApiPayload
from ingress.hooks.threads import Call, HookThreads

#: Payload objects that wait for their job to be dispatched; older ones are read again.
MAX_TICKETS = 256
MAX_TICKET_S = 30.0
MAX_TICKET_BYTES = 64 * 2**20  #: of the bodies that they were read from


class _Asked:
    """One question that is not answered yet."""

    __slots__ = ("call", "key", "size_bytes")

    call: Call  #: set when the threads have taken it

    def __init__(self, peer: str, number: int, size_bytes: int) -> None:
        self.key = (peer, number)
        self.size_bytes = size_bytes


class Inbox:
    """Every open question, by who asked and its number.

    Args:
        threads: what runs the hooks.
        answer: sends to who asked.
        timeout_s: seconds that a question may wait before it is begun.
        held_bytes: bytes of bodies that may be here at once.
        body_bytes: longest body that a hook may make.
    """

    def __init__(
        self,
        threads: HookThreads,
        answer: Callable[[str, Prepared | Refused], None],
        *,
        timeout_s: float,
        held_bytes: int,
        body_bytes: int,
    ) -> None:
        self._threads = threads
        self._answer = answer
        self._timeout_s = timeout_s
        self._max_held_bytes = held_bytes
        self._body_bytes = body_bytes
        self._open: dict[tuple[str, int], _Asked] = {}
        #: ticket → payload object, the size of the body that it was read from, and when; the oldest
        #: first
        self._tickets: dict[str, tuple[ApiPayload, int, float]] = {}
        self.held_bytes = 0  #: of bodies that wait for a hook, or are in one

    def ask(self, peer: str, hooked: Hooked | None, message: Prepare | Sample) -> None:
        """Have it answered; ``hooked``: its route, None: the file has none of that name."""
        if hooked is None:
            text = "worker.py has no such route"
            self._answer(peer, Refused(message.id, "hook_failed", text))
        elif isinstance(message, Sample):
            self._submit(_Asked(peer, message.id, 0), partial(_sample, hooked, message.id))
        elif self.held_bytes + (size := _size(message)) > self._max_held_bytes:
            text = "too many bytes wait for worker.py; send the request again later"
            self._answer(peer, Refused(message.id, "memory", text))
        else:
            work = partial(calls.prepare, hooked, message.id, message.body, message.file)
            self._submit(_Asked(peer, message.id, size), work)

    def forget(self, peer: str, number: int) -> None:
        """Nobody waits for this one any more."""
        asked = self._open.pop((peer, number), None)
        if asked is not None and self._threads.withdraw(asked.call):
            self.held_bytes -= asked.size_bytes

    def forget_peer(self, peer: str) -> None:
        """Its session ended: it asks again what it still wants."""
        for key in [key for key in self._open if key[0] == peer]:
            self.forget(*key)

    def redeem(self, ticket: str) -> ApiPayload | None:
        """The payload object of a ticket. Called on the file's loop; ``pop`` is one step."""
        kept = self._tickets.pop(ticket, None)
        return None if kept is None else kept[0]

    def _submit(self, asked: _Asked, work: Callable[[], Any]) -> None:
        self.held_bytes += asked.size_bytes
        self._open[asked.key] = asked
        asked.call = self._threads.submit(
            work,
            partial(self._done, asked),
            wait_s=self._timeout_s,
            dropped=partial(self._let_go, asked),
        )

    def _let_go(self, asked: _Asked) -> bool:
        """Whether somebody still waits for it."""
        self.held_bytes -= asked.size_bytes
        del asked.call  # it knows us: apart, the body is free at once
        if self._open.get(asked.key) is not asked:
            return False  # forgotten; maybe asked anew, under the same number
        del self._open[asked.key]
        return True

    def _done(self, asked: _Asked, outcome: tuple[Prepared | Refused, ApiPayload | None]) -> None:
        if not self._let_go(asked):
            return
        answer, payload = outcome
        limit = self._body_bytes
        if isinstance(answer, Prepared) and len(answer.body) > limit:
            text = f"what worker.py made of the request is over limits.body_bytes ({limit})"
            answer = Refused(answer.id, "hook_failed", text)
        elif isinstance(answer, Prepared) and answer.ticket and payload is not None:
            self._keep(answer.ticket, payload, asked.size_bytes)
        self._answer(asked.key[0], answer)

    def _keep(self, ticket: str, payload: ApiPayload, size_bytes: int) -> None:
        """Only a cache: what is dropped is read again. The file's thread takes from it, too."""
        self._tickets[ticket] = (payload, size_bytes, time.monotonic())
        self.tidy()

    def tidy(self) -> None:
        """Drop the payload objects that are too old, too many or too large. Call now and then: what
        an object holds besides the body that it was read from is not known.
        """
        held = list(self._tickets.items())
        over_bytes = sum(size for _, (_, size, _) in held) - MAX_TICKET_BYTES
        over, oldest_at = len(held) - MAX_TICKETS, time.monotonic() - MAX_TICKET_S
        for oldest, (_, size, at) in held:
            if over_bytes <= 0 and over <= 0 and at > oldest_at:
                break
            self._tickets.pop(oldest, None)
            over_bytes, over = over_bytes - size, over - 1


def _size(message: Prepare) -> int:
    return len(message.body) if message.file is None else message.file.size


def _sample(hooked: Hooked, number: int) -> tuple[Prepared | Refused, None]:
    return calls.sample(hooked, number), None
