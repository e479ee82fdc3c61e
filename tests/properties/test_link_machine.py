"""Two ends of a session over a wire that delays, loses whole connections and delivers too late."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor import link

Batch = tuple[link.Header, tuple[int, ...]]
Key = tuple[int, int]


class Connection:
    """What is under way, in order, in either direction."""

    def __init__(self) -> None:
        self.to_server: deque[Batch] = deque()
        self.to_client: deque[Batch] = deque()


class Sessions(RuleBasedStateMachine):
    """The hands here do what ``wire.py`` does with a verdict, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self._epochs = itertools.count(1)
        self._payloads = itertools.count(1)
        self.connection = Connection()
        self.stale: list[Connection] = []
        self.sent: dict[tuple[str, Key], list[int]] = defaultdict(list)
        self.received: dict[tuple[str, Key], list[int]] = defaultdict(list)
        self.begun: set[tuple[str, Key]] = set()
        self.server: link.ServerLink | None = None
        self.client = link.ClientLink(lambda: next(self._epochs))

    # ------------------------------------------------------------------ hands of the client

    def _client_key(self) -> Key:
        return (self.client.epoch, self.client.peer)

    def _client_sends(self, *payload: int) -> None:
        self.sent["client", self._client_key()] += payload
        self.connection.to_server.append((self.client.wrap(), payload))

    def _client_hears(self, batch: Batch) -> None:
        header, payload = batch
        was_up, key = self.client.up, self._client_key()
        verdict = self.client.receive(header, self.now)
        if verdict == "deliver":
            assert was_up
            self.received["client", key] += payload
        elif verdict == "up":
            assert not was_up
            self._begins("client", self._client_key())
        elif verdict == "reset":
            assert was_up and not self.client.up
            self._client_tick()

    def _client_tick(self) -> None:
        due = self.client.tick(self.now)
        if due == "greet":
            self.connection.to_server.append((self.client.greeting, ()))
        elif due == "keepalive":
            self._client_sends()
        elif due == "reset":
            self._client_tick()

    # ------------------------------------------------------------------ hands of the server

    def _server_sends(self, *payload: int) -> None:
        assert self.server is not None
        self.sent["server", (self.server.peer, self.server.epoch)] += payload
        self.connection.to_client.append((self.server.wrap(), payload))

    def _server_hears(self, batch: Batch, back: deque[Batch]) -> None:
        header, payload = batch
        verdict = link.judge(self.server, header, self.now)
        if verdict == "open":
            self.server = link.ServerLink(next(self._epochs), header[0], self.now)
            self._begins("server", (self.server.peer, self.server.epoch))
            back.append((self.server.welcome, ()))
        elif verdict == "welcome":
            assert self.server is not None
            back.append((self.server.welcome, ()))
        elif verdict == "deliver":
            assert self.server is not None
            self.received["server", (self.server.peer, self.server.epoch)] += payload
            if not payload:
                self._server_sends()
        else:
            if verdict == "break":
                self.server = None
            back.append((link.refusal(header), ()))

    def _begins(self, end: str, key: Key) -> None:
        assert (end, key) not in self.begun, "one session began twice"
        self.begun.add((end, key))

    # ------------------------------------------------------------------ what happens

    @precondition(lambda self: self.client.up)
    @rule(count=st.integers(1, 3))
    def client_sends(self, count: int) -> None:
        self._client_sends(*itertools.islice(self._payloads, count))

    @precondition(lambda self: self.server is not None)
    @rule(count=st.integers(1, 3))
    def server_sends(self, count: int) -> None:
        self._server_sends(*itertools.islice(self._payloads, count))

    @rule(count=st.integers(1, 10))
    def deliver_to_server(self, count: int) -> None:
        for _ in range(min(count, len(self.connection.to_server))):
            self._server_hears(self.connection.to_server.popleft(), self.connection.to_client)

    @rule(count=st.integers(1, 10))
    def deliver_to_client(self, count: int) -> None:
        for _ in range(min(count, len(self.connection.to_client))):
            self._client_hears(self.connection.to_client.popleft())

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 2.0, 5.1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._tick()

    def _tick(self) -> None:
        self._client_tick()
        if self.server is not None and self.server.dead(self.now):
            self.server = None

    @rule(count=st.integers(0, 5))
    def connection_breaks(self, count: int) -> None:
        """All that is under way is lost, but for what the server had received already."""
        lost, self.connection = self.connection, Connection()
        for batch in list(lost.to_server)[:count]:
            self._server_hears(batch, deque())

    @rule()
    def connection_is_replaced(self) -> None:
        """What was under way may still arrive, whenever it likes, at whoever is there then."""
        self.stale.append(self.connection)
        self.connection = Connection()

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), to_server=st.booleans())
    def stale_batch_arrives(self, data: st.DataObject, to_server: bool) -> None:
        old = self.stale[data.draw(st.integers(0, len(self.stale) - 1))]
        if to_server and old.to_server:
            self._server_hears(old.to_server.popleft(), self.connection.to_client)
        elif old.to_client:
            self._client_hears(old.to_client.popleft())

    @rule(count=st.integers(0, 3))
    def what_was_sent_while_apart_is_lost(self, count: int) -> None:
        """A batch that does not decode, a pipe that dropped its newest."""
        for _ in range(min(count, len(self.connection.to_client))):
            self.connection.to_client.pop()

    @rule()
    def client_restarts(self) -> None:
        self.client = link.ClientLink(lambda: next(self._epochs))

    @rule()
    def server_restarts(self) -> None:
        self.server = None

    @initialize()
    def it_begins_well(self) -> None:
        self.quiet()

    @rule()
    def quiet(self) -> None:
        """Nothing breaks any more: both ends agree that they are up, and messages flow."""
        self.stale.clear()
        keys = []
        for _ in range(40):  # 10 s, of which a mute peer may take 5 to be noticed
            self.now += 0.25
            self._tick()
            self.deliver_to_server(10_000)
            self.deliver_to_client(10_000)
            keys.append(self._client_key())
        assert len(set(keys[-16:])) == 1, "an undisturbed session ended"
        key = keys[-1]
        assert self.server is not None
        assert key == (self.server.peer, self.server.epoch), "the ends do not agree"
        self.client_sends(2)
        self.server_sends(2)
        self.deliver_to_server(10_000)
        self.deliver_to_client(10_000)
        for sender, receiver in (("client", "server"), ("server", "client")):
            assert self.received[receiver, key] == self.sent[sender, key]

    @invariant()
    def each_end_received_a_beginning_of_what_the_other_sent(self) -> None:
        for (receiver, key), got in self.received.items():
            sender = "server" if receiver == "client" else "client"
            assert got == self.sent[sender, key][: len(got)]

    def teardown(self) -> None:
        self.quiet()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=100, stateful_step_count=50)
