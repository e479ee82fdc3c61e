"""The adapter's side of the process that holds a worker.py, where one is used.

What goes there: whole jobs, over HTTP on a socket file; questions for payloads of the benchmark,
its figure, and which sessions are open, over the wire. It must not know the queue: ``Owner`` is
told when jobs for that process may run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from backend_adapter.hook_messages import HOOKS_SOCKET, HOSTED_SOCKET, FromHooks, Measured
from backend_adapter.hosted_watch import HostedWatch, Owner
from backend_adapter.model_client import ModelClient
from backend_adapter.samples import Samples
from backend_adapter.session_mirror import SessionMirror
from supervisor import wire
from supervisor.child import Runtime
from supervisor.messages import ChildNote

#: Draws that nobody answers are looked at this often.
EXPIRE_EVERY_S = 1.0


class ScriptLink:
    """``client_of`` makes the connections to a base URL."""

    def __init__(
        self, runtime: Runtime, client_of: Callable[[str], ModelClient], owner: Owner
    ) -> None:
        self._runtime = runtime
        settings = runtime.settings
        #: shows the open sessions there
        self.mirror = SessionMirror()
        #: connections for whole jobs
        self.hosted: ModelClient | None = None
        self.samples: Samples | None = None
        self._wire: wire.Client | None = None
        if settings.hooks.file:
            path = runtime.address(HOSTED_SOCKET).removeprefix("ipc://")
            self.hosted = client_of(f"unix://{path}")
            self.hosted.hosted = True
            self.samples = Samples(settings.hooks.timeout_s)
            self._watch = HostedWatch(runtime, self.hosted, owner)
            #: no other model server is behind it
            self._alone = settings.model.url == f"unix://{path}"

    def start(self) -> None:
        """Connect."""
        samples, runtime = self.samples, self._runtime
        if samples is None:
            return
        self._wire = wire.Client(
            runtime.address(HOOKS_SOCKET), runtime.name, FromHooks, samples.answered,
            on_up=self._up, on_down=samples.link_down,
            max_message_bytes=runtime.settings.limits.body_bytes + 2**20,
        )  # fmt: skip
        samples.send = self.mirror.tell = self._wire.send
        runtime.every(EXPIRE_EVERY_S, lambda: samples.expire(time.monotonic()))

    def told(self, note: ChildNote) -> None:
        """Where that process stands."""
        if self.hosted is not None:
            self._watch.told(note.state)

    def lost(self, sent: bool) -> bool:
        """A connection to it broke before the response began.

        Returns:
            Nobody else stands behind it: it is the model server that was lost.
        """
        self._watch.lost(sent)
        return self._alone

    def measured(self, max_perf: float) -> None:
        """A benchmark has just been made; its figure is remembered there."""
        if self._wire is not None:
            self._wire.send(Measured(max_perf))

    async def close(self) -> None:
        """Close everything."""
        self.mirror.stop()
        if self.hosted is not None:
            await self.hosted.close()
        if self._wire is not None:
            self._wire.close()

    def _up(self) -> None:
        if self.samples is not None:
            self.samples.link_up()
        self.mirror.link_up()
