"""Row 32: whoever the engine did not send is refused by a check of its own, and costs nothing else.

Over the wire at real workers, with the real key of the local engine, so that every forgery here is
as good as a forgery can be.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervisor.demo.signing import Scheme, Signer
from tests.chaos.table import row
from tests.kit.demo_programs import Program
from tests.kit.demo_programs import running as program
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, end, get_json, running

Json = dict[str, Any]
PAYLOAD: Json = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
FIELDS = ("signature", "cost", "endpoint", "reqnum", "request_idx", "url")


@dataclass
class Scene:
    """A worker, an engine, and the engine's private key in our hand."""

    worker: Worker
    engine: Program
    signer: Signer
    stranger: Signer
    url: str

    def auth(self, url: str | None = None, by: Signer | None = None, **fields: Any) -> Json:
        """auth_data as the engine would make it; ``url``, ``by``: for whom, and by which key."""
        signed: Json = {"cost": 2.0, "endpoint": "e", "reqnum": 7, "url": url or self.url}
        signed |= fields
        signature = (by or self.signer).sign(**signed)
        return {"signature": signature, "request_idx": 4, **signed}

    def post(self, body: Any, route: str = "/generate") -> tuple[int, Json, dict[str, str]]:
        """One request on a connection of its own: status, JSON, headers."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection.request("POST", route, raw, {"content-type": "application/json"})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(answer.read()), headers
        finally:
            connection.close()

    def ask(self, auth: Any) -> tuple[int, str]:
        """Status and error kind ("" for none) of a request with this auth_data."""
        status, answer, _ = self.post({"auth_data": auth, "payload": PAYLOAD})
        return status, answer.get("error", {}).get("kind", "")

    def reached(self) -> int:
        """Requests that the model server has seen, good or bad."""
        stats = get_json(f"http://127.0.0.1:{self.worker.model_port}/demo/stats")
        return int(stats["requests"]) + int(stats["refused"])

    def lines(self) -> str:
        """Everything that anybody logged or printed."""
        logs = sorted((self.worker.state_dir / "logs").iterdir())
        return "\n".join([self.worker.printed, *(log.read_text(errors="replace") for log in logs)])


@contextmanager
def scene(
    directory: Path, scheme: Scheme, ready: bool = True, settings: tuple[str, ...] = ()
) -> Iterator[Scene]:
    """``ready`` False: the engine does not tell its key, and the worker waits for it."""
    key = directory / "engine.pem"
    flags = ("--scheme", scheme, "--key", str(key))
    with program("supervisor.demo.engine", directory / "engine.log", *flags) as engine:
        engine.listening()
        if not ready:
            engine.post("/demo/fault", {"kind": "down", "path": "/pubkey/"})
        options: Any = {
            "settings": (
                f"auth.scheme={scheme}",
                f"engine.addresses=http://127.0.0.1:{engine.port}",
                *settings,
            )
        }
        signer, stranger = Signer.from_file(key, scheme), Signer.generate(scheme)
        if ready:
            with running(directory, **options) as worker:
                yield Scene(worker, engine, signer, stranger, worker.url)
            return
        worker = Worker(directory, **options).start()
        try:
            wait_until(
                lambda: (
                    worker.status()["members"] and worker.members()["ingress-0"]["state"] == "ready"
                ),
                what="a door",
            )
            yield Scene(worker, engine, signer, stranger, worker.url)
        finally:
            end(worker)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("today"), "url") as made:
        yield made


@contextmanager
def nothing_reaches_the_model(at: Scene) -> Iterator[None]:
    """What is sent inside is refused by checks: no model server, no traceback, no error of ours."""
    before, said = at.reached(), len(at.lines())
    yield
    assert at.reached() == before
    new = at.lines()[said:]
    assert "Traceback" not in new, new
    assert "critical" not in new, new


def refused(at: Scene, auth: Any, status: int, kind: str, words: str = "") -> None:
    """It is refused like this, and in these words."""
    got, answer, _ = at.post({"auth_data": auth, "payload": PAYLOAD})
    error = answer.get("error", {})
    assert (got, error.get("kind")) == (status, kind), (auth, answer)
    assert words in error["message"], answer


# ---------------------------------------------------------------------------- today's scheme


@row(
    32,
    "a signature is forged, somebody else's, or none",
    seen="401 `bad_signature`, 401 `signature_missing`, 401 `foreign_url`; 422 where auth_data is"
    " malformed, with every field that is wrong",
    does="refuses it before anything is queued; nothing reaches the model server",
)
def test_row_32_forged_signatures(today: Scene) -> None:
    good = today.auth()
    signature = base64.b64decode(good["signature"])
    urlsafe = base64.urlsafe_b64encode(b"\xfb\xff" + signature[2:]).decode()
    flipped = base64.b64encode(bytes([signature[0] ^ 1]) + signature[1:]).decode()
    assert today.ask(good) == (200, "")
    wrong_key = today.auth(by=today.stranger)
    old = Signer.from_file(today.worker.directory / "engine.pem", "2024")
    made, base = "was not made by this worker's engine", "is not base64"
    with nothing_reaches_the_model(today):
        for text, words in {
            base64.b64encode(os.urandom(256)).decode(): made,
            base64.b64encode(os.urandom(255)).decode(): made,
            base64.b64encode(bytes(256)).decode(): made,
            base64.b64encode(signature[::-1]).decode(): made,
            base64.b64encode(signature + b"\0").decode(): made,
            flipped: made,
            wrong_key["signature"]: made,
            old.sign(cost=2.0, endpoint="e", reqnum=7, url=today.url): made,
            "not base64!": base,
            urlsafe: base,
            good["signature"].rstrip("="): base,
            good["signature"] + "=": base,
            good["signature"] + "==": base,
            good["signature"] + "\n": base,
            " " + good["signature"]: base,
            good["signature"][:76] + "\r\n" + good["signature"][76:]: base,
            good["signature"][:-3] + _stray_bits(good["signature"][-3]) + "==": base,
            good["signature"] + "\0": base,
            "é": base,
            "\u0410" + good["signature"][1:]: base,  # a letter that only looks like an A
        }.items():
            refused(today, {**good, "signature": text}, 401, "bad_signature", words)
        refused(today, {**good, "signature": ""}, 401, "signature_missing", "has no signature")
        refused(today, {**good, "signature": "A" * 2**20}, 422, "invalid_parameter", "signature")
    assert today.ask(good) == (200, "")


def _stray_bits(letter: str) -> str:
    """Another letter that decodes to the same byte before a double padding."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return letters[letters.index(letter) ^ 1]


@row(
    32,
    "auth_data is incomplete, of wrong types, or there twice",
    seen="422 `missing_parameter` or `invalid_parameter`, naming each field; of a key that is there"
    " twice, the last one counts",
    does="says everything that is wrong in one answer",
)
def test_row_32_stripped_auth_data(today: Scene) -> None:
    good = today.auth()
    values: list[Any] = [None, True, [], {}, [good["signature"]], {"url": today.url}]
    wrong: dict[str, list[Any]] = {
        "signature": [*values, 7, 1.5],
        "cost": [*values, 2**80],
        "endpoint": [*values, 7],
        "reqnum": [*values, "7", 7.0, 1.5, 2**63],
        "request_idx": [*values, "4", 4.0, -(2**63) - 1],
        "url": [*values, 7, "h" * 5000],
    }
    with nothing_reaches_the_model(today):
        for name in FIELDS:
            stripped = {key: value for key, value in good.items() if key != name}
            status, answer, _ = today.post({"auth_data": stripped, "payload": PAYLOAD})
            assert (status, answer["error"]["kind"]) == (422, "missing_parameter")
            assert answer["auth_data"] == {name: "missing parameter"}
            for value in wrong[name]:
                status, answer, _ = today.post(
                    {"auth_data": {**good, name: value}, "payload": PAYLOAD}
                )
                assert (status, answer["error"]["kind"]) == (422, "invalid_parameter"), value
                assert list(answer["auth_data"]) == [name]
        status, answer, _ = today.post({"auth_data": {}, "payload": PAYLOAD})
        assert set(answer["auth_data"]) == set(FIELDS) and status == 422
        for auth in ([], "text", 7, True, [good]):
            refused(today, auth, 422, "invalid_parameter", "auth_data: must be an object")
        refused(today, None, 422, "missing_parameter", "auth_data: field missing")
        refused(today, {"auth_data": good}, 422, "missing_parameter", "auth_data.signature")
        nested = {"auth_data": good, "payload": PAYLOAD}
        refused(today, nested, 422, "missing_parameter", "auth_data.signature")
        status, answer, _ = today.post({"payload": {**PAYLOAD, "auth_data": good}})
        assert (status, answer["error"]["kind"]) == (422, "missing_parameter")
        forged = {**good, "signature": "AAAA"}
        twice = _twice("auth_data", json.dumps(good), json.dumps(forged))
        assert today.post(twice)[1]["error"]["kind"] == "bad_signature"
        inside = _twice_inside(good, "signature", good["signature"], "AAAA")
        assert today.post(inside)[1]["error"]["kind"] == "bad_signature"
        inside = _twice_inside(good, "url", today.url, "http://192.0.2.1:1")
        assert today.post(inside)[1]["error"]["kind"] == "foreign_url"
    # what counts, and only that, is what is checked
    assert today.post(_twice("auth_data", json.dumps(forged), json.dumps(good)))[0] == 200
    assert today.post(_twice_inside(good, "signature", "AAAA", good["signature"]))[0] == 200


def _twice(key: str, first: str, second: str) -> bytes:
    payload = json.dumps(PAYLOAD)
    return f'{{"{key}": {first}, "payload": {payload}, "{key}": {second}}}'.encode()


def _twice_inside(auth: Json, name: str, first: str, second: str) -> bytes:
    rest = json.dumps({key: value for key, value in auth.items() if key != name})[1:-1]
    inside = f'{{"{name}": {json.dumps(first)}, {rest}, "{name}": {json.dumps(second)}}}'
    return f'{{"auth_data": {inside}, "payload": {json.dumps(PAYLOAD)}}}'.encode()


@row(
    32,
    "a signature was made for another worker, or for a URL that only looks like this one's",
    seen="401 `foreign_url`: send the request to auth_data.url",
    does="compares scheme, host, port and path; spellings that mean the same URL are the same",
)
def test_row_32_foreign_urls(today: Scene) -> None:
    own = urlsplit(today.url)
    host, port = own.hostname, own.port
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in str(port))
    with nothing_reaches_the_model(today):
        for url in (
            "http://192.0.2.1:40000",
            f"https://{host}:{port}",
            f"http://{host}",
            f"http://{host}:80",
            f"http://{host}:{port}0",
            f"http://{host}:{port}/generate",
            f"http://{host}:{port}/.",
            f"http://{host}:{port}/%2F",
            f"http://{host}:{port}?a=1",
            f"http://{host}:{port}#a",
            f"http://{host}.:{port}",
            f"http://{host}:{port}@192.0.2.1:1",
            f"http://192.0.2.1:1@{host}:{port}",
            f"http://user:word@{host}:{port}",
            f"http://@{host}:{port}",
            f"http://127.1:{port}",
            f"http://0x7f000001:{port}",
            f"http://[::ffff:127.0.0.1]:{port}",
            f"http://%31%32%37.0.0.1:{port}",
            f"http://１２７.0.0.1:{port}",
            f"http://127。0。0。1:{port}",
            f"http://{host}:{wide}",
            f"http://{host}:{port}\u200b",
            f"http://{host}:{port}\t",
            f"ht\ntp://{host}:{port}",
            f" http://{host}:{port}",
            f"http://{host}:{port}\0",
            f"http:\\\\{host}:{port}",
            f"//{host}:{port}",
            f"{host}:{port}",
            "http://xn--wrker-jua.example:1",
            "http://wörker.example:1",
            "",
        ):
            # really signed by this engine, and still not for here
            refused(today, today.auth(url or " "), 401, "foreign_url", "another worker's URL")
            # and the own signature does not become one for it
            refused(today, {**today.auth(), "url": url}, 401, "foreign_url")
        # the same place in another spelling: the signature is over the text
        same = [f"{today.url}/", f"HTTP://{host}:{port}", f"http://{host}:0{port}"]
        for url in same:
            refused(today, {**today.auth(), "url": url}, 401, "bad_signature", "was not made by")
    for url in same:
        assert today.ask(today.auth(url)) == (200, ""), url


@row(
    32,
    "a request is sent a second time by somebody who saw it",
    seen="today's scheme signs the URL alone: it is answered, whatever else was changed; 2024's:"
    " 401 `replayed`, and 401 `bad_signature` where anything signed was changed",
    does="takes each 2024 message once at each ingress process; whoever owns both ends can ask for"
    " more (`auth.clients`)",
)
def test_row_32_replays_of_today(today: Scene) -> None:
    good = today.auth()
    before = today.reached()
    assert [today.ask(good) for _ in range(3)] == [(200, "")] * 3
    free = {**good, "cost": 9, "endpoint": "f", "reqnum": -1, "request_idx": 0, "more": [1]}
    assert today.ask(free) == (200, "")
    assert today.reached() == before + 4


@row(
    32,
    "2024's signature comes a second time, too late, with a change, or where today's is asked for",
    seen="401 `replayed`; 401 `bad_signature`; 422 `invalid_parameter` where a number changed its"
    " type",
    does="remembers the messages of the last `auth.replay_window` requests, in each ingress process"
    " by itself",
)
def test_row_32_replays_of_2024(tmp_path: Path) -> None:
    with scene(tmp_path, "2024") as at:
        newest = at.auth(reqnum=1000)
        assert at.ask(newest) == (200, "")
        assert at.ask({**at.auth(reqnum=1001), "request_idx": 99, "more": 1}) == (200, "")
        url_only = Signer.from_file(tmp_path / "engine.pem", "url")
        with nothing_reaches_the_model(at):
            for auth in (newest, {**newest, "request_idx": 5}, {**newest, "more": True}):
                refused(at, auth, 401, "replayed", "was used before, or is too old")
            refused(at, at.auth(reqnum=900), 401, "replayed", "was used before, or is too old")
            todays = at.auth(reqnum=1002, by=url_only)
            refused(at, todays, 401, "bad_signature", "was not made by this worker's engine")
            fresh = at.auth(reqnum=1003)
            for change in (
                {"cost": 2}, {"cost": "2.0"}, {"cost": 3.0}, {"endpoint": "E"}, {"endpoint": "e "},
                {"reqnum": 1004}, {"url": f"{at.url}/"},
            ):  # fmt: skip
                refused(at, {**fresh, **change}, 401, "bad_signature", "was not made by")
            refused(at, {**fresh, "reqnum": 1003.0}, 422, "invalid_parameter", "reqnum")
        assert at.ask(fresh) == (200, "")
        assert at.ask(at.auth(reqnum=903)) == (200, "")  # late, but within the window


@row(
    32,
    "2024's signature comes again at another ingress process, or at one that was started since",
    seen="it is answered once by each of them; then 401 `replayed`",
    does="shares these messages with no other process: a new one takes even an old one, as long as"
    " it has taken none that is current",
)
def test_row_32_replays_of_2024_at_other_processes(tmp_path: Path) -> None:
    with scene(tmp_path, "2024", settings=("worker.processes=2",)) as at:
        doors = ("ingress-0", "ingress-1")
        wait_until(
            lambda: all(at.worker.members()[name]["state"] == "ready" for name in doors),
            what="both doors",
        )
        newest, old = at.auth(reqnum=1000), at.auth(reqnum=7)

        def answered(auth: Json, count: int) -> None:
            """In the end by so many; the kernel spreads connections over both."""
            seen: Counter[tuple[int, str]] = Counter()

            def by_all() -> bool:
                seen[at.ask(auth)] += 1
                return seen[200, ""] == count

            wait_until(by_all, what=f"{count} answers")
            seen.update(at.ask(auth) for _ in range(20))
            assert seen[200, ""] == count and set(seen) <= {(200, ""), (401, "replayed")}

        answered(newest, 2)
        assert {at.ask(old) for _ in range(20)} == {(401, "replayed")}  # behind either's window
        killed = at.worker.kill("ingress-0")
        at.worker.wait_replaced("ingress-0", killed)
        answered(old, 1)  # the new one knows no window yet
        answered(newest, 1)
        assert {at.ask(old) for _ in range(20)} == {(401, "replayed")}


@row(
    32,
    "the engine's public key is not known yet, or the engine has a new one",
    seen="503 `no_public_key` with Retry-After until it is known; after a change, 401 for a few"
    " seconds at most, then new signatures are taken and old ones are not",
    does="asks for the key until it has one, and again when signatures stop verifying",
)
def test_row_32_key_unknown_then_rotated(tmp_path: Path) -> None:
    with scene(tmp_path, "url", ready=False) as at:
        good = at.auth()
        wait_until(
            lambda: at.worker.status()["members"] and _model_ready(at), what="the model to be ready"
        )
        with nothing_reaches_the_model(at):
            status, answer, headers = at.post({"auth_data": good, "payload": PAYLOAD})
            assert (status, answer["error"]["kind"]) == (503, "no_public_key"), answer
            assert int(headers["retry-after"]) >= 1
            assert "try again" in answer["error"]["message"]
        at.engine.post("/demo/fault", {"kind": "none"})
        wait_until(lambda: at.ask(good) == (200, ""), what="the key to be fetched")
        at.worker.wait_ready()
        pids = {name: member["pid"] for name, member in at.worker.members().items()}
        assert at.engine.ask("POST", "/demo/rotate_key", {})[0] == 200
        new = wait_until(
            lambda: (a := at.worker.auth()).get("signature") and a, what="a route by the new key"
        )
        assert new["signature"] != good["signature"]
        wait_until(lambda: at.ask(new) == (200, ""), what="the new key to be taken")
        with nothing_reaches_the_model(at):
            refused(at, good, 401, "bad_signature", "was not made by this worker's engine")
        assert pids == {name: member["pid"] for name, member in at.worker.members().items()}


def _model_ready(at: Scene) -> bool:
    gauges = at.worker.members()["backend_adapter"]["gauges"]
    return bool(gauges.get("model_ready"))


@row(
    32,
    "somebody whose signature is forged asks for the worker's own calls",
    seen="401 `bad_token` at /pyworker/update, 401 `bad_signature` at /session/create, 400"
    " `unknown_session` for a session that is guessed, 401 `bad_token` for one that is another's",
    does="asks for the engine's token, a signature, or the session's own auth_data",
)
def test_row_32_own_calls(today: Scene) -> None:
    good = today.auth()
    forged = {**good, "signature": base64.b64encode(bytes(256)).decode()}
    create = {"payload": {"lifetime": 5}}
    with nothing_reaches_the_model(today):
        status, answer, _ = today.post({"auth_data": forged, **create}, "/session/create")
        assert (status, answer["error"]["kind"]) == (401, "bad_signature")
        status, answer, _ = today.post({"auth_data": good, **create}, "/session/create")
        assert status == 201
        known = {"session_id": answer["session_id"], "session_auth": good}
        guessed = {**known, "session_id": "0" * 32}
        changed = {**known, "session_auth": {**good, "reqnum": 8}}
        for call in ("/session/get", "/session/end"):
            status, answer, _ = today.post(guessed, call)
            assert (status, answer["error"]["kind"]) == (400, "unknown_session")
            status, answer, _ = today.post(changed, call)
            assert (status, answer["error"]["kind"]) == (401, "bad_token")
        assert today.post(known, "/session/end")[0] == 200
        for token in ("", "Bearer", "Bearer ", "Bearer x", "Basic x"):
            connection = http.client.HTTPConnection(urlsplit(today.url).netloc, timeout=30)
            connection.request("POST", "/pyworker/update", b"", {"authorization": token})
            answered = connection.getresponse()
            assert answered.status == 401
            assert json.loads(answered.read())["error"]["kind"] == "bad_token"
            connection.close()


@row(
    32,
    "refusals are looked for afterwards",
    seen="`lighterman_refused_total` of /metrics, by kind; never `internal`",
    does="counts each refusal by its kind, and logs none",
)
def test_row_32_refusals_are_counted_by_kind_and_never_ours(today: Scene) -> None:
    today.ask({**today.auth(), "signature": "AAAA"})
    admin = str(today.worker.facts()["admin_url"])

    def counted() -> dict[str, str]:
        connection = http.client.HTTPConnection(urlsplit(admin).netloc, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return dict(re.findall(r'refused_total\{[^}]*kind="(\w+)"[^}]*\} (\S+)', text))

    wait_until(lambda: "bad_signature" in counted(), what="the refusal to be counted")
    assert "internal" not in counted()
