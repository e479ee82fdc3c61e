"""One call into user code: a request's bytes in, what the model server gets and the workload out.

Law: whatever the hook does, the outcome is a ``Prepared`` or a ``Refused``; it may take as long as
it likes, and runs in whatever thread calls. A payload that its hooks only looked at goes on as it
came, byte by byte.

Source of the meanings: the public package vastai 1.9.1. This module knows neither threads nor
sockets.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from backend_adapter.hook_messages import ROUTE_HEADER, Prepared, Refused
from backend_adapter.messages import FilePart
from ingress.hooks.blame import told
from ingress.hooks.handlers import Hooked, workload_of
from ingress.hooks.payload import ApiPayload, EndpointHandler, JsonDataException

JSON_TYPE = b"content-type: application/json\r\n"
#: Characters of a hook's own words that a client is told.
MAX_TEXT = 500
#: What else a client is told of it.
MAX_EXTRA_BYTES = 65_536
MAX_DEPTH = 64
_log = logging.getLogger("hooks")


class BadHook(Exception):
    """A hook returned what cannot be used; the text says what it should return."""


def read(hooked: Hooked, body: bytes) -> ApiPayload:
    """The payload object of a client's body. Raises what user code raises."""
    data = json.loads(body)
    handler = hooked.handler
    usual: Any = EndpointHandler.get_data_from_request
    reader: Any = handler.get_data_from_request
    payload: Any
    if reader.__func__ is usual.__func__:
        payload = handler.payload_cls().from_json_msg(data.get("payload"))
    else:  # a handler class with ideas of its own
        payload = reader(data)[1]
    if not hasattr(payload, "count_workload"):
        raise BadHook(f"from_json_msg returned {type(payload).__name__}, no payload object")
    result: ApiPayload = payload
    return result


def wire_form(payload: ApiPayload) -> tuple[bytes, bytes]:
    """Body and header lines for the model server. Raises what user code raises, BadHook."""
    # payload classes of 2024 may derive from nothing
    form = getattr(payload, "generate_payload_multipart", None)
    fields = form() if form is not None else None
    if fields is not None:
        return multipart(fields)
    value = payload.generate_payload_json()
    try:
        return json.dumps(value).encode(), JSON_TYPE
    except (TypeError, ValueError) as error:
        raise BadHook(f"what is to be sent to the model server is no JSON: {error}") from error


def prepare(
    hooked: Hooked, question: int, body: bytes, file: FilePart | None = None
) -> tuple[Prepared | Refused, Any]:
    """Answer a Prepare; and the payload object, where it will be needed again."""
    if file is not None:
        try:
            with open(file.path, "rb") as spooled:
                body = spooled.read()
        except OSError as error:  # mostly its client has left: no fault of the hooks
            text = f"the worker cannot read the request's body again: {error.strerror}"
            return Refused(question, "internal", text), None
    try:
        payload = read(hooked, body)
        workload = workload_of(payload, hooked.route, body)
        if hooked.hosted:
            return Prepared(question, workload, ticket=secrets.token_hex(8)), payload
        if not hooked.reads and payload.generate_payload_json() == json.loads(body)["payload"]:
            return Prepared(question, workload, untouched=True), None
        sent, headers = wire_form(payload)
    except BaseException as error:  # whatever user code raises, sys.exit among it
        return refusal(question, hooked.route, error, body), None
    return Prepared(question, workload, sent, headers), None


def sample(hooked: Hooked, question: int) -> Prepared | Refused:
    """Answer a Sample."""
    try:
        payload = hooked.handler.make_benchmark_payload()
        workload = workload_of(payload, hooked.route)
        if hooked.handler.remote_function is not None:
            whole = {"payload": payload.generate_payload_json()}
            headers = JSON_TYPE + f"{ROUTE_HEADER}: {hooked.route}\r\n".encode()
            return Prepared(question, workload, json.dumps(whole).encode(), headers, hosted=True)
        sent, headers = wire_form(payload)
    except BaseException as error:  # whatever user code raises, sys.exit among it
        return refusal(question, hooked.route, error)
    return Prepared(question, workload, sent, headers)


def refusal(
    question: int, route: str, error: BaseException, body: bytes = b"", others: Iterable[str] = ()
) -> Refused:
    """What a client is told of an exception in user code; ``body`` and ``others`` are its own."""
    if isinstance(error, JsonDataException):
        said = error.message
        extra = said if isinstance(said, dict) else {"payload": said}
        text = "; ".join(f"{name}: {_said(fault)}" for name, fault in extra.items())
        return Refused(question, "invalid_parameter", _cut(text), _json({"payload": said}))
    if isinstance(error, ValueError):
        return Refused(
            question, "invalid_parameter", _cut(_said(error) or "the payload is refused")
        )
    _log.error("worker.py failed at a request to %s\n%s", route, told(error, body, others))
    what = _said(error) if isinstance(error, BadHook) else type(error).__name__
    return Refused(question, "hook_failed", _cut(f"worker.py failed at this request: {what}"))


def extra_of(refused: Refused) -> dict[str, Any]:
    """The keys that stand beside ``error`` in the client's answer."""
    found: Any = msgspec.json.decode(refused.extra) if refused.extra else {}
    return found if isinstance(found, dict) else {}


def _said(value: object) -> str:
    try:
        return str(value)
    except Exception:  # whatever user code raises there
        return f"{type(value).__name__} that cannot be shown"


def _cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # half a character can not be sent on
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _json(value: Any) -> bytes:
    """What an exception of the file's holds, as far as it can be told: a client's own value may be
    in it, of any depth and size.
    """
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError):
        return b"{}"
    return encoded if len(encoded) <= MAX_EXTRA_BYTES and _depth(encoded) <= MAX_DEPTH else b"{}"


def _depth(encoded: bytes) -> int:
    depth = deepest = 0
    for letter in encoded:  # brackets in texts count too: it is a bound
        if letter in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in b"]}":
            depth -= 1
    return deepest


def multipart(fields: dict[str, Any]) -> tuple[bytes, bytes]:
    """Form fields as multipart/form-data, and the header line that names its boundary.

    A ``(filename, bytes, content_type)`` tuple is a file, a list repeats the field, None leaves it
    out, dict and nested list are sent as JSON, True and False as ``true`` and ``false``.

    Raises:
        BadHook: a value that none of this fits.
    """
    boundary = secrets.token_hex(16).encode()
    parts: list[bytes] = []
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            filename, content, kind = _part(name, item)
            head = f'form-data; name="{_quoted(name)}"'
            if filename is not None:
                head += f'; filename="{_quoted(filename)}"'
            lines = f"content-disposition: {head}\r\n" + (
                f"content-type: {kind}\r\n" if kind else ""
            )
            parts.append(b"--%b\r\n%b\r\n%b\r\n" % (boundary, lines.encode(), content))
    parts.append(b"--%b--\r\n" % boundary)
    return b"".join(parts), b"content-type: multipart/form-data; boundary=%b\r\n" % boundary


def _part(name: str, item: Any) -> tuple[str | None, bytes, str]:
    if isinstance(item, tuple):
        try:
            filename, content, kind = item
            data = content.encode() if isinstance(content, str) else bytes(memoryview(content))
        except (TypeError, ValueError):
            hint = "a file is a tuple (filename, bytes, content_type)"
            raise BadHook(f"multipart field {name!r}: {hint}") from None
        if "\r" in str(kind) or "\n" in str(kind):
            raise BadHook(f"multipart field {name!r}: its content type holds a line break")
        return str(filename), data, str(kind or "application/octet-stream")
    if isinstance(item, (bytes, bytearray, memoryview)):
        hint = "bytes must be a file: (filename, bytes, content_type)"
        raise BadHook(f"multipart field {name!r}: {hint}")
    if isinstance(item, (dict, list)):
        return None, json.dumps(item).encode(), ""
    if isinstance(item, bool):
        return None, b"true" if item else b"false", ""
    return None, str(item).encode(), ""


def _quoted(text: str) -> str:
    """As browsers write names in a form's header."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
