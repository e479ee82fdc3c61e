"""The hands of a producer: its accounts' way to the reporter, and the reporter's words back.

Law: what was accounted reaches the reporter, whatever becomes of a session: what is unconfirmed is
sent again in the next one (``producer_ledger.py``). It must not know what is accounted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from reporter import key_file
from reporter.messages import Ack, FromReporter, PublicKey
from reporter.producer_ledger import ProducerLedger
from supervisor import wire
from supervisor.messages import Message

#: Seconds between two batches of accounts: far below the reporter's one report a second.
EVENTS_EVERY_S = 0.1
#: Seconds past a drain deadline that the last accounts may take to be confirmed.
LAST_ACCOUNTS_S = 0.5


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
        self.ledger = ProducerLedger(name, wire.draw_epoch())
        self._address = address
        self._name = name
        self._on_word = on_word
        self._on_up = on_up
        self._acked = asyncio.Event()
        self._client: wire.Client | None = None

    def start(self) -> None:
        """Connect. ``flush`` is to be called every ``EVENTS_EVERY_S``.

        The engine's key is told at once where it is known already: the reporter may be away.
        """
        self._client = wire.Client(
            self._address, self._name, FromReporter, self._on_messages, on_up=self._up
        )
        if pem := key_file.read(self._address):
            self._on_word(PublicKey(pem))

    def close(self) -> None:
        """Close the socket."""
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
        """Send what has changed."""
        if self.up:
            events = self.ledger.batch()
            if events is not None:
                self.send(events)

    async def settle(self, end: float) -> None:
        """Return when the reporter has confirmed everything, or at loop time ``end``."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while True:
                    self._acked.clear()
                    self.flush()  # or, where no session stands, the timer does later
                    if self.ledger.settled:
                        return
                    await self._acked.wait()

    def _up(self) -> None:
        for events in self.ledger.unacked():
            self.send(events)
        self._on_up()

    def _on_messages(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Ack):
                if message.epoch == self.ledger.epoch:
                    self.ledger.acked(message.seq)
                    self._acked.set()
            else:
                self._on_word(message)
