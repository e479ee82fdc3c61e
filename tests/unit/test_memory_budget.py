"""What the worker says that it holds at most is what its rooms hold to."""

from __future__ import annotations

from backend_adapter import file_body, run
from ingress import shared
from supervisor import memory_budget
from supervisor.memory_budget import MIB, items, total_bytes
from supervisor.settings import LimitSettings, Settings, WorkerSettings


def test_the_sizes_are_those_of_the_rooms() -> None:
    assert memory_budget.UNSENT_BYTES == shared.WRITE_HIGH_BYTES
    assert memory_budget.PIECE_BYTES == file_body.PIECE_BYTES
    assert memory_budget.LEAVING == run.MAX_LEAVING


def test_with_the_default_settings_it_fits_beside_a_model() -> None:
    assert total_bytes(Settings()) <= 1536 * MIB
    assert {item.process for item in items(Settings())} == {
        "supervisor", "ingress", "backend_adapter", "reporter",
    }  # fmt: skip


def test_it_follows_the_settings() -> None:
    whole = total_bytes(Settings())
    more = LimitSettings(buffered_bytes=LimitSettings().buffered_bytes + MIB)
    assert total_bytes(Settings(limits=more)) == whole + 2 * MIB  # in a message once more
    assert total_bytes(Settings(worker=WorkerSettings(processes=2))) > whole
