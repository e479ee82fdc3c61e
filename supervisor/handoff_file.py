"""The file that children read their settings from, for as long as the run lasts.

Law: a child that starts at any moment finds whole settings, the same as every other child's.
Cleaners of /tmp take what is old: what is gone is written again, unless somebody else was quicker
to make the directory. It must not know what a setting means.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from supervisor.settings import Settings
from supervisor.settings_sources import Handoff, write_handoff

#: Name of the file for the process that holds the worker.py.
HOOKS_HANDOFF = "hooks.msgpack"


class HandoffFile:
    """The hand-off of one run, in its private directory."""

    def __init__(self, run_id: str, runtime_dir: str) -> None:
        self._run_id = run_id
        self._runtime_dir = runtime_dir
        self._settings: Settings | None = None
        self._paths: list[str] = []

    def write(self, settings: Settings) -> None:
        """From now on children get these. Raises OSError."""
        handoff = Handoff(self._run_id, self._runtime_dir, os.getpid(), settings)
        paths = []
        if settings.hooks.file:
            replace = msgspec.structs.replace
            engine = replace(settings.engine, token="")
            public = replace(settings, engine=engine)  # user code is told no secret of ours
            paths.append(write_handoff(replace(handoff, settings=public), HOOKS_HANDOFF))
        self._paths = [*paths, write_handoff(handoff)]
        self._settings = settings

    def keep(self) -> None:
        """Call now and then: write it again where it has gone."""
        if self._settings is None or all(map(os.path.exists, self._paths)):
            return
        with suppress(OSError):  # tried again at the next call
            with suppress(FileExistsError):
                os.mkdir(self._runtime_dir, 0o700)
            if os.lstat(self._runtime_dir).st_uid == os.geteuid():  # nobody was quicker
                self.write(self._settings)
