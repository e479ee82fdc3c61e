"""The calls about sessions, as clients send them: checked, and turned into the adapter's words.

Source: the public PyWorker. ``POST /session/create`` takes auth_data and a payload like any
request; get, health and end take ``session_id`` and ``session_auth``, which is the auth_data that
made the session. Law: a malformed call is refused here with every fault named; what passes can be
shown, compared and posted again without being read again.

This module knows neither sockets nor which sessions there are; it draws their ids.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from backend_adapter.messages import SessionCall
from ingress.envelope import UNKNOWN_IDX, Envelope, Refused
from ingress.routes import climbs
from ingress.spool import Bytes
from ingress.workload import LEAST_WORKLOAD, quantised

#: Longest body of a call: what a session keeps of it is kept for as long as it is open.
MAX_CALL_BYTES = 64 * 2**10
DEFAULT_LIFETIME_S = 60
MAX_LIFETIME_S = 366 * 24 * 3600
MAX_ID = 128
#: What a session costs where auth_data does not say.
DEFAULT_COST = 100.0
#: What it counts for at most, unless a route may count for more: today's signature leaves the cost
#: to the client.
MAX_COST = 1000 * DEFAULT_COST


class _Create(msgspec.Struct, frozen=True):
    lifetime: int | float | None = None
    on_close_route: str | None = None
    on_close_payload: Raw | UnsetType = UNSET


class _Auth(msgspec.Struct, frozen=True):
    auth_data: Raw | UnsetType = UNSET


class _Known(msgspec.Struct, frozen=True):
    session_id: str | None = None
    session_auth: Raw | UnsetType = UNSET


_create = msgspec.json.Decoder(_Create).decode
_auth = msgspec.json.Decoder(_Auth).decode
_known = msgspec.json.Decoder(_Known).decode


def read(
    call: str,
    call_id: int,
    body: Bytes,
    decode: Callable[[Bytes], Envelope],
    check: Callable[[Envelope], None],
    most: float = MAX_COST,
) -> SessionCall:
    """Make the adapter's word of a client's body.

    Args:
        call: one of ``routes.SESSION_CALLS``.
        decode: takes an envelope apart.
        check: raises where the engine did not send this client here.
        most: units of work that a session counts for at most.

    Raises:
        Refused: it is malformed, or ``check`` said so.
    """
    if len(body) > MAX_CALL_BYTES:
        text = f"a call about a session may have {MAX_CALL_BYTES} bytes"
        raise Refused("body_too_large", text)
    try:
        if call == "create":
            envelope = decode(body)
            check(envelope)
            return _read_create(call_id, envelope, body, most)
        return _read_known(call_id, call, body)
    except RecursionError:
        raise Refused("invalid_json", "invalid JSON: it is nested too deeply") from None


def _read_known(call_id: int, call: str, body: Bytes) -> SessionCall:
    known = _as(_known, body, "")
    if not known.session_id:
        raise Refused("missing_parameter", "session_id: missing", {"session_id": "missing"})
    auth = _given(known.session_auth)
    if not isinstance(auth, dict):
        text = "session_auth: must be the auth_data that made the session, an object"
        raise Refused("invalid_parameter", text, {"session_auth": "must be an object"})
    # an id that is longer than any of ours is one that is not known
    return SessionCall(call_id, call, known.session_id[:MAX_ID], digest(auth))


def _read_create(call_id: int, envelope: Envelope, body: Bytes, most: float) -> SessionCall:
    given = _as(_create, bytes(envelope.payload), "payload")
    lifetime_s = DEFAULT_LIFETIME_S if given.lifetime is None else given.lifetime
    faults = {}
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        faults["lifetime"] = f"must be above 0 and at most {MAX_LIFETIME_S} seconds"
    if given.on_close_route is not None and not is_path(given.on_close_route):
        faults["on_close_route"] = "must be a path on the model server, such as /session/closed"
    if faults:
        text = "; ".join(f"payload.{name}: {fault}" for name, fault in faults.items())
        raise Refused("invalid_parameter", text, {"payload": faults})
    auth_data = _given(_as(_auth, body, "").auth_data)
    payload = None
    if given.on_close_route is not None and not isinstance(given.on_close_payload, UnsetType):
        payload = _plain(bytes(given.on_close_payload))
    auth = envelope.auth_data
    cost = DEFAULT_COST
    if auth is not None:
        with suppress(ValueError):  # a text that is no number
            # what is no number stays none, for ``quantised`` to see
            cost = min(max(float(auth.cost), LEAST_WORKLOAD), most)
    request_idx = UNKNOWN_IDX if auth is None else auth.request_idx
    shown = json.dumps(auth_data).encode()
    kept = b"" if payload is None else json.dumps(payload).encode()
    if len(shown) + len(kept) > 2 * MAX_CALL_BYTES:
        raise Refused("body_too_large", "written in ASCII, the call is too long")
    return SessionCall(
        call_id,
        "create",
        secrets.token_hex(16),
        digest(auth_data),
        lifetime_s,
        quantised(cost, DEFAULT_COST),
        request_idx,
        None if auth is None or request_idx == UNKNOWN_IDX else auth.reqnum,
        given.on_close_route,
        isinstance(payload, dict) and "session_id" in payload,
        len(shown),
        shown + kept,
    )


def is_path(route: str) -> bool:
    """It names a path of the model server and can mean nothing else."""
    return (
        route.startswith("/")
        and not climbs(route.partition("?")[0].encode())
        and route.isascii()
        and route.isprintable()
        and not {" ", "\\", "#"} & set(route)
        and len(route) <= 2048
    )


def digest(auth: Any) -> bytes:
    """The same for all that mean the same: keys in order, 1.0 as 1."""
    text = json.dumps(_simple(auth), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _simple(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _simple(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_simple(each) for each in value]
    return value


def _given(raw: Raw | UnsetType) -> Any:
    """What nobody gave is nothing."""
    value = None if isinstance(raw, UnsetType) else _plain(bytes(raw))
    return {} if value is None else value


def _plain(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise Refused("invalid_json", f"invalid JSON: {error}") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number of JSON's")
    return number


def _as(decoder: Callable[[Bytes], Any], body: Bytes, place: str) -> Any:
    """Decode, and say where it is not what it should be."""
    try:
        str(body, "utf-8")
        return decoder(body)
    except msgspec.ValidationError as error:
        text = f"{place}: {error}" if place else str(error)
        raise Refused("invalid_parameter", text) from None
    except ValueError as error:
        raise Refused("invalid_json", f"invalid JSON: {error}") from None
