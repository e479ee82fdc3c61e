"""Runs a worker.py as ``python worker.py`` would, and says what went wrong where.

It runs in the main thread, as ``__main__``, with its directory and then the working directory
first on the path, and once. It
must not know what the file is for.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from types import FrameType, ModuleType

from ingress.hooks import children, config, legacy, names, payload, worker
from ingress.hooks.config import ConfigurationError

_TYPES = (
    "ApiPayload", "AuthData", "EndpointHandler", "JsonDataException", "LogAction", "Session",
)  # fmt: skip
_CONFIGS = (
    "BenchmarkConfig", "HandlerConfig", "LogActionConfig", "WorkerConfig",
)  # fmt: skip
#: what annotations name
_ALIASES = (
    "DEFAULT_WORKLOAD", "ClientResponseGenerator", "RequestPayloadParser", "WorkloadCalculator",
)  # fmt: skip
#: What a file does as surely the next time; the rest may be the network's, or the hour's.
_PERMANENT = (ConfigurationError, ModuleNotFoundError, NameError, SyntaxError, TypeError)
_log = logging.getLogger("hooks")


class ScriptError(Exception):
    """The file failed before it ran a worker; the text names the line. ``permanent``: it would
    again."""

    def __init__(self, text: str, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


def ready_names() -> None:
    """Make the names that such files import mean our classes, from now on, in children as well."""
    ours = {"Worker": worker.Worker, **{name: getattr(config, name) for name in _CONFIGS}}
    types = {name: getattr(payload, name) for name in _TYPES}
    types["ApiPayload_T"] = payload.Payload
    aliases = {name: getattr(config, name) for name in _ALIASES}
    server = {"Backend": worker.Backend}
    contents = names.contents({**ours, **aliases}, types, server)
    older = {**types, "EndpointHandler": legacy.EndpointHandler}
    starts = {name: getattr(legacy, name) for name in ("start_server", "start_server_async")}
    contents |= {
        "lib": {},
        "lib.backend": {**older, "Backend": legacy.Backend},
        "lib.data_types": older,
        "lib.server": starts,
    }
    names.install(names.Names(contents, ours))
    children.teach(ready_names)


def execute(path: str) -> None:
    """Run the file to its end.

    Raises:
        ScriptError: it cannot be read or compiled, or it raised, or called sys.exit.
    """
    directory = os.path.dirname(os.path.abspath(path))
    try:
        with open(path, "rb") as file:
            source = file.read()
        code = compile(source, path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise ScriptError(_of_syntax(path, error), permanent=True) from error
    for name in _hidden(directory):
        _log.warning("%s: the module %s beside it is hidden by ours; rename it", path, name)
    module = ModuleType("__main__")
    module.__file__ = path
    module.__package__ = _package(directory)
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    sys.argv = [path]
    # its directory, as `python worker.py` does; and ours, as `python -m workers.x.worker` does
    sys.path[:0] = [directory, os.getcwd()]
    try:
        exec(code, vars(module))  # noqa: S102 - this is what the process is for
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ScriptError(f"{_place(error, path)}: it exited: {error.code}") from error
    except BaseException as error:
        text = str(error)
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in names.OURS:
            what += f" ({names.HINT})"
        text = f"{getattr(error, 'at', '') or _place(error, path)}: {what}"
        raise ScriptError(text, isinstance(error, _PERMANENT)) from error


def _hidden(directory: str) -> list[str]:
    """Modules of the file's directory that it cannot import: this process runs ours."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.samefile(directory, ours):
        return []
    found = []
    for name in ("supervisor", "reporter", "backend_adapter", "ingress"):
        path = os.path.join(directory, name)
        if os.path.isfile(f"{path}.py") or os.path.isfile(os.path.join(path, "__init__.py")):
            found.append(name)
    return found


def _package(directory: str) -> str | None:
    """``workers.NAME`` for a file of such a directory, which may import its neighbours as such."""
    parent, name = os.path.split(directory)
    root, workers = os.path.split(parent)
    if workers != "workers":
        return None
    if root not in sys.path:
        sys.path.insert(0, root)
    return f"workers.{name}"


def whereabouts(frame: FrameType | None, path: str) -> str:
    """``file:line`` of the innermost line of the file's directory that is running now."""
    directory = os.path.dirname(os.path.abspath(path)) + os.sep
    while frame is not None:
        if frame.f_code.co_filename.startswith(directory):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return path


def _place(error: BaseException, path: str) -> str:
    """``file:line`` of the last line of the person's own code that it came from."""
    directory = os.path.dirname(os.path.abspath(path)) + os.sep
    place = path
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(directory):
            place = f"{frame.filename}:{frame.lineno}"
    return place


def _of_syntax(path: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno or 0}: {error.msg}"
    if isinstance(error, OSError):
        return f"{path}: cannot be read: {error.strerror or error}"
    return f"{path}: {error}"
