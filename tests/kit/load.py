"""Many requests at once against a worker, each with exactly one outcome."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass
class Outcome:
    """How one request ended: ``kind`` is ``ok``, an error kind, ``broken`` or ``unanswered``."""

    kind: str
    status: int
    body: bytes


class Load:
    """Requests in flight against one worker.

    ``unanswered`` is an outcome that must never happen: the deadline passed without any.
    """

    def __init__(self, url: str, auth: dict[str, Any], deadline_s: float = 90.0) -> None:
        self._url = url
        self._auth = auth
        self._deadline_s = deadline_s
        self._session: aiohttp.ClientSession | None = None
        self._next = 1
        self.tasks: list[asyncio.Task[Outcome]] = []
        #: answers of which something has come
        self.begun = 0

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._deadline_s),
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self._session is not None
        await self._session.close()

    def start(self, route: str, payload: dict[str, Any]) -> asyncio.Task[Outcome]:
        """Begin one request."""
        auth = {**self._auth, "request_idx": self._next, "reqnum": self._next}
        self._next += 1
        task = asyncio.create_task(self._one(route, {"auth_data": auth, "payload": payload}))
        self.tasks.append(task)
        return task

    async def outcomes(self) -> Counter[str]:
        """Wait for all, count by kind."""
        return Counter(outcome.kind for outcome in await asyncio.gather(*self.tasks))

    async def _one(self, route: str, body: dict[str, Any]) -> Outcome:
        assert self._session is not None
        status, read = 0, bytearray()
        try:
            async with self._session.post(self._url + route, json=body) as answer:
                status = answer.status
                async for part in answer.content.iter_any():
                    self.begun += not read
                    read += part
        except TimeoutError:
            return Outcome("unanswered", status, bytes(read))
        except aiohttp.ClientError:
            return Outcome("broken", status, bytes(read))
        if status < 400:
            return Outcome("ok", status, bytes(read))
        return Outcome(json.loads(read)["error"]["kind"], status, bytes(read))
