"""Row 33: known secrets go in everywhere, everything fails, and none of them comes out anywhere.

What comes out is all that a person, a machine or the engine can read of a worker: logs, what it
prints, its state directory, its pages, its reports, its answers to errors, its command lines.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import io
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import pytest

from examples import strict_client
from supervisor import cli
from supervisor.control_client import ControlError
from supervisor.demo.signing import Signer
from supervisor.plan import free_port
from tests.chaos.table import row
from tests.compat.bench import on_the_bench
from tests.kit.certificates import make_pair
from tests.kit.wait import DEADLINE_S, wait_until
from tests.kit.worker import Worker, end

#: Each dies like this.
MEMBERS = {
    "reporter": signal.SIGKILL,
    "backend_adapter": signal.SIGKILL,
    "ingress-0": signal.SIGABRT,
    "model": signal.SIGKILL,
}
#: A model server that tells everything that it was given, on and on.
MODEL = """
import os, sys, threading, time
from supervisor.demo import model

def tell():
    while True:
        print("somebody told me THE_TOKEN", flush=True)
        print("given", sys.argv, dict(os.environ), flush=True)
        print("INFO key:", os.environ["HF_TOKEN"], "RuntimeError: Engine", sys.argv[-1], flush=True)
        time.sleep(0.5)

threading.Thread(target=tell, daemon=True).start()
model.main(sys.argv[1:3])
"""


def planted(name: str) -> str:
    """A secret that is found again, with letters that quoting and JSON write differently."""
    return f"{name}/+{secrets.token_hex(12)}"


def forms(secret: str) -> set[bytes]:
    """How it could stand somewhere, the ends of it included."""
    parts = {secret, secret[:-4], secret[4:]}
    written = {*parts, *map(quote, parts), *(quote(part, safe="") for part in parts)}
    written |= {json.dumps(part)[1:-1] for part in parts} | {
        part.replace("/", "\\/") for part in parts
    }
    return {text.encode() for text in written} | {base64.b64encode(secret.encode()).rstrip(b"=")}


class Parrot:
    """An engine that signs, keeps what it is told, and answers as ``mood`` says."""

    def __init__(self) -> None:
        self.signer = Signer.generate("url")
        self.mood = "good"
        self.told: list[bytes] = []
        self.moods: set[str] = set()
        parrot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(200, "text/plain", parrot.signer.public_pem.encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                parrot.told.append(body)
                parrot.moods.add(parrot.mood)
                if parrot.mood == "good":
                    self.say(200, "application/json", b'{"success": true}')
                elif parrot.mood == "500":
                    self.say(500, "application/json", body)
                elif parrot.mood == "garbage":
                    self.say(200, "application/json", b"you said " + body)
                elif parrot.mood == "redirect":
                    self.say(302, "text/plain", body, f"http://127.0.0.1:1/{quote(body)}")
                else:  # what is no HTTP at all
                    self.wfile.write(body + b"\r\n\r\n")
                    self.close_connection = True

            def say(self, status: int, kind: str, body: bytes, location: str = "") -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                if location:
                    self.send_header("location", location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Parrot:
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def auth(self, url: str) -> dict[str, Any]:
        signature = self.signer.sign(cost=2.0, endpoint="e", reqnum=7, url=url)
        return {"signature": signature, "cost": 2.0, "endpoint": "e", "reqnum": 7,
                "request_idx": 4, "url": url}  # fmt: skip

    @property
    def reports(self) -> bytes:
        """All that it was told, without the token, which is told by the protocol."""
        told = []
        for body in self.told:
            report = json.loads(body)
            report.pop("mtoken")
            told.append(json.dumps(report).encode())
        return b"\n".join(told)


class Out:
    """Everything that came out, by where."""

    def __init__(self) -> None:
        self.places: dict[str, bytes] = {}

    def add(self, place: str, content: bytes | str) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        self.places[place] = self.places.get(place, b"") + b"\n" + raw

    def tree(self, directory: Path) -> None:
        """Every file below."""
        for path in directory.rglob("*"):
            if path.is_file():
                self.add(str(path), path.read_bytes())

    def leaks(self, known: dict[str, str]) -> list[str]:
        """Where a secret stands, with what is around it."""
        found = []
        for place, content in self.places.items():
            for name, secret in known.items():
                for form in forms(secret):
                    at = content.find(form)
                    if at >= 0:
                        around = content[max(0, at - 120) : at + len(form) + 40]
                        found.append(f"{name} in {place}: {around!r}")
                        break
        return found


def say(worker_dir: Path, *args: str, **env: str) -> str:
    """A command, as a person types it: everything that it prints."""
    told = subprocess.run(
        [sys.executable, "-m", "supervisor", *args], cwd=worker_dir, env=os.environ | env,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return told.stdout + told.stderr


def page(url: str) -> bytes:
    """GET, whatever the status."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_S)
    try:
        connection.request("GET", urlsplit(url).path)
        answer = connection.getresponse()
        return str(answer.getheaders()).encode() + answer.read()
    finally:
        connection.close()


def look(worker: Worker, out: Out) -> None:
    """What can be read of a running worker."""
    # a reporter that was started again is ready before its pages are
    wait_until(lambda: _listens(worker.facts()["admin_url"]), what="the pages")
    out.add("status --json", json.dumps(worker.status()))
    for path in ("/healthz", "/readyz", "/metrics"):
        out.add(path, page(worker.facts()["admin_url"] + path))
    for name, member in worker.members().items():
        if name != "model" and member["pid"]:
            out.add(f"command line of {name}", Path(f"/proc/{member['pid']}/cmdline").read_bytes())


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) == 0


@contextmanager
def raw(url: str, out: Out) -> Iterator[Any]:
    """Sends bytes over TLS; what is answered came out."""
    context = ssl._create_unverified_context()
    host, port = urlsplit(url).hostname, urlsplit(url).port

    def send(data: bytes) -> bytes:
        with (
            socket.create_connection((host, port), DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(data)
            answer = http.client.HTTPResponse(secure)
            answer.begin()
            told = f"HTTP/1.1 {answer.status} {answer.reason}\r\n{answer.headers}\r\n\r\n"
            return told.encode() + answer.read()

    def told(data: bytes, secretive: bool = False) -> bytes:
        answer = send(data)
        if not secretive:
            out.add("answers", answer)
        return answer

    yield told


@row(
    33,
    "a secret comes by any way: the engine's token, a key in a command line or an environment, a"
    " client's keys, signatures and sessions, a private key; and then everything fails",
    seen="`***`, or nothing, in every log, answer, report, page, printed line and file",
    does="masks what it knows to be secret; never repeats what a client sent in its headers, query"
    " or auth_data",
)
def test_row_33_no_secret_comes_out(tmp_path: Path) -> None:
    known = {
        name: planted(name)
        for name in (
            "token", "hf", "openai", "flag", "query", "bearer", "cookie", "header", "payload",
            "garbled", "field",
        )
    }  # fmt: skip
    cert, key = make_pair(tmp_path, "127.0.0.1")
    client = strict_client.make_key(tmp_path / "client.pem")
    for file, name in ((key, "tls"), (tmp_path / "client.pem", "strict")):
        known[name] = file.read_text().splitlines()[1][-40:]
    (tmp_path / "model.py").write_text(MODEL.replace("THE_TOKEN", known["token"]))
    port = free_port("127.0.0.1")
    command = [sys.executable, str(tmp_path / "model.py"), "--port", str(port)]
    command += ["--api-key", known["flag"]]
    toml = (
        f"[model]\ncommand = {json.dumps(command)}\nurl = 'http://127.0.0.1:{port}'\n"
        "health = '/health'\nerror_log = ['RuntimeError: Engine']\ninfo_log = ['INFO key']\n"
        f"env = {{ OPENAI_API_KEY = {json.dumps(known['openai'])} }}\n"
        f"[tls]\nenabled = true\ncert = '{cert}'\nkey = '{key}'\n"
        "[engine]\ntries = 1\nretry_s = 0\ntimeout_s = 3\nreport_every_s = 1\n"
        f"[auth]\nclients = {{ alice = '{strict_client.public_text(client)}' }}\n"
        "[worker]\nlog_level = 'debug'\n"
    )
    out = Out()
    with Parrot() as engine:
        environ = {
            "MASTER_TOKEN": known["token"],
            "HF_TOKEN": known["hf"],
            "REPORT_ADDR": engine.url,
        }
        worker = Worker(tmp_path, toml=toml, environ=environ).start()
        try:
            wait_until(lambda: _up(worker), 60.0, "the door, and the key")
            _requests(worker, engine, client, known, out)
            look(worker, out)
            for mood in ("500", "garbage", "redirect", "noise"):
                engine.mood = mood
                wait_until(lambda mood=mood: mood in engine.moods, what=f"a report met by {mood}")
                wait_until(lambda: worker.status()["load"].get("last_post_error"), what="an error")
                look(worker, out)
            engine.mood = "good"
            olds = {name: worker.kill(name, number) for name, number in MEMBERS.items()}
            for name, old in olds.items():
                worker.wait_replaced(name, old)
                look(worker, out)
            for words in (
                ("status",),
                ("status", "--json"),
                ("logs", "model"),
                ("logs", "supervisor"),
            ):
                said = say(tmp_path, *words, "--state-dir", str(worker.state_dir))
                out.add(" ".join(words), said)
            _bad_settings(worker, known, environ, out)
            heard = len(engine.told)
            wait_until(lambda: len(engine.told) > heard, what="a report after all that")
            assert worker.stop() == 0
        finally:
            end(worker)
        out.add("reports", engine.reports)
    out.tree(worker.state_dir)
    out.add("printed", worker.printed)
    assert known["token"].encode() in b"".join(engine.told)  # it did go where it belongs
    assert b"given" in b"".join(out.places.values())  # and the model server did tell all
    leaks = out.leaks(known)
    assert not leaks, "\n".join(leaks)


def _up(worker: Worker) -> bool:
    gauges = worker.members().get("ingress-0", {}).get("gauges", {})
    return bool(gauges) and not gauges["lacks_key"]


def _requests(worker: Worker, engine: Parrot, client: Any, known: dict[str, str], out: Out) -> None:
    """Good ones and bad ones of every kind, all full of secrets."""
    url = worker.url
    auth = engine.auth(url)
    known["signature"] = auth["signature"][:60]
    payload = {"inputs": known["payload"], "parameters": {"max_new_tokens": 2}}

    def request(
        route: str, body: bytes, *more: str, signed: bool = True, as_: str = "POST"
    ) -> bytes:
        target = f"{route}?api_key={known['query']}"
        lines = [
            f"{as_} {target} HTTP/1.1", "host: w", f"content-length: {len(body)}",
            f"authorization: Bearer {known['bearer']}", f"cookie: a={known['cookie']}",
            f"x-api-key: {known['header']}", "connection: close", *more,
        ]  # fmt: skip
        if signed:
            made = strict_client.signed_headers(client, "alice", url + target, body)
            known[f"own signature {len(known)}"] = made["Signature"][9:60]
            lines += [f"{name}: {value}" for name, value in made.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def envelope(**more: Any) -> bytes:
        return json.dumps({"auth_data": auth, "payload": payload} | more).encode()

    forged = auth | {"signature": base64.b64encode(known["field"].encode() * 8).decode()}
    known["forged"] = forged["signature"][:40]
    with raw(url, out) as send:
        answer = send(request("/generate", envelope()), secretive=True)
        assert b" 200 " in answer.splitlines()[0] and b"generated_text" in answer, answer
        large = envelope(payload=payload | {"more": known["payload"] * 20_000})  # lies in a file
        assert b" 200 " in send(request("/generate", large), secretive=True).splitlines()[0]
        for data in (
            request("/generate", envelope(), signed=False),
            request("/generate", large, signed=False),
            request("/generate", large[:-1]),
            request("/generate", envelope(), "signature: client=:AAAA:"),
            request("/generate", envelope(auth_data=forged)),
            request("/generate", envelope(auth_data=auth | {"url": f"http://{known['field']}"})),
            request("/generate", envelope(auth_data=auth | {"reqnum": known["field"]})),
            request("/generate", envelope(auth_data=auth | {"url": known["field"] * 500})),
            request("/generate", envelope(auth_data=known["field"])),
            request("/generate", envelope(auth_data=None)),
            request("/generate", envelope(payload=known["field"])),
            request("/generate", envelope(payload=None)),
            request("/generate", envelope(session_id=known["field"])),
            request("/generate", envelope(session_id=[known["field"]])),
            request("/generate", envelope()[:-30] + known["garbled"].encode()),
            request("/generate", b"\xff" + known["garbled"].encode()),
            request("/generate", b"[" * 20_000 + known["garbled"].encode()),
            request("/generate", envelope(), "transfer-encoding: chunked"),
            request("/generate", envelope(), f"x-long: {known['field'] * 4000}"),
            request("/generate", envelope(), f"bad header {known['field']}: x"),
            request("/generate", envelope(), f"expect: {known['field']}"),
            request("/generate", envelope(), f"content-encoding: {known['field']}"),
            request(f"/{known['field']}", envelope()),
            request(f"/{'x' * 9000}{known['field']}", envelope()),
            request("/generate", envelope(), as_=known["field"].partition("/")[0].upper()),
            request("/pyworker/update", b"", f"x: {known['field']}"),
            request("/session/create", envelope(payload={"lifetime": known["field"]})),
            request("/session/create", envelope(payload={"on_close_route": known["field"]})),
            request("/session/create", envelope(auth_data=forged)),
            request("/session/get", json.dumps({"session_id": known["field"]}).encode()),
            request("/session/end", known["garbled"].encode()),
        ):
            answer = send(data)
            status = int(answer.split()[1])
            assert 400 <= status < 600 and status != 500, (data[:200], answer)
        answer = send(
            request("/session/create", envelope(payload={"lifetime": 300})), secretive=True
        )
        session = json.loads(answer.rpartition(b"\r\n\r\n")[2])["session_id"]
        known["session"] = session
        wrong = auth | {"endpoint": known["field"]}
        for proof, status in ((wrong, b"401"), (known["field"], b"422"), (auth, b"200")):
            body = json.dumps({"session_id": session, "session_auth": proof}).encode()
            answer = send(request("/session/get", body), secretive=proof is auth)
            assert answer.split()[1] == status, answer


def _bad_settings(worker: Worker, known: dict[str, str], env: dict[str, str], out: Out) -> None:
    """A reload, a check and a start of settings in which the secrets stand where they must not."""
    good = worker.file.read_text()
    for bad in (
        f"[model]\nenv = {json.dumps('HF_TOKEN=' + known['hf'])}\n",
        f"[model]\nenv = [{json.dumps(known['openai'])}]\n",
        f"[model]\ncommand = {json.dumps('serve --api-key ' + known['flag'])}\n",
        f"[engine]\ntoken = [{json.dumps(known['token'])}]\n",
        f"[engine]\ntoken = {json.dumps(known['token'] * 2)} x\n",
        f"[engine]\naddresses = [{json.dumps('https://me:' + known['token'] + '@h')}]\n",
        f"[auth]\nclients = {{ alice = {json.dumps(known['strict'])} }}\n",
        f"[auth]\nclients = {json.dumps(known['strict'])}\n",
        f"[{json.dumps(known['token'])}]\n",
        "[engine]\ntoken = " + json.dumps(known["token"]) + "\ntoken = 1\n",
    ):
        broken = worker.directory / "broken.toml"
        broken.write_text(bad)
        with mock.patch.dict(os.environ, env), redirect_stderr(io.StringIO()) as told:
            assert cli.main(["check", str(broken)]) == 78
        out.add("check", told.getvalue())
        worker.file.write_text(bad)
        with pytest.raises(ControlError) as refused:
            worker.command("reload")
        out.add("reload", str(refused.value))
    worker.file.write_text(good)
    out.add("check", say(worker.directory, "check", str(worker.file), **env))
    out.add("start", say(worker.directory, str(worker.file), "--state-dir", str(worker.state_dir),
                         "--set", "worker.port=0", **env))  # fmt: skip
    out.add("start", say(worker.directory, "broken.toml", "--set", "engine.beacon_s=0", **env))


SCRIPT = """
import os
from vastai import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

print("began with", dict(os.environ), flush=True)

def parse(payload):
    if payload.get("fail") == "parse":
        raise RuntimeError(f"no way: {payload}")
    return payload

def work(payload):
    if payload.get("fail") == "work":
        raise KeyError(f"{payload['prompt'][:30]}…")
    return 1.0

async def answer(request, response):
    raise RuntimeError(f"{await request.json()} {dict(request.headers)} {request.url}")

async def remote(**params):
    raise RuntimeError(repr(params))

Worker(WorkerConfig(
    model_server_url="http://127.0.0.1", model_server_port=PORT, model_log_file=LOG,
    handlers=[
        HandlerConfig(route="/plain", request_parser=parse, workload_calculator=work),
        HandlerConfig(route="/formed", response_generator=answer),
        HandlerConfig(route="/remote", is_remote_dispatch=True, remote_function=remote),
    ],
)).run()
"""


@row(
    33,
    "a function of a worker.py raises an exception that holds what the client sent, or the file"
    " prints its environment",
    seen="500 `hook_failed` with the exception's type; in the log its trace, with `***` for every"
    " text of the request",
    does="keeps the engine's token from the file altogether; masks other secrets that it prints",
)
def test_row_33_a_worker_py_tells_no_secret(tmp_path: Path) -> None:
    known = {name: planted(name) for name in ("token", "hf", "bearer", "header", "query", "prompt")}
    out = Out()
    with on_the_bench(
        tmp_path, SCRIPT, "--set", "engine.local_port=0",
        MASTER_TOKEN=known["token"], HF_TOKEN=known["hf"],
    ) as bench:  # fmt: skip
        bench.until_ready()
        headers = {"authorization": f"Bearer {known['bearer']}", "x-api-key": known["header"]}
        secret = {"prompt": known["prompt"], "deep": [{"key": known["prompt"]}]}
        for route, fail, status in (
            ("/plain", "parse", 500), ("/plain", "work", 200), ("/formed", "", 500),
            ("/remote", "", 500),
        ):  # fmt: skip
            asked = f"{route}?api_key={known['query']}"
            answered = bench.ask(asked, secret | {"fail": fail}, headers)
            assert answered[0] == status, answered
            if status == 500:
                out.add("answers", answered[2])
        hooks = bench.member("hooks")
        environ = Path(f"/proc/{hooks['pid']}/environ").read_bytes()
        assert known["token"].encode() not in environ and known["hf"].encode() in environ
        for words in (("status",), ("status", "--json"), ("logs", "hooks")):
            told = bench.say(*words)
            out.add(" ".join(words), told.stdout + told.stderr)
        bench.signal(signal.SIGTERM)
        assert bench.until_gone() == 0
        out.tree(Path(bench.state_dir))
        out.add("printed", bench.output)
        said = bench.said()
    assert said.count("RuntimeError: ") >= 3 and "KeyError: " in said and "began with" in said
    leaks = out.leaks(known)
    assert not leaks, "\n".join(leaks)
