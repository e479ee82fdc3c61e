"""What is no request, or none that this worker takes: refused by name, and unseen by the model."""

from __future__ import annotations

import base64
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

from ingress.errors import ErrorKind
from tests.chaos.table import row
from tests.kit.bad_requests import Requests
from tests.kit.raw_client import Answer, Client
from tests.kit.recording_model import RecordingModel
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, running

#: What ingress may grow by over a whole table: the largest refused bodies are a megabyte.
MOST_GROWTH = 32 * 2**20
LIMITS = ("limits.body_bytes=2097152",)


class Bench:
    """A worker in front of a model server that keeps every byte."""

    def __init__(self, worker: Worker, model: RecordingModel) -> None:
        self.worker = worker
        self.model = model
        self.auth = worker.auth()
        self.pid = worker.pid("ingress-0")
        self.honest = Client(worker)  # one connection that stands all the while
        self._count = 0
        model.requests.clear()  # what its start may have asked it

    def envelope(self, mark: str, **changes: Any) -> bytes:
        """A body that the worker takes; ``changes`` replace fields of auth_data."""
        return json.dumps({"auth_data": self.auth | changes, "payload": {"mark": mark}}).encode()

    def requests(self, mark: str) -> Requests:
        """Around a good body."""
        return Requests(b"/generate", self.envelope(mark))

    def reached(self, *marks: str) -> None:
        """These requests, in this order, and no byte beside them, are what the model has seen since
        it was last asked."""
        seen, self.model.requests = self.model.requests, []
        rest, self.model.rest = self.model.rest, b""
        assert [json.loads(body).get("mark") for _, body in seen] == list(marks), seen
        assert not rest, rest

    def serves(self) -> None:
        """The worker takes a good request, on the old connection and on a new one, and the model
        sees nothing but those: what was refused before would have come to it before them."""
        for client in (self.honest, Client(self.worker)):
            self._count += 1
            mark = f"good {self._count}"
            client.send(self.requests(mark).sized())
            assert client.answer().body == {"ok": 1}
            self.reached(mark)
            if client is not self.honest:
                client.socket.close()

    def rss(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def refused(self, data: bytes) -> Answer:
        """Send it, with a good request right behind it, which alone reaches the model; nothing does
        if the first costs the connection."""
        self.reached()
        with Client(self.worker) as client:
            client.send(data + self.requests("behind").sized())
            answer = client.answer()
            error = answer.body.get("error")
            assert error and error["message"], f"it was served: {answer.body}"
            assert ErrorKind(error["kind"]).status == answer.status
            if answer.closed:
                self.reached()
            else:
                assert client.answer().body == {"ok": 1}
                self.reached("behind")
        return answer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory: Path = tmp_path_factory.mktemp("bad-input")
    with RecordingModel() as model:
        toml = f'[model]\nurl = "{model.url}"\nhealth = "/health"\n'
        with running(directory, toml=toml, settings=LIMITS) as worker:
            bench = Bench(worker, model)
            yield bench
            bench.honest.socket.close()


def check(bench: Bench, table: dict[str, tuple[bytes, ErrorKind, bool]]) -> None:
    """Every line of the table: what is sent, the kind of error, whether the connection ends."""
    bench.serves()
    before = bench.rss()
    wrong = []
    for name, (data, kind, closes) in table.items():
        try:
            answer = bench.refused(data)
            told = (answer.body["error"]["kind"], answer.closed)
            if told != (kind.value, closes):
                wrong.append(f"{name}: {told} instead of {(kind.value, closes)}")
            bench.serves()
        except (AssertionError, OSError) as error:
            wrong.append(f"{name}: {type(error).__name__} {error}")
    assert not wrong, "\n".join(wrong)
    assert bench.worker.pid("ingress-0") == bench.pid, "it was restarted"
    assert bench.rss() - before < MOST_GROWTH


def bodies(bench: Bench) -> dict[str, tuple[bytes, ErrorKind]]:
    """Bodies that are no envelope, or none that the engine signed."""
    good = bench.envelope("bad")
    auth = json.dumps(bench.auth).encode()
    json_, wrong, missing = (
        ErrorKind.INVALID_JSON, ErrorKind.INVALID_PARAMETER, ErrorKind.MISSING_PARAMETER,
    )  # fmt: skip
    forged, foreign = ErrorKind.BAD_SIGNATURE, ErrorKind.FOREIGN_URL
    signature = bench.auth["signature"]
    other_key = generate_private_key(65537, 2048)
    text = json.dumps({"url": bench.auth["url"]}, indent=4).encode()
    by_another = base64.b64encode(other_key.sign(text, PKCS1v15(), SHA256())).decode()

    def with_payload(payload: bytes) -> bytes:
        return b'{"auth_data": ' + auth + b', "payload": ' + payload + b"}"

    return {
        "nothing": (b"", json_),
        "no JSON": (b"hello", json_),
        "half of it": (good[:-1], json_),
        "two": (good + good, json_),
        "a form": (b"a=b&c=d", json_),
        "a byte order mark": (b"\xef\xbb\xbf" + good, json_),
        "no UTF-8": (with_payload(b'{"mark": "\xff"}'), json_),
        "UTF-16": (good.decode().encode("utf-16"), json_),
        "NUL": (with_payload(b'{"mark": "\0"}'), json_),
        "NaN": (with_payload(b'{"mark": NaN}'), json_),
        "Infinity": (with_payload(b'{"mark": Infinity}'), json_),
        "-Infinity": (with_payload(b'{"mark": -Infinity}'), json_),
        "single quotes": (with_payload(b"{'mark': 1}"), json_),
        "a comma too many": (with_payload(b'{"mark": 1,}'), json_),
        "a comment": (with_payload(b'{"mark": 1 /* a */}'), json_),
        "lists 10,000 deep": (with_payload(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), json_),
        "objects 10,000 deep": (with_payload(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), json_),
        "lists without an end": (b'{"payload":' + b"[" * 1_000_000, json_),
        "a list": (b"[1]", wrong),
        "a number": (b"1", wrong),
        "null": (b"null", wrong),
        "a payload of text": (with_payload(b'"x"'), wrong),
        "a payload of null": (with_payload(b"null"), wrong),
        "auth_data twice, the last bad": (good[:-1] + b', "auth_data": 5}', wrong),
        "payload twice, the last bad": (good[:-1] + b', "payload": 5}', wrong),
        "no payload": (b'{"auth_data": ' + auth + b"}", missing),
        "no auth_data": (b'{"payload": {}}', missing),
        "a number that is text": (bench.envelope("bad", reqnum="1"), wrong),
        "a cost that is a list": (bench.envelope("bad", cost=[1]), wrong),
        "a cost beyond everything": (good.replace(b'"cost": 10.0', b'"cost": 1e999'), wrong),
        "a url that is a list": (bench.envelope("bad", url=["x"]), wrong),
        "no signature": (bench.envelope("bad", signature=""), ErrorKind.SIGNATURE_MISSING),
        "signed by another key": (bench.envelope("bad", signature=by_another), forged),
        "signed for another URL": (bench.envelope("bad", url="http://192.0.2.9:1"), foreign),
        "a signature that is no base64": (bench.envelope("bad", signature="%%%"), forged),
        "a signature of 1 MB": (bench.envelope("bad", signature="A" * 2**20), wrong),
        "half a signature": (bench.envelope("bad", signature=signature[:100]), forged),
        "a signature of high letters": (bench.envelope("bad", signature="\u00e9\u4e2d"), forged),
    }  # fmt: skip


@row(
    28,
    "a malformed, oversized or unsigned request",
    seen="a typed error: 400 (no HTTP), 401 (signature), 404 or 405 (route), 408, 411, 413, 414,"
    " 415, 417, 422 (no JSON, or a wrong field, by name), 431 or 505. The connection is closed"
    " where nobody can know where the next request would begin, and stays otherwise.",
    does="refuses as soon as that can be seen, from the head alone where possible; the model server"
    " gets no byte of it; memory stays within limits.* whatever was announced.",
)
def test_row_28_bad_input(bench: Bench) -> None:
    requests = bench.requests("bad")
    table = {name: (bad.data, bad.kind, True) for name, bad in requests.heads().items()}
    for name, (body, kind) in bodies(bench).items():
        table[f"body: {name}"] = (Requests(b"/generate", body).sized(), kind, False)
    first = b"POST /generate HTTP/1.1"
    unknown, method = ErrorKind.UNKNOWN_ROUTE, ErrorKind.METHOD_NOT_ALLOWED
    headers, media = ErrorKind.TOO_MANY_HEADERS, ErrorKind.UNSUPPORTED_MEDIA_TYPE
    large = ErrorKind.BODY_TOO_LARGE
    many = [b"X-%d: y" % number for number in range(1000)]
    table |= {
        "a header of 100 KB": (requests.sized(b"X: " + b"a" * 100_000), headers, True),
        "1,000 headers": (requests.sized(*many), headers, True),
        "a target of 100 KB": (
            requests.sized(first=b"POST /generate?" + b"a" * 100_000 + b" HTTP/1.1"),
            ErrorKind.URI_TOO_LONG,
            True,
        ),
        "a body of 1 GB": (requests.plain(b"Content-Length: 1073741824"), large, True),
        "a chunk of 1 GB": (requests.chunked(tail=b"40000000\r\n" + requests.body), large, True),
        "1 GB, if the worker agrees": (
            requests.plain(b"Expect: 100-continue", b"Content-Length: 1073741824", tail=b""),
            large,
            True,
        ),
        "no length": (requests.plain(), ErrorKind.LENGTH_REQUIRED, True),
        "no length in HTTP/1.0": (
            requests.raw(b"POST /generate HTTP/1.0", tail=requests.body),
            ErrorKind.LENGTH_REQUIRED,
            True,
        ),
        "unknown route": (requests.sized(first=b"POST /nowhere HTTP/1.1"), unknown, True),
        "unknown route, no body": (requests.raw(b"GET /no HTTP/1.1", b"Host: a"), unknown, False),
        "route that climbs": (requests.sized(first=b"POST /a/../generate HTTP/1.1"), unknown, True),
        "route in other letters": (requests.sized(first=b"POST /GENERATE HTTP/1.1"), unknown, True),
        "route with %2f": (requests.sized(first=b"POST /%2fgenerate HTTP/1.1"), unknown, True),
        "asterisk": (requests.raw(b"OPTIONS * HTTP/1.1", b"Host: a"), unknown, False),
        "CONNECT": (requests.raw(b"CONNECT a:80 HTTP/1.1", b"Host: a:80"), unknown, True),
        "CONNECT with a body": (requests.sized(first=b"CONNECT a:80 HTTP/1.1"), unknown, True),
        "absolute target of no route": (
            requests.sized(first=b"POST http://a/x/generate HTTP/1.1"), unknown, True,
        ),
        "absolute target without a path": (
            requests.sized(first=b"POST http://a HTTP/1.1"), unknown, True,
        ),
        "GET": (requests.raw(b"GET /generate HTTP/1.1", b"Host: a"), method, False),
        "GET with a body": (requests.sized(first=b"GET /generate HTTP/1.1"), method, True),
        "PUT": (requests.sized(first=b"PUT /generate HTTP/1.1"), method, True),
        "TRACE": (requests.raw(b"TRACE /generate HTTP/1.1", b"Host: a"), method, False),
        "compressed": (requests.sized(b"Content-Encoding: gzip"), media, True),
        "a form with files": (requests.sized(b"Content-Type: multipart/form-data"), media, True),
        "an early refusal that could agree": (
            requests.sized(b"Expect: 100-continue", first=b"POST /nowhere HTTP/1.1"), unknown, True,
        ),
        "headers without an end": (first + b"\r\nHost: a" + b"\r\nX: y" * 20_000, headers, True),
    }  # fmt: skip
    check(bench, table)


@row(
    29,
    "request smuggling: two lengths, odd codings, odd chunks",
    seen="400 invalid_request (413 where a chunk is larger than a body may be), then the connection"
    " is closed",
    does="reads every byte in one way or refuses; nothing that follows a refused request on its"
    " connection is looked at, and the model server gets no byte of either.",
)
def test_row_29_smuggling(bench: Bench) -> None:
    requests = bench.requests("bad")
    bad = requests.lengths() | requests.bad_chunks()
    check(bench, {name: (one.data, one.kind, True) for name, one in bad.items()})


@row(
    28,
    "a key is there twice, in the body's envelope or in its payload",
    seen="200 where the last `payload`, `auth_data` and `session_id` are good; else what the last"
    " one gets",
    does="forwards the bytes of the payload that it has checked, as they came, whether the body lay"
    " in memory or in a file.",
)
@pytest.mark.parametrize("size", [100, 2**19], ids=["in memory", "in a file"])
def test_row_28_the_last_of_a_key_counts(bench: Bench, size: int) -> None:
    def payload(mark: str, filling: int) -> bytes:
        pad = json.dumps("\u00e9" * (filling // 6))
        return f'{{"mark": 1,\t"mark":"{mark}", "n":2, "pad": {pad} , "n": 3}}'.encode()

    auth, forged = (
        json.dumps(bench.auth | changes).encode() for changes in ({}, {"signature": "AAAA"})
    )
    first, last = payload("first", 0), payload("last", size)
    for one, other in ((first, last), (payload("first", size), payload("last", 0))):
        for body in (
            b'{"payload": %b, "auth_data": %b, "payload": %b}' % (one, auth, other),
            b'{"payload": 5, "auth_data": %b, "payload": %b, "more": %b}' % (auth, other, one),
            b'{"pay\\u006coad": %b, "auth_data": %b, "payload": %b}' % (one, auth, other),
            b'{"payload": %b, "auth_data": %b, "pay\\u006coad": %b}' % (one, auth, other),
            b'{"auth_data": %b, "payload": %b, "auth_data": %b, "payload": %b}'
            % (forged, one, auth, other),
            b'{"session_id": "x", "auth_data": %b, "payload": %b, "session_id": null, "more": %b}'
            % (auth, other, one),
        ):
            bench.reached()
            data = Requests(b"/generate", body).sized()
            with Client(bench.worker) as client:
                client.send(data[:-1])
                if size > 2**18:  # limits.large_bytes
                    wait_until(lambda: spooled(bench.worker), what="the body's file")
                client.send(data[-1:])
                assert client.answer().body == {"ok": 1}, body[:300]
            wait_until(lambda: not spooled(bench.worker), what="the body's file to go")
            assert [told for _, told in bench.model.requests] == [other], body[:300]
            bench.reached("last")
    for body, kind in (
        (b'{"auth_data": %b, "payload": %b, "auth_data": %b}' % (auth, last, forged),
         ErrorKind.BAD_SIGNATURE),
        (b'{"auth_data": %b, "payload": %b, "payload": 5}' % (auth, last),
         ErrorKind.INVALID_PARAMETER),
    ):  # fmt: skip
        assert bench.refused(Requests(b"/generate", body).sized()).body["error"]["kind"] == kind


@row(
    29,
    "a Content-Length that is wrong by some bytes",
    seen="422 invalid_json where it cuts the body, or takes in what follows; then 400"
    " invalid_request for the bytes that begin no request, and the connection is closed. Too long,"
    " and the client sends no more: the connection is closed without a word",
    does="takes the number at its word, and never serves a body that came short of it; the model"
    " server gets no byte of the request or of what follows it.",
)
def test_row_29_wrong_content_length(bench: Bench) -> None:
    requests, behind = bench.requests("bad"), bench.requests("behind").sized()
    size = len(requests.body)
    bench.serves()
    for off in (-size // 2, -1, 1, len(behind) // 2):
        with Client(bench.worker) as client:
            client.send(requests.plain(b"Content-Length: %d" % (size + off)) + behind)
            cut, rest = client.answer(), client.answer()
        told = [(answer.body["error"]["kind"], answer.closed) for answer in (cut, rest)]
        assert told == [("invalid_json", False), ("invalid_request", True)], off
        bench.reached()
        bench.serves()
    for off in (1, len(behind)):
        with Client(bench.worker) as client:
            client.send(requests.plain(b"Content-Length: %d" % (size + off)))
            client.socket.shutdown(socket.SHUT_WR)
            assert client.socket.recv(1) == b"", off
        bench.reached()
        bench.serves()


@row(
    29,
    "what merely looks odd and has one reading",
    seen="200: it is served, once",
    does="takes it as the RFCs read it, and keeps the connection.",
)
def test_row_29_what_has_one_reading_is_served_once(bench: Bench) -> None:
    for name, data in bench.requests("odd").taken().items():
        with Client(bench.worker) as client:
            client.send(data + bench.requests("behind").sized())
            for _ in range(2):
                assert client.answer().body == {"ok": 1}, name
        for head, _ in bench.model.requests:
            assert head.lower().count(b"\r\ncontent-length:") == 1, name
            assert b"transfer" not in head.lower(), name
        bench.reached("odd", "behind")


def spooled(worker: Worker) -> list[Path]:
    """Bodies that lie in files."""
    return [path for path in (worker.state_dir / "spool").rglob("*") if path.is_file()]


PIECE = 65_536
#: What the two kernels' buffers of a connection on loopback may take, and the body that is allowed.
MOST_SENT = 24 * 2**20


def push(client: socket.socket, head: bytes, piece: bytes) -> tuple[int, bytes]:
    """Send the head, then pieces for as long as the worker takes any.

    :return: bytes of the body that the socket accepted, and what came back.
    """
    client.sendall(head)
    client.setblocking(False)
    sent, told, reads = 0, b"", [client]
    while True:
        readable, writable, _ = select.select(reads, [client], [], DEADLINE_S)
        assert readable or writable, "the worker neither reads nor closes"
        try:
            if writable:
                sent += client.send(piece)
            if readable:
                read = client.recv(PIECE)
                told += read
                reads = reads if read else []
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            break
        assert sent < 2**30, "the worker reads on and on"
    return sent, told


@row(
    28,
    "a body of 4 GB, announced or in chunks without an end",
    seen="413 body_too_large, at once for what is announced; with Expect: 100-continue nothing but"
    " that. The connection is closed.",
    does="holds no more than limits.body_bytes of it, and reads no more than as much again, to"
    " let a client that only sends find its answer; the rest is left in the client's own socket.",
)
@pytest.mark.parametrize("way", ["announced", "one chunk", "chunks without an end", "expected"])
def test_row_28_four_gigabytes(bench: Bench, way: str) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\n"
    if way in ("announced", "expected"):
        head += b"Content-Length: 4294967296\r\n"
        piece = b"x" * PIECE
    else:
        head += b"Transfer-Encoding: chunked\r\n"
        piece = b"x" * PIECE if way == "one chunk" else b"%x\r\n%b\r\n" % (PIECE, b"x" * PIECE)
    if way == "expected":
        head += b"Expect: 100-continue\r\n"
    head += b"\r\n" + (b"100000000\r\n" if way == "one chunk" else b"")
    bench.serves()
    before = bench.rss()
    with Client(bench.worker) as client:
        if way == "expected":
            client.send(head)
            assert client.answer().status == 413
        else:
            sent, told = push(client.socket, head, piece)
            assert sent < MOST_SENT, sent
            assert told.startswith(b"HTTP/1.1 413 ")
            assert b'"kind":"body_too_large"' in told
    assert bench.rss() - before < MOST_SENT
    bench.serves()
    assert bench.worker.pid("ingress-0") == bench.pid
