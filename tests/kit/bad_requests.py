"""Requests that no server should take, or that only one reading is right for: one table, used by
the tests of the HTTP server alone and by those of a whole worker.

Each is a POST that would be served if it were not for the one thing that is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingress.errors import ErrorKind

_BAD = ErrorKind.INVALID_REQUEST


@dataclass(frozen=True)
class Bad:
    """What is sent, and what must come back."""

    data: bytes
    kind: ErrorKind = _BAD


class Requests:
    """Builds them around one path and one body that the server would take."""

    def __init__(self, path: bytes, body: bytes) -> None:
        self.path = path
        self.body = body
        self.size = b"%d" % len(body)
        self.chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    def raw(self, first: bytes, *lines: bytes, tail: bytes = b"") -> bytes:
        """A request of these lines."""
        return b"".join(line + b"\r\n" for line in (first, *lines)) + b"\r\n" + tail

    def sized(self, *lines: bytes, first: bytes = b"") -> bytes:
        """With Host and a right Content-Length."""
        first = first or b"POST %b HTTP/1.1" % self.path
        return self.raw(first, b"Host: a", *lines, b"Content-Length: " + self.size, tail=self.body)

    def plain(self, *lines: bytes, tail: bytes | None = None) -> bytes:
        """With Host, and what is given."""
        first = b"POST %b HTTP/1.1" % self.path
        return self.raw(first, b"Host: a", *lines, tail=self.body if tail is None else tail)

    def chunked(self, *lines: bytes, tail: bytes | None = None) -> bytes:
        """With Host and chunks; ``tail`` stands for the body as it is sent."""
        tail = self.chunks if tail is None else tail
        return self.plain(b"Transfer-Encoding: chunked", *lines, tail=tail)

    # ------------------------------------------------------------------ what is refused

    def heads(self) -> dict[str, Bad]:
        """Heads that are malformed."""
        good = self.sized()
        line = b"POST %b HTTP/1.1" % self.path
        version = ErrorKind.HTTP_VERSION

        def changed(old: bytes, new: bytes) -> bytes:
            assert old in good
            return good.replace(old, new, 1)

        table = {
            "bare LF throughout": good.replace(b"\r\n", b"\n"),
            "bare LF after the request line": changed(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
            "bare LF after a header": changed(b"Host: a\r\n", b"Host: a\n"),
            "bare LF at the end": good.replace(b"\r\n\r\n", b"\r\n\n", 1),
            "bare CR after the request line": changed(b"HTTP/1.1\r\n", b"HTTP/1.1\r"),
            "bare CR after a header": changed(b"Host: a\r\n", b"Host: a\r"),
            "folded line": self.sized(b"X: b", b" c"),
            "line folded with a tab": self.sized(b"X: b", b"\tc"),
            "folded first line": self.raw(
                line, b" X: b", b"Host: a", b"Content-Length: " + self.size, tail=self.body
            ),
            "NUL in a value": self.sized(b"X: a\0b"),
            "NUL in a name": self.sized(b"X\0Y: a"),
            "control in a value": self.sized(b"X: a\x01b"),
            "escape in a value": self.sized(b"X: a\x1b[2Jb"),
            "DEL in a value": self.sized(b"X: a\x7fb"),
            "CR in a value": self.sized(b"X: a\rb"),
            "space before the colon": self.sized(b"X : a"),
            "tab before the colon": self.sized(b"X\t: a"),
            "no colon": self.sized(b"Xy"),
            "no name": self.sized(b": x"),
            "nothing but a colon": self.sized(b":"),
            "bracket in a name": self.sized(b"X(y: x"),
            "high byte in a name": self.sized(b"X\xff: x"),
            "quoted name": self.sized(b'"Host": x'),
            "no Host": self.raw(line, b"Content-Length: " + self.size, tail=self.body),
            "two Hosts": self.sized(b"Host: a"),
            "two different Hosts": self.sized(b"Host: b"),
            "Host of two": changed(b"Host: a", b"Host: a, b"),
            "Host with a path": changed(b"Host: a", b"Host: a/b"),
            "Host with a user": changed(b"Host: a", b"Host: u@a"),
            "Host with a space": changed(b"Host: a", b"Host: a b"),
            "Host with a query": changed(b"Host: a", b"Host: a?b"),
            "Host of high bytes": changed(b"Host: a", b"Host: \xc3\xa9"),
            "lower-case method": changed(b"POST", b"post"),
            "unknown method": changed(b"POST", b"FOO"),
            "method of other bytes": changed(b"POST", b"P@ST"),
            "method of another protocol": changed(b"POST", b"DESCRIBE"),
            "empty method": changed(b"POST ", b" "),
            "space before the method": b" " + good,
            "tab after the method": changed(b"POST ", b"POST\t"),
            "relative target": changed(b"POST /", b"POST "),
            "space in the target": changed(b" HTTP", b" b HTTP"),
            "tab in the target": changed(b" HTTP", b"\tb HTTP"),
            "NUL in the target": changed(b" HTTP", b"\0 HTTP"),
            "high byte in the target": changed(b" HTTP", b"\xff HTTP"),
            "fragment": changed(b" HTTP", b"#b HTTP"),
            "another protocol's version": changed(b"HTTP/1.1", b"HTTX/1.1"),
            "lower-case version": changed(b"HTTP/1.1", b"http/1.1"),
            "space after the version": changed(b"HTTP/1.1", b"HTTP/1.1 "),
            "TLS": bytes.fromhex("16030102000100 01fc0303") + bytes(64),
            "other expectation": self.sized(b"Expect: a-miracle"),
            "expectations of two": self.sized(b"Expect: 100-continue, a-miracle"),
            "two expectations": self.sized(b"Expect: a-miracle", b"Expect: 100-continue"),
            "no version": changed(b" HTTP/1.1", b""),
            "HTTP/0.9 without lines": b"GET %b\r\n" % self.path,
            "HTTP/0.9": changed(b"HTTP/1.1", b"HTTP/0.9"),
            "HTTP/1.2": changed(b"HTTP/1.1", b"HTTP/1.2"),
            "HTTP/11": changed(b"HTTP/1.1", b"HTTP/11"),
            "HTTP/2.0": changed(b"HTTP/1.1", b"HTTP/2.0"),
            "HTTP/2.0 that would stay": self.sized(
                b"Connection: keep-alive", first=b"POST %b HTTP/2.0" % self.path
            ),
            "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        }
        others = {
            # read as a first line of 0.9, and then what follows is no header
            "HTTP/0.9 without lines": _BAD,
            "other expectation": ErrorKind.EXPECTATION_FAILED,
            "expectations of two": ErrorKind.EXPECTATION_FAILED,
            "two expectations": ErrorKind.EXPECTATION_FAILED,
        }
        versions = ("no version", "HTTP/0.9", "HTTP/1.2", "HTTP/2")
        return {
            name: Bad(data, others.get(name, version if name.startswith(versions) else _BAD))
            for name, data in table.items()
        }

    def lengths(self) -> dict[str, Bad]:
        """What leaves room for two opinions on where the request ends: smuggling by the head."""
        size, chunked = self.size, b"Transfer-Encoding: chunked"

        def coding(value: bytes) -> bytes:
            return self.plain(b"Transfer-Encoding: " + value, tail=self.chunks)

        def both(value: bytes) -> bytes:
            lines = (b"Content-Length: 4", b"Transfer-Encoding: " + value)
            return self.plain(*lines, tail=self.chunks)

        def length(value: bytes) -> bytes:
            return self.plain(b"Content-Length:" + value)

        table = {
            "CL.TE": self.plain(b"Content-Length: 6", chunked, tail=b"0\r\n\r\nG"),
            "TE.CL": self.plain(chunked, b"Content-Length: 4", tail=self.chunks),
            "TE.CL with length 0": self.plain(chunked, b"Content-Length: 0", tail=self.chunks),
            "CL.TE with length 0": self.plain(b"Content-Length: 0", chunked, tail=self.chunks),
            "CL.TE in HTTP/1.0": self.raw(
                b"POST %b HTTP/1.0" % self.path, b"Content-Length: 4", chunked, tail=self.chunks
            ),
            "both, coding unknown": both(b"xchunked"),
            "both, coding empty": both(b""),
            "both, coding identity": both(b"identity"),
            "both, coding quoted": both(b'"chunked"'),
            "both, coding with a vertical tab": both(b"\x0bchunked"),
            "both, coding after a line break": self.plain(
                b"Content-Length: 4", b"Transfer-Encoding:", b" chunked", tail=self.chunks
            ),
            "coding with a space before the colon": self.plain(
                b"Content-Length: 4", b"Transfer-Encoding : chunked", tail=self.chunks
            ),
            "coding in a folded line": self.plain(
                b"Content-Length: 4", b"X: y", b" Transfer-Encoding: chunked", tail=self.chunks
            ),
            "coding behind a bare LF": self.plain(
                b"Content-Length: 4", b"X: y\nTransfer-Encoding: chunked", tail=self.chunks
            ),
            "coding behind a bare CR": self.plain(
                b"Content-Length: 4", b"X: y\rTransfer-Encoding: chunked", tail=self.chunks
            ),
            "coding behind a NUL": self.plain(
                b"Content-Length: 4", b"X: y\0Transfer-Encoding: chunked", tail=self.chunks
            ),
            "unknown coding": coding(b"foo"),
            "coding that begins like chunked": coding(b"chunkedfoo"),
            "no coding": coding(b""),
            "identity": coding(b"identity"),
            "coding before chunked": coding(b"gzip, chunked"),
            "coding after chunked": coding(b"chunked, gzip"),
            "identity after chunked": coding(b"chunked, identity"),
            "chunked with a comma": coding(b"chunked,"),
            "comma before chunked": coding(b", chunked"),
            "chunked twice in a list": coding(b"chunked, chunked"),
            "chunked with a parameter": coding(b"chunked;a=b"),
            "quoted chunked": coding(b'"chunked"'),
            "single-quoted chunked": coding(b"'chunked'"),
            "vertical tab before chunked": coding(b"\x0bchunked"),
            "vertical tab after chunked": coding(b"chunked\x0b"),
            "form feed after chunked": coding(b"chunked\x0c"),
            "no-break space before chunked": coding(b"\xa0chunked"),
            "NUL after chunked": coding(b"chunked\0"),
            "chunked with a wide K": coding("chun\u212aed".encode()),
            "chunked twice": self.plain(chunked, chunked, tail=self.chunks),
            "identity, then chunked": self.plain(
                b"Transfer-Encoding: identity", chunked, tail=self.chunks
            ),
            "chunked, then identity": self.plain(
                chunked, b"Transfer-Encoding: identity", tail=self.chunks
            ),
            "chunks in HTTP/1.0": self.raw(
                b"POST %b HTTP/1.0" % self.path, chunked, tail=self.chunks
            ),
            "TE.0: chunks to OPTIONS, and a length": self.raw(
                b"OPTIONS %b HTTP/1.1" % self.path, b"Host: a", b"Content-Length: 0", chunked,
                tail=self.chunks,
            ),
            "different lengths": self.sized(b"Content-Length: 4"),
            "repeated length": self.sized(b"Content-Length: " + size),
            "0 and a length": self.sized(b"Content-Length: 0"),
            "list of lengths": length(b" %b, %b" % (size, size)),
            "list of different lengths": length(b" %b, 0" % size),
            "length with a comma": length(b" %b," % size),
            "two numbers": length(b" 0 " + size),
            "negative length": length(b" -" + size),
            "signed length": length(b" +" + size),
            "hexadecimal length": length(b" 0x" + size),
            "length with an underscore": length(b" 1_0"),
            "length with a point": length(b" %b.0" % size),
            "length with an exponent": length(b" 1e1"),
            "quoted length": length(b' "%b"' % size),
            "length of other digits": length(" \u0661\u0662".encode()),
            "empty length": length(b""),
            "vertical tab before the length": length(b" \x0b" + size),
            "NUL after the length": length(b" %b\0" % size),
            "length before a bare CR": length(b" %b\rX: y" % size),
            "space before the length's colon": self.plain(b"Content-Length : " + size),
            "length beyond 64 bits": length(b" 99999999999999999999"),
            "length that wraps round to its size": length(b" %d" % (2**64 + len(self.body))),
            "length of many zeros": length(b" " + b"0" * 5000),
        }  # fmt: skip
        return {name: Bad(data) for name, data in table.items()}

    def bad_chunks(self) -> dict[str, Bad]:
        """Chunks that two readers could cut differently: smuggling by the body."""
        body = self.body
        size = b"%x" % len(body)
        end = b"\r\n0\r\n\r\n"

        def sized(text: bytes) -> bytes:
            return text + b"\r\n" + body + end

        def trailer(line: bytes) -> bytes:
            return size + b"\r\n" + body + b"\r\n0\r\n" + line + b"\r\n\r\n"

        table = {
            "size of letters": sized(b"xyz"),
            "size with 0x": sized(b"0x" + size),
            "size with 0X": sized(b"0X" + size),
            "size with h": sized(size + b"h"),
            "negative size": sized(b"-" + size),
            "negative zero": b"-0\r\n\r\n",
            "signed size": sized(b"+" + size),
            "size with underscore": sized(b"0_" + size),
            "size with a point": sized(size + b".0"),
            "quoted size": sized(b'"%b"' % size),
            "no size": sized(b""),
            "extension without a size": sized(b";a=b"),
            "space before the size": sized(b" " + size),
            "tab before the size": sized(b"\t" + size),
            "space after the size": sized(size + b" "),
            "tab after the size": sized(size + b"\t"),
            "space before an extension": sized(size + b" ;a"),
            "vertical tab after the size": sized(size + b"\x0b"),
            "NUL after the size": sized(size + b"\0"),
            "comma after the size": sized(size + b",0"),
            "size beyond 64 bits": sized(b"1" + b"0" * 15 + b"%02x" % len(body)),
            "size that wraps round": sized(b"1%016x" % len(body)),
            "size of many zeros": sized(b"0" * 5000 + size),
            "longer than its size": b"1\r\n" + body + end,
            "shorter than its size": b"%x\r\n" % (len(body) + 1) + body + end,
            "data without an end": size + b"\r\n" + body + b"0\r\n\r\n",
            "other bytes for the data's end": size + b"\r\n" + body + b"XX0\r\n\r\n",
            "bare LF after the size": size + b"\n" + body + end,
            "bare CR after the size": size + b"\r" + body + end,
            "bare LF after the data": size + b"\r\n" + body + b"\n0\r\n\r\n",
            "bare CR after the data": size + b"\r\n" + body + b"\r0\r\n\r\n",
            "bare LF at the end": size + b"\r\n" + body + b"\r\n0\r\n\n",
            "bare LF after the last size": size + b"\r\n" + body + b"\r\n0\n\r\n",
            "bare LF in an extension": sized(size + b";a\nb"),
            "bare LF for an extension": sized(size + b";\n"),
            "bare CR in an extension": sized(size + b";a\rb"),
            "CR CR LF after the size": sized(size + b"\r"),
            "control in an extension": sized(size + b";a=\x01"),
            "NUL in an extension": sized(size + b";a=\0"),
            "endless extension": size + b";" + b"a" * 5000,
            "bare LF in a trailer": trailer(b"X: y\n"),
            "bare CR in a trailer": trailer(b"X: y\rZ"),
            "NUL in a trailer": trailer(b"X: y\0"),
            "folded trailer": trailer(b"X: y\r\n z"),
            "trailer without a colon": trailer(b"GET /x HTTP/1.1"),
            "trailer without a name": trailer(b": y"),
            "trailer with a space before the colon": trailer(b"X : 5"),
            "length in a trailer": trailer(b"Content-Length: 5"),
            "coding in a trailer": trailer(b"X: y\r\nTRANSFER-ENCODING: chunked"),
            "Host in a trailer": trailer(b"Host: b"),
        }
        return {name: Bad(self.chunked(tail=tail)) for name, tail in table.items()}

    # ------------------------------------------------------------------ what has one reading

    def taken(self) -> dict[str, bytes]:
        """Unusual, and right: each is one request with this body, whatever somebody hoped for."""
        size = b"%x" % len(self.body)
        target = b"POST http://other.test%b HTTP/1.1" % self.path
        upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA")

        def coding(value: bytes) -> bytes:
            return self.plain(b"Transfer-Encoding:" + value, tail=self.chunks)

        return {
            "chunked in capitals": coding(b" CHUNKED"),
            "tab before chunked": coding(b"\tchunked"),
            "space after chunked": coding(b" chunked "),
            "no space before chunked": coding(b"chunked"),
            "name in capitals": self.plain(b"TRANSFER-ENCODING: chunked", tail=self.chunks),
            "underscore in the name": self.sized(b"Transfer_Encoding: chunked"),
            "coding named in Connection": self.chunked(b"Connection: Transfer-Encoding"),
            "length named in Connection": self.sized(b"Connection: Content-Length"),
            "zeros before the length": self.plain(b"Content-Length: 000" + self.size),
            "zeros before a chunk's size": self.chunked(
                tail=b"000" + size + b"\r\n" + self.body + b"\r\n000\r\n\r\n"
            ),
            "a chunk for each byte": self.chunked(
                tail=b"".join(b"1\r\n%c\r\n" % byte for byte in self.body) + b"0\r\n\r\n"
            ),
            "extensions": self.chunked(
                tail=size + b';a="b c";d\r\n' + self.body + b"\r\n0;e\r\n\r\n"
            ),
            "trailers": self.chunked(tail=self.chunks[:-2] + b"X: y\r\nAuthorization: z\r\n\r\n"),
            "absolute target": self.sized(first=target),
            "empty lines before it": b"\r\n\r\n" + self.sized(),
            "an offered h2c": self.sized(*upgrade),
            "an offered h2c, chunks": self.chunked(*upgrade),
            "an offered websocket": self.sized(b"Connection: Upgrade", b"Upgrade: websocket"),
            "Host with a port": self.sized().replace(b"Host: a", b"Host: [::1]:80"),
            "empty Host": self.sized().replace(b"Host: a", b"Host:"),
            "Expect in other letters": self.sized(b"Expect: 100-Continue"),
            "obsolete bytes in a value": self.sized(b"X: \xff\xc3\xa9"),
        }
