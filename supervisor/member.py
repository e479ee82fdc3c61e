"""The hands of one child: carries out what its ``Life`` commands, feeds back what happens to it.

One member is one name ("ingress-0", "model"): its life, its current process, the capture of that
process's output, and its timers. It must not know what the child does, nor why anybody stops it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from supervisor import core_files, lifecycle, process_tree
from supervisor.logs import Capture, Ring
from supervisor.messages import ChildState
from supervisor.ports import is_free
from supervisor.restart import Policy

#: Seconds between the first two looks at what a dead child's tree left behind; each look reads all
#: of /proc, so the pauses double.
SWEEP_EVERY_S = 0.02
MAX_SWEEP_PAUSE_S = 1.0
#: What is left after this long, although it was killed, is in the kernel's hands: say so.
UNKILLABLE_S = 5.0
_log = logging.getLogger("supervisor")


class Program(msgspec.Struct, frozen=True):
    """What a member runs, and in what."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    #: makes the capture of a new process's output; called with (generation, output fd, the ring
    #: that keeps its lines)
    capture: Callable[[int, int, Ring], Capture]
    #: port on 127.0.0.1 that it will bind, and that nobody else may hold; 0: not ours to say
    port: int = 0
    #: descriptors of ours that it inherits
    fds: tuple[int, ...] = ()
    #: it may leave core files where whoever started us would
    dumps: bool = False


class LogStanding(msgspec.Struct, frozen=True):
    """What became of a member's output, over all its processes.

    Attributes:
        dropped_bytes: that the disk refused.
        cut_bytes: of lines longer than ``logs.MAX_LINE_BYTES``, beyond that.
        error: why lines are dropped now; "": they are written.
    """

    dropped_bytes: int = 0
    cut_bytes: int = 0
    error: str = ""


class Member:
    """One child.

    Args:
        name: unique in the run.
        program: what to run.
        policy: restart policy.
        run_id: marks every process of the run.
        on_change: called after every announced change of state.
        on_give_up: called when it FAILED.
        ask_to_stop: asks the process to end more politely than SIGTERM (seconds that it has);
            returns False when it could not be asked. None: SIGTERM.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        policy: Policy,
        run_id: str,
        *,
        on_change: Callable[[Member], None],
        on_give_up: Callable[[Member], None],
        ask_to_stop: Callable[[float], bool] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.life = lifecycle.Life(name, policy, self._loop.time())
        self.process: process_tree.Process | None = None
        self.capture: Capture | None = None
        #: the latest lines of all its processes: why one died stays to be read after a restart
        self.ring = Ring()
        #: exit of the latest process, for people
        self.last_exit = ""
        #: what the latest heartbeat said; {} until the first
        self.gauges: dict[str, Any] = {}
        self.detail = ""
        self.beaten_at: float | None = None
        self._cut_bytes = 0  # of the lines of its processes before this one
        self._log_error = ""
        self._closed = False
        self._program = program
        self._run_id = run_id
        self._on_change = on_change
        self._on_give_up = on_give_up
        self._ask_to_stop = ask_to_stop
        self._timers: dict[lifecycle.Timer, asyncio.TimerHandle] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._sids: set[int] = set()

    @property
    def state(self) -> ChildState:
        """What others are told."""
        return self.life.state

    @property
    def gone(self) -> bool:
        """No process of it is left and none will be started."""
        return self.state in (ChildState.STOPPED, ChildState.FAILED, ChildState.WAITING)

    @property
    def log(self) -> LogStanding:
        """What of its output is kept."""
        if self.capture is None:
            return LogStanding()
        file = self.capture.file
        dropped_bytes, error = (file.dropped_bytes, file.error) if file is not None else (0, "")
        cut_bytes = 0 if self.capture.closed else self.capture.splitter.dropped_bytes
        return LogStanding(dropped_bytes, self._cut_bytes + cut_bytes, error)

    def heed_log(self) -> None:
        """Say it once when its log cannot be written, and once when it can be again."""
        standing = self.log
        if bool(standing.error) == bool(self._log_error):
            return
        if standing.error:
            text = "%s: its log lines are dropped, and counted in status: %s"
            _log.warning(text, self.name, standing.error)
        else:
            text = "%s: its log is written again; %d bytes were dropped since the start"
            _log.warning(text, self.name, standing.dropped_bytes)
        self._log_error = standing.error

    def feed(self, event: lifecycle.Event) -> None:
        """Give its life one event and carry out what follows."""
        if self._closed:
            return
        for command in self.life.handle(event, self._loop.time(), random.random()):
            self._carry_out(command)

    def close(self) -> None:
        """Forget timers, output and its process; for the end of the run, which kills what is left.

        Nothing may come after it: the loop still turns, and a death that it hears of would be
        answered by a restart.
        """
        self._closed = True
        if self.process is not None:
            self._loop.remove_reader(self.process.pidfd)
        for timer in self._timers.values():
            timer.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self.capture is not None:
            self._close_capture(self.capture)

    def _carry_out(self, command: lifecycle.Command) -> None:
        match command:
            case lifecycle.Spawn(generation):
                self._spawn(generation)
            case lifecycle.Terminate(deadline_s):
                self._terminate(deadline_s)
            case lifecycle.Kill():
                if self.process is not None:
                    self.process.kill_tree()
            case lifecycle.Sweep():
                self._sweep(0.0, SWEEP_EVERY_S)
            case lifecycle.SetTimer(kind, delay_s):
                self._set_timer(kind, delay_s)
            case lifecycle.CancelTimer(kind):
                timer = self._timers.pop(kind, None)
                if timer is not None:
                    timer.cancel()
            case lifecycle.Announce():
                self._on_change(self)
            case lifecycle.GiveUp():
                self._on_give_up(self)
            case _:
                assert_never(command)

    def _set_timer(self, kind: lifecycle.Timer, delay_s: float) -> None:
        answers: dict[lifecycle.Timer, Callable[[], lifecycle.Event]] = {
            lifecycle.Timer.START: lifecycle.StartDeadline,
            lifecycle.Timer.STOP: lifecycle.StopDeadline,
            lifecycle.Timer.BACKOFF: lifecycle.TimerFired,
        }
        old = self._timers.pop(kind, None)
        if old is not None:
            old.cancel()

        def fired() -> None:
            self._timers.pop(kind, None)
            self.feed(answers[kind]())

        self._timers[kind] = self._loop.call_later(delay_s, fired)

    def _spawn(self, generation: int) -> None:
        program = self._program
        self.beaten_at, self.gauges, self.detail = None, {}, ""
        if program.port and not is_free("127.0.0.1", program.port):
            holder = process_tree.port_holder(program.port) or "another program"
            self.last_exit = f"not started: its port {program.port} is held by {holder}"
            self.feed(lifecycle.SpawnFailed(self.last_exit))
            return
        try:
            process = process_tree.spawn(
                program.argv, env=program.env, cwd=program.cwd, run_id=self._run_id,
                name=self.name, fds=program.fds,
            )  # fmt: skip
        except process_tree.SpawnError as error:
            self.last_exit = str(error)
            self.feed(lifecycle.SpawnFailed(str(error), error.permanent))
            return
        if program.dumps:
            core_files.allow(process.pid)
        self.process = process
        self._sids.add(process.pid)
        if generation > 1:
            ended = " ".join(self.last_exit.split()) or "ended"
            self.ring.extend([f"--- {ended}; start {generation} ---"])
        capture = self.capture = program.capture(generation, process.output_fd, self.ring)
        self._loop.add_reader(process.output_fd, self._readable, capture)
        self._loop.add_reader(process.pidfd, self._exited, process)
        self.feed(lifecycle.Spawned(process.pid))

    def _readable(self, capture: Capture) -> None:
        if not capture.on_readable():
            self._close_capture(capture)

    def _close_capture(self, capture: Capture) -> None:
        if not capture.closed:
            self._loop.remove_reader(capture.fd)
            capture.close()
            self._cut_bytes += capture.splitter.dropped_bytes

    def _exited(self, process: process_tree.Process) -> None:
        self._loop.remove_reader(process.pidfd)
        reason = process.reap().describe()
        # why we ended it says more than how it ended
        self.last_exit = self.life.reason if self.life.on_purpose else reason
        if self.capture is not None and not self.capture.closed:
            self.capture.on_readable()  # its last words, before others speak of its death
        self.process = None
        self.feed(lifecycle.Exited(reason))

    def _terminate(self, deadline_s: float) -> None:
        # Before its first beat, what can be asked is the session of the process before it.
        ask = self._ask_to_stop if self.beaten_at is not None else None
        if self.process is not None and (ask is None or not ask(deadline_s)):
            self.process.signal(signal.SIGTERM)

    def _sweep(self, waited_s: float, pause_s: float) -> None:
        """Kill what is left of the tree until nothing is; then the next process may come."""
        self._sweeping = None
        left = process_tree.sweep_once(self._run_id, name=self.name, sids=self._sids)
        if left:
            if waited_s < UNKILLABLE_S <= waited_s + pause_s:
                _log.error("%s: %d processes of it cannot be killed; waiting", self.name, left)
            self._sweeping = self._loop.call_later(
                pause_s, self._sweep, waited_s + pause_s, min(2 * pause_s, MAX_SWEEP_PAUSE_S)
            )
            return
        self._sids.clear()
        if self.capture is not None:
            self._readable(self.capture)
            self._close_capture(self.capture)
        self.feed(lifecycle.Swept())
