"""Reads the settings tree: TOML file < environment < flags. The only reader of os.environ.

Law: all faults are found in one pass, each with its place (file and line, variable, or flag) and a
hint; a tree with one fault is no tree. What starts from here is handed to every child whole, as one
file in the run's private directory, so that no two processes can disagree about a setting.

This module must not know what any setting is for; ``settings_rules.py`` knows what they must agree
on.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from supervisor.log_lines import masker
from supervisor.secret_texts import secrets_of
from supervisor.settings import ModelSettings, Settings, TlsSettings
from supervisor.settings_fields import PREFIX, Field, fields, fields_of, from_text, sections
from supervisor.settings_rules import Fault, across, derive, near, nearest, unfit
from supervisor.toml_lines import Lines

__all__ = [
    "Fault", "Field", "Handoff", "SettingsError", "fields", "forget_handoff",
    "inherited_environment", "load",
    "named", "read_handoff", "secrets", "sections", "write_handoff",
]  # fmt: skip

#: Where a child finds what it was started with.
HANDOFF_VARIABLE = "LIGHTERMAN_HANDOFF"
#: Marks every process of one run, grandchildren included.
RUN_VARIABLE = "LIGHTERMAN_RUN"
CHILD_VARIABLE = "LIGHTERMAN_CHILD"
#: What msgspec says of the type that it got; the value itself says more.
_GOT = re.compile(r", got `\w+`")
_handoff_path = ""  # once the variable is forgotten


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


class _Reader:
    """Collects values and faults from all sources, then makes the tree."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.values: dict[str, dict[str, Any]] = {}
        self.routes: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._refused: set[str] = set()
        self._known = {name: fields_of(name, kind) for name, kind in sections().items()}

    def fault(self, path: str, place: str, message: str, hint: str = "") -> None:
        """``path``: the section or setting that no rule may read now; empty: none of them."""
        self.faults.append(Fault(place, message, hint))
        self._refused |= {path} if path else set(self._known)

    def file(self, path: Path) -> None:
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            self.fault("", str(path), "there is no such file", "give the path of a worker.toml")
            return
        except (OSError, ValueError) as error:
            self.fault("", str(path), f"cannot be read: {error}")
            return
        try:
            tree = tomllib.loads(text)
        except ValueError as error:
            self.fault("", str(path), f"is not valid TOML: {error}")
            return
        except RecursionError:
            self.fault("", str(path), "is nested too deeply")
            return
        lines = Lines(str(path), text)
        for section, content in tree.items():
            place = lines.find(section)
            if section not in self._known:
                hint = near(section, self._known) or f"there are: {', '.join(self._known)}"
                meant = nearest(section, self._known) or section
                self.fault(meant, place, f"unknown section [{section}]", hint)
            elif section == "route":
                if isinstance(content, list) and all(isinstance(c, dict) for c in content):
                    self._file_routes(content, lines)
                else:
                    self.fault(section, place, "[route] is not a list", "write [[route]]")
            elif not isinstance(content, dict):
                self.fault(section, place, f"{section} is not a section", f"write [{section}]")
            else:
                self._file_section(section, content, lines)

    def _file_section(self, section: str, content: dict[str, Any], lines: Lines) -> None:
        known = {field.name: field for field in self._known[section]}
        for name, value in content.items():
            place = lines.find(section, name)
            if name not in known:
                self._unknown(section, name, place, known)
                continue
            self.set(known[name], value, place)

    def _unknown(self, section: str, name: str, place: str, known: Iterable[str]) -> None:
        hint = near(name, known) or "docs/settings.md lists every setting"
        self.fault(section, place, f"unknown setting {section}.{name}", hint)

    def _file_routes(self, content: list[dict[str, Any]], lines: Lines) -> None:
        known = {field.name: field for field in self._known["route"]}
        for index, route in enumerate(content):
            good = True
            if "path" not in route:
                place = lines.find("route", nth=index)
                self.fault("route", place, "a route needs a path", 'path = "/generate"')
                good = False
            for name, value in route.items():
                place = lines.find("route", name, index)
                if name not in known:
                    self._unknown("route", name, place, known)
                    good = False
                else:
                    good &= self.check(known[name], value, place)
                    self.places[f"route[{index}].{name}"] = place
            if good:
                self.routes.append(route)
            else:
                self._refused.add("route")

    def _unfit(self, field: Field, place: str, message: str) -> None:
        # a secret that is not kept cannot be masked: nothing may be judged, and shown, any more
        self.fault("" if field.secret else field.path, place, message, field.description)

    def check(self, field: Field, value: Any, place: str) -> bool:
        if reason := unfit(value):
            self._unfit(field, place, f"{field.path} {reason}")
            return False
        try:
            msgspec.convert(value, field.kind)
        except msgspec.ValidationError as error:
            said = str(error)
            if not field.secret:
                said = f"{_GOT.sub('', said)}, not {_short(value)}"
            self._unfit(field, place, f"{field.path}: {said}")
            return False
        return True

    def set(self, field: Field, value: Any, place: str) -> None:
        if self.check(field, value, place):
            self.values.setdefault(field.section, {})[field.name] = value
            self.places[field.path] = place

    def text(self, field: Field, text: str, place: str) -> None:
        try:
            value = from_text(text, field.kind)
        except ValueError as error:
            shown = "the value" if field.secret else _short(text)
            self._unfit(field, place, f"{field.path}: {shown} does not fit: {error}")
            return
        self.set(field, value, place)

    def given(self, values: Mapping[str, Any], place: str) -> None:
        """What a worker.py amounts to: it beats the platform's variables, as people expect."""
        for section, content in values.items():
            if section == "route":
                self._given_routes(content, place)
                continue
            known = {field.name: field for field in self._known[section]}
            for name, value in content.items():
                self.set(known[name], value, place)

    def _given_routes(self, routes: list[dict[str, Any]], place: str) -> None:
        known = {field.name: field for field in self._known["route"]}
        for index, route in enumerate(routes):
            if all(self.check(known[name], value, place) for name, value in route.items()):
                self.routes.append(route)
            else:
                self._refused.add("route")
            for name in route:
                self.places[f"route[{index}].{name}"] = f"{place}: {route.get('path')}"

    def platform(self, environ: Mapping[str, str]) -> None:
        """The platform's variables; an empty one says nothing."""
        if (unsecured := environ.get("UNSECURED")) is not None:
            try:
                mode = "none" if from_text(unsecured, bool) else "signature"
                self.values.setdefault("auth", {})["mode"] = mode
            except ValueError as error:
                what = f"{_short(unsecured)} does not fit: {error}"
                self.fault("auth.mode", "$UNSECURED", what, "true: signatures are not checked")
        for field in self._single():
            if text := environ.get(field.variable, ""):
                self.text(field, text, f"${field.variable}")

    def _single(self) -> list[Field]:
        return [f for name, fs in self._known.items() if name != "route" for f in fs]

    def environment(self, environ: Mapping[str, str]) -> None:
        """Our own variables."""
        known = self._single()
        for field in known:
            if field.own_variable in environ:
                self.text(field, environ[field.own_variable], f"${field.own_variable}")
        paths = {field.own_variable: field.path for field in known}
        own = {*paths, HANDOFF_VARIABLE, RUN_VARIABLE, CHILD_VARIABLE}
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in own:
                hint = near(variable, own) or "docs/settings.md lists every setting"
                meant = paths.get(nearest(variable, own), variable)
                self.fault(meant, f"${variable}", "no such setting", hint)

    def flag(self, path: str, text: str, flag: str) -> None:
        known = {f.path: f for f in self._single()}
        if path in known:
            self.text(known[path], text, flag)
        else:
            hint = near(path, known) or "docs/settings.md lists every setting"
            self.fault(nearest(path, known) or path, flag, f"there is no setting {path!r}", hint)

    def unfinished(self, *sections: str) -> None:
        """What these say is known later; until then they are not judged."""
        self._refused |= set(sections)

    def tree(self, environ: Mapping[str, str], files: bool) -> Settings:
        settings = msgspec.convert({**self.values, "route": self.routes}, Settings)
        self.faults += across(settings, self.places, environ, self._refused)
        if files and settings.tls.enabled and self._knows("tls", "enabled", "cert", "key"):
            self._certificate(settings.tls)
        if files and settings.model.command and self._knows("model", "command", "cwd", "env"):
            self._program(settings.model, environ)
        if self.faults:
            mask = masker(secrets_of(settings, environ))
            raise SettingsError(
                Fault(each.place, mask(each.message), mask(each.hint)) for each in self.faults
            )
        return settings

    def _knows(self, section: str, *names: str) -> bool:
        return not self._refused & {section, *(f"{section}.{name}" for name in names)}

    def _program(self, model: ModelSettings, environ: Mapping[str, str]) -> None:
        """What is not there now would only fail again and again."""
        program, cwd = model.command[0], model.cwd or os.curdir
        if not os.path.isdir(cwd):
            place = self.places.get("model.cwd", "model.cwd")
            self.fault("model", place, f"model.cwd: there is no directory {cwd}", "make it first")
        where = model.env.get("PATH", environ.get("PATH"))
        if os.path.dirname(program):
            program = os.path.join(cwd, program)
        if shutil.which(program, path=where) is None:
            place = self.places.get("model.command", "model.command")
            what, hint = "there is no program", "install it, or give its whole path"
            if "=" in model.command[0] or len(model.command[0].split()) > 1:
                # a whole command line, which may hold a secret
                what += " of the name that its first item gives"
                hint = 'every word is an item of its own: ["vllm", "serve", "--port", "18000"]'
            else:
                what += f" {model.command[0]!r}"
            self.fault("model", place, f"model.command: {what}", hint)

    def _certificate(self, tls: TlsSettings) -> None:
        from supervisor.tls import TlsError, make_context  # OpenSSL, only where it is wanted

        try:
            make_context(tls.cert, tls.key)
        except TlsError as error:
            place = self.places.get("tls.enabled", "tls.enabled")
            self.fault("tls", place, str(error), "set tls.cert and tls.key, or tls.enabled = false")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def load(
    path: Path | None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] = {},
    *,
    files: bool = False,
    given: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the tree.

    Args:
        path: the TOML file, or None.
        environ: variables; None means this process's.
        flags: ``section.name`` → text, from the command line.
        files: the files that the settings name are tried as well.
        given: what a worker.py amounts to, section → name → value; {}: that is not known yet.

    Raises:
        SettingsError: with every fault.
    """
    environ = os.environ if environ is None else environ
    settings = _read(path, environ, flags, given).tree(environ, files)
    home = environ.get("HOME") or os.path.expanduser("~")
    states = environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    state_dir = settings.worker.state_dir or os.path.join(states, "lighterman")
    return derive(settings, environ, os.path.abspath(state_dir))


def named(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]
) -> frozenset[str]:
    """Every ``section.name`` that a person has set, whatever to."""
    return frozenset(_read(path, environ, flags).places)


def _read(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    given: Mapping[str, Any] | None = None,
) -> _Reader:
    """Every source, the strongest last."""
    reader = _Reader()
    if path is not None:
        reader.file(path)
    reader.platform(environ)
    if given:
        reader.given(given, flags.get("hooks.file", "worker.py"))
    elif given is not None:
        reader.unfinished("model", "route", "benchmark")
    reader.environment(environ)
    for name, text in flags.items():
        reader.flag(name, text, f"--set {name}")
    return reader


def secrets(settings: Settings) -> list[str]:
    """Texts that must never appear in a log, an error, a metric or a page."""
    return secrets_of(settings, os.environ)


def inherited_environment(secret_variables: bool) -> dict[str, str]:
    """This process's environment for a child; the engine's token only where it may be known."""
    kept = dict(os.environ)
    if not secret_variables:
        for field in fields():
            if field.secret:
                kept.pop(field.variable, None)
                kept.pop(field.own_variable, None)
    return kept


def write_handoff(handoff: Handoff, name: str = "handoff.msgpack") -> str:
    """Write a file that children read; returns its path. Readable by this user only."""
    path = os.path.join(handoff.runtime_dir, name)
    content = msgspec.msgpack.encode(handoff)
    partial = f"{path}.new"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    os.replace(partial, path)
    return path


def forget_handoff() -> None:
    """What this process starts shall not find the file; this process still does."""
    global _handoff_path
    _handoff_path = os.environ.pop(HANDOFF_VARIABLE, "")


def read_handoff() -> Handoff:
    """Read what the supervisor gave this child.

    Raises:
        SettingsError: this process was not started by the supervisor.
    """
    path = os.environ.get(HANDOFF_VARIABLE) or _handoff_path
    if not path:
        hint = "the one command is: python -m supervisor"
        raise SettingsError([Fault(f"${HANDOFF_VARIABLE}", "is not set", hint)])
    try:
        return msgspec.msgpack.decode(Path(path).read_bytes(), type=Handoff)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise SettingsError([Fault(path, f"cannot be read: {error}")]) from None
