"""A whole worker, started as a person starts it, and everything that is gone after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from supervisor import process_tree, settings_sources
from supervisor.run_lock import read_running
from tests.kit.planted import Planted
from tests.kit.wait import DEADLINE_S, wait_until

ANY_PORT = (
    "--port", "0", "--set", "worker.admin_port=0", "--set", "engine.local_port=0",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a setting in it."""
    environ = dict(os.environ)
    for field in settings_sources.fields():
        environ.pop(field.variable, None)
        environ.pop(field.own_variable, None)
    for name in ("PUBLIC_IPADDR", "UNSECURED"):
        environ.pop(name, None)
    return environ | more


def command(*args: str) -> list[str]:
    """The command line of ``python -m supervisor``."""
    return [sys.executable, "-m", "supervisor", *args]


class RunningWorker:
    """``with RunningWorker(directory, …) as worker``: started inside, gone afterwards.

    Args:
        directory: working directory; the state directory lies in it.
        args: further arguments. The ports are free ones.
        env: variables.

    Law: none of the secrets that it is given stands in anything that it or a command has printed,
    nor in its state directory.
    """

    #: variables that hold them; the engine's token is none: it would say that a model is configured
    SECRETS: tuple[str, ...] = ("HF_TOKEN", "OPENAI_API_KEY")

    def __init__(self, directory: Path, *args: str, **env: str) -> None:
        self.directory = directory
        self.state_dir = str(directory / "state")
        self._args = [*ANY_PORT, "--state-dir", self.state_dir, *args]
        self._planted = Planted(*self.SECRETS)
        self._env = environment(**self._planted.environ | env)
        self.process: subprocess.Popen[bytes]
        self.run_id = ""
        self._runtime_dir = ""

    def __enter__(self) -> RunningWorker:
        with open(self.directory / "output", "wb") as output:
            self.process = subprocess.Popen(
                command(*self._args), cwd=self.directory, env=self._env,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.run_id:
            process_tree.sweep(self.run_id, deadline_s=DEADLINE_S)
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
        self._planted.assert_absent(self.directory / "output", Path(self.state_dir))

    @property
    def output(self) -> str:
        """Everything that it has said so far."""
        return (self.directory / "output").read_text("utf-8", "replace")

    def say(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run one command against it."""
        told = subprocess.run(
            command(*args, "--state-dir", self.state_dir), cwd=self.directory, env=self._env,
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        self._planted.assert_absent_in(told.stdout + told.stderr, f"printed by {args}")
        return told

    def facts(self) -> dict[str, Any]:
        """What it has published, once it has."""

        def published() -> dict[str, Any]:
            assert self.process.poll() is None, self.output
            facts = read_running(self.state_dir) or {}
            return facts if "run_id" in facts else {}

        facts = wait_until(published, what="the run's facts")
        self.run_id, self._runtime_dir = facts["run_id"], facts["runtime_dir"]
        return facts

    def status(self) -> dict[str, Any]:
        """``status --json``."""
        told = self.say("status", "--json")
        assert told.returncode in (0, 1), told.stderr
        status: dict[str, Any] = json.loads(told.stdout)
        return status

    def member(self, name: str) -> dict[str, Any]:
        """One member as ``status`` shows it."""
        return next(m for m in self.status()["members"] if m["name"] == name)

    def until_ready(self) -> dict[str, Any]:
        """Wait until it has said that it is ready; returns its status."""
        self.facts()
        wait_until(self._said_ready, deadline_s=60, what="ready")
        return self.status()

    def _said_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        return "● ready in" in self.output  # "ready in" is in "already in use", too

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def until_gone(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL, and no chance to clean up."""
        self.signal(signal.SIGKILL)
        self.process.wait(60)

    def left_over(self) -> Sequence[int]:
        """Processes of the run that live."""
        return process_tree.find_run(self.run_id)
