"""Pure: what the two ends of a socket do with a frame that came and a message that goes.

``link.py`` judges a batch, ``batch.py`` packs and unpacks it; here the verdict is acted upon: a
session begins or ends, its messages are handed on, the refusal is sent. Law: a user of an end hears
``on_up`` and ``on_down`` in turn, and of messages only in between; what it sends while no session
stands is not kept.

How a frame leaves is ``put``'s matter, when a tick is due the caller's. This module knows no
sockets, and takes the time and random numbers as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from supervisor import link
from supervisor.batch import Backlog, Malformed, pack
from supervisor.link import Header
from supervisor.messages import Message

Frame = bytes | memoryview
Unpack = Callable[[Frame], tuple[Header, list[Any]]]


class ClientEnd:
    """The connecting end of one session after the other.

    Args:
        draw: a random epoch that is not 0.
        unpack: a frame's header and messages; raises Malformed.
        put: sends a frame; False: there is no room.
        reconnect: a greeting found no room, so nobody reads at the other end of this connection.
        on_messages: called with each batch, in order.
        on_up, on_down: a session began, or ended. What it did not settle must be sent again.
    """

    def __init__(
        self,
        draw: Callable[[], int],
        unpack: Unpack,
        put: Callable[[bytes], bool],
        reconnect: Callable[[], None],
        on_messages: Callable[[list[Any]], None],
        on_up: Callable[[], None] | None,
        on_down: Callable[[], None] | None,
    ) -> None:
        self.link = link.ClientLink(draw)
        self.out = Backlog(put)
        self._unpack = unpack
        self._put = put
        self._reconnect = reconnect
        self._on_messages, self._on_up, self._on_down = on_messages, on_up, on_down

    def send(self, message: Message) -> bool:
        """Have it leave with the next ``flush``. False, and nothing is kept: no session stands."""
        if not self.link.peer:
            return False
        self.out.messages.append(message)
        return True

    def flush(self) -> None:
        """Send what was produced since the last one."""
        self.out.flush(self.link.wrap)

    def arrived(self, frames: list[Frame], now: float) -> None:
        """The server's message. Raises Malformed."""
        if len(frames) != 1:
            raise Malformed("a message is one frame")
        header, messages = self._unpack(frames[0])
        verdict = self.link.receive(header, now)
        if verdict == "deliver" and messages:
            self._on_messages(messages)
        elif verdict == "up" and self._on_up is not None:
            self._on_up()
        elif verdict == "reset":
            self._down(now)

    def tick(self, now: float) -> None:
        """Greet, keep alive, or give up a mute server, as is due."""
        due = self.link.tick(now)
        if due == "greet" and not self._put(pack(self.link.greeting)):
            self._reconnect()
        elif due == "keepalive":
            self.out.offer(pack(self.link.wrap()))
        elif due == "reset":
            self._down(now)

    def _down(self, now: float) -> None:
        self.out.clear()
        if self._on_down is not None:
            self._on_down()
        self.tick(now)  # the next greeting


class Peer:
    """The server's end of one session."""

    __slots__ = ("out", "session")

    def __init__(self, session: link.ServerLink, out: Backlog) -> None:
        self.session = session
        self.out = out


class ServerEnd:
    """The binding end: one session with each client, by its name.

    Args:
        draw, unpack, on_messages, on_up, on_down: as for a ``ClientEnd``, the last three with the
            client's name first.
        put: sends a frame to a client; False: there is no room. For a client that is not there it
            says True, and has ``drop`` called soon.
    """

    def __init__(
        self,
        draw: Callable[[], int],
        unpack: Unpack,
        put: Callable[[str, bytes], bool],
        on_messages: Callable[[str, list[Any]], None],
        on_up: Callable[[str], None] | None,
        on_down: Callable[[str], None] | None,
    ) -> None:
        self._draw = draw
        self._unpack = unpack
        self._put = put
        self._on_messages, self._on_up, self._on_down = on_messages, on_up, on_down
        self.peers: dict[str, Peer] = {}
        #: no session begins any more
        self.closed = False

    def send(self, name: str, message: Message) -> bool:
        """As a client's: False, and nothing is kept: no session stands with this one."""
        peer = self.peers.get(name)
        if peer is None:
            return False
        peer.out.messages.append(message)
        return True

    def flush(self) -> None:
        """Send what was produced since the last one."""
        for peer in list(self.peers.values()):
            if peer.out.messages:
                peer.out.flush(peer.session.wrap)

    def arrived(self, frames: list[Frame], now: float) -> None:
        """A client's message, behind its name. Raises Malformed."""
        if len(frames) != 2:
            raise Malformed("a message is one frame, behind its client's name")
        try:
            name = str(frames[0], "utf-8")
        except UnicodeDecodeError:
            raise Malformed("the client's name is not UTF-8") from None
        header, messages = self._unpack(frames[1])
        peer = self.peers.get(name)
        verdict = link.judge(None if peer is None else peer.session, header, now)
        if verdict == "open":
            self._begin(name, link.ServerLink(self._draw(), header[0], now))
        elif verdict == "deliver" and messages:
            self._on_messages(name, messages)
        elif verdict == "deliver" and peer is not None:
            peer.out.offer(pack(peer.session.wrap()))
        elif verdict == "welcome" and peer is not None:
            self._put(name, pack(peer.session.welcome))
        else:
            if verdict == "break":
                self.drop(name)
            self._put(name, pack(link.refusal(header)))

    def tick(self, now: float) -> None:
        """Give up clients that have been mute for too long."""
        for name, peer in list(self.peers.items()):
            if peer.session.dead(now):
                self.drop(name)

    def slept(self, now: float) -> None:
        """This process stood still for a while: the clients' words may lie unread."""
        for peer in self.peers.values():
            peer.session.slept(now)

    def drop(self, name: str) -> None:
        """The session with this client ends, if there is one."""
        peer = self.peers.pop(name, None)
        if peer is not None:
            peer.out.clear()
            if self._on_down is not None:
                self._on_down(name)

    def _begin(self, name: str, session: link.ServerLink) -> None:
        self.drop(name)
        if self.closed:
            return
        peer = self.peers[name] = Peer(session, Backlog(partial(self._put, name)))
        peer.out.offer(pack(session.welcome))  # before all that is said to it
        if self._on_up is not None:
            self._on_up(name)
