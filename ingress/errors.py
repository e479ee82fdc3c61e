"""Every way in which the worker says no: the closed list of error kinds, and a problem's JSON.

A kind is a stable word that programs may compare; its status and its sentence belong to it and
nowhere else. A problem is one occurrence: a kind, what happened in this request, what to do next.

This module is a leaf: it knows no socket, no request, no clock.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

#: Longest Retry-After that a client is told, seconds.
MAX_RETRY_AFTER_S = 3600


class ErrorKind(enum.StrEnum):
    """Closed list of error kinds; ``status`` is the HTTP status, ``doc`` its one sentence."""

    status: int
    doc: str

    def __new__(cls, value: str, status: int, doc: str) -> ErrorKind:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.status = status
        kind.doc = doc
        return kind

    INVALID_REQUEST = "invalid_request", 400, "The bytes received are not a valid HTTP request."
    UNKNOWN_SESSION = "unknown_session", 400, "The call names a session that is not open here."
    SIGNATURE_MISSING = "signature_missing", 401, "auth_data carries no signature."
    BAD_SIGNATURE = "bad_signature", 401, "The signature in auth_data was not made by the engine."
    FOREIGN_URL = "foreign_url", 401, "The signature was made for another worker's URL."
    REPLAYED = "replayed", 401, "This auth_data was used before, or is too old."
    CLIENT_SIGNATURE_MALFORMED = (
        "client_signature_malformed",
        400,
        "The client's own signature is not written in the form that this worker takes.",
    )
    CLIENT_SIGNATURE_MISSING = (
        "client_signature_missing",
        401,
        "This worker takes requests only that its clients sign themselves.",
    )
    UNKNOWN_CLIENT_KEY = "unknown_client_key", 401, "The client's key is none that is known here."
    CLIENT_SIGNATURE_EXPIRED = (
        "client_signature_expired",
        401,
        "The client's own signature counts no longer, or not yet.",
    )
    BAD_CLIENT_SIGNATURE = (
        "bad_client_signature",
        401,
        "The client's own signature was not made by its key for this request.",
    )
    BODY_CHANGED = "body_changed", 401, "The body is not the one that the client signed."
    NONCE_USED = "nonce_used", 401, "The request that the client signed has come before."
    BAD_TOKEN = "bad_token", 401, "The bearer token or session secret is not the right one."
    UNKNOWN_ROUTE = "unknown_route", 404, "No route is configured for this path."
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "The path exists, but not for this method."
    TIMEOUT_READING = "timeout_reading", 408, "The request did not arrive in time."
    INVALID_SESSION = "invalid_session", 410, "The request belongs to a session that is not open."
    LENGTH_REQUIRED = "length_required", 411, "The request needs a Content-Length or chunks."
    BODY_TOO_LARGE = "body_too_large", 413, "The request body is over the limit."
    URI_TOO_LONG = "uri_too_long", 414, "The request line is over the limit."
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported_media_type",
        415,
        "The body is declared as something that JSON is not.",
    )
    EXPECTATION_FAILED = "expectation_failed", 417, "Only Expect: 100-continue is understood."
    INVALID_JSON = "invalid_json", 422, "The body is not valid JSON."
    MISSING_PARAMETER = "missing_parameter", 422, "A required field is missing."
    INVALID_PARAMETER = "invalid_parameter", 422, "A field has a wrong type or value."
    QUEUE_FULL = "queue_full", 429, "Too many requests are waiting already."
    QUEUE_TIME = "queue_time", 429, "The request would wait, or waited, longer than its route lets."
    TOO_MANY_SESSIONS = "too_many_sessions", 429, "No further session can be opened now."
    TOO_MANY_HEADERS = "too_many_headers", 431, "The request's headers are over the limit."
    CLIENT_GONE = "client_gone", 499, "The client left before its answer ended; counted, not sent."
    INTERNAL = "internal", 500, "A fault of the worker itself."
    HOOK_FAILED = "hook_failed", 500, "The function of worker.py that handles this request failed."
    MODEL_FAILED = "model_failed", 502, "The model server broke off or answered nonsense."
    NOT_READY = "not_ready", 503, "The model server is not ready, yet or again."
    MODEL_DOWN = "model_down", 503, "The model server is not running."
    DRAINING = "draining", 503, "The worker is stopping and takes no new requests."
    OVERLOADED = "overloaded", 503, "The worker holds as many connections, or requests, as it may."
    MEMORY = "memory", 503, "No room for the request's body: memory, or the disk."
    ADAPTER_DOWN = "adapter_down", 503, "The worker's queue process is being restarted."
    HOOKS_DOWN = "hooks_down", 503, "The process that runs worker.py is not running."
    NO_PUBLIC_KEY = (
        "no_public_key",
        503,
        "The engine's key is not known yet, nothing can be checked.",
    )
    NONCE_UNKNOWN = (
        "nonce_unknown",
        503,
        "Whether a request that a client signed has come before cannot be told now.",
    )
    MODEL_TIMEOUT = "model_timeout", 504, "The model server did not answer in time."
    EXPIRED = "expired", 504, "The request's own time ran out before it was answered."
    HOOK_TIMEOUT = "hook_timeout", 504, "The function of worker.py did not return in time."
    HTTP_VERSION = "http_version", 505, "Only HTTP/1.1 and HTTP/1.0 are spoken here."


#: The kinds by their word, as other processes send it.
KINDS = {kind.value: kind for kind in ErrorKind}


class Problem(Exception):
    """One refused or failed request. May be raised, returned or passed on.

    :param kind: which of the closed list.
    :param message: what happened and what to do, for people; empty: the kind's own sentence.
    :param retry_after_s: seconds after which trying again makes sense; None: not said.
    :param request_idx: the engine's index of the request, where known.
    :param extra: keys that stand beside ``error`` in the body (what the peer's clients read);
        ``error`` itself cannot be replaced.
    :param headers: further header lines, each ending in CRLF (``allow`` of a 405).
    """

    __slots__ = ("extra", "headers", "kind", "message", "request_idx", "retry_after_s")

    def __init__(
        self,
        kind: ErrorKind,
        message: str = "",
        retry_after_s: float | None = None,
        *,
        request_idx: int | None = None,
        extra: dict[str, Any] | None = None,
        headers: bytes = b"",
    ) -> None:
        super().__init__(kind, message)
        if retry_after_s is not None:
            # nan and inf are no JSON numbers, and no time to come back at.
            known = math.isfinite(retry_after_s)
            retry_after_s = min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S) if known else None
        self.kind = kind
        self.message = message or kind.doc
        self.retry_after_s = retry_after_s
        self.request_idx = request_idx
        self.extra = extra
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    @property
    def status(self) -> int:
        """The HTTP status of its kind."""
        return self.kind.status

    def body(self) -> bytes:
        """The JSON that the client gets; absent fields are left out."""
        error: dict[str, Any] = {"kind": self.kind.value, "message": self.message}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        if self.request_idx is not None:
            error["request_idx"] = self.request_idx
        return msgspec.json.encode({**(self.extra or {}), "error": error})

    def header_lines(self) -> bytes:
        """Content type, Retry-After where it is known, and the problem's own header lines."""
        lines = b"content-type: application/json\r\n" + self.headers
        if self.retry_after_s is not None:
            lines += b"retry-after: %d\r\n" % max(1, math.ceil(self.retry_after_s))
        return lines


def sse_error(problem: Problem) -> bytes:
    """The last event of a text/event-stream that cannot go on; the connection is cut after it."""
    return b"data: " + problem.body() + b"\n\n"
