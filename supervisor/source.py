"""Which settings a command works with: the named file, ./worker.toml, the environment, or the demo.

Law: the embedded demo runs only where neither a model, nor a route, nor an engine is configured. An
instance that an engine counts on must never answer with the demo's words, so there the missing
model is a fault like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from supervisor import settings_sources
from supervisor.plan import Plan, make
from supervisor.settings import Settings
from supervisor.settings_sources import Fault, SettingsError

DEFAULT_FILE = "worker.toml"


class UsageError(Exception):
    """The command line asks for what cannot be; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from.

    Attributes:
        file: as named on the command line; None: ./worker.toml, if there is one.
        flags: ``section.name`` → text.
    """

    file: str | None = None
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The settings file; None: there is none.

        Raises:
            UsageError: it is a worker.py.
        """
        if self.file is None:
            default = Path(DEFAULT_FILE)
            return default if default.is_file() else None
        if self.file.endswith(".py"):
            raise UsageError(
                f"{self.file}: a worker.py cannot be run yet; describe the worker in a worker.toml"
                " (python -m supervisor init)"
            )
        return Path(self.file)

    def plan(self) -> Plan:
        """What would run.

        Raises:
            SettingsError: the settings are wrong.
            UsageError: as ``path``.
        """
        return replace(self._plan(), named_state_dir=self.flags.get("worker.state_dir", ""))

    def _plan(self) -> Plan:
        path = self.path
        settings = settings_sources.load(path, flags=self.flags, files=True)
        if _configures_model(settings):
            return make(settings, embedded=False)
        _refuse_on_an_instance(settings)
        from supervisor.embedded import HOST, embedded

        # Loopback, unless the person said otherwise.
        environ = settings_sources.inherited_environment(secret_variables=True)
        quiet = {"LIGHTERMAN_WORKER_HOST": HOST, **environ}
        named = settings_sources.named(path, environ, self.flags)
        settings = embedded(settings_sources.load(path, quiet, self.flags), named)
        return make(settings, embedded=True)

    def plan_again(self, running: Plan) -> Plan:
        """The settings anew for a worker that runs: ports that were left open stay as they are.

        Raises:
            SettingsError: they are wrong.
        """
        if running.embedded:
            return running
        settings = settings_sources.load(self.path, flags=self.flags, files=True)
        if not _configures_model(settings):
            hint = "the demo starts with the worker only"
            raise SettingsError([Fault("model.url", "no model is configured any more", hint)])
        worker, engine = settings.worker, settings.engine
        before, change = running.settings.worker, msgspec.structs.replace
        worker = change(
            worker,
            port=worker.port or before.port,
            admin_port=worker.admin_port or before.admin_port,
        )
        engine = change(engine, local_port=engine.local_port or running.local_engine_port)
        return make(change(settings, worker=worker, engine=engine), embedded=False)

    def state_dir(self) -> str:
        """The state directory, even where other settings are wrong."""
        try:
            return settings_sources.load(self.path, flags=self.flags).worker.state_dir
        except (SettingsError, UsageError):
            wanted = {k: v for k, v in self.flags.items() if k == "worker.state_dir"}
            names = ("HOME", "XDG_STATE_HOME", "LIGHTERMAN_WORKER_STATE_DIR")
            environ = settings_sources.inherited_environment(secret_variables=False)
            kept = {name: environ[name] for name in names if name in environ}
            return settings_sources.load(None, kept, wanted).worker.state_dir


def _configures_model(settings: Settings) -> bool:
    return bool(settings.model.command or settings.model.url or settings.route)


def _refuse_on_an_instance(settings: Settings) -> None:
    model, engine = settings.model, settings.engine
    if engine.addresses or engine.token or model.health or model.log_file or model.ready_log:
        hint = "give model.url and a [[route]] in worker.toml (python -m supervisor init)"
        raise SettingsError([Fault("model.url", "no model is configured", hint)])
