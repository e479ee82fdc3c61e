"""Row 32, strict mode: only what a client of the owner signed passes, and that once.

The example's client signs; two ingress processes share the port, so that a replay may reach the one
that has not seen the request.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from examples import strict_client
from ingress.message_signature import SKEW_S
from ingress.nonce_file import NAME
from tests.chaos.table import row
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, get_json, running

PAYLOAD = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
EXAMPLE = Path(strict_client.__file__)
Headers = dict[str, str]


class Scene:
    """A worker in strict mode, with two doors, and the key of its one client."""

    def __init__(self, worker: Worker, key: Path) -> None:
        self.worker = worker
        self.key_file = key
        self.key = strict_client.load_key(key)
        self.auth = worker.auth()

    def body(self, **more: Any) -> bytes:
        return json.dumps({"auth_data": self.auth, "payload": PAYLOAD} | more).encode()

    def signed(self, body: bytes, route: str = "/generate", **how: Any) -> Headers:
        return strict_client.signed_headers(self.key, "alice", self.worker.url + route, body, **how)

    def post(
        self, body: bytes, headers: Headers, route: str = "/generate"
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """One request on a connection of its own: status, error kind, headers."""
        connection = http.client.HTTPConnection(urlsplit(self.worker.url).netloc, timeout=30)
        try:
            connection.request("POST", route, body, headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            kind = told.get("error", {}).get("kind", "") if isinstance(told, dict) else ""
            return answer.status, kind, answer.headers
        finally:
            connection.close()

    def reached(self) -> int:
        stats = get_json(f"http://127.0.0.1:{self.worker.model_port}/demo/stats")
        return int(stats["requests"]) + int(stats["refused"])


def files_of(pid: int) -> set[str]:
    """Names of the files that a process has open."""
    names = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.add(os.readlink(fd))
    return names


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("strict")
    key = directory / "client.pem"
    made = subprocess.run(
        [sys.executable, EXAMPLE, "key", key, "--name", "alice"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert key.stat().st_mode & 0o777 == 0o600
    (line,) = [line for line in made.stdout.splitlines() if line.startswith("clients = ")]
    settings = ("worker.processes=2", "auth." + line.replace(" = ", "=", 1))
    with running(directory, settings=settings) as worker:
        yield Scene(worker, key)


@row(
    32,
    "strict mode: a request that no client of ours signed, or that was changed under way",
    seen="401 `client_signature_missing`, `unknown_client_key`, `bad_client_signature`,"
    " `body_changed` or `client_signature_expired`; 400 `client_signature_malformed`",
    does="refuses it by its head, before the body is read; nothing reaches the model server",
)
def test_row_32_unsigned_and_changed(scene: Scene) -> None:
    body = scene.body()
    good = scene.signed(body)
    before, said = scene.reached(), len(scene.worker.printed)
    status, kind, headers = scene.post(body, {})
    assert (status, kind) == (401, "client_signature_missing")
    assert headers["accept-signature"].startswith('client=("@method" "@target-uri"')
    stranger = strict_client.Ed25519PrivateKey.generate()
    url = f"{scene.worker.url}/generate"
    now = int(time.time())
    for headers_sent, expected in (
        (strict_client.signed_headers(scene.key, "bob", url, body), "unknown_client_key"),
        (strict_client.signed_headers(stranger, "alice", url, body), "bad_client_signature"),
        (scene.signed(body, "/v1/completions"), "bad_client_signature"),
        (scene.signed(body, "/generate?api_key=k"), "bad_client_signature"),
        (scene.signed(body, method="PUT"), "bad_client_signature"),
        (good | {"Content-Digest": scene.signed(b"{}")["Content-Digest"]}, "bad_client_signature"),
        (good | {"Signature": scene.signed(body)["Signature"]}, "bad_client_signature"),
        (scene.signed(body, created=now - 3600), "client_signature_expired"),
        (scene.signed(body, created=now + 3600), "client_signature_expired"),
        (strict_client.signed_headers(scene.key, "alice", "http://192.0.2.1:1/generate", body),
         "bad_client_signature"),
        (scene.signed(body + b" "), "body_changed"),
        (scene.signed(scene.body(payload={"inputs": "y"})), "body_changed"),
    ):  # fmt: skip
        assert scene.post(body, headers_sent)[:2] == (401, expected)
    for change in ({"Signature": "client=:AAAA:"}, {"Signature-Input": "client=()"}):
        told = scene.post(body, good | change)
        assert told[:2] == (400, "client_signature_malformed")
    # a stranger's body is not even read: the refusal comes while it is still to be sent
    connection = http.client.HTTPConnection(urlsplit(scene.worker.url).netloc, timeout=30)
    connection.putrequest("POST", "/generate")
    connection.putheader("content-length", str(2**20))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()
    # on top of the engine's signature, not in its place
    forged = scene.body(auth_data=scene.auth | {"signature": "AAAA"})
    assert scene.post(forged, scene.signed(forged))[:2] == (401, "bad_signature")
    stripped = scene.body(auth_data=None)
    assert scene.post(stripped, scene.signed(stripped))[:2] == (422, "missing_parameter")
    # the worker's own calls as well; the engine's by its token
    assert scene.post(body, {}, "/session/create")[:2] == (401, "client_signature_missing")
    assert scene.post(b"{}", {}, "/session/end")[:2] == (401, "client_signature_missing")
    assert scene.post(b"", {}, "/pyworker/update")[:2] == (401, "bad_token")
    assert scene.reached() == before
    new = scene.worker.printed[said:]
    assert "Traceback" not in new and "critical" not in new
    assert scene.post(body, good)[0] == 200
    session = scene.body(payload={"lifetime": 5})
    assert (
        scene.post(session, scene.signed(session, "/session/create"), "/session/create")[0] == 201
    )
    # a body that lies in a file is hashed like any other
    large = scene.body(more="x" * 3 * 2**20)
    assert scene.post(large, scene.signed(large))[0] == 200
    assert scene.post(large[:-2] + b"y}", scene.signed(large))[:2] == (401, "body_changed")
    query = "/generate?api_key=k"
    assert scene.post(body, scene.signed(body, query), query)[0] == 200


@row(
    32,
    "strict mode: a signed request is sent a second time, also to another ingress process or after"
    " a restart",
    seen="401 `nonce_used`",
    does="remembers each nonce for as long as its signature counts, in one file that every ingress"
    " process shares and that outlives them; makes the file again where somebody removes it; 503"
    " `nonce_unknown` where it cannot be asked",
)
def test_row_32_replays(scene: Scene) -> None:
    body = scene.body()
    doors = [scene.worker.pid(f"ingress-{number}") for number in (0, 1)]
    assert all(doors) and doors[0] != doors[1]
    before, each = scene.reached(), 20
    kinds: Counter[str] = Counter()
    for _ in range(each):
        headers = scene.signed(body)
        assert scene.post(body, headers)[0] == 200
        kinds.update(scene.post(body, headers)[1] for _ in range(3))
    # the kernel spreads connections over both: each has been asked about what the other took
    assert kinds == {"nonce_used": 3 * each}

    def both_took_some() -> bool:
        members = scene.worker.members()
        return all(members[f"ingress-{number}"]["gauges"]["requests"] for number in (0, 1))

    wait_until(both_took_some, what="the heartbeats that say so")
    headers = scene.signed(body, life_s=60)
    assert scene.post(body, headers)[0] == 200
    used = scene.worker.state_dir / NAME
    used.unlink()

    def both_have_another() -> bool:
        held = [files_of(pid) for pid in doors]
        return all(str(used) in each and f"{used} (deleted)" not in each for each in held)

    wait_until(both_have_another, what="the file to be made again")
    for number in (0, 1):
        old = scene.worker.kill(f"ingress-{number}")
        scene.worker.wait_replaced(f"ingress-{number}", old)
    assert scene.post(body, headers)[:2] == (401, "nonce_used")
    # nor does it help to remove the file, and whoever has seen the request
    path = scene.worker.state_dir / NAME
    held = path.read_bytes().translate(None, b"\0")
    path.unlink()

    def made_again() -> bool:
        return path.exists() and path.read_bytes().translate(None, b"\0") == held

    wait_until(made_again, what="the file made again with all it held")
    old = scene.worker.kill("ingress-0")
    scene.worker.wait_replaced("ingress-0", old)
    assert {scene.post(body, headers)[:2] for _ in range(each)} == {(401, "nonce_used")}
    assert scene.reached() == before + each + 1
    # SKEW_S later than it says, by our clock, it is refused as expired: nothing is kept for longer
    late = scene.signed(body, created=int(time.time()) - SKEW_S - 3, life_s=1)
    assert scene.post(body, late)[:2] == (401, "client_signature_expired")


@row(
    32,
    "strict mode: a client of the owner's asks, and one with another key",
    seen="the answer; 401 `bad_client_signature`",
    does="nothing else: `examples/strict_client.py` is a whole client",
)
def test_row_32_the_example_asks(scene: Scene) -> None:
    def ask(key: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, EXAMPLE, "ask", "--key", key, "--name", "alice",
             "--engine", scene.worker.engine, "--route", "/generate",
             "--payload", json.dumps(PAYLOAD)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    told = ask(scene.key_file)
    assert told.returncode == 0 and "generated_text" in told.stdout, told.stderr
    other = scene.key_file.with_name("other.pem")
    strict_client.make_key(other)
    told = ask(other)
    assert told.returncode == 1 and "bad_client_signature" in told.stderr
    told = ask(scene.key_file.with_name("none.pem"))
    assert told.returncode == 1 and "No such file" in told.stderr
    assert len(told.stderr.splitlines()) == 1
