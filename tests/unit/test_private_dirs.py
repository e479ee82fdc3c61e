"""What we keep is made again for this user only, whoever of us comes first."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backend_adapter.session_files import SessionFiles
from backend_adapter.sessions import Session
from ingress.budget import Budget
from ingress.spool import Spool
from reporter.store import Store
from supervisor.handoff_file import HOOKS_HANDOFF, HandoffFile
from supervisor.log_file import RotatingFile
from supervisor.run_lock import RunLock
from supervisor.settings import HooksSettings, Settings

SESSION = Session("id", b"", b"{}", 5, 1.0, -1, None, None, False, 1.0, 1.0, 6.0)


def a_log(state: Path) -> None:
    RotatingFile(str(state / "logs" / "model.log")).write(b"a line\n")


def a_lock(state: Path) -> None:
    lock = RunLock(str(state / "here"))
    lock.acquire()
    lock.release()


def a_session(state: Path) -> None:
    assert SessionFiles(str(state / "sessions")).save(SESSION)


def a_store(state: Path) -> None:
    store = Store(state / "there")
    store.load()
    store.close()


def a_body(state: Path) -> None:
    loop = asyncio.new_event_loop()
    spool = Spool(str(state / "spool"), "ingress-0", loop, Budget(1, 1, 1))
    os.close(spool.create(str(state / "spool" / "body")))
    spool.close()
    loop.close()


@pytest.mark.parametrize("keep", [a_log, a_lock, a_session, a_store, a_body])
def test_every_directory_that_is_made_again_is_private(
    keep: Callable[[Path], None], tmp_path: Path
) -> None:
    before, state = os.umask(0o022), tmp_path / "state"
    try:
        keep(state)
    finally:
        os.umask(before)
    made = [state, *(each for each in state.rglob("*") if each.is_dir())]
    assert len(made) == 2
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700, 0o700]


def test_each_of_the_hand_offs_is_written_again(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(Settings(), hooks=HooksSettings(file="/worker.py"))
    file = HandoffFile("run", str(tmp_path))
    file.write(settings)
    both = sorted(path.name for path in tmp_path.iterdir())
    assert len(both) == 2 and HOOKS_HANDOFF in both
    for name in both:
        (tmp_path / name).unlink()
        file.keep()
        assert sorted(path.name for path in tmp_path.iterdir()) == both
