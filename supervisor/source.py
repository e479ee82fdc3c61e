"""Which settings a command works with: the named file, ./worker.toml, ./worker.py, the environment,
or the demo.

What a worker.py amounts to is not known here: it is run in a process of its own, once, when the
worker starts, which then plans again.

Law: the embedded demo runs only where neither a model, nor a route, nor a worker.py, nor an engine
is configured. An instance that an engine counts on must never answer with the demo's words,
so there the missing model is a fault like any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from supervisor import settings_sources
from supervisor.plan import Plan, make
from supervisor.settings import Settings
from supervisor.settings_sources import Fault, SettingsError

DEFAULT_FILE = "worker.toml"
DEFAULT_SCRIPT = "worker.py"
#: Files that a directory is run by, the first that is there.
_RUN = (DEFAULT_FILE, DEFAULT_SCRIPT, "server.py")


class UsageError(Exception):
    """The command line asks for what cannot be; the text says what to do."""


class Source(msgspec.Struct, frozen=True):
    """Where settings come from.

    Attributes:
        file: as named on the command line; None: ./worker.toml, if there is one. A directory means
            the file of it that people run.
        flags: ``section.name`` → text.
    """

    file: str | None = None
    flags: dict[str, str] = {}

    @property
    def path(self) -> Path | None:
        """The settings file; None: there is none."""
        if self.script:
            return None
        if self.file is None:
            default = Path(DEFAULT_FILE)
            return default if default.is_file() else None
        return Path(_within(self.file))

    @property
    def script(self) -> str:
        """Absolute path of the worker.py that was named, or found; "": none."""
        if self.file is not None:
            file = _within(self.file)
            return os.path.abspath(file) if file.endswith(".py") else ""
        if named := self.flags.get("hooks.file") or _environ().get("LIGHTERMAN_HOOKS_FILE"):
            return os.path.abspath(named)
        found = os.path.isfile(DEFAULT_SCRIPT) and not os.path.isfile(DEFAULT_FILE)
        return os.path.abspath(DEFAULT_SCRIPT) if found else ""

    def _load(self) -> Settings:
        """The settings without a worker.py's part, where there is one."""
        if not self.script:
            if self.path is not None and self.path.is_dir():
                raise _nothing_in(str(self.path))
            return settings_sources.load(self.path, flags=self.flags, files=True)
        flags = {**self.flags, "hooks.file": self.script}
        if not os.path.isfile(self.script):
            raise SettingsError([Fault(self.script, "there is no such file", "give its path")])
        return settings_sources.load(None, flags=flags, files=True, given={})

    def plan(self) -> Plan:
        """What would run.

        Raises:
            SettingsError: the settings are wrong.
            UsageError: as ``path``.
        """
        return replace(self._plan(), named_state_dir=self.flags.get("worker.state_dir", ""))

    def _plan(self) -> Plan:
        settings = self._load()
        if self.script:
            return make(settings, embedded=False)
        if _configures_model(settings):
            return make(settings, embedded=False)
        _refuse_to_play(settings)
        from supervisor.embedded import embedded

        return make(embedded(*self._quiet()), embedded=True)

    def _quiet(self) -> tuple[Settings, Set[str]]:
        """The settings on loopback, unless the person said otherwise; and what they have set."""
        from supervisor.embedded import HOST

        environ = settings_sources.inherited_environment(secret_variables=True)
        quiet = {"LIGHTERMAN_WORKER_HOST": HOST, **environ}
        named = settings_sources.named(self.path, environ, self.flags)
        return settings_sources.load(self.path, quiet, self.flags), named

    def plan_again(self, running: Plan, given: Mapping[str, Any] | None = None) -> Plan:
        """The settings anew for a worker that runs: ports that were left open stay as they are.

        Args:
            given: what its worker.py amounts to.

        Raises:
            SettingsError: they are wrong.
        """
        if running.embedded:
            return self._demo_again(running)
        flags = {**self.flags, "hooks.file": self.script} if self.script else self.flags
        settings = settings_sources.load(self.path, flags=flags, files=True, given=given)
        if not _configures_model(settings):
            hint = "the demo starts with the worker only"
            raise SettingsError([Fault("model.url", "no model is configured any more", hint)])
        worker, engine = settings.worker, settings.engine
        before = running.settings.worker
        worker = replace(
            worker,
            port=worker.port or before.port,
            http_port=before.http_port if worker.http_port < 0 else worker.http_port,
            admin_port=worker.admin_port or before.admin_port,
        )
        engine = replace(engine, local_port=engine.local_port or running.local_engine_port)
        plan = make(replace(settings, worker=worker, engine=engine), embedded=False)
        return replace(plan, named_state_dir=running.named_state_dir)

    def _demo_again(self, running: Plan) -> Plan:
        from supervisor.embedded import embedded_again

        settings = self._load()
        if _configures_model(settings) or settings.hooks.file:
            hint = "start the worker anew: until then the demo answers"
            raise SettingsError([Fault("model.url", "a model is configured now", hint)])
        settings = embedded_again(*self._quiet(), running.settings)
        plan = make(settings, embedded=True)
        return replace(plan, named_state_dir=running.named_state_dir)

    def state_dir(self) -> str:
        """The state directory, even where other settings are wrong."""
        try:
            given: dict[str, Any] | None = {} if self.script else None
            return settings_sources.load(self.path, flags=self.flags, given=given).worker.state_dir
        except SettingsError:
            wanted = {k: v for k, v in self.flags.items() if k == "worker.state_dir"}
            names = ("HOME", "XDG_STATE_HOME", "LIGHTERMAN_WORKER_STATE_DIR")
            environ = settings_sources.inherited_environment(secret_variables=False)
            kept = {name: environ[name] for name in names if name in environ}
            return settings_sources.load(None, kept, wanted).worker.state_dir


def _within(file: str) -> str:
    """The file itself; of a directory, the one in it that is run, or itself where none is.

    ``workers/NAME/`` is where repositories in the style of the public ones keep theirs, and
    ``BACKEND`` says which of them, as their start scripts do.
    """
    if not os.path.isdir(file):
        return file
    several = _workers(file)
    directories = [Path(file), *(several if len(several) == 1 else [])]
    places = [directory / name for directory in directories for name in _RUN]
    return str(next((place for place in places if place.is_file()), file))


def _environ() -> dict[str, str]:
    return settings_sources.inherited_environment(secret_variables=False)


def _workers(directory: str) -> list[Path]:
    return sorted(Path(directory).glob(f"workers/{_environ().get('BACKEND') or '*'}/"))


def _nothing_in(directory: str) -> SettingsError:
    several = ", ".join(each.name for each in _workers(directory)[:20])
    found = f"; of workers/ it has {several}" if several else ""
    text = f"this directory holds no {', '.join(_RUN[:-1])} or {_RUN[-1]}{found}"
    return SettingsError([Fault(directory, text, "name the file, or set BACKEND")])


def _configures_model(settings: Settings) -> bool:
    return bool(settings.model.command or settings.model.url or settings.route)


def _refuse_to_play(settings: Settings) -> None:
    """Raises SettingsError where somebody means a worker of his own, not the demo."""
    model, engine = settings.model, settings.engine
    if script := settings.hooks.file:
        what = f"hooks.file gives {script} to the routes of these settings, and there is none"
        hint = f"add a [[route]], or have the worker.py say it all: python -m supervisor {script}"
        raise SettingsError([Fault("hooks.file", what, hint)])
    if engine.addresses or engine.token or model.health or model.log_file or model.ready_log:
        hint = "give model.url and a [[route]] in worker.toml (python -m supervisor init)"
        raise SettingsError([Fault("model.url", "no model is configured", hint)])
