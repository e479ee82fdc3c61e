"""The hands of the GPU watch: starts the reader of NVML, hears it, tells what it means.

``gpu_reader_life.py`` decides when a reader runs, ``gpu_judge.py`` what its words mean; here a
process is started, and its lines are read. Where nvidia-ml-py or NVML is not there, nothing
happens. It never waits for NVML, and must not know the model server: ``Owner`` is told.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol, assert_never

import msgspec

from backend_adapter.gpu_judge import GpuJudge
from backend_adapter.gpu_reader_life import ReaderLife
from backend_adapter.gpu_words import (
    MAX_GPUS,
    Gone,
    Hit,
    KillReader,
    Note,
    ReaderCommand,
    Reading,
    Said,
    Seen,
    StartReader,
    XidEvent,
)
from reporter.messages import Gpu
from supervisor import process_tree, settings_sources
from supervisor.child import Runtime

#: Name of the reader among the processes of the run. It is in a session of its own and bears
#: another name than ours: where it cannot be killed, our successor does not wait for its end.
READER = "gpu-reader"
#: NVML itself, under the name by which every program asks for it.
LIBRARY = "libnvidia-ml.so.1"
TICK_S = 1.0
MAX_LINE_BYTES = 64 * 1024
#: Seconds that the reader may take to die at the end.
DEATH_S = 1.0
_GIB = 2**30
_log = logging.getLogger("backend_adapter")
_decoder: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


class Owner(Protocol):
    """What the watch needs of whoever owns it."""

    def gpu_fault(self, text: str) -> None:
        """Which GPUs cannot be used, and why; "": all can."""

    def gpu_hit(self, text: str) -> None:
        """What ran on a GPU is dead."""


class GpuWatch:
    """``every_s``: seconds between two readings; 0: there is no watch."""

    def __init__(self, runtime: Runtime, every_s: float, owner: Owner) -> None:
        self._runtime = runtime
        self._every_s = every_s
        self._owner = owner
        self._life = ReaderLife(every_s)
        self._judge = GpuJudge()
        self._readings: Sequence[Reading] = ()
        self._said_fault = ""
        self._said_gone = ""
        self._standing = "off"
        self._process: process_tree.Process | None = None
        self._rest = b""  #: of a line that has not come whole
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ what it knows

    @property
    def gpus(self) -> list[Gpu]:
        """The devices as they were read last, for metrics."""
        unwell = dict(self._judge.unwell(self._readings))
        silent = bool(self._life.silent)
        shown = [
            Gpu(
                reading.index, reading.name, reading.used_bytes, reading.total_bytes,
                reading.utilization, not (silent or reading.index in unwell),
            )
            for reading in self._readings
        ]  # fmt: skip
        there = {gpu.index for gpu in shown}
        gone = [Gpu(i, name, 0, 0, -1.0, False) for i, name in unwell.items() if i not in there]
        return (shown + gone)[:MAX_GPUS]

    @property
    def gauges(self) -> dict[str, str]:
        """The same for ``status``, in the words of people."""
        gauges = {"gpu_watch": self._life.silent or self._said_gone or self._standing}
        for reading in self._readings:
            gauges[f"gpu_{reading.index}"] = _in_words(reading)
        return gauges

    # ------------------------------------------------------------------ what it does

    def start(self) -> None:
        """Begin, where there is something to watch."""
        if not self._every_s:
            return
        if importlib.util.find_spec("pynvml") is None:
            self._standing = "off: nvidia-ml-py is not installed (pip install nvidia-ml-py)"
        elif not _library_is_there():
            self._standing = f"off: there is no {LIBRARY} here"
        else:
            self._standing = "starting"
        _log.debug("GPU watch: %s", self._standing)
        if self._standing != "starting":
            return
        self._do(self._life.start(time.monotonic()))
        self._timer = self._runtime.loop.call_later(TICK_S, self._tick)

    async def stop(self) -> None:
        """No reader and no timer any more; one that cannot be killed is left to itself."""
        if self._timer is not None:
            self._timer.cancel()
        process, self._process = self._process, None
        if process is None:
            return
        loop = self._runtime.loop
        loop.remove_reader(process.output_fd)
        loop.remove_reader(process.pidfd)
        dead = asyncio.Event()
        loop.add_reader(process.pidfd, dead.set)
        process.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(DEATH_S):
                await dead.wait()
        loop.remove_reader(process.pidfd)
        os.close(process.output_fd)
        with suppress(BlockingIOError):
            process.reap()

    def _tick(self) -> None:
        self._timer = self._runtime.loop.call_later(TICK_S, self._tick)
        self._do(self._life.tick(time.monotonic()))
        self._tell()

    def _do(self, commands: Iterable[ReaderCommand]) -> None:
        for command in commands:
            match command:
                case StartReader():
                    self._start_reader()
                case KillReader():
                    if self._process is not None:
                        self._process.signal(signal.SIGKILL)
                case _:
                    assert_never(command)

    def _start_reader(self) -> None:
        from supervisor.plan import python_module  # not needed where there is no GPU

        environ = settings_sources.inherited_environment(secret_variables=False)
        environ.pop(settings_sources.HANDOFF_VARIABLE, None)
        argv = python_module(environ, "backend_adapter.gpu_reader", str(self._every_s))
        run_id = self._runtime.handoff.run_id
        try:
            process = process_tree.spawn(argv, env=environ, cwd="", run_id=run_id, name=READER)
        except process_tree.SpawnError as error:
            self._ended(f"NVML cannot be asked: {error}")
            return
        self._process, self._rest = process, b""
        self._runtime.loop.add_reader(process.output_fd, self._readable, process)
        self._runtime.loop.add_reader(process.pidfd, self._exited, process)

    def _readable(self, process: process_tree.Process) -> None:
        try:
            data = os.read(process.output_fd, MAX_LINE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._runtime.loop.remove_reader(process.output_fd)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with suppress(msgspec.DecodeError):  # what a library prints is none of our words
                self._hear(_decoder.decode(line))
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = b""

    def _exited(self, process: process_tree.Process) -> None:
        self._readable(process)  # its last words
        for fd in (process.pidfd, process.output_fd):
            self._runtime.loop.remove_reader(fd)
        os.close(process.output_fd)
        self._process = None
        how = process.reap().describe()
        self._ended(f"NVML cannot be asked: its reader ended ({how})")

    def _ended(self, how: str) -> None:
        self._life.ended(how, time.monotonic())
        if self._life.over:  # nothing to ask about, and never was
            self._standing = f"off: {self._life.gone}"
            if self._timer is not None:
                self._timer.cancel()
            _log.debug("GPU watch: %s", self._standing)
        else:
            self._tell()

    def _hear(self, said: Said) -> None:
        now = time.monotonic()
        news: list[Hit | Note] = []
        match said:
            case Seen(readings):
                self._readings = readings[:MAX_GPUS]
                self._standing = "on"
                self._life.heard(now)
                news = self._judge.seen(self._readings, now)
            case XidEvent(uuid, code):
                news = self._judge.xid(uuid, code, now)
            case Gone(text, absent):
                self._life.gave_up(f"NVML cannot be asked: {text}", absent)
                return
            case _:
                assert_never(said)
        self._tell()
        for each in news:
            match each:
                case Hit(text):
                    self._owner.gpu_hit(text)
                case Note(text):
                    _log.warning("%s", text)
                case _:
                    assert_never(each)

    def _tell(self) -> None:
        """Say what has changed."""
        fault = "; ".join(filter(None, (self._life.silent, self._judge.fault)))
        if fault != self._said_fault:
            self._said_fault = fault
            self._owner.gpu_fault(fault)
        if self._life.gone != self._said_gone:
            self._said_gone = self._life.gone
            if self._said_gone:
                _log.warning("GPU watch: %s", self._said_gone)


def _library_is_there() -> bool:
    """Loading it touches no device; only what does is left to the reader."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def _in_words(reading: Reading) -> str:
    parts = [reading.name or "unknown"]
    if reading.error:
        parts.append(reading.error)
    if reading.total_bytes:
        used, total = reading.used_bytes / _GIB, reading.total_bytes / _GIB
        parts.append(f"{used:.1f} of {total:.1f} GiB")
    if reading.utilization >= 0:
        parts.append(f"{reading.utilization:.0%} busy")
    return ", ".join(parts)
