"""Both real ends of the jobs socket, over a wire that delays, breaks and delivers too late.

The rules of ingress (door, admission, answers, its accounts), of the adapter (queue, runs,
sessions, the connections to the model server down to their bytes) and of the session between them
run as in production; either process may die at any moment, with everything that it knew. The laws
are those of docs/architecture.md, checked after every step. Around them, in
``tests/kit/simulated.py``: a network, a model server, clients.

``TWO_ENDS_EXAMPLES=10000`` looks for longer.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections import defaultdict, deque
from typing import Any

import httptools
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend_adapter.capacity import Capacity
from backend_adapter.jobs import Command, Dispatch, Job, State
from backend_adapter.messages import (
    Answer,
    Cancel,
    Cancelled,
    Chunk,
    End,
    Failed,
    FromAdapter,
    Rejected,
    Submit,
    ToAdapter,
)
from backend_adapter.model_client import ModelClient
from backend_adapter.queue import Queue
from backend_adapter.run import Sender
from backend_adapter.runs import Runs
from backend_adapter.session_desk import SessionDesk
from backend_adapter.session_mirror import SessionMirror
from backend_adapter.sessions import Session
from ingress.admission import MAX_DELIVERIES, Admission
from ingress.admission import Job as Promise
from ingress.answers import Answers
from ingress.auth import Authenticator
from ingress.budget import MOST_CREDITS, TRUSTED_AFTER
from ingress.door import Door
from ingress.envelope import decode_unsigned
from ingress.management import Management
from ingress.questions import Questions
from ingress.routes import compile_routes
from reporter.producer_ledger import ProducerLedger
from supervisor.batch import unpacker
from supervisor.ends import ClientEnd, ServerEnd
from supervisor.settings import RouteSettings, Workload
from tests.kit.simulated import HIGH, LOW, RESPONSES, Client, Loop, ModelServer

NAME = "ingress-0"
CREDIT = 64
MAX_PROMISES, MAX_JOBS, MAX_BYTES, MAX_RUNNING, MAX_ATTEMPTS = 9, 5, 160, 3, 2
TERMINAL = (Answer, End, Failed, Rejected)
WORK = Workload(field="w", default=1.0)
ROUTES = (
    RouteSettings(path="/serial", concurrency=1, workload=WORK),
    RouteSettings(path="/once", concurrency=1, redeliver=False, workload=WORK),
    RouteSettings(path="/short", concurrency=1, workload=WORK, max_queue_time_s=2.0, timeout_s=8.0),
    RouteSettings(path="/two", concurrency=2, workload=WORK),
    RouteSettings(path="/free", workload=WORK, timeout_s=40.0),
    RouteSettings(path="/can not be sent", workload=WORK),
    RouteSettings(path="/now", redeliver=False, workload=WORK, max_queue_time_s=0.0),
)
FEW = st.integers(0, 3)
PICK = st.integers(0, 11)
_headers = msgspec.msgpack.Decoder(tuple[int, int, int, msgspec.Raw])
_routes = compile_routes(list(ROUTES))
_to_adapter, _from_adapter = unpacker(ToAdapter), unpacker(FromAdapter)


def _header(frame: bytes) -> tuple[int, int, int]:
    epoch, to, number, _ = _headers.decode(frame)
    return epoch, to, number


class Wire:
    """What is under way between the two processes, in order, in either direction."""

    def __init__(self) -> None:
        self.to_adapter: deque[bytes] = deque()
        self.to_ingress: deque[bytes] = deque()


class IngressProcess:
    """One life of ingress."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        life = next(world.epochs)
        self.clients: list[Client] = []
        self.written: dict[int, int] = defaultdict(int)  #: body bytes handed on, by job
        self.ledger = ProducerLedger(NAME, life)
        self.admission = Admission(MAX_PROMISES, first_id=life * 1000)
        self.answers = Answers(self.admission, self.ledger, CREDIT)
        self.door = Door(
            _routes,
            Authenticator("none", "any", "", False, 100, 1),
            self.admission,
            self.ledger,
            Questions(30.0, 1),
            Management("", ""),
            decode=decode_unsigned,
            credit_bytes=CREDIT,
            ask=lambda message: False,
            answers=self.answers,
            clock=world.clock,
        )
        self.end = ClientEnd(
            lambda: next(world.epochs), _from_adapter, self.put, world.reconnects, self.hear,
            self.answers.link_up, self.down,
        )  # fmt: skip
        self.answers.send = self.end.send

    def put(self, frame: bytes) -> bool:
        if self.world.full and not self.dead:
            return False
        if not self.dead:
            self.world.carries(self.world.wire.to_adapter, frame)
        return True

    def hear(self, messages: list[Any]) -> None:
        link = self.end.link
        assert self.world.header[:2] == (link.peer, link.epoch), "words of another session"
        for message in messages:  # one by one, so that what is noted is true at each
            if type(message) is Chunk and self.admission.get(message.id) is not None:
                self.written[message.id] += len(message.body)
            self.answers.hear([message], self.world.now)

    def down(self) -> None:
        self.answers.link_down(self.world.now)
        self.written.clear()


class WatchedQueue(Queue):
    """Remembers in which order jobs came."""

    def __init__(self) -> None:
        super().__init__(
            max_jobs=MAX_JOBS,
            max_bytes=MAX_BYTES,
            max_running=MAX_RUNNING,
            max_attempts=MAX_ATTEMPTS,
        )
        self.arrivals: dict[Any, int] = {}
        self._count = itertools.count()

    def submit(self, job: Job, now: float) -> Any:
        self.arrivals[job.key] = next(self._count)
        return super().submit(job, now)

    def waiting_keys(self, lane: str) -> list[Any]:
        jobs = self._jobs.values()
        return [j.key for j in jobs if j.state is State.WAITING and j.submit.lane == lane]


class WatchedRuns(Runs):
    """Law 2 within one answer of the queue."""

    def carry_out(self, commands: Any) -> None:
        lanes: dict[str, list[int]] = defaultdict(list)
        each: Command
        for each in commands:
            if isinstance(each, Dispatch):
                queue = self._queue
                assert isinstance(queue, WatchedQueue)
                lanes[each.job.submit.lane].append(queue.arrivals[each.job.key])
        for orders in lanes.values():
            assert orders == sorted(orders), "law 2: one overtook another"
        super().carry_out(commands)


class AdapterProcess:
    """One life of the adapter."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.draining = self.empty = False
        self.doubt = False  #: a connection was lost: the watch has to look
        self.told: dict[int, bool] = {}  #: of this session: has its terminal message been sent?
        self.sent: dict[int, int] = defaultdict(int)  #: body bytes, by job
        self.session = 0
        self.loop = Loop(world.clock, world.model)
        self.queue = WatchedQueue()
        self.capacity = Capacity()
        self.client = ModelClient(
            "http://model:1", self.loop,  # type: ignore[arg-type]
            connect_timeout_s=5.0, first_byte_timeout_s=20.0, idle_timeout_s=10.0,
        )  # fmt: skip
        self.runs = WatchedRuns(self.queue, self.capacity, self, world.clock)
        self.ledger = ProducerLedger("backend_adapter", next(world.epochs))
        self.desk = SessionDesk(
            2, self.client, self.ledger, world, SessionMirror(),  # type: ignore[arg-type]
            send=self.send, revoke=self.revoke, clock=world.clock,
        )  # fmt: skip
        self.runs.desk = self.desk
        self.desk.restore()
        self.end = ServerEnd(
            lambda: next(world.epochs), _to_adapter, self.put, self.hear, self.up, self.down
        )

    # what the runs need

    def send(self, peer: str, message: FromAdapter) -> object:
        if not self.end.send(peer, message):
            return False
        number = message.id
        if isinstance(message, Cancelled):
            return True  # says when a job that nobody waits for began
        assert self.told.get(number) is False, "law 1: a word about what has ended, or is unknown"
        if isinstance(message, TERMINAL):
            self.told[number] = True
        if isinstance(message, Chunk):
            self.sent[number] += len(message.body)
            under_way = self.sent[number] - self.world.ingress.written[number]
            ours = number in self.world.ingress.admission.jobs and self.world.agreed
            trusted = self.sent[number] - len(message.body) > TRUSTED_AFTER * CREDIT
            most = CREDIT * (MOST_CREDITS if trusted else 1)
            assert not ours or under_way <= most, "law 6"
        return True

    def sender(self, job: Job) -> Sender:
        queue, lane = self.queue, job.submit.lane
        mine = queue.arrivals[job.key]
        for key in queue.waiting_keys(lane):
            assert queue.arrivals[key] > mine, "law 2: it overtook one that waits"
        self._limits(lane, 1, job.submit.lane_limit)
        assert len(self.in_flight()) < MAX_RUNNING, "law 3: too many at once"
        return self.client

    def soon(self, callback: Any, kind: str, message: str) -> None:
        self.loop.call_soon(callback, kind, message)

    def connection_lost(self, sender: Sender, sent: bool) -> None:
        self.doubt = True

    def emptied(self) -> None:
        self.empty = True

    def revoke(self, session_id: str) -> None:
        self.runs.carry_out(self.queue.revoke(session_id, self.world.now))

    # the socket

    def put(self, name: str, frame: bytes) -> bool:
        assert name == NAME
        if self.world.full and not self.dead:
            return False
        if not self.dead:
            self.world.carries(self.world.wire.to_ingress, frame)
        return True

    def up(self, peer: str) -> None:
        self.session += 1

    def down(self, peer: str) -> None:
        self.told.clear()
        self.sent.clear()
        self.runs.peer_gone(peer)
        assert not self.runs.open and not self.queue._jobs, "the session's jobs live on"

    def hear(self, peer: str, messages: list[Any]) -> None:
        session = self.end.peers[peer].session
        assert self.world.header[:2] == (session.peer, session.epoch), "words of another session"
        for message in messages:
            if not isinstance(message, Cancel) and hasattr(message, "workload"):
                assert message.id > max(self.told, default=0), "submitted twice, or out of order"
                self.told[message.id] = False
            self.runs.hear(peer, [message])
            if isinstance(message, Cancel):
                key = (peer, message.id)
                assert key not in self.queue._jobs and key not in self.runs.open, "law 4"
                self.told[message.id] = True

    # what is true of it

    def in_flight(self) -> list[Submit]:
        requests = list(self.client._connecting)
        requests += [c.request for c in self.client._active if c.request is not None]
        return [request.sink.job.submit for request in requests]  # type: ignore[attr-defined]

    def _limits(self, lane: str, more: int, limit: int) -> None:
        count = sum(submit.lane == lane for submit in self.in_flight())
        assert not limit or count + more <= limit, "law 3: more of a lane than its limit"

    def check(self) -> None:
        queue = self.queue
        totals = queue.totals
        ended = totals.served + totals.errored + totals.cancelled + totals.rejected
        assert totals.received == ended + queue.outstanding, "law 5 in the adapter"
        assert queue.outstanding == sum(job.submit.workload for job in queue._jobs.values())
        assert queue.held_bytes == sum(len(job.submit.body) for job in queue._jobs.values())
        running = [job for job in queue._jobs.values() if job.state is not State.WAITING]
        assert queue.running == len(running) == self.capacity._running
        assert queue.running + queue.waiting == len(queue._jobs)
        in_flight = self.in_flight()
        assert len(in_flight) <= MAX_RUNNING
        for lane in {submit.lane for submit in in_flight}:
            limit = next(s.lane_limit for s in in_flight if s.lane == lane)
            self._limits(lane, 0, limit)
        live = {run.job.submit.id for run in self.runs.open.values()}
        assert {submit.id for submit in in_flight} <= live, "law 4: nobody wants it any more"
        if queue.up and len(running) < MAX_RUNNING:
            for job in queue._jobs.values():
                if job.state is State.WAITING and self.world.now <= job.deadline:
                    lane, limit = job.submit.lane, job.submit.lane_limit
                    used = sum(other.submit.lane == lane for other in running)
                    assert limit and used >= limit, "a slot is free, and one waits for it"
        for job in queue._jobs.values():
            session = job.submit.session_id
            assert not session or session in self.desk._sessions.open, "its session was closed"


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.epochs = itertools.count(1)
        self.numbers = itertools.count(1)
        self.wire = Wire()
        self.stale: list[Wire] = []
        self.full = self.deaf = False
        self.header = (0, 0, 0)  #: of the batch that is being heard
        self.losing: dict[str, int] = {}  #: batches that will be lost on their way
        self.flowing = True
        self.model = ModelServer()
        self.model.on_received = self._received
        self.files: dict[str, Session] = {}
        self.clients: dict[int, Client] = {}
        self.routes: dict[int, RouteSettings] = {}
        self.sent_to_model: dict[tuple[int, int, int], int] = defaultdict(int)
        self.session_ids: list[str] = []
        self.ingress = IngressProcess(self)
        self.adapter = AdapterProcess(self)

    def clock(self) -> float:
        return self.now

    # sessions at rest, as session_files.py keeps them

    there = True

    def save(self, session: Session) -> bool:
        self.files[session.session_id] = copy.copy(session)
        return True

    def drop(self, session: Session) -> None:
        self.files.pop(session.session_id, None)

    def load(self) -> list[Session]:
        return [copy.copy(session) for session in self.files.values()]

    # ------------------------------------------------------------------ what is watched

    @property
    def agreed(self) -> bool:
        """Both ends are in the same session."""
        link = self.ingress.end.link
        peer = self.adapter.end.peers.get(NAME)
        return peer is not None and (peer.session.peer, peer.session.epoch) == (
            link.epoch,
            link.peer,
        )

    @property
    def nothing_is_under_way(self) -> bool:
        """Nor lost, as far as nobody has noticed."""
        link, session = self.ingress.end.link, self.adapter.end.peers[NAME].session
        return (link._sent, session._sent) == (session._received, link._received)

    def _received(self, number: int) -> None:
        """The model server got a request in full."""
        route = self.routes[number]
        before = len(self.model.runs[number])
        if not route.redeliver:
            assert before == 0, "a route that may not run twice ran twice"
        assert before < MAX_DELIVERIES * MAX_ATTEMPTS
        # ends of one session may see different ones for a moment: jobs belong to the adapter's
        delivery = (number, id(self.adapter), self.adapter.session)
        self.sent_to_model[delivery] += 1
        assert self.sent_to_model[delivery] <= MAX_ATTEMPTS, "sent more often than max_attempts"

    def reconnects(self) -> None:
        self.wire = Wire()

    def carries(self, way: deque[bytes], frame: bytes) -> None:
        towards = "adapter" if way is self.wire.to_adapter else "ingress"
        if self.losing.get(towards, 0):
            self.losing[towards] -= 1
        else:
            way.append(frame)

    # ------------------------------------------------------------------ how things move

    def settle(self) -> None:
        """Both loops do what they owe, and send what they produced."""
        while self.adapter.loop.run():
            pass
        self.ingress.end.flush()
        self.adapter.end.flush()
        if not self.full:
            self.ingress.end.out.unblock()
            for peer in self.adapter.end.peers.values():
                peer.out.unblock()

    def adapter_gets(self, frame: bytes) -> None:
        self.header = _header(frame)
        self.adapter.end.arrived([NAME.encode(), frame], self.now)

    def ingress_gets(self, frame: bytes) -> None:
        self.header = _header(frame)
        self.ingress.end.arrived([frame], self.now)

    def to_adapter(self, count: int) -> bool:
        moved = False
        while count and self.wire.to_adapter:
            count -= 1
            moved = True
            self.adapter_gets(self.wire.to_adapter.popleft())
            self.settle()
        return moved

    def to_ingress(self, count: int) -> bool:
        moved = False
        while count and self.wire.to_ingress:
            count -= 1
            moved = True
            self.ingress_gets(self.wire.to_ingress.popleft())
            self.settle()
        return moved

    def dials(self, count: int) -> bool:
        moved = False
        while count and self.adapter.loop.dials and not self.deaf:
            count -= 1
            moved = True
            error = None if self.model.alive else ConnectionRefusedError("refused")
            self.adapter.loop.dials[0].finish(error)
            self.settle()
        return moved

    def carry(self, pick: int) -> bool:
        connections = self.model.connections
        if not connections:
            return False
        moved = connections[pick % len(connections)].carry()
        self.settle()
        return moved

    def watch(self) -> bool:
        """The watch looks at the model server where it has a reason to."""
        adapter = self.adapter
        if adapter.doubt or (self.model.alive and not adapter.queue.up):
            adapter.doubt = False
            if self.model.alive:
                adapter.runs.carry_out(adapter.queue.backend_up(self.now))
            else:
                adapter.queue.backend_down("it is away")
            self.settle()
            return self.model.alive
        return False

    def flow(self) -> None:
        """Everything that can move does."""
        self.settle()
        for _ in range(2000):
            moved = self.to_adapter(99) | self.to_ingress(99) | self.dials(99) | self.watch()
            for connection in list(self.model.connections):
                while connection.carry():
                    moved = True
                    self.settle()
            if not moved:
                return
        raise AssertionError("it never comes to rest")

    def done(self) -> None:
        """After each rule."""
        if not self.flowing or self.full:
            self.settle()
            return
        self.flow()
        if self.agreed and self.nothing_is_under_way:
            promised = self.ingress.admission.jobs
            for _, number in [*self.adapter.queue._jobs, *self.adapter.runs.open]:
                assert number in promised, "law 4: nobody waits for what runs or waits here"

    # ------------------------------------------------------------------ clients

    @initialize(routes=st.lists(PICK, max_size=5), inside=st.booleans())
    def begin(self, routes: list[int], inside: bool) -> None:
        self.tick()
        self.done()
        if inside:
            self._session(0, 0)
        for route in routes:
            self._request(route, 1, 1, inside and route % 3 == 0)
        self.done()

    def _send(self, path: bytes, body: bytes, number: int) -> Client:
        client = Client(number, path, body, self.now)
        self.clients[number] = client
        self.ingress.clients.append(client)
        problem = self.ingress.door.on_head(client.exchange)
        if problem is not None:
            client.refused = problem.kind
        else:
            self.ingress.door.on_request(client.exchange)
        return client

    @rule(route=PICK, work=FEW, size=FEW, inside=st.booleans(), leaves=st.booleans())
    def request(self, route: int, work: int, size: int, inside: bool, leaves: bool) -> None:
        """``leaves``: at once, so that its cancellation travels in the same batch."""
        self._request(route, work, size, inside, leaves)
        self.done()

    def _request(
        self, route: int, work: int, size: int, inside: bool, leaves: bool = False
    ) -> None:
        number = next(self.numbers)
        found = self.routes[number] = ROUTES[route % len(ROUTES)]
        session = ""
        if inside and self.session_ids:
            session = f'"session_id":"{self.session_ids[work % len(self.session_ids)]}",'
        pad = "x" * 20 * size
        body = f'{{{session}"payload":{{"n":{number},"w":{work + 0.25},"pad":"{pad}"}}}}'
        client = self._send(found.path.encode(), body.encode(), number)
        client.workload = work + 0.25
        if leaves and not client.ended:
            self._leaves(client)

    @rule(route=PICK, count=st.integers(2, 5))
    def many_requests(self, route: int, count: int) -> None:
        for _ in range(count):
            self._request(route, 1, 1, False)
        self.done()

    @rule(call=FEW, pick=FEW)
    def session(self, call: int, pick: int) -> None:
        self._session(call, pick)

    def _session(self, call: int, pick: int) -> None:
        number = next(self.numbers)
        auth = b'{"signature":"s","cost":4,"endpoint":"e","reqnum":%d,"request_idx":5,"url":"u"}'
        if call < 2:
            body = b'{"auth_data":%b,"payload":{"lifetime":20}}' % (auth % 1)
            self._send(b"/session/create", body, number)
        elif self.session_ids:
            name = self.session_ids[pick % len(self.session_ids)].encode()
            path = (b"/session/end", b"/session/health")[call - 2]
            self._send(path, b'{"session_id":"%b","session_auth":%b}' % (name, auth % 1), number)
        self.done()
        for name in self.files:
            if name not in self.session_ids:
                self.session_ids.append(name)

    def waiting(self) -> list[Client]:
        return [client for client in self.ingress.clients if not client.ended and not client.gone]

    def _leaves(self, client: Client) -> None:
        client.gone = True
        client.exchange.client_gone()
        self.ingress.door.on_disconnect(client.exchange)

    @precondition(lambda self: self.waiting())
    @rule(pick=PICK)
    def client_leaves(self, pick: int) -> None:
        waiting = self.waiting()
        self._leaves(waiting[pick % len(waiting)])
        self.done()

    def _reads(self, client: Client, size: int) -> None:
        client.unread = max(0, client.unread - size)
        if not client.writable and client.unread <= LOW:
            client.writable = True
            if not client.ended and not client.gone and client.exchange.begun:
                self.ingress.door.on_writable(client.exchange)

    @precondition(lambda self: any(client.unread for client in self.ingress.clients))
    @rule(pick=PICK, size=st.sampled_from([20, 60, 500]))
    def client_reads(self, pick: int, size: int) -> None:
        behind = [client for client in self.ingress.clients if client.unread]
        self._reads(behind[pick % len(behind)], size)
        self.done()

    # ------------------------------------------------------------------ the model server

    @precondition(lambda self: self.model.busy)
    @rule(pick=PICK, kind=st.integers(0, len(RESPONSES) - 1), size=st.integers(0, 120))
    def model_answers(self, pick: int, kind: int, size: int) -> None:
        busy = self.model.busy
        connection = busy[pick % len(busy)]
        assert connection.work is not None
        if not connection.work.begun:
            self.model.begin(connection, kind, with_body=size > 20)
        elif size > 100:
            self.model.finish(connection)
        else:
            self.model.go_on(connection, size)
        self.done()

    @precondition(lambda self: self.model.busy)
    @rule()
    def model_finishes_all(self) -> None:
        for connection in self.model.busy:
            self.model.finish(connection)
        self.done()

    @precondition(lambda self: self.model.connections)
    @rule(pick=PICK, word=st.sampled_from([b"", b"what is this?\r\n\r\n", b"HTTP/1.1 200 O"]))
    def model_hangs_up(self, pick: int, word: bytes) -> None:
        """On anyone, perhaps with a word that nobody understands."""
        connection = self.model.connections[pick % len(self.model.connections)]
        if not connection.ending:
            if word and (connection.work is None or not connection.work.begun):
                self.model.say(connection, word)
            self.model.hang_up(connection, "fin")
        self.done()

    @precondition(lambda self: self.model.busy)
    @rule(pick=PICK, how=st.sampled_from(["fin", "rst"]), times=st.integers(1, 4))
    def model_drops_requests(self, pick: int, how: str, times: int) -> None:
        """A request that the model server can not bear, wherever it comes again."""
        for _ in range(times):
            if busy := self.model.busy:
                self.model.hang_up(busy[pick % len(busy)], how)
            self.done()

    @precondition(lambda self: self.model.alive)
    @rule(how=st.sampled_from(["fin", "rst"]), noticed=st.booleans())
    def model_dies(self, how: str, noticed: bool) -> None:
        self.model.die(how)
        if noticed:
            self.adapter.queue.backend_down("it died")
            self.adapter.client.close_all("the model server died")
        self.done()

    @precondition(lambda self: not self.model.alive)
    @rule()
    def model_comes_back(self) -> None:
        self.model.alive = True
        self.done()

    @precondition(lambda self: not self.model.alive)
    @rule(for_good=st.booleans())
    def the_watch_hears_of_its_death(self, for_good: bool) -> None:
        adapter = self.adapter
        if for_good:
            adapter.runs.carry_out(adapter.queue.backend_failed("it is broken", self.now))
        else:
            adapter.queue.backend_down("it died")
        adapter.client.close_all("the model server died")
        self.done()

    # ------------------------------------------------------------------ the wire, and time

    @rule(flowing=st.booleans(), full=st.booleans(), deaf=st.booleans())
    def weather(self, flowing: bool, full: bool, deaf: bool) -> None:
        """``deaf``: the model server neither takes nor refuses connections."""
        self.flowing = flowing
        self.deaf = deaf
        self.full = full and not flowing
        self.done()

    @precondition(lambda self: not self.flowing)
    @rule(to_adapter=FEW, to_ingress=FEW, dials=FEW, pick=PICK)
    def some_of_it_moves(self, to_adapter: int, to_ingress: int, dials: int, pick: int) -> None:
        self.to_adapter(to_adapter)
        self.to_ingress(to_ingress)
        self.dials(dials)
        self.carry(pick)
        if dials == 3:
            self.watch()
        self.settle()

    @rule(to_adapter=FEW, to_ingress=FEW, amid=st.booleans())
    def the_connection_breaks(self, to_adapter: int, to_ingress: int, amid: bool) -> None:
        """What is under way is lost, but for what had arrived already."""
        if amid:
            self.words_are_under_way()
        lost, self.wire = self.wire, Wire()
        for frame in list(lost.to_adapter)[:to_adapter]:
            self.adapter_gets(frame)
        for frame in list(lost.to_ingress)[:to_ingress]:
            self.ingress_gets(frame)
        self.done()

    @rule(count=st.integers(1, 2), towards=st.sampled_from(["adapter", "ingress"]))
    def the_next_batches_are_lost(self, count: int, towards: str) -> None:
        self.losing[towards] = count

    def words_are_under_way(self) -> None:
        """The model server has just answered, and a client has just left."""
        for connection in self.model.busy[:1]:
            self.model.finish(connection)
            while connection.carry():
                self.settle()
        for client in self.waiting()[-1:]:
            self._leaves(client)
        self.settle()

    @rule(amid=st.booleans())
    def the_connection_is_replaced(self, amid: bool) -> None:
        """What was under way may still arrive, at whoever is there then."""
        if amid:
            self.words_are_under_way()
        self.stale.append(self.wire)
        self.wire = Wire()
        self.done()

    @precondition(lambda self: any(old.to_adapter or old.to_ingress for old in self.stale))
    @rule(pick=PICK, adapter=st.booleans(), fits=st.booleans())
    def a_stale_batch_arrives(self, pick: int, adapter: bool, fits: bool) -> None:
        """``fits``: one with just the number that comes next."""
        self._stale_batch(pick, adapter, fits)
        self.done()

    def _stale_batch(self, pick: int, adapter: bool, fits: bool) -> None:
        ways = [old.to_adapter if adapter else old.to_ingress for old in self.stale]
        ways = [way for way in ways if way]
        if adapter and NAME in self.adapter.end.peers:
            number = self.adapter.end.peers[NAME].session._received + 1
        else:
            number = self.ingress.end.link._received + 1
        for way in ways if fits else ():
            for frame in way:
                if _header(frame)[2] == number:
                    way.remove(frame)
                    (self.adapter_gets if adapter else self.ingress_gets)(frame)
                    return
        if ways:
            frame = ways[pick % len(ways)].popleft()
            (self.adapter_gets if adapter else self.ingress_gets)(frame)

    @rule(adapter=st.booleans(), towards_adapter=st.booleans())
    def an_old_word_comes_late(self, adapter: bool, towards_adapter: bool) -> None:
        """Just when another session has begun, and with the number that is next there."""
        self.words_are_under_way()
        before = self.ingress.end.link.epoch
        if adapter:
            self._adapter_restarts()
        else:
            self.stale.append(self.wire)
            self.wire = Wire()
        for _ in range(3):
            self.now += 0.3
            self.tick()
            self.flow()
            if self.ingress.end.link.up and self.ingress.end.link.epoch != before:
                break
        self._stale_batch(0, towards_adapter, True)
        self.done()

    def tick(self) -> None:
        """Every timer of both processes."""
        self.ingress.end.tick(self.now)
        self.adapter.end.tick(self.now)
        self.ingress.answers.expire(self.now)
        self.adapter.runs.carry_out(self.adapter.queue.expire(self.now))
        self.adapter.desk.sweep()
        self.settle()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tick()
        self.done()

    @rule(seconds=st.sampled_from([3.0, 9.0, 21.0, 45.0]))
    def a_long_time_passes(self, seconds: float) -> None:
        """With the ends talking all the while, if the wire lets them."""
        for _ in range(int(seconds / 3)):
            self.now += 3.0
            self.tick()
            self.done()

    # ------------------------------------------------------------------ processes

    @rule(amid=st.booleans(), for_good=st.booleans())
    def the_adapter_dies(self, amid: bool, for_good: bool) -> None:
        """``for_good``: so ingress is told, but a person starts it again."""
        if amid:
            self.words_are_under_way()
        if for_good:
            self.ingress.answers.adapter_failed(self.now)
            assert not self.waiting(), "law 1: somebody was not told"
        self._adapter_restarts()
        self.done()

    def _adapter_restarts(self) -> None:
        old = self.adapter
        old.dead = True
        for connection in list(self.model.connections):
            self.model.forget(connection)  # the kernel closed them
        for dial in list(old.loop.dials):
            dial.cancel()
        self.stale.append(self.wire)
        self.wire = Wire()
        self.adapter = AdapterProcess(self)

    @rule()
    def the_adapter_drains(self) -> None:
        """It is asked to stop, and is started anew when nothing runs."""
        if not self.adapter.draining:
            self.adapter.draining = self.adapter.desk._draining = True
            self.adapter.runs.drain()
        elif self.adapter.empty:
            self._adapter_restarts()
        self.done()

    @rule(orderly=st.booleans())
    def ingress_ends(self, orderly: bool) -> None:
        old = self.ingress
        if orderly:
            old.admission.stopping = True
            self.done()
            old.answers.give_up(self.now)
            self.done()
            old.answers.close_departed()
            assert not old.admission.jobs and old.ledger.pending == 0
            assert not self.waiting(), "law 1: somebody was not told"
        self._judge_clients(old)  # nobody looks at them again
        old.dead = True
        for client in old.clients:
            client.gone = True  # whoever waited has seen the connection break
            self._check_client(client)
        self.stale.append(self.wire)
        self.wire = Wire()
        self.ingress = IngressProcess(self)
        self.done()

    # ------------------------------------------------------------------ the laws

    @invariant()
    def laws(self) -> None:
        ingress = self.ingress
        ledger = ingress.ledger
        ended = ledger.served + ledger.errored + ledger.cancelled + ledger.rejected
        assert ledger.received == ended + ledger.pending, "law 5 at the door"
        promised = sum(job.submit.workload for job in ingress.admission.jobs.values() if job.key)
        # whose client left, and of which the adapter has not said yet when they began
        promised += sum(
            ledger._open[key].workload for key, *_ in ingress.answers._departed.values()
        )
        assert ledger.pending == promised, "law 5: what is pending is what is promised"
        accounts = self.adapter.ledger
        ended = accounts.served + accounts.errored + accounts.cancelled + accounts.rejected
        assert accounts.received == ended + accounts.pending, "law 5 of sessions"
        self.adapter.check()
        self._judge_clients(ingress)

    def _judge_clients(self, ingress: IngressProcess) -> None:
        """Of each client so far, and for the last time of those that have ended or left."""
        for client in ingress.clients:
            promise = client.exchange.context
            if client.ended or client.gone:
                assert promise is None, "law 1: promised, although it has ended"
            else:
                assert isinstance(promise, Promise)
                assert ingress.admission.jobs.get(promise.submit.id) is promise, "law 1: forgotten"
            most = HIGH + MOST_CREDITS * CREDIT + 400
            assert client.max_unread <= most, "law 6: a slow client fills the memory"
            if client.ended or client.gone:
                self._check_client(client)
        ingress.clients[:] = [c for c in ingress.clients if not c.ended and not c.gone]

    def _check_client(self, client: Client) -> None:
        """Law 7: what it read is the beginning of one response; all of it, if it looks so."""
        seen = _Reader(bytes(client.raw), client.was_cut)
        assert seen.whole == (client.complete and not client.gone) or client.gone or client.refused
        if client.was_cut:
            assert not seen.whole, "law 7: cut, with a clean end"
        if client.number not in self.routes or not client.raw:
            return
        body = seen.body
        if b'{"error":{"kind"' in body:
            assert seen.status >= 400 or not seen.whole
            body = body[: body.index(b'{"error":{"kind"')].removesuffix(b"data: ")
            if not body:
                return
            body = body.removesuffix(b"\n\n")
        runs = self.model.runs[client.number]
        if seen.whole:
            fits = [run for run in runs if run.body == body and run.status == seen.status]
            assert any(run.ended for run in fits), "law 7: it looks whole, and is not"
        elif body:
            assert any(run.body.startswith(body) for run in runs), (
                "law 7: bytes of nobody, or twice"
            )

    def teardown(self) -> None:
        """Nothing breaks any more, and the model server answers: nothing is left."""
        self.full = self.deaf = False
        self.flowing = True
        self.stale.clear()
        self.losing.clear()
        self.model.alive = True
        if self.adapter.draining:
            self._adapter_restarts()
        self._quiet()
        assert not self.waiting(), "law 1: somebody waits for ever"
        ingress, adapter = self.ingress, self.adapter
        assert self.agreed, "the ends do not agree"
        assert not ingress.admission.jobs and ingress.ledger.pending == 0
        assert (
            not ingress.answers._departed
            and ingress.ledger.inside == 0
            and not ingress.ledger._open
        )
        assert not adapter.queue._jobs and adapter.queue.held_bytes == 0
        assert adapter.queue.outstanding == 0 and adapter.queue.waiting_bytes == 0
        assert not adapter.queue._lanes._lanes and adapter.queue.next_deadline() is None
        assert not adapter.runs.open and not adapter.in_flight() and not adapter.loop.dials
        assert all(adapter.told.values()), "law 1: a job without a terminal message"
        assert not self.model.busy
        assert not adapter.desk.open and adapter.ledger.pending == 0 and not self.files

    def _quiet(self) -> None:
        for turn in range(100):
            self.now += 0.3
            self.tick()
            self.flow()
            for connection in self.model.busy:
                if turn % 3 == 2:
                    self.model.finish(connection)
            for client in list(self.ingress.clients):
                self._reads(client, 10_000)
            self.flow()
            self.laws()
            if turn > 20 and not self.waiting():
                break
        self.now += 100_000.0
        for _ in range(3):  # sessions expire; the ends were mute, and find each other again
            self.tick()
            self.flow()


class _Reader:
    """What a client understands of the bytes that it got."""

    def __init__(self, data: bytes, closed: bool) -> None:
        self.whole = False
        self.status = 0
        self.body = b""
        parser = httptools.HttpResponseParser(self)
        if data:
            parser.feed_data(data)
            self.status = parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole = True


EXAMPLES = int(os.environ.get("TWO_ENDS_EXAMPLES", "500"))
TestTwoEnds = pytest.mark.timeout(max(600, EXAMPLES))(World.TestCase)
TestTwoEnds.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
)
