"""Reads the settings tree: TOML file < environment < flags. The only reader of os.environ.

Law: all faults are found in one pass, each with its place (file and line, variable, or flag) and a
hint; a tree with one fault is no tree. What starts from here is handed to every child whole, as one
file in the run's private directory, so that no two processes can disagree about a setting.

This module must not know what any setting is for, except where the platform's variables need more
than a name (several variables that make one URL, a path that means a file on the instance).
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from supervisor.settings import RouteSettings, Section, Settings, WorkerSettings

#: Prefix of the variables that set any field: LIGHTERMAN_<SECTION>_<FIELD>.
PREFIX = "LIGHTERMAN_"
#: Where a child finds what it was started with.
HANDOFF_VARIABLE = "LIGHTERMAN_HANDOFF"
#: Marks every process of one run, grandchildren included.
RUN_VARIABLE = "LIGHTERMAN_RUN"
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, what, and what to do."""

    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class SettingsError(Exception):
    """The settings cannot be used. ``faults`` names every one of them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class Handoff(msgspec.Struct, frozen=True):
    """What the supervisor gives each child: one private file, written once per run."""

    run_id: str
    runtime_dir: str
    supervisor_pid: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class Field:
    """One setting as a person knows it: ``section.name``, with what the reference says."""

    section: str
    name: str
    kind: Any
    default: Any
    description: str
    variable: str  #: the platform's name, or ""
    secret: bool

    @property
    def path(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"

    @property
    def own_variable(self) -> str:
        """The variable that always works."""
        return f"{PREFIX}{self.section}_{self.name}".upper()


def _fields_of(section: str, struct: type[Section]) -> list[Field]:
    hints = get_type_hints(struct, include_extras=True)
    found = []
    for info in msgspec.structs.fields(struct):
        metas = [m for m in get_args(hints[info.name])[1:] if isinstance(m, msgspec.Meta)]
        extra = {key: value for meta in metas for key, value in (meta.extra or {}).items()}
        doc = next((m.description for m in metas if m.description), "")
        default = "" if info.default is msgspec.NODEFAULT else info.default
        if info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        found.append(
            Field(
                section,
                info.name,
                hints[info.name],
                default,
                doc,
                extra.get("env", ""),
                bool(extra.get("secret")),
            )
        )
    return found


def sections() -> dict[str, type[Section]]:
    """Name and type of every section; ``route`` is the one that may be repeated."""
    hints = get_type_hints(Settings)
    return {
        name: kind if isinstance(kind, type) and issubclass(kind, Section) else RouteSettings
        for name, kind in hints.items()
    }


def fields() -> list[Field]:
    """Every setting there is, in the order of the tree."""
    return [field for name, kind in sections().items() for field in _fields_of(name, kind)]


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def _from_text(text: str, kind: Any) -> Any:
    """A variable's or flag's text as the TOML value that it stands for."""
    bare = _bare(kind)
    if bare is bool:
        lowered = text.strip().lower()
        if lowered in _TRUE | _FALSE:
            return lowered in _TRUE
        raise ValueError("say true or false")
    if bare in (int, float):
        return bare(text)
    if bare is str or get_origin(bare) is typing.Literal:
        return text
    if get_origin(bare) is list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"write it as in TOML: {error}") from None


class _Reader:
    """Collects values and faults from all sources, then makes the tree."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.values: dict[str, dict[str, Any]] = {}
        self.routes: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._known = {name: _fields_of(name, kind) for name, kind in sections().items()}

    def fault(self, place: str, message: str, hint: str = "") -> None:
        self.faults.append(Fault(place, message, hint))

    def file(self, path: Path) -> None:
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            self.fault(str(path), "there is no such file", "give the path of a worker.toml")
            return
        except (OSError, UnicodeDecodeError) as error:
            self.fault(str(path), f"cannot be read: {error}")
            return
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.fault(str(path), f"is not valid TOML: {error}")
            return
        lines = _Lines(str(path), text)
        for section, content in tree.items():
            place = lines.find(section)
            if section not in self._known:
                self.fault(place, f"unknown section [{section}]", _near(section, self._known))
            elif section == "route":
                if isinstance(content, list) and all(isinstance(c, dict) for c in content):
                    self._file_routes(content, lines)
                else:
                    self.fault(place, "[route] is not a list", "write [[route]]")
            elif not isinstance(content, dict):
                self.fault(place, f"{section} is not a section", f"write [{section}]")
            else:
                self._file_section(section, content, lines)

    def _file_section(self, section: str, content: dict[str, Any], lines: _Lines) -> None:
        known = {field.name: field for field in self._known[section]}
        for name, value in content.items():
            place = lines.find(section, name)
            if name not in known:
                self.fault(place, f"unknown setting {section}.{name}", _near(name, known))
                continue
            self.set(known[name], value, place)

    def _file_routes(self, content: list[dict[str, Any]], lines: _Lines) -> None:
        known = {field.name: field for field in self._known["route"]}
        for index, route in enumerate(content):
            good = True
            if "path" not in route:
                self.fault(
                    lines.find("route", nth=index), "a route needs a path", 'path = "/generate"'
                )
                good = False
            for name, value in route.items():
                place = lines.find("route", name, index)
                if name not in known:
                    self.fault(place, f"unknown setting route.{name}", _near(name, known))
                    good = False
                else:
                    good &= self.check(known[name], value, place)
            if good:
                self.routes.append(route)

    def check(self, field: Field, value: Any, place: str) -> bool:
        if isinstance(value, float) and math.isnan(value):
            self.fault(place, f"{field.path} is nan", "give a number")
            return False
        try:
            msgspec.convert(value, field.kind)
        except msgspec.ValidationError as error:
            shown = "" if field.secret else f", not {_short(value)}"
            self.fault(place, f"{field.path}: {error}{shown}", field.description)
            return False
        return True

    def set(self, field: Field, value: Any, place: str) -> None:
        if self.check(field, value, place):
            self.values.setdefault(field.section, {})[field.name] = value
            self.places[field.path] = place

    def text(self, field: Field, text: str, place: str) -> None:
        try:
            value = _from_text(text, field.kind)
        except ValueError as error:
            shown = "the value" if field.secret else repr(text)
            self.fault(place, f"{field.path}: {shown} does not fit: {error}", field.description)
            return
        self.set(field, value, place)

    def environment(self, environ: Mapping[str, str]) -> None:
        known = [f for name, fs in self._known.items() if name != "route" for f in fs]
        for field in known:
            for variable in (field.variable, field.own_variable):
                if variable and variable in environ:
                    self.text(field, environ[variable], f"${variable}")
        own = {field.own_variable for field in known} | {HANDOFF_VARIABLE, RUN_VARIABLE}
        own.add(f"{PREFIX}CHILD")
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in own:
                self.fault(f"${variable}", "no such setting", _near(variable, own))
        if environ.get("UNSECURED", "").lower() in _TRUE:
            self.values.setdefault("auth", {})["mode"] = "none"

    def flag(self, path: str, text: str, flag: str) -> None:
        for fs in self._known.values():
            for field in fs:
                if field.path == path and field.section != "route":
                    self.text(field, text, flag)
                    return
        every = [field.path for fs in self._known.values() for field in fs]
        self.fault(flag, f"there is no setting {path!r}", _near(path, every))

    def tree(self) -> Settings:
        if not self.faults:
            settings = msgspec.convert({**self.values, "route": self.routes}, Settings)
            self.faults += _across(settings, self.places)
        if self.faults:
            raise SettingsError(self.faults)
        return settings


class _Lines:
    """Finds the line of a key in a TOML text, for messages only (the parser does not say)."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def find(self, section: str, name: str = "", nth: int = 0) -> str:
        header = re.compile(rf"^\s*\[\[?\s*{re.escape(section)}\s*[\].]")
        key = re.compile(rf"^\s*\"?{re.escape(name)}\"?\s*[=.]") if name else None
        seen, inside = -1, False
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                inside = bool(header.match(line))
                seen += inside
                if inside and seen == nth and key is None:
                    return f"{self._path}:{number}"
            elif inside and seen == nth and key is not None and key.match(line):
                return f"{self._path}:{number}"
        return self._path


def _near(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), 1)
    return f"did you mean {close[0]}?" if close else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _across(settings: Settings, places: Mapping[str, str]) -> list[Fault]:
    """Faults that need more than one field to see."""
    found = []

    def place(path: str) -> str:
        return places.get(path, path)

    model, seen = settings.model, set[str]()
    url = urlsplit(model.url)
    if settings.route or model.command or model.url:
        if not model.url:
            found.append(
                Fault(place("model.url"), "model.url is missing", 'url = "http://127.0.0.1:18000"')
            )
        elif url.scheme != "http" or not url.hostname:
            found.append(
                Fault(place("model.url"), "model.url must be http://host:port", "no https, no path")
            )
        if not settings.route:
            found.append(Fault("route", "no route is configured", "add a [[route]] with a path"))
    for route in settings.route:
        if route.path in seen:
            found.append(Fault("route", f"the path {route.path} is configured twice"))
        seen.add(route.path)
    if settings.benchmark.route and settings.benchmark.route not in seen:
        hint = _near(settings.benchmark.route, seen) or "name a configured path"
        found.append(
            Fault(place("benchmark.route"), "benchmark.route is not a configured route", hint)
        )
    for address in settings.engine.addresses:
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            found.append(
                Fault(
                    place("engine.addresses"), f"{address!r} is no URL", "https://run.example.com"
                )
            )
    if settings.worker.port and settings.worker.port == settings.worker.admin_port:
        found.append(
            Fault(place("worker.admin_port"), "worker.admin_port and worker.port are the same")
        )
    if not model.command and model.ready_log and not model.log_file:
        found.append(
            Fault(
                place("model.ready_log"),
                "model.ready_log needs model.command or model.log_file",
                "there is no log to read",
            )
        )
    return found


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, flags: Mapping[str, str] = {}
) -> Settings:
    """Read the tree.

    Args:
        path: the TOML file, or None.
        environ: variables; None means this process's.
        flags: ``section.name`` → text, from the command line.

    Raises:
        SettingsError: with every fault.
    """
    environ = os.environ if environ is None else environ
    reader = _Reader()
    if path is not None:
        reader.file(path)
    reader.environment(environ)
    for name, text in flags.items():
        reader.flag(name, text, f"--set {name}")
    settings = reader.tree()
    return _derive(settings, environ)


def _derive(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Fill what is made of several variables: the public URL and the state directory."""
    worker = settings.worker
    scheme = "https" if settings.tls.enabled else "http"
    public = worker.public_url.rstrip("/")
    if not public and "PUBLIC_IPADDR" in environ:
        mapped = environ.get(f"VAST_TCP_PORT_{worker.port}", str(worker.port))
        public = f"{scheme}://{environ['PUBLIC_IPADDR']}:{mapped}"
    state = worker.state_dir or os.path.join(
        environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "lighterman"
    )
    changed: WorkerSettings = msgspec.structs.replace(
        worker, public_url=public, state_dir=os.path.abspath(state)
    )
    return msgspec.structs.replace(settings, worker=changed)


def inherited_environment(secret_variables: bool) -> dict[str, str]:
    """This process's environment for a child; the engine's token only where it may be known."""
    kept = dict(os.environ)
    if not secret_variables:
        for field in fields():
            if field.secret:
                kept.pop(field.variable, None)
                kept.pop(field.own_variable, None)
    return kept


def write_handoff(handoff: Handoff) -> str:
    """Write the file that children read; returns its path. Readable by this user only."""
    path = os.path.join(handoff.runtime_dir, "handoff.msgpack")
    partial = f"{path}.new"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(handoff))
    os.replace(partial, path)
    return path


def read_handoff() -> Handoff:
    """Read what the supervisor gave this child.

    Raises:
        SettingsError: this process was not started by the supervisor.
    """
    path = os.environ.get(HANDOFF_VARIABLE)
    if not path:
        hint = "the one command is: python -m supervisor"
        raise SettingsError([Fault(f"${HANDOFF_VARIABLE}", "is not set", hint)])
    try:
        return msgspec.msgpack.decode(Path(path).read_bytes(), type=Handoff)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError([Fault(path, f"cannot be read: {error}")]) from None
