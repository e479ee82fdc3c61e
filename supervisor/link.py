"""Pure: one session between two processes, on top of a transport that may lose everything at once.

ZeroMQ delivers in order or not at all, but a peer may die and come back, a connection may vanish
with what was in it, and messages meant for a dead process may reach its successor. A session makes
each of these visible to both ends. Every batch carries ``(epoch, peer_epoch, seq)``: who sends, to
whom, and its number.

    client                              server
    (E, 0, 0)   greeting       ──▶      new session S; the one before it is gone
    up         ◀──   (S, E, 0)  welcome
    (E, S, 1…)  batches        ⇄        (S, E, 1…)
    reset      ◀──   (0, E, 0)  refusal "I do not know this session": wrong epoch or a gap

Both epochs are drawn anew for every session: a greeting that arrives late, when its session has
ended, opens another one that no batch of the old one fits.

Law: between ``up`` and ``down`` each end receives exactly the batches that the other sent, in
order, without a gap; whatever breaks this ends the session on both ends. What a session did not
settle is the users' to send again (``ingress/admission.py``, ``reporter``).

An empty batch is a keepalive; the server answers it, so that a lost last batch shows as a gap and
a mute peer as mute, however busy the other direction is. An end that heard nothing for
``DEAD_AFTER_S`` ends the session. This module knows nothing of sockets, and takes random numbers
and the time as arguments.
"""

from __future__ import annotations

from collections.abc import Callable

Header = tuple[int, int, int]

GREET_EVERY_S = 0.05
KEEPALIVE_S = 0.25
DEAD_AFTER_S = 5.0


class ClientLink:
    """The connecting end. ``draw`` gives a random epoch that is not 0."""

    __slots__ = (
        "_asked_at",
        "_draw",
        "_greeted_at",
        "_heard_at",
        "_received",
        "_sent",
        "epoch",
        "peer",
    )

    def __init__(self, draw: Callable[[], int]) -> None:
        self._draw = draw
        self._heard_at = 0.0
        self.reset()

    def reset(self) -> None:
        """End the session; the next greeting opens a new one."""
        self.epoch = self._draw()
        self.peer = 0
        self._sent = self._received = 0
        self._greeted_at = self._asked_at = float("-inf")

    @property
    def up(self) -> bool:
        """A session stands."""
        return self.peer != 0

    @property
    def greeting(self) -> Header:
        """What asks the server for a session."""
        return (self.epoch, 0, 0)

    def wrap(self) -> Header:
        """Number the next batch. Only while up."""
        self._sent += 1
        return (self.epoch, self.peer, self._sent)

    def receive(self, header: Header, now: float) -> str:
        """Judge: ``deliver``, ``up`` (a session begins), ``reset`` (it ended), ``ignore``."""
        epoch, to, seq = header
        if to != self.epoch:
            return "ignore"
        self._heard_at = now
        if self.peer == 0:
            if epoch == 0 or seq != 0:
                return "ignore"
            self.peer = epoch
            return "up"
        if epoch == self.peer:
            if seq == 0:
                return "ignore"  # the answer to a greeting that was repeated
            if seq == self._received + 1:
                self._received = seq
                return "deliver"
        self.reset()
        return "reset"

    def slept(self, now: float) -> None:
        """This process stood still for a while: the peer's words may lie unread."""
        self._heard_at = now

    def tick(self, now: float) -> str:
        """What is due: ``greet`` or ``keepalive``, ``reset`` (mute peer), or nothing."""
        if self.peer == 0:
            if now - self._greeted_at < GREET_EVERY_S:
                return ""
            self._greeted_at = now
            return "greet"
        if now - self._heard_at > DEAD_AFTER_S:
            self.reset()
            return "reset"
        if now - self._asked_at < KEEPALIVE_S:
            return ""
        self._asked_at = now
        return "keepalive"


class ServerLink:
    """The binding end's view of one session. ``epoch`` is drawn for it, ``peer`` its client's."""

    __slots__ = ("_heard_at", "_received", "_sent", "epoch", "peer")

    def __init__(self, epoch: int, peer: int, now: float) -> None:
        self.epoch = epoch
        self.peer = peer
        self._sent = 0
        self._received = 0
        self._heard_at = now

    @property
    def welcome(self) -> Header:
        """The answer to this session's greeting."""
        return (self.epoch, self.peer, 0)

    def wrap(self) -> Header:
        """Number the next batch."""
        self._sent += 1
        return (self.epoch, self.peer, self._sent)

    def receive(self, header: Header, now: float) -> bool:
        """True: deliver the batch. False: it does not continue this session."""
        epoch, to, seq = header
        if epoch != self.peer or to != self.epoch or seq != self._received + 1:
            return False
        self._received = seq
        self._heard_at = now
        return True

    def slept(self, now: float) -> None:
        """As the client's."""
        self._heard_at = now

    def dead(self, now: float) -> bool:
        """The client has been mute for too long."""
        return now - self._heard_at > DEAD_AFTER_S


def judge(link: ServerLink | None, header: Header, now: float) -> str:
    """What the binding end does with a client's batch, given the session that it has with it.

    ``open``: end the session, if there is one, begin another and welcome. ``welcome``: again, the
    greeting was repeated. ``deliver``. ``break``: end the session and refuse. ``refuse``: only so.
    """
    epoch, to, _ = header
    if to == 0:
        return "welcome" if link is not None and link.peer == epoch else "open"
    if link is None:
        return "refuse"
    if link.receive(header, now):
        return "deliver"
    return "break" if link.peer == epoch else "refuse"


def refusal(header: Header) -> Header:
    """Tells the sender of ``header`` that its session is not known."""
    return (0, header[0], 0)
