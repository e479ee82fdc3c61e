"""The envelope: what a client's JSON body must be, and what of it is read.

Responsible for telling ``auth_data``, ``payload`` and ``session_id`` apart in one pass, and for
naming everything that is wrong with them in one answer. The payload is not decoded: its bytes go
on to the model server as they came.

Law: what passes is valid JSON in valid UTF-8, its payload is an object, and nothing that a client
can send raises anything but ``Refused``. A key that occurs twice counts as its last occurrence,
both where it is checked and where it is forwarded. How deep a body may nest is the interpreter's
limit (about 1,000 levels on Python 3.11, 10,000 later).

It must not know how a signature is verified, nor which route the payload is for.
"""

from __future__ import annotations

import codecs
from mmap import mmap
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

#: No text of auth_data is longer: an engine's signature has 344 characters, a URL some hundred.
MAX_TEXT = 4096
#: UTF-8 is checked in pieces of this size, so that a large body costs no copy of itself.
_PIECE_BYTES = 2**20

#: ``request_idx`` of a request that the engine knows nothing of.
UNKNOWN_IDX = -1

_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_OPEN_BRACE = ord("{")
_NULL = memoryview(b"null")

# The words of the public PyWorker's 422 answers.
_FIELD_MISSING = "field missing"
_PARAMETER_MISSING = "missing parameter"
_NO_OBJECT = "must be an object"
_TOO_DEEP = "invalid JSON: it is nested too deeply"


class Refused(Exception):
    """A request that is answered with a typed error instead of being worked on.

    ``kind`` is an error kind (``invalid_json``, ``missing_parameter``, ``invalid_parameter``,
    ``signature_missing``, ``bad_signature``, ``foreign_url``, ``replayed``, ``no_public_key``),
    ``message`` tells a person what to do, ``extra`` holds further keys of the answer's body.
    """

    __slots__ = ("extra", "kind", "message")

    def __init__(self, kind: str, message: str, extra: dict[str, Any] | None = None) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.extra = extra


class AuthData(msgspec.Struct, frozen=True, gc=False):
    """What the engine signed; clients send it back whole, further keys are ignored.

    ``cost`` keeps the type that it came with (some clients send it as text): 2024's scheme signs
    its JSON text, and ``1`` is not ``1.0`` there. Source: the public PyWorker's wire format.
    """

    signature: _Text  #: base64
    cost: _Int | float | _Text
    endpoint: _Text
    reqnum: _Int
    request_idx: _Int
    url: _Text


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A client's body. ``payload`` is a view of the body's bytes, always a JSON object."""

    payload: Raw
    auth_data: AuthData | None = None
    session_id: str | None = None


class _LooseEnvelope(msgspec.Struct, frozen=True, gc=False):
    """The same, of any types: only for finding out what was wrong."""

    payload: Raw | UnsetType = UNSET
    auth_data: Raw | UnsetType = UNSET
    session_id: Raw | UnsetType = UNSET


_FIELDS = {
    field.name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(AuthData)
}
_LooseAuth: Any = msgspec.defstruct(
    "_LooseAuth", [(name, Raw | UnsetType, UNSET) for name in _FIELDS], frozen=True, gc=False
)
_NOBODY: dict[str, Any] = {
    "signature": "",
    "cost": 0,
    "endpoint": "",
    "reqnum": 0,
    "request_idx": UNKNOWN_IDX,
    "url": "",
}

_ENVELOPE = msgspec.json.Decoder(Envelope)
_LOOSE_ENVELOPE = msgspec.json.Decoder(_LooseEnvelope)
_LOOSE_AUTH = msgspec.json.Decoder(_LooseAuth)
_SESSION_ID = msgspec.json.Decoder(str | None)


def decode(body: bytes | bytearray | memoryview | mmap) -> Envelope:
    """Read a body whose auth_data must be complete; ``auth_data`` of the result is never None.

    Raises ``Refused``: invalid_json, missing_parameter (``extra`` names every missing field, in
    the words of the public PyWorker), invalid_parameter.
    """
    try:
        envelope = _ENVELOPE.decode(body)
        _check_utf8(body)
    except (ValueError, RecursionError):
        return _reread(body, signed=True)
    if envelope.auth_data is None or memoryview(envelope.payload)[0] != _OPEN_BRACE:
        return _reread(body, signed=True)
    return envelope


def decode_unsigned(body: bytes | bytearray | memoryview | mmap) -> Envelope:
    """Read a body where signatures are not asked for: auth_data may be absent or incomplete.

    What of auth_data is usable is kept, the rest is empty, 0 or ``UNKNOWN_IDX``. Raises
    ``Refused``: invalid_json, missing_parameter, invalid_parameter, for the payload and the
    session_id only.
    """
    try:
        envelope = _ENVELOPE.decode(body)
        _check_utf8(body)
    except (ValueError, RecursionError):
        return _reread(body, signed=False)
    if memoryview(envelope.payload)[0] != _OPEN_BRACE:
        return _reread(body, signed=False)
    return envelope


def _check_utf8(body: bytes | bytearray | memoryview | mmap) -> None:
    """Raise UnicodeDecodeError for what is no UTF-8: msgspec does not look at what it skips."""
    if type(body) is bytes and body.isascii():
        return
    if len(body) <= _PIECE_BYTES:
        str(body, "utf-8")
        return
    view = memoryview(body)
    start = 0
    while start < len(view):
        piece = view[start : start + _PIECE_BYTES]
        start += codecs.utf_8_decode(piece, "strict", start + len(piece) == len(view))[1]


def _loose(body: bytes | bytearray | memoryview | mmap) -> _LooseEnvelope:
    """Take the body apart without looking into it. Raises ``Refused`` when that is impossible."""
    try:
        loose = _LOOSE_ENVELOPE.decode(body)
        _check_utf8(body)
    except msgspec.ValidationError:
        raise Refused("invalid_parameter", "The body must be a JSON object.") from None
    except msgspec.DecodeError as fault:
        raise Refused("invalid_json", f"invalid JSON: {fault}") from None
    except UnicodeDecodeError:
        raise Refused("invalid_json", "invalid JSON: the body is not UTF-8") from None
    except RecursionError:
        raise Refused("invalid_json", _TOO_DEEP) from None
    return loose


def _auth_fields(raw: Raw | UnsetType) -> tuple[dict[str, Any], dict[str, str] | str]:
    """Return the usable fields of auth_data, and what is wrong with it ({} for nothing)."""
    if isinstance(raw, UnsetType) or memoryview(raw) == _NULL:
        return {}, _FIELD_MISSING
    try:
        loose = _LOOSE_AUTH.decode(raw)
    except msgspec.ValidationError:
        return {}, _NO_OBJECT
    usable: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for name, decoder in _FIELDS.items():
        value = getattr(loose, name)
        if value is UNSET:
            faults[name] = _PARAMETER_MISSING
            continue
        try:
            usable[name] = decoder.decode(value)
        except ValueError as fault:
            faults[name] = str(fault)
    return usable, faults


def _other_faults(loose: _LooseEnvelope) -> dict[str, dict[str, str] | str]:
    """Return what is wrong outside auth_data."""
    faults: dict[str, dict[str, str] | str] = {}
    if isinstance(loose.payload, UnsetType):
        faults["payload"] = _FIELD_MISSING
    elif memoryview(loose.payload)[0] != _OPEN_BRACE:
        faults["payload"] = _NO_OBJECT
    if not isinstance(loose.session_id, UnsetType):
        try:
            _SESSION_ID.decode(loose.session_id)
        except msgspec.ValidationError:
            faults["session_id"] = "must be a string or null"
    return faults


def _refusal(faults: dict[str, dict[str, str] | str]) -> Refused:
    texts: dict[str, str] = {}
    for name, fault in faults.items():
        if isinstance(fault, str):
            texts[name] = fault
        else:
            texts.update((f"{name}.{field}", text) for field, text in fault.items())
    missing = not {_FIELD_MISSING, _PARAMETER_MISSING}.isdisjoint(texts.values())
    return Refused(
        "missing_parameter" if missing else "invalid_parameter",
        "; ".join(f"{name}: {text}" for name, text in texts.items()),
        dict(faults),
    )


def _reread(body: bytes | bytearray | memoryview | mmap, signed: bool) -> Envelope:
    """Read a body that did not pass at once: name everything that is wrong with it, or find that
    only a key's earlier occurrence was, which does not count.

    ``signed``: auth_data must be complete; otherwise what of it is usable is kept.
    """
    loose = _loose(body)
    faults = _other_faults(loose)
    usable, auth_faults = _auth_fields(loose.auth_data)
    if signed and auth_faults:
        faults["auth_data"] = auth_faults
    if faults:
        raise _refusal(faults)
    session_id = None
    if not isinstance(loose.session_id, UnsetType):
        session_id = _SESSION_ID.decode(loose.session_id)
    return Envelope(
        payload=loose.payload,  # type: ignore[arg-type]  # _other_faults refused an absent one
        auth_data=AuthData(**(_NOBODY | usable)),
        session_id=session_id,
    )
