"""The soak, short, and what it has found."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.chaos.soak import soak
from tests.chaos.table import row
from tests.kit.worker import post_json, running

SEED = 7


@row(
    31,
    "Any of our processes or the model server is killed or frozen every two seconds, under load",
    seen="One outcome for each request: its own answer, byte for byte, a typed error, or a visibly"
    " broken stream. A connection breaks only where its ingress died.",
    does="Runs a request again only where something died under it; accounts every unit of work"
    " and tells the engine of each request once; keeps no process, port, file or thread.",
)
def test_row_31_a_soak_loses_duplicates_and_leaks_nothing(tmp_path: Path) -> None:
    line, wrong = soak(tmp_path, requests=900, seed=SEED, every_s=2.0, ingresses=2)
    print(line)
    assert wrong == []
    assert sum(line["kills"].values()) >= 3
    assert line["outcomes"]["ok"] > 500


@row(
    1,
    "An ingress dies while the reporter is away",
    seen="Signed requests are answered as soon as the port is open again.",
    does="Starts ingress with the engine's key that is known, and does not wait for the reporter.",
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
