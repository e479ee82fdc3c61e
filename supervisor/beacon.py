"""The one report of a worker that cannot even start: wrong settings, a port that is taken.

The engine would otherwise wait for an instance that will never come up. Nothing of the tree can be
trusted here, so only the three facts that a report needs are picked out, wherever they still make
sense: the engine's addresses, the token, the instance's id.

Law: it costs at most ``DEADLINE_S`` seconds, never raises, and the token is never shown.
"""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor import settings_sources
from supervisor.log_lines import masker
from supervisor.settings import Settings
from supervisor.settings_sources import Fault, SettingsError

#: Seconds for all addresses together.
DEADLINE_S = 10.0
#: Characters of ``error_msg``.
MAX_MESSAGE = 4000
_WANTED = {
    "engine.addresses": "REPORT_ADDR",
    "engine.token": "MASTER_TOKEN",
    "worker.id": "CONTAINER_ID",
}


def report(faults: Sequence[Fault], path: Path | None, environ: Mapping[str, str]) -> bool:
    """Tell the engine why this worker does not start.

    Args:
        faults: what keeps it from starting.
        path: the settings file, which may itself be broken.
        environ: variables.

    Returns:
        An engine took it.
    """
    settings = _whom_to_tell(path, environ)
    if settings is None or not settings.engine.addresses or not settings.engine.token:
        return False
    mask = masker(settings_sources.secrets(settings))
    message = mask("the worker cannot start: " + "; ".join(map(str, faults)))[:MAX_MESSAGE]
    body = _report(settings, message)
    taken: list[str] = []
    # A thread, because name resolution has no deadline of its own.
    thread = threading.Thread(target=_post, args=(settings, body, taken), daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return bool(taken)


def _whom_to_tell(path: Path | None, environ: Mapping[str, str]) -> Settings | None:
    fields = {f.path: f for f in settings_sources.fields()}
    found = _from_file(path)
    for name, variable in _WANTED.items():
        for source in (variable, fields[name].own_variable):
            if source in environ:
                found[source] = environ[source]
    try:
        return settings_sources.load(None, found)
    except SettingsError:
        return None


def _from_file(path: Path | None) -> dict[str, str]:
    """The three facts in the file, as the platform's variables would say them."""
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    found = {}
    for name, variable in _WANTED.items():
        section, _, field = name.partition(".")
        content = tree.get(section)
        value = content.get(field) if isinstance(content, dict) else None
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            found[variable] = ",".join(value)
        elif isinstance(value, (str, int)):
            found[variable] = str(value)
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
