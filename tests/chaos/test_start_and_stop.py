"""The worker's beginning and its end, when they do not go as planned; and a reload in between."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from supervisor.exit_codes import ExitCode
from supervisor.run_lock import read_running
from tests.chaos.table import row
from tests.kit.certificates import make_pair
from tests.kit.kept_client import Clients, raw_request
from tests.kit.load import Load
from tests.kit.recording_engine import RecordingEngine
from tests.kit.running_worker import ANY_PORT, RunningWorker, command, environment
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, post_json, running

PACE = ("--tokens-per-second", "25")


def run(directory: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    return subprocess.run(
        command(*args), cwd=directory, env=environment(**env), capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip


# ---------------------------------------------------------------------------- row 22


@row(
    22,
    "the worker is started twice with one state directory",
    seen="the second ends with exit 75 and names the pid and the directory of the first",
    does="the kernel's lock on run.lock decides; the first does not notice",
)
def test_row_22_started_twice_the_second_names_the_first(tmp_path: Path) -> None:
    with RunningWorker(tmp_path) as worker:
        pid = worker.facts()["pid"]
        second = run(tmp_path, *ANY_PORT, "--state-dir", worker.state_dir)
        assert second.returncode == ExitCode.ALREADY_RUNNING
        assert f"pid {pid}" in second.stderr and worker.state_dir in second.stderr
        assert worker.process.poll() is None
        assert worker.until_ready()["ready"]


@row(
    22,
    "a lock file of a worker that is gone names the pid of a process that lives",
    seen="nothing: the worker starts",
    does="asks the kernel who holds the lock, and believes no file",
)
def test_row_22_a_stale_lock_file_is_harmless(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    # nothing of a stranger's may be swept because a file says so: our own directory must stay
    kept = tmp_path / "kept"
    kept.mkdir()
    facts = {"pid": os.getpid(), "runtime_dir": str(kept), "worker_url": "http://127.0.0.1:9"}
    (state / "run.lock").write_text(json.dumps(facts))
    with running(tmp_path) as worker:
        assert worker.facts()["pid"] == worker.process.pid
        assert kept.is_dir()
    assert read_running(str(state)) is None


# ---------------------------------------------------------------------------- row 23


def body_of(auth: dict[str, Any], tokens: int) -> bytes:
    payload = {"inputs": "x", "parameters": {"max_new_tokens": tokens}}
    return json.dumps({"auth_data": auth, "payload": payload}).encode()


@row(
    23,
    "SIGTERM while requests run",
    seen="requests that run are answered, with Connection: close; one that arrives on an open"
    " connection, or had connected and not asked yet, gets 503 `draining` with Retry-After; a new"
    " connection is refused; exit 0",
    does="closes the port, tells the engine at once that it stops, lets what runs end, then stops"
    " ingress, adapter, model server and reporter, which says it in the last report",
)
def test_row_23_sigterm_lets_requests_end_and_the_engine_know(tmp_path: Path) -> None:
    with RecordingEngine() as engine, Clients() as clients:
        env = {"REPORT_ADDR": engine.url, "MASTER_TOKEN": "t0k3n", "CONTAINER_ID": "5"}
        with running(tmp_path, model_flags=PACE, environ=env) as worker:
            client, other = clients.of(worker.url), clients.of(worker.url)
            client.send("/generate", body_of(engine.auth(worker.url, 1), 75))
            wait_until(lambda: worker.status()["queue"].get("running") == 1, what="it to run")
            address, url = urlsplit(worker.url), worker.url
            late = clients.of(worker.url)
            begun, rest = halves("/generate", body_of(engine.auth(url, 2), 1))
            late.socket.sendall(begun)
            busy(worker, 3)
            ends = Ends({name: worker.pid(name) for name in ORDER})
            clients.callback(ends.close)
            worker.process.terminate()
            wait_until(lambda: not connects(address.hostname, address.port), what="a closed port")
            assert b'"kind":"draining"' in other.file.read()  # it had connected to ask something
            wait_until(lambda: told_to_stop(engine), what="the engine to hear of it")
            late.socket.sendall(rest)
            status, headers, body = late.answer()
            assert (status, json.loads(body)["error"]["kind"]) == (503, "draining")
            assert int(headers["retry-after"]) >= 1
            status, headers, body = client.answer()
            assert status == 200 and "generated_text" in json.loads(body)
            assert headers["connection"] == "close"
            assert worker.process.wait(60) == ExitCode.CLEAN
        report = engine.of(5).statuses[-1]
        assert "stop" in report["error_msg"] and report["cur_load"] == 0
        assert report["num_requests_working"] == 0
        assert [(r["request_idx"], r["status"]) for r in engine.of(5).rows] == [(1, "Success")]
        turns = [ends.of(name) for name in ORDER]
        assert turns == sorted(turns) and turns[0] < turns[-1], turns


def halves(path: str, body: bytes) -> tuple[bytes, bytes]:
    """A request in two pieces, cut within its head."""
    whole = raw_request(path, body)
    return whole[:20], whole[20:]


def busy(worker: Worker, connections: int) -> None:
    """Ingress has accepted so many, and read what they sent."""

    def accepted() -> bool:
        return bool(worker.members()["ingress-0"]["gauges"]["connections"] == connections)

    wait_until(accepted, what="ingress to have accepted them")


ORDER = ("ingress-0", "backend_adapter", "model", "reporter")


class Ends:
    """The order in which processes end; those that do at one look have the same turn."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._names = {os.pidfd_open(pid): name for name, pid in pids.items()}
        self._turns: dict[str, int] = {}
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        left, turn = set(self._names), 0
        while left:
            ended = select.select(left, [], [], 60)[0]
            self._turns |= {self._names[fd]: turn for fd in ended}
            left, turn = left - set(ended) if ended else set(), turn + 1

    def of(self, name: str) -> int:
        """Its turn, once all have ended."""
        self._thread.join()
        return self._turns[name]

    def close(self) -> None:
        self._thread.join()
        for fd in self._names:
            os.close(fd)


def told_to_stop(engine: RecordingEngine) -> bool:
    statuses = engine.of(5).statuses
    return bool(statuses) and "stop" in statuses[-1]["error_msg"]


def connects(host: str | None, port: int | None) -> bool:
    try:
        socket.create_connection((host or "", port or 0), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@row(
    23,
    "requests that are not done at the drain deadline",
    seen="503 draining for what had not begun to be answered; a begun stream ends with an error"
    " event of kind draining and an aborted body; exit 0",
    does="cuts them off when worker.drain_s is over, and goes on stopping",
)
def test_row_23_the_drain_deadline_cuts_off_what_still_runs(tmp_path: Path) -> None:
    async def scene(worker: Worker, auth: dict[str, Any]) -> tuple[Any, Any]:
        async with Load(worker.url, auth) as load:
            whole = load.start("/generate", json.loads(body_of({}, 5000))["payload"])
            stream = {"prompt": "x", "max_tokens": 5000, "stream": True}
            begun = load.start("/v1/completions", stream)
            await asyncio.to_thread(
                wait_until, lambda: worker.status()["queue"].get("running") == 2, 60, "both to run"
            )
            await asyncio.to_thread(wait_until, lambda: served(worker) > 20, 60, "some tokens")
            worker.process.terminate()
            return await whole, await begun

    with running(tmp_path, model_flags=PACE, settings=("worker.drain_s=1",)) as worker:
        whole, begun = asyncio.run(scene(worker, worker.auth()))
        assert (whole.kind, whole.status) == ("draining", 503)
        assert (begun.kind, begun.status) == ("broken", 200)
        assert b'"kind":"draining"' in begun.body.rpartition(b"data: ")[2]
        assert worker.process.wait(60) == ExitCode.CLEAN
        assert worker.leftovers() == []


def served(worker: Worker) -> float:
    stats = get_json(f"http://127.0.0.1:{worker.model_port}/demo/stats")
    return float(stats["served_tokens"])


@row(
    23,
    "a second SIGTERM while it drains",
    seen="connections end at once; nothing of the worker is left within seconds",
    does="waits for nobody any more: kills the whole run, and ends",
)
def test_row_23_a_second_sigterm_ends_all_now(tmp_path: Path) -> None:
    settings = ("worker.drain_s=600",)
    with (
        running(tmp_path, model_flags=PACE, settings=settings) as worker,
        Clients() as clients,
    ):
        client = clients.of(worker.url)
        client.send("/generate", body_of(worker.auth(), 50_000))
        wait_until(lambda: worker.status()["queue"].get("running") == 1, what="it to run")
        worker.process.terminate()
        wait_until(lambda: worker.status().get("stopping"), what="it to drain")
        time.sleep(1.0)  # sooner it would be the same wish (child.SAME_SIGNAL_S)
        assert worker.process.poll() is None
        worker.process.terminate()
        assert worker.process.wait(30) == ExitCode.CLEAN
        assert "asked twice" in worker.printed
        assert worker.leftovers() == []


# ---------------------------------------------------------------------------- row 24


@row(
    24,
    "reload with new routes, and with changes that only a new start can take",
    seen="new routes answer at once; the command and the log name the sections that were not taken",
    does="takes the routes, leaves the rest as it was for every process, restarted ones too",
)
def test_row_24_reload_takes_routes_and_says_what_needs_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        url, text = worker.url, worker.file.read_text()
        more = '[[route]]\npath = "/more"\nupstream = "/generate"\n'
        worker.file.write_text(f"[worker]\ndrain_s = 1\nadmin_port = 1\n{text}{more}")
        said = worker.command("reload")
        assert said == "routes taken; start the worker anew for what changed in worker"
        wait_until(lambda: "worker" in worker.printed.rpartition("reload: ")[2], what="a word")
        assert worker.status()["urls"]["worker"] == url
        old = worker.kill("reporter")
        worker.wait_replaced("reporter", old)
        wait_until(lambda: worker.status()["ready"], what="ready, on the ports from before")
        body = {"auth_data": worker.auth(), "payload": {"inputs": "x"}}
        assert "generated_text" in post_json(f"{url}/more", body)


@row(
    24,
    "reload (or SIGHUP) with settings that are wrong",
    seen="`reload` ends with exit 1 and every fault; SIGHUP says them in the log; requests are"
    " answered as before",
    does="checks the new settings as a whole first; as they are wrong, nothing changes, not even"
    " the routes that were right",
)
def test_row_24_bad_settings_keep_the_old(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        good = worker.file.read_text()
        more = '[[route]]\npath = "/more"\nupstream = "/generate"\n'
        worker.file.write_text(
            good.replace("/generate_stream", "/gone") + more + "[queue]\na = 1\n"
        )
        ended = run(tmp_path, "reload", "--state-dir", str(worker.state_dir))
        assert ended.returncode == ExitCode.NOT_READY
        assert "queue" in ended.stderr and "worker.toml:" in ended.stderr
        worker.file.write_text("[[route]\n")
        os.kill(worker.process.pid, signal.SIGHUP)
        wait_until(lambda: worker.printed.count("nothing changed") == 2, what="it to say so twice")
        asked = {"auth_data": worker.auth(), "payload": {"inputs": "x"}}
        for path, known in (("/generate", True), ("/generate_stream", True), ("/more", False)):
            answer = ask_status(f"{worker.url}{path}", asked)
            assert (answer == 200) is known, (path, answer)
        assert {member["restarts"] for member in worker.members().values()} == {0}
        worker.file.write_text(good + more)
        os.kill(worker.process.pid, signal.SIGHUP)
        wait_until(
            lambda: ask_status(f"{worker.url}/more", asked) == 200,
            what="the new route",
        )  # fmt: skip


def ask_status(url: str, body: Any) -> int:
    async def ask() -> int:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            await answer.read()
            return answer.status

    return asyncio.run(ask())


@row(
    24,
    "the certificate's files change; once they hold nonsense",
    seen="new connections get the new certificate; open ones, and the stream on them, go on;"
    " while the files are broken, the last good certificate; the log says why",
    does="looks at the files every second and at `reload`, checks the pair, and takes it for new"
    " handshakes only",
)
def test_row_24_certificates_change_without_dropping_a_connection(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "first")
    settings = ("tls.enabled=true", f"tls.cert={cert}", f"tls.key={key}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def shown(worker: Worker) -> bytes:
        with Clients() as short:
            connection = short.of(worker.url, context).socket
            assert isinstance(connection, ssl.SSLSocket)
            return connection.getpeercert(binary_form=True) or b""

    with (
        running(tmp_path, settings=settings, model_flags=PACE) as worker,
        Clients() as clients,
    ):
        auth, old, pid = worker.auth(), shown(worker), worker.pid("ingress-0")
        kept, streaming = clients.of(worker.url, context), clients.of(worker.url, context)
        kept.send("/generate", body_of(auth, 1))
        assert kept.answer()[0] == 200
        stream = {"prompt": "x", "max_tokens": 100, "stream": True}
        asked = {"auth_data": auth, "payload": stream}
        streaming.send("/v1/completions", json.dumps(asked).encode())
        assert b"200" in streaming.file.readline()
        make_pair(tmp_path, "second")
        wait_until(lambda: shown(worker) != old, what="the new certificate to be used")
        new, good = shown(worker), Path(cert).read_bytes()
        Path(cert).write_bytes(b"-----BEGIN NONSENSE-----\n")
        run(tmp_path, "reload", "--state-dir", str(worker.state_dir))
        wait_until(lambda: "certificate" in worker.printed, what="a word about it")
        assert shown(worker) == new
        Path(cert).write_bytes(good)
        kept.send("/generate", body_of(auth, 1))
        assert kept.answer()[0] == 200, "on the connection from before"
        rest = b""
        while b"data: [DONE]" not in rest:
            rest += streaming.file.readline()
        assert worker.pid("ingress-0") == pid
