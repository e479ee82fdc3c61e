"""Pure: which values fit at all, what several settings must agree on, and what follows from them.

Law: every rule names its fault and goes on, so that all faults are found in one pass; a secret, or
an address that may hold one, is in no fault's text. Where a value came from is somebody else's
business (``settings_sources.py``): a place is only a text here.
"""

from __future__ import annotations

import binascii
import contextlib
import math
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from supervisor.settings import Section, Settings

#: Levels of tables and lists in one value.
MAX_DEPTH = 32
_WEB = ("http", "https")
#: The engine of an instance where REPORT_ADDR does not name one.
PLATFORM_ENGINE = "https://run.vast.ai"
#: Letters of a client's name.
_NAME = frozenset(string.ascii_letters + string.digits + "-_")
#: How the URL of a model server on a socket file begins.
UNIX = "unix:///"
#: Names by which a program on this machine is reached.
LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong: where, what, and what to do."""

    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f" ({self.hint})" if self.hint else "")


def nearest(word: str, words: Iterable[str]) -> str:
    """The most similar of ``words``, or nothing."""
    import difflib  # nobody slips in a worker that runs

    return next(iter(difflib.get_close_matches(word, list(words), 1)), "")


def near(word: str, words: Iterable[str]) -> str:
    """A hint that names the most similar of ``words``, or nothing."""
    close = nearest(word, words)
    return f"did you mean {close}?" if close else ""


def unfit(value: Any) -> str:
    """Why no setting can hold this value, whatever its type; empty when one can.

    What passes can be handed to every process and shown in every message.
    """
    rest = [(value, 1)]
    while rest:
        each, depth = rest.pop()
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        if isinstance(each, dict):
            rest += [(part, depth + 1) for pair in each.items() for part in pair]
        elif isinstance(each, list):
            rest += [(part, depth + 1) for part in each]
        elif isinstance(each, float) and math.isnan(each):
            return "is nan, give a number"
        elif isinstance(each, int) and not -(2**63) <= each < 2**63:
            return "is a number of more than 64 bits"
        elif isinstance(each, str):
            if "\0" in each:
                return "holds a NUL character"
            if any("\ud800" <= letter <= "\udfff" for letter in each):
                return "is not UTF-8 text"
    return ""


class _Refused(Exception):
    """A rule asked for a setting that was refused."""


class _View:
    """The tree, or a section of it; reading what was refused raises ``_Refused``.

    Args:
        of: the tree or section that it stands for.
        path: its path and a dot; empty: the tree.
        refused: paths of whole sections and of single settings.
    """

    __slots__ = ("_of", "_path", "_refused")

    def __init__(self, of: Section, path: str, refused: Set[str]) -> None:
        self._of = of
        self._path = path
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        path = self._path + name
        if path in self._refused:
            raise _Refused
        value = getattr(self._of, name)
        return _View(value, f"{path}.", self._refused) if isinstance(value, Section) else value


def across(
    settings: Settings,
    places: Mapping[str, str],
    environ: Mapping[str, str],
    refused: Set[str] = frozenset(),
) -> list[Fault]:
    """Faults of a tree whose fields are right one by one.

    Args:
        settings: the tree, before ``derive``.
        places: ``section.name`` or ``route[n].name`` → where it was set.
        environ: the variables that ``derive`` reads.
        refused: sections and settings (``section.name``) that hold defaults in place of what was
            refused; a rule stops where it would read one.
    """
    view = cast(Settings, _View(settings, "", refused))
    found: list[Fault] = []
    for rule in _RULES:
        with contextlib.suppress(_Refused):
            for path, message, hint in rule(view, environ):
                found.append(Fault(places.get(path, path), message, hint))
    return found


def unreloadable(running: Settings, wanted: Settings) -> list[Fault]:
    """Why a running worker cannot take the routes of ``wanted``."""
    measured = running.benchmark.route
    if not measured or measured in [route.path for route in wanted.route]:
        return []
    what = f"the running worker is measured on {measured}, which is no route any more"
    return [Fault("benchmark.route", what, "keep it, or start the worker anew")]


_Found = Iterator[tuple[str, str, str]]


def _model_url(settings: Settings, _: Mapping[str, str]) -> _Found:
    url = settings.model.url
    if url.startswith(UNIX):
        if _broken(url):
            yield "model.url", "model.url holds a blank", "unix:///run/model.sock"
    elif url:
        if reason := _url_fault(url, ("http",)):
            yield "model.url", f"model.url {reason}", 'url = "http://127.0.0.1:18000"'
        elif urlsplit(url).path not in ("", "/"):
            yield "model.url", "model.url must be http://host:port", "no https, no path"
    elif settings.model.command or settings.route:
        yield "model.url", "model.url is missing", 'url = "http://127.0.0.1:18000"'


def _model_health(settings: Settings, _: Mapping[str, str]) -> _Found:
    health = settings.model.health
    if health.startswith("/"):
        if _broken(health):
            yield "model.health", f"{health!r} is no path", "no blanks, and other than ASCII as %XX"
    elif health and _url_fault(health, ("http",), query=True):
        yield "model.health", "model.health is neither a path nor an http URL", 'health = "/health"'


def _model_log(settings: Settings, _: Mapping[str, str]) -> _Found:
    model = settings.model
    if model.ready_log and not model.command and not model.log_file:
        yield (
            "model.ready_log",
            "model.ready_log needs model.command or model.log_file",
            "there is no log to read",
        )


def _paths(settings: Settings, _: Mapping[str, str]) -> _Found:
    seen: set[str] = set()
    for index, route in enumerate(settings.route):
        place = f"route[{index}].path"
        if route.path in seen:
            yield place, f"the path {route.path} is configured twice", "remove one of them"
        if _broken(route.path) or "?" in route.path or "#" in route.path:
            yield place, f"{route.path!r} is no path", "no blanks, no ?, no #, only ASCII"
        if route.upstream and (not route.upstream.startswith("/") or _broken(route.upstream)):
            hint = "a path on the model server"
            yield f"route[{index}].upstream", f"{route.upstream!r} is no path", hint
        seen.add(route.path)


def _functions(settings: Settings, _: Mapping[str, str]) -> _Found:
    if settings.hooks.file:
        return
    users = [f"route[{n}]" for n, r in enumerate(settings.route) if r.prepare or r.hosted]
    users += ["benchmark.sampled"] if settings.benchmark.sampled else []
    users += ["model.lifecycle"] if settings.model.lifecycle else []
    if users:
        yield users[0], "needs functions of a worker.py, and none is used", "set hooks.file"


def _some_route(settings: Settings, _: Mapping[str, str]) -> _Found:
    if not settings.route and (settings.model.command or settings.model.url):
        yield "route", "no route is configured", "add a [[route]] with a path"


def _measured_route(settings: Settings, _: Mapping[str, str]) -> _Found:
    wanted, paths = settings.benchmark.route, {route.path for route in settings.route}
    if wanted and wanted not in paths:
        hint = near(wanted, paths) or "name a configured path"
        yield "benchmark.route", "benchmark.route is not a configured route", hint


def _clients(settings: Settings, _: Mapping[str, str]) -> _Found:
    for name, text in settings.auth.clients.items():
        if not 0 < len(name) <= 64 or not _NAME.issuperset(name):
            what = f"{name[:64]!r} is no name of a client"
            yield "auth.clients", what, "1 to 64 letters, digits, - and _"
        elif not _is_key(text):
            what = f"the key of {name} is no Ed25519 public key in base64 (32 bytes)"
            yield "auth.clients", what, "python examples/strict_client.py key FILE makes a pair"


def _is_key(text: str) -> bool:
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return False
    return len(raw) == 32


def _engines(settings: Settings, _: Mapping[str, str]) -> _Found:
    for address in settings.engine.addresses:
        if reason := _url_fault(address, _WEB):
            shown = "an address" if "@" in address else repr(address)
            yield "engine.addresses", f"{shown} {reason}", "https://run.example.com"


def _public(settings: Settings, _: Mapping[str, str]) -> _Found:
    url = settings.worker.public_url
    if url and (reason := _url_fault(url, _WEB)):
        yield "worker.public_url", f"worker.public_url {reason}", "https://192.0.2.1:3000"


def _ports(settings: Settings, environ: Mapping[str, str]) -> _Found:
    """Every port that this machine is to serve has one owner."""
    owners: dict[int, str] = {}
    for name, port_of in _PORTS.items():
        with contextlib.suppress(_Refused):
            port = port_of(settings, environ)
            if port > 0 and port in owners:
                yield name, f"{name} and {owners[port]} are the same port {port}", "choose another"
            owners.setdefault(port, name)


def _engine_port(settings: Settings, environ: Mapping[str, str]) -> int:
    remote = settings.engine.addresses or _has_engine(environ)
    return 0 if remote else settings.engine.local_port


def _model_port(settings: Settings, _: Mapping[str, str]) -> int:
    url = settings.model.url
    if not url or _url_fault(url, ("http",)) or urlsplit(url).hostname not in LOOPBACK:
        return 0
    return urlsplit(url).port or 80


#: Who serves a port of this machine; 0: none.
_PORTS: dict[str, Callable[[Settings, Mapping[str, str]], int]] = {
    "worker.port": lambda settings, _: settings.worker.port,
    "worker.http_port": lambda settings, _: settings.worker.http_port,
    "worker.admin_port": lambda settings, _: settings.worker.admin_port,
    "engine.local_port": _engine_port,
    "model.url": _model_port,
}


def _platform(settings: Settings, environ: Mapping[str, str]) -> _Found:
    if settings.worker.public_url or not environ.get("PUBLIC_IPADDR", "").strip():
        return
    if not settings.worker.port:
        text = (
            "clients reach an instance by a port that was mapped before; it cannot be any free one"
        )
        yield "worker.port", text, "3000"
        return
    variable = f"VAST_TCP_PORT_{settings.worker.port}"
    mapped = environ.get(variable, "").strip()
    if mapped and not (mapped.isascii() and mapped.isdigit() and 0 < int(mapped[:9]) < 65536):
        yield f"${variable}", f"{mapped[:60]!r} is no port", "a number from 1 to 65535"
    elif _url_fault(_public_url(settings, environ), _WEB):
        yield "$PUBLIC_IPADDR", "is no address", "192.0.2.1"


_RULES: tuple[Callable[[Settings, Mapping[str, str]], _Found], ...] = (
    _model_url, _model_health, _model_log, _paths, _functions, _some_route, _measured_route,
    _clients, _engines, _public, _ports, _platform,
)  # fmt: skip


def _broken(text: str) -> bool:
    """It could not stand in the first line of a request."""
    return not text.isascii() or any(c.isspace() or not c.isprintable() for c in text)


def _url_fault(text: str, schemes: tuple[str, ...], query: bool = False) -> str:
    """Why this is no base URL (``query``: no URL at all); empty when it is one."""
    if _broken(text):
        return "holds a blank, or other than ASCII"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return "is no URL"
    if url.scheme not in schemes or not url.hostname or port == 0:
        return f"must be {' or '.join(schemes)}://host:port"
    if "@" in url.netloc:
        return "must not hold a user name"
    return "must end with the path" if url.fragment or (url.query and not query) else ""


def _public_url(settings: Settings, environ: Mapping[str, str]) -> str:
    host = environ.get("PUBLIC_IPADDR", "").strip()
    port = environ.get(f"VAST_TCP_PORT_{settings.worker.port}", "").strip()
    scheme = "https" if settings.tls.enabled else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or settings.worker.port}"


def _has_engine(environ: Mapping[str, str]) -> bool:
    """This is an instance, which has the platform's engine."""
    return bool(environ.get("CONTAINER_ID") and environ.get("MASTER_TOKEN"))


def derive(settings: Settings, environ: Mapping[str, str], state_dir: str) -> Settings:
    """Fill in what several variables make, and write every base URL without a last slash.

    Args:
        settings: a tree without faults.
        environ: PUBLIC_IPADDR and VAST_TCP_PORT_<port> give the public URL where none is set;
            CONTAINER_ID and MASTER_TOKEN say that this is an instance, which has an engine.
        state_dir: absolute path of the state directory.
    """
    public = settings.worker.public_url
    if not public and environ.get("PUBLIC_IPADDR", "").strip():
        public = _public_url(settings, environ)
    replace = msgspec.structs.replace
    addresses = settings.engine.addresses
    if not addresses and _has_engine(environ):
        addresses = [PLATFORM_ENGINE]
    return replace(
        settings,
        worker=replace(settings.worker, public_url=public.rstrip("/"), state_dir=state_dir),
        model=replace(settings.model, url=settings.model.url.rstrip("/")),
        engine=replace(settings.engine, addresses=[each.rstrip("/") for each in addresses]),
    )
