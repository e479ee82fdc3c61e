"""A model server that reads every body and answers none until it is told to.

    python -m tests.kit.hoarding_model PORT

``POST /generate`` is answered with the number of its bytes and their digest, once ``POST /release``
has come; ``POST /hold`` holds again. ``POST /generate_stream`` is answered at once with bytes
without end. It keeps none of what it reads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys

PIECE = b"data: " + b"x" * 65_528 + b"\n\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, of one request after the other."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            break
        path = head.split(b" ", 2)[1].decode()
        left = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                left = int(line.partition(b":")[2])
        digest, size = hashlib.sha256(), left
        while left:
            piece = await reader.read(min(left, 2**18))
            if not piece:
                return
            digest.update(piece)
            left -= len(piece)
        if path in ("/release", "/hold"):
            (RELEASED.set if path == "/release" else RELEASED.clear)()
        elif path == "/generate":
            await RELEASED.wait()
        elif path == "/generate_stream":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            while True:
                writer.write(PIECE)
                await writer.drain()
        body = json.dumps({"bytes": size, "digest": digest.hexdigest()}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whatever becomes of a connection, it is closed."""
    try:
        await serve(reader, writer)
    except OSError:
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.start_server(handled, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


RELEASED = asyncio.Event()

if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
