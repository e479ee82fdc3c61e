"""What a run consists of: the settings with every port filled in, and the program of each member.

The supervisor knows our own packages by module name only; it imports none of them. Where no engine
is configured, a local one runs on loopback; where no model is configured either, the embedded demo
is the model (``embedded.py``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from supervisor import private_dir, settings_sources
from supervisor.client_port import ClientPort
from supervisor.handoff_file import HOOKS_HANDOFF
from supervisor.log_lines import Mask
from supervisor.logs import Capture, Ring, RotatingFile, Tail
from supervisor.member import Program
from supervisor.ports import free_port
from supervisor.restart import Policy
from supervisor.settings import Settings
from supervisor.settings_rules import LOOPBACK

#: (member, generation, kind, pattern, line)
OnMatch = Callable[[str, int, str, str, str], None]
#: Private key of the local engine, in the run's directory: it stays the same when that restarts.
ENGINE_KEY = "local_engine.pem"
#: Our own processes and the modules that they are.
_OURS = {
    "reporter": "reporter",
    "backend_adapter": "backend_adapter",
    "ingress": "ingress",
    "hooks": "ingress.hooks",
}


class Plan(msgspec.Struct, frozen=True):
    """One run, decided: no port is 0 any more, no address is missing."""

    settings: Settings
    #: port of the local engine; 0: the engine is elsewhere
    local_engine_port: int = 0
    #: no model was configured: the demo model runs
    embedded: bool = False
    #: the state directory, where commands have to name it; "": they find the worker without
    named_state_dir: str = ""

    @property
    def python(self) -> str:
        """What a person types for the interpreter that this is."""
        for name in ("python", "python3"):
            found = shutil.which(name)
            if found is not None and os.path.dirname(found) == os.path.dirname(sys.executable):
                return name
        near = os.path.relpath(sys.executable)
        return sys.executable if near.startswith(os.pardir) else near

    @property
    def configured(self) -> bool:
        """All is known; otherwise a worker.py has still to say what the worker is."""
        return not self.settings.hooks.file or bool(self.settings.route)

    @property
    def worker_url(self) -> str:
        """Where clients reach this worker."""
        return self.settings.worker.public_url

    @property
    def admin_url(self) -> str:
        """Where health and metrics are."""
        worker = self.settings.worker
        return f"http://{_in_url(worker.admin_host)}:{worker.admin_port}"

    @property
    def engine_url(self) -> str:
        """The first engine's base URL."""
        addresses = self.settings.engine.addresses
        return addresses[0] if addresses else ""


def make(settings: Settings, *, embedded: bool) -> Plan:
    """Fill in what may be left open: ports, the public URL, the local engine."""
    worker, engine = settings.worker, settings.engine
    url = settings.model.url
    model_port = (urlsplit(url).port or 80) if url.startswith("http") else 0
    taken = {
        model_port, worker.port, worker.http_port, worker.admin_port, engine.local_port,
    }  # fmt: skip
    port = worker.port or free_port(worker.host, taken)
    taken.add(port)
    admin_port = worker.admin_port or free_port(worker.admin_host, taken)
    taken.add(admin_port)
    local_port = 0
    if not engine.addresses:
        local_port = engine.local_port or free_port("127.0.0.1", taken)
        engine = msgspec.structs.replace(
            engine, local_port=local_port, addresses=[f"http://127.0.0.1:{local_port}"]
        )
    http_port = worker.http_port
    if http_port < 0:
        after = worker.port + 1 if settings.hooks.file and worker.port else 0
        http_port = after if after < 65536 and after not in taken else 0
    host = "127.0.0.1" if worker.host in ("0.0.0.0", "::", "") else _in_url(worker.host)
    scheme = "https" if settings.tls.enabled else "http"
    worker = msgspec.structs.replace(
        worker,
        port=port,
        http_port=http_port,
        admin_port=admin_port,
        public_url=worker.public_url or f"{scheme}://{host}:{port}",
    )
    filled = msgspec.structs.replace(settings, worker=worker, engine=engine)
    return Plan(filled, local_port, embedded)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def python_module(environ: dict[str, str], module: str, *args: str) -> list[str]:
    """Command line of a module of ours, imported from where this one was, whatever lies in the
    working directory; puts what that takes into ``environ``."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    return [sys.executable, "-P", "-m", module, *args]


class Programs:
    """The members of a run and what each of them is.

    Args:
        plan: the run.
        runtime_dir, run_id: given to every child.
        port: where clients come in; None: ingress sees to it.
        echo: takes our own children's log lines.
        on_match: called when a line of a member contains one of its patterns.
        mask: takes secrets out of everything that is kept.
    """

    def __init__(
        self,
        plan: Plan,
        runtime_dir: str,
        run_id: str,
        port: ClientPort | None,
        echo: Callable[[str], object],
        on_match: OnMatch,
        mask: Mask,
    ) -> None:
        self._settings = plan.settings
        self._plan = plan
        self._runtime_dir = runtime_dir
        self._run_id = run_id
        self._port = port
        self._echo = echo
        self._on_match = on_match
        self._mask = mask
        self._files: dict[str, RotatingFile] = {}
        self._tail: Tail | None = None
        self._logs_dir = os.path.join(plan.settings.worker.state_dir, "logs")
        with suppress(OSError):  # whatever it is, each log file will find it and go without
            private_dir.make(self._logs_dir)

    def names(self) -> list[str]:
        """Every member, in the order of start."""
        names = ["engine"] if self._plan.local_engine_port else []
        names += ["hooks"] if self._settings.hooks.file else []
        if not self._plan.configured:
            return [*names, "reporter"]
        names += ["model"] if self._settings.model.command else []
        doors = [f"ingress-{n}" for n in range(self._settings.worker.processes)]
        return [*names, "backend_adapter", *doors, "reporter"]

    def replan(self, plan: Plan) -> None:
        """What was not known at the start is now."""
        self._plan, self._settings = plan, plan.settings

    def ours(self, name: str) -> bool:
        """It runs in our child runtime: it beats, drains and belongs to every run."""
        return name.split("-")[0] in _OURS

    def program(self, name: str) -> Program:
        """What the member runs."""
        environ = settings_sources.inherited_environment(secret_variables=False)
        model, port = self._settings.model, 0
        role = name.split("-")[0]
        fds = self._port.fds if role == "ingress" and self._port is not None else ()
        if self.ours(name):
            handoff = HOOKS_HANDOFF if name == "hooks" else "handoff.msgpack"
            environ[settings_sources.HANDOFF_VARIABLE] = os.path.join(self._runtime_dir, handoff)
            environ["PYTHONUNBUFFERED"] = "1"  # what people print is seen when it is printed
            argv = python_module(environ, _OURS[role], name, *map(str, fds))
            cwd = os.getcwd()
        elif name == "engine":
            port = self._plan.local_engine_port
            key = os.path.join(self._runtime_dir, ENGINE_KEY)  # the same for each life of it
            args = ("--port", str(port), "--key", key)
            argv = python_module(environ, "supervisor.demo.engine", *args)
            cwd = os.getcwd()
        else:
            environ |= model.env
            argv, cwd = model.command, model.cwd or os.getcwd()
            url = urlsplit(model.url)
            port = (url.port or 80) if url.hostname in LOOPBACK else 0
        return Program(argv, environ, cwd, self._capturer(name), port, fds, name == "model")

    def policy(self, name: str) -> Policy:
        """How patient we are with it."""
        restart, model = self._settings.restart, self._settings.model
        is_model = name == "model"
        return Policy(
            budget=restart.budget,
            window_s=restart.window_s,
            first_delay_s=restart.first_delay_s,
            max_delay_s=restart.max_delay_s,
            stable_s=restart.stable_s,
            start_timeout_s={
                "model": model.start_timeout_s,
                # its own service tells where the file hangs; this is for a service that cannot
                "hooks": self._settings.hooks.start_timeout_s + restart.boot_s,
            }.get(name, restart.boot_s),
            stop_timeout_s=model.stop_timeout_s if is_model else self._settings.worker.drain_s,
        )

    def tail(self) -> Tail | None:
        """Follows the log of a model server that something else starts, where there is one."""
        model = self._settings.model
        known = self._plan.configured and self._tail is None
        if model.command or not model.log_file or not known:
            return None

        def matched(kind: str, pattern: str, line: str) -> None:
            self._on_match("model", 0, kind, pattern, line)

        # From its start: a model server that was there before us has said its ready line already.
        self._tail = Tail(
            model.log_file,
            from_start=True,
            patterns=self._patterns("model"),
            on_match=matched,
            mask=self._mask,
        )
        return self._tail

    def close(self) -> None:
        """Close every log file."""
        if self._tail is not None:
            self._tail.close()
        for file in self._files.values():
            file.close()

    def _patterns(self, name: str) -> list[tuple[str, str]]:
        model = self._settings.model
        if name == "model":
            return [
                *(("ready", text) for text in model.ready_log),
                *(("error", text) for text in model.error_log),
                *(("info", text) for text in model.info_log),
            ]
        return [("ready", "listening on")] if name == "engine" else []

    def _file(self, name: str) -> RotatingFile:
        if name not in self._files:
            path = os.path.join(self._logs_dir, f"{name}.log")
            if name == "model" and self._settings.model.log_file:
                path = self._settings.model.log_file
            self._files[name] = RotatingFile(path)
        return self._files[name]

    def _capturer(self, name: str) -> Callable[[int, int, Ring], Capture]:
        echo = self._echo if self.ours(name) else None

        def capture(generation: int, fd: int, ring: Ring) -> Capture:
            def matched(kind: str, pattern: str, line: str) -> None:
                self._on_match(name, generation, kind, pattern, line)

            return Capture(
                fd,
                file=self._file(name),
                patterns=self._patterns(name),
                on_match=matched,
                mask=self._mask,
                echo=echo,
                ring=ring,
            )

        return capture
