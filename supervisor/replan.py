"""A run's settings while it runs: read again for ``reload``, and completed by a worker.py.

Law: new settings are validated whole before anything changes, and every child sees the same ones.
The routes are taken, and from a worker.py that was restarted the address of its model server; the
rest stays as it is until the worker is started anew, so that a child that is restarted meanwhile
cannot disagree with the others. It starts and stops nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from supervisor.handoff_file import HandoffFile
from supervisor.plan import Plan
from supervisor.settings_rules import unreloadable
from supervisor.settings_sources import Fault, SettingsError

_log = logging.getLogger("supervisor")


class Replanner:
    """The plan of one run.

    Args:
        plan: what the run starts with.
        reread: reads the settings again, with what a worker.py amounts to; raises SettingsError.
        handoff: where children read them.
        accept: has what a worker.py says the worker is before it is taken; raises SettingsError.
    """

    def __init__(
        self,
        plan: Plan,
        reread: Callable[[dict[str, Any] | None], Plan],
        handoff: HandoffFile,
        accept: Callable[[Plan], None],
    ) -> None:
        self.plan = plan
        self._reread = reread
        self._handoff = handoff
        self._accept = accept
        self._given: dict[str, Any] | None = None
        self._values = b""  # what that was decoded from

    def configure(self, values: bytes) -> bool:
        """A worker.py has said what the worker is; or, after its restart, says it again.

        Then what changed is taken as by a reload, and where its model server is, too: a file that
        starts one may give it another port each time.

        Args:
            values: MessagePack, section → name → value.

        Returns:
            False: that was known, and was taken.

        Raises:
            SettingsError: that cannot work; nothing has changed.
        """
        if values == self._values:
            return False
        given = msgspec.msgpack.decode(values, type=dict[str, Any])
        if self.plan.configured:
            self._take(given, server=True)
        else:
            plan = self._reread(given)
            self._accept(plan)
            self._write(plan)
        self._given, self._values = given, values
        return True

    def reload(self) -> list[str]:
        """Take the routes.

        Returns:
            The sections that changed and were not taken.

        Raises:
            SettingsError: they are wrong; nothing has changed.
        """
        return self._take(self._given, server=False)

    def _take(self, given: dict[str, Any] | None, server: bool) -> list[str]:
        running = self.plan.settings
        try:
            wanted = self._reread(given).settings
            if faults := unreloadable(running, wanted):
                raise SettingsError(faults)
            if server:  # a figure that was measured meanwhile is no change that anybody made
                max_perf = running.benchmark.max_perf
                benchmark = replace(wanted.benchmark, max_perf=max_perf)
                wanted = replace(wanted, benchmark=benchmark)
            settings = replace(running, route=wanted.route)
            if server and not running.model.command:
                model = replace(running.model, url=wanted.model.url, health=wanted.model.health)
                settings = replace(settings, model=model)
            self._write(replace(self.plan, settings=settings))
        except SettingsError as error:
            _log.error("reload: nothing changed:\n%s", error)
            raise
        _log.info("reload: settings taken")
        names = settings.__struct_fields__
        left = [name for name in names if getattr(settings, name) != getattr(wanted, name)]
        if left:
            _log.warning("reload: start the worker anew for what changed in %s", ", ".join(left))
        return left

    def _write(self, plan: Plan) -> None:
        try:
            self._handoff.write(plan.settings)
        except OSError as error:
            fault = Fault("the run's directory", f"cannot be written: {error.strerror}")
            raise SettingsError([fault]) from None
        self.plan = plan
