"""What is fuzzed: each target takes bytes, and says whether they were taken or refused.

Anything else that comes out of one is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from backend_adapter.hook_messages import FromHooks, Prepared, ToHooks
from backend_adapter.messages import Answer, FromAdapter, SessionCall, Submit, ToAdapter
from ingress import session_calls
from ingress.envelope import Refused, decode, decode_unsigned
from ingress.routes import SESSION_CALLS
from reporter.messages import Events, FromReporter, ToReporter, Totals
from supervisor import settings_sources
from supervisor.batch import Malformed, pack, unpacker
from supervisor.messages import Beat, FromSupervisor, ToSupervisor
from supervisor.settings_sources import SettingsError
from tests.properties.test_http_framing import Run, cut


@dataclass(frozen=True, slots=True)
class Target:
    """``take`` returns False where it refused the input in one of its own ways."""

    seeds: Sequence[bytes]
    words: Sequence[bytes]
    take: Callable[[bytes], bool]


_AUTH = {
    "signature": "c2ln", "cost": 1.5, "endpoint": "e", "reqnum": 1, "request_idx": 2,
    "url": "http://h:1",
}  # fmt: skip
_ENVELOPES = [
    json.dumps({"auth_data": _AUTH, "payload": {"inputs": "é", "n": [1, 2.5, None]}}).encode(),
    json.dumps({"payload": {}, "session_id": None}).encode(),
    json.dumps({"auth_data": _AUTH, "payload": {"lifetime": 5, "on_close_route": "/a"}}).encode(),
    json.dumps({"session_id": "x", "session_auth": _AUTH}).encode(),
]
_JSON_WORDS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"null", b"true",
    b"NaN", b"1e999", b"-0", b"9" * 30, b"\xff", b"\xc3", b'"auth_data":', b'"payload":',
    b'"session_id":', b'"session_auth":', b'"cost":', b'"lifetime":', b'"on_close_payload":',
    b"[" * 2000, b'{"a":' * 2000,
]  # fmt: skip


def _envelope(data: bytes) -> bool:
    taken = False
    for work in (decode, decode_unsigned):
        try:
            envelope = work(data)
            assert bytes(envelope.payload)[:1] == b"{"
            taken = True
        except Refused:
            pass
    return taken


def _sessions(data: bytes) -> bool:
    taken = False
    for call in SESSION_CALLS.values():
        try:
            made = session_calls.read(call, 1, data, decode_unsigned, lambda envelope: None)
            msgspec.msgpack.encode(made)
            if call == "create":
                json.loads(made.body[: made.auth_bytes])
            taken = True
        except Refused:
            pass
    return taken


_FRAMES = [
    pack((1, 2, 3), [Submit(1, "/a", "l", 0, 1.0, 3.0, 9.0, 100, body=b"{}")]),
    pack((1, 2, 3), [SessionCall(1, "end", "x", b"y")]),
    pack((1, 2, 3), [Answer(1, 200, b"a: b\r\n", 1.0, b"x"), Answer(2, 500, b"", 1.0)]),
    pack((1, 2, 3), [Events("p", 1, 1, [], [], Totals())]),
    pack((1, 2, 3), [Prepared(1, 2.0, b"{}")]),
    pack((1, 2, 3), [Beat(1, True)]),
    pack((1, 2, 3)),
]
_UNPACK = [
    unpacker(union)
    for union in (ToAdapter, FromAdapter, ToReporter, FromReporter, ToHooks, FromHooks,
                  ToSupervisor, FromSupervisor)
]  # fmt: skip
_PACKED_WORDS = [
    b"\x94", b"\x90", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xcb", b"\xd9\xff",
    b"\xc0", b"\xc3", b"\xcf" + b"\xff" * 8, b"\xa1a", b"\x81", b"\x91" * 2000,
]  # fmt: skip


def _wire(data: bytes) -> bool:
    taken = False
    for unpack in _UNPACK:
        try:
            unpack(data)
            taken = True
        except Malformed:
            pass
    return taken


_REQUESTS = [
    b"POST /later HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"
    b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n",
    b"POST /stream?q HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
]
_HTTP_WORDS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"0\r\n\r\n", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Host: x\r\n",
    b"Connection: close\r\n", b"HTTP/1.1", b"HTTP/2", b"ffffffffffffffff\r\n", b";ext=1",
    b"GET ", b"POST /stream HTTP/1.1\r\nhost: h\r\n\r\n", b"\r\n\r\n", b"\xff", b"a" * 300,
]  # fmt: skip


def _http(data: bytes) -> bool:
    """The same requests come out and are answered, however the input is cut; what is wrong with the
    one that is refused may be found in another order.
    """
    whole = Run([data], eof=True)
    pieces = Run(cut(data, [len(data) // 3, len(data) // 2, 7]), eof=True)
    assert whole.seen == pieces.seen
    assert whole.sent.count(b"HTTP/1.1 200") == pieces.sent.count(b"HTTP/1.1 200")
    return bool(whole.seen)


_TOML = [
    b'[model]\nurl = "http://127.0.0.1:1"\n[[route]]\npath = "/a"\nconcurrency = 1\n',
    b'[worker]\nport = 3000\n[limits]\nbody_bytes = 5\n[[route]]\npath = "/b"\n'
    b'workload = { field = "a.b", default = 2 }\n[model]\ncommand = ["x"]\nurl = "http://h:1"\n',
    b'[benchmark]\nroute = "/a"\npayload = { a = [1, "x"] }\n[[route]]\npath = "/a"\n',
]
_TOML_WORDS = [
    b"[", b"]", b"[[route]]", b"=", b'"', b"'''", b"\n", b"inf", b"nan", b"-1", b"1e400",
    b"9" * 25, b"true", b"{", b"}", b".", b"#", b"\x00", b"\xff", b"1979-05-27T07:32:00Z",
    b'path = "/a"\n', b"[hooks]\n", b'file = "x.py"\n', b"a.b.c = 1\n", b"\\u0000", b"[" * 500,
]  # fmt: skip


def _settings() -> Callable[[bytes], bool]:
    directory = tempfile.TemporaryDirectory(prefix="fuzz-")  # goes with the function below
    path = Path(directory.name) / "worker.toml"

    def take(data: bytes) -> bool:
        path.write_bytes(data)
        environ: dict[str, str] = {"HOME": directory.name}
        try:
            settings: Any = settings_sources.load(path, environ)
            msgspec.msgpack.encode(settings)
        except SettingsError:
            return False
        return True

    return take


def targets() -> dict[str, Target]:
    """Every target by its name."""
    return {
        "envelope": Target(_ENVELOPES, _JSON_WORDS, _envelope),
        "sessions": Target(_ENVELOPES, _JSON_WORDS, _sessions),
        "wire": Target(_FRAMES, _PACKED_WORDS, _wire),
        "http": Target(_REQUESTS, _HTTP_WORDS, _http),
        "settings": Target(_TOML, _TOML_WORDS, _settings()),
    }
