"""What can be made to go wrong with the demo model server, and when it does.

Responsible for the list of faults, for reading one from a flag or a request, and for counting the
requests that it applies to. Its law: one fault of a kind at a time; a newer one replaces it. It
must not know how a fault is carried out (``sabotage`` does), nor about HTTP or time.

A fault is written ``KIND`` or ``KIND:field=value,field=value`` on the command line, and
``{"kind": KIND, "field": value}`` in ``POST /demo/fault``; the kind ``none`` ends all of them.
"Requests" below are requests to generate, counted from the moment the fault is set.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from supervisor.demo.bodies import read_body

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=1_000_000)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]


class Fault(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of every fault; its docstring is its help."""


class Clear(Fault, frozen=True, tag="none"):
    """End every fault (what has happened already stays so)."""


class Crash(Fault, frozen=True, tag="crash"):
    """Die at once, or when request number `after` arrives: SIGKILL, or exit with `code`."""

    after: Count = 0
    code: ExitCode | None = None


class CrashOnStart(Fault, frozen=True, tag="crash_on_start"):
    """Flag only. Exit with `code`, `after_s` seconds into loading."""

    code: ExitCode = 1
    after_s: Seconds = 0.0


class NoReadyLine(Fault, frozen=True, tag="no_ready_line"):
    """Flag only. Load and serve, but never print the ready line."""


class Hang(Fault, frozen=True, tag="hang"):
    """Accept requests and never answer, /health included; `none` lets them go on."""


class HangEventLoop(Fault, frozen=True, tag="hang_event_loop"):
    """Block the event loop for `for_s` seconds: no answer, no reading, no SIGTERM handler."""

    for_s: Seconds = 3600.0


class Slow(Fault, frozen=True, tag="slow"):
    """Wait `delay_s` before each request is worked on; `health` delays /health too."""

    delay_s: Seconds = 5.0
    health: bool = False


class Status(Fault, frozen=True, tag="status"):
    """Answer `code` to the next `count` requests; with `health` to probes as well, until then."""

    code: Annotated[int, Meta(ge=400, le=599)] = 500
    count: Positive = 1
    health: bool = False


class StopAfterHealth(Fault, frozen=True, tag="stop_after_health"):
    """Be well for `after` more health probes, then answer 500 to them; requests still work."""

    after: Count = 0


class ForgetPort(Fault, frozen=True, tag="forget_port"):
    """Close the listening socket but stay alive; open connections go on."""


class FloodLog(Fault, frozen=True, tag="flood_log"):
    """Print `megabytes` MB of lines, then one line of `long_line_mb` MB; answers when done."""

    megabytes: Annotated[int, Meta(ge=0, le=10_000)] = 10
    long_line_mb: Annotated[int, Meta(ge=0, le=1_000)] = 0


class RefuseTerm(Fault, frozen=True, tag="refuse_term"):
    """Ignore SIGTERM."""


class MidStreamCrash(Fault, frozen=True, tag="mid_stream_crash"):
    """SIGKILL itself when the next generation has handed out `after` words."""

    after: Count = 5


class CloseMidStream(Fault, frozen=True, tag="close_mid_stream"):
    """Close the connection of each of the next `count` generations after `after` words."""

    after: Count = 5
    count: Positive = 1


class LeaveGrandchild(Fault, frozen=True, tag="leave_grandchild"):
    """Start a daemon, twice forked and in its own session, that lives `for_s` seconds and keeps
    our output open; with `hold_port` it also keeps the listening socket."""

    for_s: Seconds = 600.0
    hold_port: bool = False


class BadResponse(Fault, frozen=True, tag="bad_response"):
    """Answer the next `count` requests with broken HTTP: `malformed` (no HTTP at all),
    `large_headers` (1 MB of them) or `truncated` (shorter than its Content-Length)."""

    variant: Literal["malformed", "large_headers", "truncated"] = "malformed"
    count: Positive = 1


AnyFault = (
    Clear
    | Crash
    | CrashOnStart
    | NoReadyLine
    | Hang
    | HangEventLoop
    | Slow
    | Status
    | StopAfterHealth
    | ForgetPort
    | FloodLog
    | RefuseTerm
    | MidStreamCrash
    | CloseMidStream
    | LeaveGrandchild
    | BadResponse
)

_DECODER: msgspec.json.Decoder[AnyFault] = msgspec.json.Decoder(AnyFault)

#: Faults that only make sense while the server starts.
START_ONLY = (CrashOnStart, NoReadyLine)

#: What may happen to a request instead of its answer.
RequestFault = Crash | Hang | BadResponse | Status | Slow
MidStreamFault = MidStreamCrash | CloseMidStream


def kind_of(fault: Fault | type[Fault]) -> str:
    """The name of a fault's kind."""
    return str(fault.__struct_config__.tag)


def parse_flag(text: str) -> AnyFault:
    """A fault as written on the command line. Raises ValueError that says what is wrong."""
    kind, _, fields = text.partition(":")
    given: dict[str, str] = {"kind": kind}
    for field in filter(None, fields.split(",")):
        name, equals, value = field.partition("=")
        if not equals:
            raise ValueError(f"{field!r} in {text!r} is not of the form name=value")
        given[name] = value
    try:
        return msgspec.convert(given, type=AnyFault, strict=False)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise ValueError(f"{text!r}: {error}") from None


def parse_body(body: bytes) -> AnyFault:
    """A fault as posted. Raises BadBody."""
    return read_body(body, _DECODER)


def help_text() -> str:
    """One paragraph per fault: kind, fields with their defaults, meaning."""
    rows = []
    for kind in get_args(AnyFault):
        fields = ", ".join(
            f"{field.name}={msgspec.json.encode(field.default).decode()}"
            for field in msgspec.structs.fields(kind)
        )
        meaning = " ".join((kind.__doc__ or "").replace("`", "").split())
        rows.append(f"  {kind_of(kind)}{f' ({fields})' if fields else ''}\n      {meaning}")
    return "\n".join(rows)


class Faults:
    """The faults that are set, and how many requests they have left."""

    def __init__(self) -> None:
        self._set: dict[type[Fault], Fault] = {}
        self._left: dict[type[Fault], int] = {}

    def __contains__(self, kind: type[Fault]) -> bool:
        return kind in self._set

    @property
    def active(self) -> list[Fault]:
        """Every fault that is set, in the order it was."""
        return list(self._set.values())

    def set(self, fault: AnyFault) -> None:
        """Let this fault happen from now on, in place of an older one of its kind."""
        if isinstance(fault, Clear):
            self._set.clear()
            self._left.clear()
            return
        self._set[type(fault)] = fault
        if isinstance(fault, Status | CloseMidStream | BadResponse):
            self._left[type(fault)] = fault.count
        elif isinstance(fault, Crash | StopAfterHealth):
            self._left[type(fault)] = fault.after
        elif isinstance(fault, MidStreamCrash):
            self._left[type(fault)] = 1

    def for_request(self) -> RequestFault | None:
        """What happens to the request that just arrived; counts it."""
        crash = self._set.get(Crash)
        if isinstance(crash, Crash):
            self._left[Crash] -= 1
            if self._left[Crash] <= 0:
                return crash
        hang = self._set.get(Hang)
        if isinstance(hang, Hang):
            return hang
        counted = self._take(BadResponse) or self._take(Status)
        if isinstance(counted, BadResponse | Status):
            return counted
        slow = self._set.get(Slow)
        return slow if isinstance(slow, Slow) else None

    def for_health(self) -> Hang | Status | StopAfterHealth | Slow | None:
        """What happens to the health probe that just arrived; counts it."""
        hang = self._set.get(Hang)
        if isinstance(hang, Hang):
            return hang
        stop = self._set.get(StopAfterHealth)
        if isinstance(stop, StopAfterHealth):
            self._left[StopAfterHealth] -= 1
            if self._left[StopAfterHealth] < 0:
                return stop
        for kind in (Status, Slow):
            fault = self._set.get(kind)
            if isinstance(fault, Status | Slow) and fault.health:
                return fault
        return None

    def for_generation(self) -> MidStreamFault | None:
        """What will happen in the middle of the generation that now begins; counts it."""
        fault = self._take(MidStreamCrash) or self._take(CloseMidStream)
        return fault if isinstance(fault, MidStreamCrash | CloseMidStream) else None

    def _take(self, kind: type[Fault]) -> Fault | None:
        """A fault that is good for a number of requests; the last one ends it."""
        fault = self._set.get(kind)
        if fault is None:
            return None
        self._left[kind] -= 1
        if self._left[kind] <= 0:
            del self._set[kind]
        return fault
