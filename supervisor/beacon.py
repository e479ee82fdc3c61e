"""The report of a worker that cannot even start: wrong settings, a port that is taken.

The engine would otherwise wait for an instance that will never come up. Nothing of the tree can be
trusted here, so only the facts that a report needs are picked out, each wherever it makes sense by
itself: the engine's addresses, the token, the instance's id, how long to go on telling.

Law: one report costs at most ``DEADLINE_S`` seconds; going on ends at its time, or at once with
SIGTERM or SIGINT; nothing here raises, and the token is never shown.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from supervisor import settings_sources
from supervisor.log_lines import masker
from supervisor.settings import Settings
from supervisor.settings_sources import Fault, SettingsError

#: Seconds for all addresses together.
DEADLINE_S = 10.0
#: Seconds from one report to the next.
EVERY_S = 10.0
#: Characters of ``error_msg``.
MAX_MESSAGE = 4000
_WANTED = ("engine.addresses", "engine.token", "engine.beacon_s", "worker.id")
_ENOUGH = (signal.SIGTERM, signal.SIGINT)


class Beacon:
    """Tells the engine why this worker does not start.

    Args:
        faults: what keeps it from starting.
        path: the settings file, which may itself be broken.
        environ: variables.
        flags: ``section.name`` → text, from the command line.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        path: Path | None,
        environ: Mapping[str, str],
        flags: Mapping[str, str] = {},
    ) -> None:
        self._settings = _whom_to_tell(path, environ, flags)
        mask = masker(settings_sources.secrets(self._settings))
        self._message = mask("the worker cannot start: " + "; ".join(map(str, faults)))

    @property
    def has_engine(self) -> bool:
        """There is somebody to tell."""
        engine = self._settings.engine
        return bool(engine.addresses and engine.token)

    @property
    def for_s(self) -> float:
        """Seconds for which it is to be told again and again."""
        return self._settings.engine.beacon_s if self.has_engine else 0.0

    def tell(self) -> bool:
        """Tell it once; an engine took it."""
        if not self.has_engine:
            return False
        body = _report(self._settings, self._message[:MAX_MESSAGE])
        taken: list[str] = []
        # A thread, because name resolution has no deadline of its own.
        thread = threading.Thread(target=_post, args=(self._settings, body, taken), daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        return bool(taken)

    def shine(self) -> None:
        """Tell it, and go on for ``for_s`` seconds, or until a signal asks for the end."""
        if not self.for_s:
            if self.tell():
                print("(the engine has been told)", file=sys.stderr)
            return
        # They stay blocked: a late one shall not make the exit code another one.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENOUGH)
        threading.Thread(target=self._go_on, daemon=True).start()
        signal.sigtimedwait(_ENOUGH, self.for_s)

    def _go_on(self) -> None:
        end = datetime.now() + timedelta(seconds=self.for_s)
        until = f"again every {EVERY_S:g} s until {end:%Y-%m-%d %H:%M:%S} (engine.beacon_s)"

        def first() -> bool:
            taken = self.tell()
            what = "has been told" if taken else "could not be told"
            # not print: the main thread may end the process in the middle of it
            os.write(2, f"(the engine {what}; {until}; Ctrl-C ends it)\n".encode())
            return taken

        go_on(first, self.tell, self.for_s)


def go_on(
    first: Callable[[], object],
    again: Callable[[], object],
    for_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Call ``first``, then ``again`` every ``EVERY_S`` seconds until ``for_s`` have passed.

    One that takes longer is followed by the next at once; none begins after the end.
    """
    began = due = clock()
    call = first
    while (now := clock()) - began < for_s:
        if now < due:
            pause(min(due, began + for_s) - now)
            continue
        due = now + EVERY_S
        call()
        call = again


def _whom_to_tell(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]
) -> Settings:
    known = {f.path: f for f in settings_sources.fields()}
    file, found = _from_file(path), dict[str, str]()
    for name in _WANTED:
        field = known[name]
        given = [file.get(name), environ.get(field.variable), environ.get(field.own_variable)]
        variable = field.variable or field.own_variable
        for text in (*given, flags.get(name)):
            if text and _makes_sense(variable, text):
                found[variable] = text
    try:
        return settings_sources.load(None, found)
    except SettingsError:
        return settings_sources.load(None, {})


def _makes_sense(variable: str, text: str) -> bool:
    try:
        settings_sources.load(None, {variable: text})
    except SettingsError:
        return False
    return True


def _from_file(path: Path | None) -> dict[str, str]:
    """What the file says of the facts that are wanted, as variables would say it."""
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    found = {}
    for name in _WANTED:
        section, _, field = name.partition(".")
        content = tree.get(section)
        value = content.get(field) if isinstance(content, dict) else None
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            found[name] = ",".join(value)
        elif isinstance(value, (str, int, float)):
            found[name] = str(value)
    return found


def _report(settings: Settings, message: str) -> dict[str, Any]:
    """A worker_status report of a worker that does nothing."""
    zeros = (
        "loadtime", "new_load", "cur_load", "rej_load", "max_perf", "cur_perf",
        "num_requests_working", "num_requests_recieved", "additional_disk_usage", "disk_usage",
        "cur_capacity", "max_capacity",
    )  # fmt: skip
    return {
        "id": settings.worker.id,
        "mtoken": settings.engine.token,
        "version": settings.engine.version,
        **dict.fromkeys(zeros, 0),
        "error_msg": message,
        "working_request_idxs": [],
        "url": settings.worker.public_url,
    }


def _post(settings: Settings, body: dict[str, Any], taken: list[str]) -> None:
    from supervisor import plain_http

    end = time.monotonic() + DEADLINE_S
    for address in settings.engine.addresses:
        left_s = end - time.monotonic()
        if left_s <= 0:
            return
        try:
            url = f"{address.rstrip('/')}/worker_status/"
            answer = plain_http.request(url, body, timeout_s=left_s)
        except plain_http.HttpError:
            continue  # the next address; the faults themselves are on stderr already
        answer.close()
        if answer.status < 300:
            taken.append(address)
            return
