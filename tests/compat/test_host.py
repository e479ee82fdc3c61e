"""The process that holds a worker.py, alone, before a supervisor that hears what the test lets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from supervisor import wire
from supervisor.child import CONTROL_SOCKET
from supervisor.handoff_file import HOOKS_HANDOFF
from supervisor.messages import Beat, Configured, LifecycleState, ToSupervisor
from supervisor.settings import HooksSettings, Settings
from supervisor.settings_sources import HANDOFF_VARIABLE, Handoff, write_handoff
from tests.compat.bench import ROOT
from tests.kit.wait import wait_until_async

FILE = """
from contextlib import asynccontextmanager
from vastai import Worker, WorkerConfig, HandlerConfig

@asynccontextmanager
async def life():
    yield

Worker(WorkerConfig("http://127.0.0.1", 9, handlers=[HandlerConfig("/a")], lifecycle=life)).run()
"""


def test_what_the_supervisor_has_to_know_is_said_until_it_has_heard_it(tmp_path: Path) -> None:
    """What is handed to the socket may be lost with its session."""
    script = tmp_path / "worker.py"
    script.write_text(FILE)
    settings = Settings(hooks=HooksSettings(file=str(script)))
    path = write_handoff(Handoff("run", str(tmp_path), os.getpid(), settings), HOOKS_HANDOFF)
    environ = {**os.environ, HANDOFF_VARIABLE: path, "PYTHONPATH": str(ROOT)}

    async def main() -> None:
        address = wire.ipc_address(str(tmp_path), CONTROL_SOCKET)
        lives: list[list[Any]] = []
        for _ in range(2):
            heard: list[Any] = []
            lives.append(heard)
            server = wire.Server(
                address, ToSupervisor, lambda _, messages, heard=heard: heard.extend(messages)
            )
            await wait_until_async(
                lambda heard=heard: {Configured, LifecycleState} <= set(map(type, heard)),
                what="its configuration and its lifecycle",
            )
            await wait_until_async(
                lambda heard=heard: isinstance(heard[-1], Beat) and heard[-1].ready, what="a beat"
            )
            server.close()
        said = [[m for m in heard if isinstance(m, Configured)][-1] for heard in lives]
        assert said[0] == said[1] and said[0].pid == process.pid
        values = msgspec.msgpack.decode(said[0].values)
        assert values["route"][0]["path"] == "/a" and values["model"]["lifecycle"]

    process = subprocess.Popen([sys.executable, "-m", "ingress.hooks", "hooks"], env=environ)
    try:
        uvloop.run(main())
    finally:
        process.kill()
        process.wait()
