"""The hands of the supervisor: starts every member, listens to heartbeats, restarts, drains.

It never touches a request, never imports user code and never blocks. What it decides lies in
``lifecycle.py``; what it does to one child in ``member.py``; here is the run: who there is, what
each is told about the others, and the order of the end: ingress, adapter, model server, and the
reporter last, so that the engine hears it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, assert_never

from supervisor import awaited, lifecycle, process_tree, script, settings_sources, tidings, wire
from supervisor.child import CONTROL_SOCKET, SAME_SIGNAL_S, STRAY_SIGNALS
from supervisor.client_port import ClientPort
from supervisor.commands import obey
from supervisor.exit_codes import ExitCode
from supervisor.handoff_file import HandoffFile
from supervisor.log_lines import masker
from supervisor.logs import Kept, Tail
from supervisor.member import Member
from supervisor.messages import (
    Beat,
    ChildState,
    CommandRequest,
    Configured,
    Drain,
    LifecycleState,
    LogMatch,
    ModelVerdict,
    Reload,
    ScriptFailed,
    ToSupervisor,
)
from supervisor.plan import Plan, Programs
from supervisor.replan import Replanner
from supervisor.run_dir import make as make_run_dir
from supervisor.run_dir import remove as remove_run_dir
from supervisor.run_lock import RunLock
from supervisor.settings_sources import SettingsError
from supervisor.shutdown import DRAIN_MARGIN_S, stop_in_order

#: Between two looks at a log file that something else writes.
FOLLOW_EVERY_S = 0.2
_log = logging.getLogger("supervisor")
#: Lines of the model server that the person wants to see.
_model_log = logging.getLogger("supervisor.model")


class Supervisor:
    """One run of the worker.

    Args:
        plan: settings, and the programs beside our own (model server, local engine).
        lock: held by the caller for as long as the run lasts.
        port: where clients come in; closed when the run is to end. None: ingress sees to it.
        echo: takes our children's log lines; never blocks.
        on_change: told each change of each member, for the person who watches.
        reread: reads the settings again, with what a worker.py amounts to; raises SettingsError.
        log: what becomes of this process's own lines.
    """

    def __init__(
        self,
        plan: Plan,
        lock: RunLock,
        port: ClientPort | None,
        echo: Callable[[str], object],
        on_change: Callable[[Supervisor, Member], None],
        reread: Callable[[dict[str, Any] | None], Plan],
        log: Kept,
    ) -> None:
        self.log = log
        self.run_id = f"{os.getpid():x}-{wire.draw_epoch():016x}"
        self.members: dict[str, Member] = {}
        self.model_verdict: ModelVerdict | None = None  #: of the adapter that lives now
        self.loop = asyncio.get_running_loop()
        self.started_at = self.loop.time()
        self._lock = lock
        self._port = port
        self._echo = echo
        self._on_change = on_change
        self.mask = masker(settings_sources.secrets(plan.settings))
        self.stop_reason = ""
        self._stop_began = 0.0
        self.max_perf = 0.0  # what the adapter measured, for its next life
        self._stopping: asyncio.Task[None] | None = None
        self._finished: asyncio.Future[int] = self.loop.create_future()
        self._code = ExitCode.CLEAN
        self._changed = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last_look = self.started_at
        self._runtime_dir = make_run_dir()
        self._handoff = HandoffFile(self.run_id, self._runtime_dir)
        self._replanner = Replanner(plan, reread, self._handoff, self._accept)
        self._told_wait: tidings.Tiding | None = None
        self.ready_line: LogMatch | None = None  # of the model's present life
        self._programs: Programs
        self.control: wire.Server

    # ------------------------------------------------------------------ the run

    async def run(self) -> int:
        """Run until everything has stopped; returns the exit code."""
        process_tree.become_subreaper()
        with ExitStack() as undo:
            undo.callback(remove_run_dir, self._runtime_dir, self.plan.settings, self.run_id)
            self.control = wire.Server(
                wire.ipc_address(self._runtime_dir, CONTROL_SOCKET), ToSupervisor,
                self._on_messages, on_up=self._on_child_up,
            )  # fmt: skip
            undo.callback(self.control.close)
            self._programs = Programs(
                self.plan, self._runtime_dir, self.run_id, self._port, self._echo,
                self._on_log_match, self.mask,
            )  # fmt: skip
            undo.callback(self._programs.close)
            undo.callback(self._end)
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(number, self._on_stop_signal)
            self.loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
            for number in STRAY_SIGNALS:
                self.loop.add_signal_handler(number, lambda: None)
            self._handoff.write(self.plan.settings)
            self._lock.publish(
                runtime_dir=self._runtime_dir,
                run_id=self.run_id,
                worker_url=self.plan.worker_url,
                admin_url=self.plan.admin_url,
                engine_url=self.plan.engine_url,
            )
            self._add_members()
            self._watch()
            return await self._finished

    def _add_members(self) -> None:
        """Start everyone who is not there yet."""
        new = [name for name in self._programs.names() if name not in self.members]
        for name in new:
            self.members[name] = Member(
                name,
                self._programs.program(name),
                self._programs.policy(name),
                self.run_id,
                on_change=self._on_member_change,
                on_give_up=self._on_give_up,
                ask_to_stop=self._asker(name) if self._programs.ours(name) else None,
            )
        # One of ours before the model server: were we killed now, it would end all the others.
        for name in sorted(new, key=lambda name: name != "backend_adapter"):
            self.members[name].feed(lifecycle.Start())
        tail = self._programs.tail()
        if tail is not None:
            self._follow(tail)

    def _end(self) -> None:
        """Whatever the reason: nothing of this run is left running, and no file of it."""
        for timer in self._timers.values():
            timer.cancel()
        for member in self.members.values():
            member.close()
        process_tree.sweep(self.run_id, exclude=(os.getpid(),))

    @property
    def plan(self) -> Plan:
        """What the run consists of, as it is known now."""
        return self._replanner.plan

    @property
    def stopping(self) -> bool:
        """It was told to end."""
        return self._stopping is not None

    @property
    def model_ready(self) -> bool:
        """The adapter says so, and the supervisor has seen nothing else since."""
        verdict, member = self.model_verdict, self.members.get("model")
        alive = member is None or member.state is ChildState.READY
        if not alive or verdict is None or not verdict.ready:
            return False
        return verdict.generation == tidings.model_generation(self)

    @property
    def serving(self) -> bool:
        """Requests can be answered: the model is ready, so is every member, and keys are known."""
        if awaited.lacks_key(self):
            return False
        return self.model_ready and all(m.state is ChildState.READY for m in self.members.values())

    @property
    def ready(self) -> bool:
        """And the engine knows."""
        reporter = self.members.get("reporter")
        return self.serving and reporter is not None and awaited.engine_knows(reporter.gauges)

    def _on_stop_signal(self) -> None:
        if self._stopping is None:
            self.stop("stop asked for")
        elif self.loop.time() - self._stop_began > SAME_SIGNAL_S:
            _log.warning("asked twice: ending everything now")
            self._finish(self._code)

    def _on_reload_signal(self) -> None:
        with suppress(SettingsError):  # the log says what is wrong
            self.reload()

    def _finish(self, code: int) -> None:
        if not self._finished.done():
            self._finished.set_result(code)

    # ------------------------------------------------------------------ members

    def _asker(self, name: str) -> Callable[[float], bool]:
        def ask(deadline_s: float) -> bool:
            margin = DRAIN_MARGIN_S if deadline_s > DRAIN_MARGIN_S else 0.0
            return self.control.send(name, Drain(deadline_s - margin))

        return ask

    def _on_member_change(self, member: Member) -> None:
        if member.name == "backend_adapter" and member.state is not ChildState.READY:
            self.model_verdict = None
        self._send(tidings.of_change(self, member))
        self._changed.set()
        self._on_change(self, member)

    def _on_give_up(self, member: Member) -> None:
        """A model server, or a worker.py, that cannot run is reported and answered for; one of ours
        ends the run.
        """
        if self._programs.ours(member.name) and member.name != "hooks":
            self._code = ExitCode.CHILD_FAILED
            self.loop.call_soon(self.stop, f"{member.name} failed")

    def is_ours(self, name: str) -> bool:
        """It runs in our child runtime."""
        return self._programs.ours(name)

    def _on_child_up(self, name: str) -> None:
        self._send(tidings.for_newcomer(self, name))

    def _send(self, told: Iterable[tidings.Tiding]) -> None:
        for name, message in told:
            self.control.send(name, message)

    def _watch(self) -> None:
        """Once a beat: who has gone mute? And bury what was left to us."""
        restart = self.plan.settings.restart
        self._timers["watch"] = self.loop.call_later(restart.beat_s, self._watch)
        now = self.loop.time()
        late_s = max(0.0, now - self._last_look - restart.beat_s)
        self._last_look = now
        for member in self.members.values():
            member.heed_log()
            if member.beaten_at is None or member.process is None:
                continue
            # while we slept ourselves, their beats lay in our socket
            member.beaten_at = min(now, member.beaten_at + late_s)
            if now - member.beaten_at > script.patience_s(self, member):
                mute_s = now - member.beaten_at
                member.beaten_at = None
                member.feed(lifecycle.Hung(f"no heartbeat for {mute_s:.1f} s"))
        if mute := awaited.mute_engine(self):
            self.members["engine"].feed(lifecycle.Hung(mute))
        known = {m.process.pid for m in self.members.values() if m.process is not None}
        process_tree.reap_orphans(known)
        wait = tidings.of_wait(self)
        if wait != self._told_wait:
            self._told_wait = wait
            self._send([wait])
        self._handoff.keep()
        self._lock.keep()

    def _follow(self, tail: Tail) -> None:
        """Read on in the log of a model server that something else starts."""
        more = tail.poll()
        delay_s = 0.0 if more else FOLLOW_EVERY_S
        self._timers["tail"] = self.loop.call_later(delay_s, self._follow, tail)

    # ------------------------------------------------------------------ messages

    def _on_messages(self, name: str, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Beat):
                self._on_beat(name, message)
            elif isinstance(message, ModelVerdict):
                self._on_verdict(message)
            elif isinstance(message, CommandRequest):
                self.control.send(name, obey(self, message))
            elif isinstance(message, Configured | ScriptFailed | LifecycleState):
                script.heed(self, message)
            else:
                assert_never(message)

    def _on_beat(self, name: str, beat: Beat) -> None:
        member = self.members.get(name)
        if member is None or member.process is None or beat.pid != member.process.pid:
            return
        member.beaten_at = self.loop.time()
        told = awaited.deciding(member.gauges)
        member.gauges, member.detail = beat.gauges, beat.detail
        if awaited.deciding(beat.gauges) != told:
            self._on_change(self, member)
        if beat.ready and member.state is not ChildState.READY:
            member.feed(lifecycle.BecameReady())
        elif not beat.ready and member.state is ChildState.READY:
            member.feed(lifecycle.BecameUnhealthy(beat.detail))

    def _on_verdict(self, verdict: ModelVerdict) -> None:
        member = self.members.get("model")
        if verdict.generation != tidings.model_generation(self):
            return
        if self.members["backend_adapter"].process is None:
            return  # nobody stands by it any more
        changed = verdict != self.model_verdict
        self.model_verdict = verdict
        self.max_perf = verdict.max_perf or self.max_perf
        if member is not None:
            if verdict.wedged:
                member.feed(lifecycle.Hung(verdict.reason))
            elif verdict.healthy:
                member.feed(lifecycle.BecameReady())
            else:
                member.feed(lifecycle.BecameUnhealthy(verdict.reason))
        if changed:
            self._on_change(self, member or self.members["backend_adapter"])

    def _on_log_match(self, name: str, generation: int, kind: str, pattern: str, line: str) -> None:
        if kind == "info":
            _model_log.info("%s: %s", name, line)
        elif name == "model":
            generation = generation or tidings.model_generation(self)
            match = LogMatch(generation, kind, pattern, line[:512])
            if kind == "ready":
                self.note_ready_line(match)
            else:
                self.control.send("backend_adapter", match)
        elif kind == "ready":
            self.members[name].feed(lifecycle.BecameReady())

    def note_ready_line(self, match: LogMatch) -> None:
        """Also told to later adapters."""
        self.ready_line = match
        self.control.send("backend_adapter", match)

    def configure(self, values: bytes) -> None:
        """A worker.py has said what the worker is; or, after its restart, says it again.

        Raises:
            SettingsError: that cannot work; nothing has changed.
        """
        if self.stopping or not self._replanner.configure(values):
            return
        self._programs.replan(self.plan)
        self._tell_reload()
        self._add_members()

    def _accept(self, plan: Plan) -> None:
        if self._port is not None:
            self._port.move(plan.settings.worker.host)  # the file may have named it

    def reload(self) -> list[str]:
        """Read the settings again, and take the routes; returns the sections that were not taken.

        Raises:
            SettingsError: they are wrong; nothing has changed.
        """
        left = self._replanner.reload()
        self._tell_reload()
        return left

    def _tell_reload(self) -> None:
        for name in self.members:
            if self._programs.ours(name):
                self.control.send(name, Reload())

    # ------------------------------------------------------------------ the end

    def stop(self, reason: str) -> None:
        """Drain and end, in order."""
        if self._stopping is None:
            self.stop_reason = reason
            self._stop_began = self.loop.time()
            self._send(tidings.of_stop(self))
            self._stopping = self.loop.create_task(
                stop_in_order(self.members, self.plan.settings, self._changed, reason, self._port)
            )
            self._stopping.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.critical("the stop itself failed", exc_info=task.exception())
            self._code = ExitCode.BUG
        self._finish(self._code)
