"""Whether the process that holds a worker.py takes jobs; looked at only after something went wrong.

A connection to it that breaks before the answer has two causes: that process died, or the model
server behind it did, and it passed that on. So hosted jobs are held, and it is asked until it
answers: at once means that the model server is to be looked at, later that it was restarted. While
it is being stopped they are held as well. The jobs of the model server go on meanwhile. It must not
know the queue: ``Owner`` is told.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from backend_adapter.model_client import ModelClient
from supervisor.child import Runtime
from supervisor.messages import ChildState

#: Seconds between two tries, and that one may take.
LOOK_EVERY_S = 0.1
REACH_S = 5.0


class Owner(Protocol):
    """What the watch needs of the process around it."""

    def hosted_up(self) -> None:
        """Hosted jobs may run."""

    def hosted_down(self) -> None:
        """Hosted jobs must wait."""

    def hosted_failed(self) -> None:
        """Hosted jobs need not wait."""

    def model_lost(self) -> None:
        """Something may have happened to the model server."""


class HostedWatch:
    """Watches through ``client``, which has the connections to that process."""

    def __init__(self, runtime: Runtime, client: ModelClient, owner: Owner) -> None:
        self._runtime = runtime
        self._client = client
        self._owner = owner
        self._up = True  # an adapter is started after it; if it is wrong, the first job tells
        self._failed = False
        self._looking = False
        self._stopping = False
        self._gone = False  #: it was not there when it was looked at
        self._doubt = False  #: a request that it had got was lost

    def lost(self, sent: bool) -> None:
        """A connection to it broke; ``sent`` False: there was none."""
        if self._up:
            self._up = False
            self._owner.hosted_down()
        self._doubt = self._doubt or (sent and not self._gone)
        self._look_on()

    def told(self, state: str) -> None:
        """The supervisor says where that process stands."""
        stopping, self._stopping = self._stopping, state == ChildState.STOPPING
        if state == ChildState.FAILED:
            self._up, self._failed = False, True
            self._owner.hosted_failed()
            self._look_on()
        elif self._failed:
            self._failed = False
            self._owner.hosted_down()
        elif self._stopping:  # it finishes what it has, and gets nothing new
            self._up = False
            self._owner.hosted_down()
        elif stopping:
            self._look_on()

    async def _alive(self) -> bool:
        """It answers: the socket of one that is dying still takes connections."""
        return (await self._client.probe("/", REACH_S)).status != 0

    def _look_on(self) -> None:
        if not self._looking:
            self._looking = True
            self._runtime.spawn(self._look())

    async def _look(self) -> None:
        while self._stopping or not await self._alive():
            self._gone, self._doubt = True, False
            await asyncio.sleep(LOOK_EVERY_S)
        self._looking = self._gone = self._failed = False
        if self._doubt:
            self._doubt = False
            self._owner.model_lost()
        self._up = True
        self._owner.hosted_up()
