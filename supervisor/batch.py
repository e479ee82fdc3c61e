"""Pure: a batch of messages as the frames that cross a socket, and back; and what waits to go.

The first frame is ``[epoch, peer_epoch, seq, [message, …]]`` in MessagePack, followed by one frame
for each body over ``LARGE_BODY_BYTES``, which is never copied into the first one.

Law: what is packed is unpacked equal and in order, whatever its sizes; anything else that arrives
is ``Malformed``, never another error. A first frame is longer than ``BATCH_BYTES`` only when it
holds a single message. This module knows no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from supervisor.link import Header
from supervisor.messages import Message

#: Bodies above this many bytes travel as frames of their own, uncopied.
LARGE_BODY_BYTES = 65_536
#: Messages in one batch; more go in several.
BATCH_LIMIT = 1_000
#: Bytes of the first frame, far below any socket's limit; a longer one is split in two.
BATCH_BYTES = 2**19

Frames = list[bytes | memoryview]
_encode = msgspec.msgpack.Encoder().encode


class Malformed(Exception):
    """The frames are no batch of the messages that are known here."""


def pack(header: Header, messages: Sequence[Message] = ()) -> Frames:
    """One batch as frames."""
    bodies: list[bytes | memoryview] = []
    for index, message in enumerate(messages):
        if message.bulky and len(message.body) > LARGE_BODY_BYTES:  # type: ignore[attr-defined]
            if not bodies:
                messages = list(messages)
            bodies.append(message.body)  # type: ignore[attr-defined]
            changed = msgspec.structs.replace(message, body=b"", frame=len(bodies))
            messages[index] = changed  # type: ignore[index]
    return [_encode((*header, messages)), *bodies]


def pack_all(number: Callable[[], Header], messages: list[Message]) -> Iterator[Frames]:
    """As many batches as it takes, in order; ``number`` gives the header of the next one."""
    parts = [messages[at : at + BATCH_LIMIT] for at in range(0, len(messages), BATCH_LIMIT)]
    parts.reverse()
    while parts:
        part, header = parts.pop(), number()
        while len((frames := pack(header, part))[0]) > BATCH_BYTES and len(part) > 1:
            middle = len(part) // 2
            parts.append(part[middle:])
            part = part[:middle]
        yield frames


class Backlog:
    """What one session has to send: the messages of this tick, and batches that found no room.

    ``put`` sends frames, or says False: there is no room. It may call ``clear`` meanwhile.
    """

    __slots__ = ("_put", "messages", "waiting")

    def __init__(self, put: Callable[[Frames], bool]) -> None:
        self._put = put
        self.messages: list[Message] = []
        self.waiting: deque[Frames] = deque()

    def flush(self, number: Callable[[], Header]) -> None:
        """Pack this tick's messages and send them, or let them wait."""
        messages, self.messages = self.messages, []
        for frames in pack_all(number, messages):
            self.offer(frames)

    def offer(self, frames: Frames) -> None:
        """Send a batch, behind those that wait."""
        if self.waiting or not self._put(frames):
            self.waiting.append(frames)

    def unblock(self) -> None:
        """Send what waits, as far as there is room."""
        while self.waiting and self._put(self.waiting[0]):
            if self.waiting:
                self.waiting.popleft()

    def clear(self) -> None:
        """The session ended."""
        self.messages.clear()
        self.waiting.clear()


def unpacker(receives: Any) -> Callable[[Sequence[Any]], tuple[Header, list[Any]]]:
    """A function that turns frames into a header and messages of the union ``receives``.

    It raises Malformed. Large bodies keep the type of their frame, all others are ``bytes``.
    """
    decode = msgspec.msgpack.Decoder(tuple[int, int, int, list[receives]]).decode

    def unpack(frames: Sequence[Any]) -> tuple[Header, list[Any]]:
        try:
            epoch, to, seq, messages = decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError, IndexError) as error:
            # ValueError: a text that is not UTF-8 is none of msgspec's own errors
            raise Malformed(str(error)) from None
        for message in messages:
            if message.bulky and message.frame:
                if not 0 < message.frame < len(frames):
                    raise Malformed("a body is missing")
                msgspec.structs.force_setattr(message, "body", frames[message.frame])
        return (epoch, to, seq), messages

    return unpack
