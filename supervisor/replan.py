"""A run's settings while it runs: read again for ``reload``, and completed by a worker.py.

Law: new settings are validated whole before anything changes, and every child sees the same ones.
The routes are taken; the rest stays as it is until the worker is started anew, so that a child that
is restarted meanwhile cannot disagree with the others. It starts and stops nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

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
    """

    def __init__(
        self,
        plan: Plan,
        reread: Callable[[dict[str, Any] | None], Plan],
        handoff: HandoffFile,
    ) -> None:
        self.plan = plan
        self._reread = reread
        self._handoff = handoff
        self._given: dict[str, Any] | None = None

    def configure(self, values: bytes) -> None:
        """A worker.py has said, for the first time, what the worker is.

        Args:
            values: MessagePack, section → name → value.

        Raises:
            SettingsError: that cannot work; nothing has changed.
        """
        given = msgspec.msgpack.decode(values, type=dict[str, Any])
        plan = self._reread(given)
        self._write(plan)
        self._given = given

    def configure_again(self, values: bytes) -> None:
        """It was started anew: what changed is taken as by a reload. Raises SettingsError."""
        self._given = msgspec.msgpack.decode(values, type=dict[str, Any])
        self.reload()

    def reload(self) -> list[str]:
        """Take the routes.

        Returns:
            The sections that changed and were not taken.

        Raises:
            SettingsError: they are wrong; nothing has changed.
        """
        running = self.plan.settings
        try:
            wanted = self._reread(self._given).settings
            if faults := unreloadable(running, wanted):
                raise SettingsError(faults)
            settings = msgspec.structs.replace(running, route=wanted.route)
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
