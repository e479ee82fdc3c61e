"""The search for planted secrets finds them, whoever wrote them, and reads no more than it says."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.kit.planted import PART_BYTES, Planted


@pytest.fixture
def planted() -> Planted:
    return Planted("MASTER_TOKEN", "HF_TOKEN")


def test_each_worker_has_its_own(planted: Planted) -> None:
    assert set(planted.environ) == {"MASTER_TOKEN", "HF_TOKEN"}
    values = {*planted.environ.values(), *Planted("HF_TOKEN").environ.values()}
    assert len(values) == 3


def written(secret: str) -> list[bytes]:
    """The ways in which it could stand somewhere."""
    encoded = [base64.b64encode(b"x" * before + secret.encode()) for before in range(3)]
    encoded += [base64.urlsafe_b64encode(b"x" + secret.encode() + b" and more")]
    texts = (secret, secret[:-4], secret[4:], quote(secret, safe=""), json.dumps({"a": secret}))
    return [*(text.encode() for text in texts), *encoded]


@pytest.mark.parametrize("variable", ["MASTER_TOKEN", "HF_TOKEN"])
def test_a_file_that_holds_one_is_named(planted: Planted, tmp_path: Path, variable: str) -> None:
    log = tmp_path / "state" / "logs" / "model.log"
    log.parent.mkdir(parents=True)
    for text in written(planted.environ[variable]):
        log.write_bytes(b"2026 INFO *** " + text + b"\n")
        with pytest.raises(AssertionError, match=r"model\.log: b'2026 INFO"):
            planted.assert_absent(tmp_path / "output", tmp_path / "state")
        with pytest.raises(AssertionError, match=r"model\.log"):
            planted.assert_absent(log)
    with pytest.raises(AssertionError, match="what it said: "):
        planted.assert_absent_in(f"so {planted.environ[variable]}", "what it said")


def test_what_holds_none_passes(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("HF_TOKEN=*** master_token/+ nothing")
    os.mkfifo(tmp_path / "pipe")  # a reader of it would wait for ever
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    planted.assert_absent(tmp_path, tmp_path / "pipe", tmp_path / "none")
    planted.assert_absent_in("nothing", "what it said")


def test_what_is_large_is_read_at_both_ends(planted: Planted, tmp_path: Path) -> None:
    secret, log = planted.environ["HF_TOKEN"].encode(), tmp_path / "log"
    for at in (0, 3 * PART_BYTES - 99):
        with log.open("wb") as file:
            file.truncate(3 * PART_BYTES)
            file.seek(at)
            file.write(secret)
        with pytest.raises(AssertionError, match="log"):
            planted.assert_absent(tmp_path)
    (tmp_path / "spool" / "run").mkdir(parents=True)
    log.rename(tmp_path / "spool" / "run" / "body")
    planted.assert_absent(tmp_path)
