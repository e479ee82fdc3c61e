"""The whole worker as a person starts it: `python -m supervisor`, in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor import control_client, process_tree
from supervisor.plan import free_port
from tests.kit.planted import Planted
from tests.kit.running_worker import environment
from tests.kit.wait import DEADLINE_S, wait_until

ROUTES = """
[[route]]
path = "/generate"
workload = { field = "parameters.max_new_tokens", default = 10 }
[[route]]
path = "/generate_stream"
workload = { field = "parameters.max_new_tokens", default = 10 }
[[route]]
path = "/v1/completions"
workload = { field = "max_tokens", default = 10 }
"""


class Worker:
    """One worker on free ports, in front of the demo model unless ``toml`` says otherwise.

    ``toml`` stands before the routes; ``model_flags`` go to the demo model; ``settings`` are
    ``section.name=value`` flags. ``script``: text of a worker.py that is run instead, ``PORT`` in
    it is ``model_port``. ``before``: a command that the whole worker is run by. ``python``: of an
    environment that a worker is installed in, which is run then, not this checkout.

    It is given secrets in its environment, but for those that ``environ`` names itself; ``end``
    looks for them in all that it has left.
    """

    def __init__(
        self,
        directory: Path,
        *,
        toml: str | None = None,
        routes: str = ROUTES,
        model_flags: tuple[str, ...] = (),
        settings: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        script: str = "",
        before: tuple[str, ...] = (),
        python: str = "",
    ) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.journal = directory / "journal"
        self.output = directory / "output"
        self.model_port = free_port("127.0.0.1")
        if toml is None:
            command = [
                sys.executable, "-m", "supervisor.demo.model", "--port", str(self.model_port),
                "--journal", str(self.journal), *model_flags,
            ]  # fmt: skip
            toml = (
                f"[model]\ncommand = {json.dumps(command)}\ncwd = {json.dumps(os.getcwd())}\n"
                f'url = "http://127.0.0.1:{self.model_port}"\nhealth = "/health"\n'
            )
        self.file = directory / "worker.toml"
        self.file.write_text(toml + routes)
        if script:
            self.file = directory / "worker.py"
            self.file.write_text(script.replace("PORT", str(self.model_port)))
        self._before = before
        self._python = python
        self.settings = settings
        self.planted = Planted("MASTER_TOKEN", "HF_TOKEN", "OPENAI_API_KEY")
        self._environ = self.planted.environ | (environ or {})
        self.process: subprocess.Popen[bytes]
        #: how often each member's pid was seen to change is what tests of restarts look at
        self.run_id = ""

    def start(self) -> Worker:
        """Start it; does not wait."""
        settings = (
            "worker.port=0", "worker.admin_port=0", "engine.local_port=0",
            "worker.host=127.0.0.1", *self.settings,
        )  # fmt: skip
        flags = [part for setting in settings for part in ("--set", setting)]
        environ, cwd = environment(**self._environ), None
        if self._python:  # no checkout may be found first
            environ = {n: v for n, v in environ.items() if not n.startswith(("PYTHON", "COV"))}
            cwd = self.directory
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *self._before, self._python or sys.executable, "-m", "supervisor",
                    str(self.file), "--state-dir", str(self.state_dir), *flags,
                ],
                stdout=output, stderr=subprocess.STDOUT, env=environ, cwd=cwd,
            )  # fmt: skip
        return self

    @property
    def printed(self) -> str:
        """Everything that it printed."""
        return self.output.read_text(errors="replace")

    def facts(self) -> dict[str, Any]:
        """What it published: pid, URLs, run id."""
        facts = control_client.running(str(self.state_dir))
        self.run_id = facts["run_id"]
        return facts

    def command(self, verb: str, *args: str) -> Any:
        """Ask it over its control socket."""
        return control_client.ask(str(self.state_dir), verb, list(args), DEADLINE_S)

    def status(self) -> dict[str, Any]:
        """Its status, or an empty one while it cannot be asked."""
        try:
            return dict(self.command("status"))
        except control_client.ControlError:
            return {"ready": False, "members": []}

    def wait_ready(self) -> Worker:
        """Wait until the engine has accepted a report that says it is ready."""

        def ready() -> bool:
            assert self.process.poll() is None, self.printed
            status = self.status()
            return bool(status["ready"] and status["load"].get("reported_ready"))

        wait_until(ready, 60.0, f"the worker to become ready:\n{self.printed}")
        self.facts()
        return self

    def members(self) -> dict[str, dict[str, Any]]:
        """Status of each member, by name."""
        return {member["name"]: member for member in self.status()["members"]}

    def pid(self, name: str) -> int:
        """The pid of a member's process; 0: it has none now."""
        member = self.members().get(name)
        return int(member["pid"]) if member else 0

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a member's process; returns the pid that it had."""
        pid = wait_until(lambda: self.pid(name), what=f"{name} to have a process")
        os.kill(pid, number)
        return pid

    def wait_replaced(self, name: str, old_pid: int) -> None:
        """Wait until the member is READY with another process."""

        def replaced() -> bool:
            member = self.members().get(name)
            return bool(member) and member["pid"] not in (0, old_pid) and member["state"] == "ready"

        wait_until(replaced, 60.0, f"{name} to be replaced")

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return str(self.facts()["worker_url"])

    @property
    def engine(self) -> str:
        """The local engine."""
        return str(self.facts()["engine_url"])

    def record(self) -> dict[str, Any]:
        """What the local engine was told."""
        return get_json(f"{self.engine}/demo/record")

    def auth(self, cost: float = 10.0) -> dict[str, Any]:
        """Signed auth_data from the local engine."""
        body = {"endpoint": "demo", "api_key": "k", "cost": cost, "request_idx": 0}
        return wait_until(
            lambda: (a := post_json(f"{self.engine}/route/", body)).get("signature") and a,
            what="the engine to route",
        )

    def leftovers(self) -> list[int]:
        """Processes of this run that live."""
        return process_tree.find_run(self.run_id)

    def stop(self) -> int:
        """SIGTERM, wait; the exit code."""
        self.process.terminate()
        return self.process.wait(60.0)


@contextmanager
def running(directory: Path, **options: Any) -> Iterator[Worker]:
    """A ready worker; whatever happens, nothing of it is left."""
    worker = Worker(directory, **options).start()
    try:
        yield worker.wait_ready()
    except BaseException:
        print(worker.printed[-8000:])
        raise
    finally:
        end(worker)


def end(worker: Worker) -> None:
    """Stop it if it still runs, and everything that it started. It has told none of its secrets."""
    if worker.process.poll() is None:
        worker.process.terminate()
        try:
            worker.process.wait(20.0)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    if worker.run_id:
        process_tree.sweep(worker.run_id)
    worker.planted.assert_absent(worker.output, worker.state_dir)


def get_json(url: str) -> Any:
    """GET, decoded."""
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        return json.load(answer)


def post_json(url: str, body: Any) -> Any:
    """POST, decoded; an error answer is decoded too."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)
