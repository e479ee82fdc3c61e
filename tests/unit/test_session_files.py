"""Sessions at rest: what comes back, and what is thrown away."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backend_adapter.session_files import SessionFiles
from tests.properties.test_sessions_machine import session


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    files = SessionFiles(str(tmp_path / "sessions"))
    assert list(files.load()) == []
    kept, dropped = session("a", 1.0), session("b", 2.0)
    files.save(kept)
    files.save(dropped)
    kept.requests = 7
    files.save(kept)
    files.drop(dropped)
    files.drop(dropped)
    assert list(SessionFiles(str(tmp_path / "sessions")).load()) == [kept]
    assert stat.S_IMODE((tmp_path / "sessions" / "a").stat().st_mode) == 0o600


def test_damage_costs_only_itself(tmp_path: Path) -> None:
    files = SessionFiles(str(tmp_path))
    for name in "abcd":
        files.save(session(name, 1.0))
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-3])
    (tmp_path / "b").write_bytes(whole.replace(b"xxx", b"\xff\xff\xff").replace(b"a", b"\xff"))
    (tmp_path / "c").rename(tmp_path / "other")
    (tmp_path / "e.new").write_bytes(whole)
    assert [each.session_id for each in files.load()] == ["d"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_where_nothing_can_be_kept_the_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = SessionFiles(str(tmp_path / "file"))
    files.save(session("a", 1.0))
    files.drop(session("a", 1.0))
    assert list(files.load()) == []


def test_what_cannot_be_kept_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "sessions"
    place.write_text("no directory")
    files = SessionFiles(str(place))
    assert not files.there
    assert not files.save(session("a", 1.0)) and not files.save(session("b", 1.0))
    assert len(caplog.messages) == 1 and "not kept on disk" in caplog.messages[0]
    place.unlink()
    assert files.save(session("a", 1.0)) and files.there
    assert [each.session_id for each in files.load()] == ["a"]
