"""Pure: a batch of messages as the one frame that crosses a socket, and back; and what waits to go.

The frame is ``[epoch, peer_epoch, seq, [message, …]]`` in MessagePack, bodies included. It is one
frame whatever its size, because libzmq (4.3.5, its issue 3442) aborts a process whose peer dies
amid a message of several; a body that is copied costs half a millisecond per MB.

Law: what is packed is unpacked equal and in order, whatever its sizes; anything else that arrives
is ``Malformed``, never another error. A frame is longer than ``BATCH_BYTES`` only when it holds a
single message. A body that its type calls a ``memoryview`` is a view of the frame, not a copy. This
module knows no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from supervisor.link import Header
from supervisor.messages import Message

#: Messages in one batch; more go in several.
BATCH_LIMIT = 1_000
#: Bytes of a frame, far below any socket's limit; a longer one is split in two.
BATCH_BYTES = 2**19
#: A body above this travels alone: who keeps a view of it keeps nobody else's bytes.
ALONE_BYTES = 2**16
#: Where the first and the last body are as short, all of them mostly are.
SHORT_BYTES = ALONE_BYTES // 32

_encode = msgspec.msgpack.Encoder().encode


class Malformed(Exception):
    """The frame is no batch of the messages that are known here."""


def pack(header: Header, messages: Sequence[Message] = ()) -> bytes:
    """One batch as a frame."""
    return _encode((*header, messages))


def pack_all(number: Callable[[], Header], messages: list[Message]) -> Iterator[bytes]:
    """As many batches as it takes, in order; ``number`` gives the header of the next one."""
    if not messages:
        return
    header = number()
    ends = messages[0], messages[-1]
    if len(messages) <= BATCH_LIMIT and max(map(_body_bytes, ends)) <= SHORT_BYTES:
        frame = pack(header, messages)
        if len(frame) <= ALONE_BYTES:  # then no body in it is long: mostly nobody need look at each
            yield frame
            return
    parts = list(_parts(messages))
    parts.reverse()
    while parts:
        part = parts.pop()
        while len(frame := pack(header, part)) > BATCH_BYTES and len(part) > 1:
            middle = len(part) // 2
            parts.append(part[middle:])
            part = part[:middle]
        yield frame
        if parts:
            header = number()


def _body_bytes(message: Message) -> int:
    return len(message.body) if message.bulky else 0  # type: ignore[attr-defined]


def _parts(messages: list[Message]) -> Iterator[list[Message]]:
    """Runs of messages, of which there are some, whose bodies fit one batch, by their sizes."""
    start = size = 0
    for at, message in enumerate(messages):
        more = _body_bytes(message)
        if more > ALONE_BYTES:
            more = BATCH_BYTES + 1  # nothing has room beside it
        if at > start and (size + more > BATCH_BYTES or at - start == BATCH_LIMIT):
            yield messages[start:at]
            start, size = at, 0
        size += more
    yield messages[start:]


class Backlog:
    """What one session has to send: the messages of this tick, and batches that found no room.

    ``put`` sends a frame, or says False: there is no room. It may call ``clear`` meanwhile.
    """

    __slots__ = ("_put", "messages", "waiting")

    def __init__(self, put: Callable[[bytes], bool]) -> None:
        self._put = put
        self.messages: list[Message] = []
        self.waiting: deque[bytes] = deque()

    def flush(self, number: Callable[[], Header]) -> None:
        """Pack this tick's messages and send them, or let them wait."""
        messages, self.messages = self.messages, []
        for frame in pack_all(number, messages):
            self.offer(frame)

    def offer(self, frame: bytes) -> None:
        """Send a batch, behind those that wait."""
        if self.waiting or not self._put(frame):
            self.waiting.append(frame)

    def unblock(self) -> None:
        """Send what waits, as far as there is room."""
        while self.waiting and self._put(self.waiting[0]):
            if self.waiting:
                self.waiting.popleft()

    def clear(self) -> None:
        """The session ended."""
        self.messages.clear()
        self.waiting.clear()


def unpacker(receives: Any) -> Callable[[bytes | memoryview], tuple[Header, list[Any]]]:
    """A function that turns a frame into a header and messages of the union ``receives``.

    It raises Malformed.
    """
    decode = msgspec.msgpack.Decoder(tuple[int, int, int, list[receives]]).decode

    def unpack(frame: bytes | memoryview) -> tuple[Header, list[Any]]:
        try:
            epoch, to, seq, messages = decode(frame)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # ValueError: a text that is not UTF-8 is none of msgspec's own errors
            raise Malformed(str(error)) from None
        return (epoch, to, seq), messages

    return unpack
