"""The hands of a producer: its accounts' way to the reporter, and the reporter's words back.

Law: what was accounted reaches the reporter, whatever becomes of a session or of this process: what
is unconfirmed is sent again in the next session (``producer_ledger.py``), and by the process after
this one (``daybook.py``), which sends its own only when all of that is confirmed. What a death
costs is what changed since the last ``flush``. It must not know what is accounted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from reporter import key_file
from reporter.daybook import Daybook
from reporter.messages import Ack, Events, FromReporter, PublicKey
from reporter.producer_ledger import ProducerLedger
from supervisor import wire
from supervisor.messages import Message

#: Seconds between two batches of accounts: far below the reporter's one report a second.
EVENTS_EVERY_S = 0.1
#: Seconds past a drain deadline that the last accounts may take to be confirmed.
LAST_ACCOUNTS_S = 0.5
#: Seconds of a session in which the reporter may leave what was inherited unconfirmed: it holds
#: back a batch for 5 s at most, so one that is not confirmed by then never will be.
INHERITED_S = 60.0


class Producer:
    """One process's accounts.

    Args:
        address: of the events socket.
        name: the process's.
        on_word: called with what the reporter says besides its confirmations.
        on_up: called when a session began.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        on_word: Callable[[Any], None] = lambda message: None,
        on_up: Callable[[], None] = lambda: None,
    ) -> None:
        # later lives have greater epochs: all processes of a machine share this clock
        self.ledger = ProducerLedger(name, time.monotonic_ns())
        self._address = address
        self._name = name
        self._on_word = on_word
        self._on_up = on_up
        self._acked = asyncio.Event()
        self._daybook = Daybook(address, name)
        #: batches of lives before this one, oldest first; only those of the oldest are under way
        self._inherited: deque[Events] = deque()
        self._up_at = 0.0
        self._client: wire.Client | None = None

    def start(self) -> None:
        """Connect. ``flush`` is to be called every ``EVENTS_EVERY_S``.

        The engine's key is told at once where it is known already: the reporter may be away.
        """
        self._inherited.extend(self._daybook.open())
        self._client = wire.Client(
            self._address, self._name, FromReporter, self._on_messages, on_up=self._up
        )
        if pem := key_file.read(self._address):
            self._on_word(PublicKey(pem))

    def close(self) -> None:
        """Close the socket."""
        self._daybook.close()
        if self._client is not None:
            self._client.close()

    @property
    def up(self) -> bool:
        """A session with the reporter stands."""
        return self._client is not None and self._client.up

    @property
    def malformed(self) -> int:
        """Batches that did not decode."""
        return 0 if self._client is None else self._client.malformed

    def send(self, message: Message) -> bool:
        """Tell the reporter something else. False: no session stands, say it again later."""
        return self._client is not None and self._client.send(message)

    def flush(self) -> None:
        """Write down what has changed, and send it."""
        if self._inherited and self.up and time.monotonic() - self._up_at > INHERITED_S:
            self._inherited.clear()
            self._next_life()
        events = self.ledger.batch()
        if events is None:
            return
        if self._daybook.full:
            self._daybook.rewrite((*self._inherited, *self.ledger.unacked()))
        else:
            self._daybook.append(events)
        if not self._inherited:
            self.send(events)

    async def settle(self, end: float) -> None:
        """Return when the reporter has confirmed everything, or at loop time ``end``."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while True:
                    self._acked.clear()
                    self.flush()
                    if self.ledger.settled and not self._inherited:
                        return
                    await self._acked.wait()

    def _up(self) -> None:
        self._up_at = time.monotonic()
        self._send_unconfirmed()
        self._on_up()

    def _send_unconfirmed(self) -> None:
        """One life after the other: the reporter ends one when it hears of the next."""
        if self._inherited:
            oldest = self._inherited[0].epoch
            batches = [events for events in self._inherited if events.epoch == oldest]
        else:
            batches = self.ledger.unacked()
        for events in batches:
            self.send(events)

    def _confirmed(self, ack: Ack) -> None:
        inherited = self._inherited
        if inherited and inherited[0].epoch == ack.epoch:
            while inherited and inherited[0].epoch == ack.epoch and inherited[0].seq <= ack.seq:
                inherited.popleft()
            if not inherited or inherited[0].epoch != ack.epoch:
                self._next_life()
        elif ack.epoch == self.ledger.epoch:
            self.ledger.acked(ack.seq)
            if not self.ledger.unacked():
                self._daybook.clear()
        self._acked.set()

    def _next_life(self) -> None:
        self._daybook.rewrite((*self._inherited, *self.ledger.unacked()))
        self._send_unconfirmed()

    def _on_messages(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Ack):
                self._confirmed(message)
            else:
                self._on_word(message)
