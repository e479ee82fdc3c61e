"""How the faults of the demo model server are carried out.

Responsible for doing harm to this process and its connections, on purpose. Its law: harm is done
only when asked for, and what outlives this process ends by itself. It must not know when: that is
``faults``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import NoReturn

from aiohttp import web

from supervisor.demo.faults import BadResponse, Crash, FloodLog, LeaveGrandchild

_CHUNK = 65_536

_BROKEN: dict[str, bytes] = {
    "malformed": b"Fog over the harbour, no ship can land\r\n\r\n",
    "large_headers": b"HTTP/1.1 200 OK\r\n" + b"x-cargo: " + b"x" * 2**20 + b"\r\n\r\n",
    "truncated": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b'content-length: 1000\r\n\r\n{"generated_text": "The',
}

# The first fork lets its parent go, so that the daemon is nobody's child; stdin and stdout are
# pipes of ours, stderr is the log that the daemon keeps open.
_DAEMON = """
import os, sys, time
os.setsid()
pid = os.fork()
if pid:
    os.write(1, b"%d" % pid)
    os._exit(0)
os.setsid()
os.dup2(2, 1)
time.sleep(float(sys.argv[1]))
"""


class CutOff(Exception):
    """The connection was, or is to be, closed without a proper end."""


async def written() -> None:
    """Let what was written leave this process: the loop sends it at the end of its turn."""
    await asyncio.sleep(0)


def kill_self() -> NoReturn:
    """SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end this process")


def crash(fault: Crash) -> NoReturn:
    """End this process as the fault says, cleaning up nothing."""
    if fault.code is None:
        kill_self()
    os._exit(fault.code)


def answer_badly(request: web.Request, fault: BadResponse) -> NoReturn:
    """Write what is no proper HTTP answer, and raise CutOff."""
    if request.transport is not None:
        request.transport.write(_BROKEN[fault.variant])
    raise CutOff


async def flood(fault: FloodLog) -> int:
    """Write the flood; the bytes that were written. Blocks, as printing does, when nobody reads."""
    line = b"INFO " + b"flood " * 20 + b"\n"
    written = 0
    for size, piece in (
        (fault.megabytes * 2**20, line * (_CHUNK // len(line))),
        (fault.long_line_mb * 2**20, b"x" * _CHUNK),
    ):
        end = written + size
        while written < end:
            written += os.write(1, piece)
            await asyncio.sleep(0)
    written += os.write(1, b"\n")
    return written


def leave_grandchild(fault: LeaveGrandchild, listening_fd: int) -> int:
    """Start the daemon; its pid."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _DAEMON, str(fault.for_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=[listening_fd] if fault.hold_port and listening_fd >= 0 else [],
    ) as middle:
        output, _ = middle.communicate(timeout=30)
    return int(output)
