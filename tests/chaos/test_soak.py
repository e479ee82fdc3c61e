"""The soak, short, and what it has found."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from reporter.daybook import Daybook
from tests.chaos.soak import soak
from tests.chaos.table import row
from tests.kit.wait import wait_until
from tests.kit.worker import Worker, post_json, running

SEED = 7


@pytest.mark.slow
@pytest.mark.timeout(300)
@row(
    31,
    "any of our processes or the model server is killed or frozen every two seconds, under load",
    seen="one outcome for each request: its own answer, byte for byte, a typed error, or a visibly"
    " broken stream. A connection breaks only where its ingress died.",
    does="runs a request again only where something died under it; accounts every unit of work and"
    " tells the engine of each request, but for the last 0.1 s of an ingress that was killed: once,"
    " or twice where the engine took it in the last moment of a reporter that was killed; keeps no"
    " process, port, file or thread.",
)
def test_row_31_a_soak_loses_duplicates_and_leaks_nothing(tmp_path: Path) -> None:
    line, wrong = soak(tmp_path, requests=400, seed=SEED, every_s=1.5, ingresses=2)
    print(line)
    assert wrong == []
    faults = ("lost", "duplicated", "swapped", "unaccounted", "trouble")
    assert {name: line[name] for name in faults} == dict.fromkeys(faults, 0)
    assert line["leaked"] == {"processes": 0, "descriptors": 0, "files": 0}
    assert sum(line["kills"].values()) >= 2
    assert line["outcomes"]["ok"] > 200


@row(
    1,
    "an ingress dies while the reporter is away",
    seen="signed requests are answered as soon as the port is open again.",
    does="starts ingress with the engine's key that is known, and does not wait for the reporter.",
)
def test_row_01_a_new_ingress_knows_the_key_while_the_reporter_is_frozen(tmp_path: Path) -> None:
    with running(tmp_path, settings=("restart.missed_beats=60",)) as worker:
        auth = worker.auth()
        body = {"auth_data": auth, "payload": {"inputs": "x"}}
        frozen = worker.kill("reporter", signal.SIGSTOP)
        try:
            worker.wait_replaced("ingress-0", worker.kill("ingress-0"))
            assert "generated_text" in post_json(f"{worker.url}/generate", body)
            forged = {**auth, "signature": auth["signature"][::-1]}
            refused = post_json(f"{worker.url}/generate", {**body, "auth_data": forged})
            assert refused["error"]["kind"] == "bad_signature"
        finally:
            os.kill(frozen, signal.SIGCONT)


def written_down(worker: Worker, producer: str) -> int:
    """Ends of requests that this producer has written down and nobody has confirmed."""
    daybook = Daybook(f"ipc://{worker.facts()['runtime_dir']}/events", producer)
    try:
        return sum(len(batch.closed) for batch in daybook.open())
    finally:
        daybook.close()


@row(
    1,
    "ingress and the reporter die together",
    seen="the engine is told of every request that was answered, as it ended: once, or twice where"
    " it took the report in the reporter's last moment.",
    does="writes its accounts down before it sends them; the next ingress tells those first.",
)
def test_row_01_what_was_answered_is_told_though_ingress_and_reporter_died(tmp_path: Path) -> None:
    with running(tmp_path, settings=("restart.missed_beats=60",)) as worker:
        auth = worker.auth()
        frozen = worker.kill("reporter", signal.SIGSTOP)
        for idx in range(1, 6):
            body = {"auth_data": {**auth, "request_idx": idx, "reqnum": idx}}
            answer = post_json(f"{worker.url}/generate", {**body, "payload": {"inputs": "x"}})
            assert "generated_text" in answer
        wait_until(lambda: written_down(worker, "ingress-0") == 5, what="the accounts")
        worker.wait_replaced("ingress-0", worker.kill("ingress-0"))
        os.kill(frozen, signal.SIGKILL)
        worker.wait_replaced("reporter", frozen)
        wait_until(lambda: len(worker.record()["requests"]) >= 5, what="the rows")
        wait_until(lambda: not written_down(worker, "ingress-0"), what="the confirmations")
        rows = [(row["request_idx"], row["status"]) for row in worker.record()["requests"]]
        assert rows == [(idx, "Success") for idx in range(1, 6)]
        wait_until(lambda: worker.status()["load"].get("load") == 0, what="no load")
