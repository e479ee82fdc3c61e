"""What the worker says that it holds at most is what its rooms hold to."""

from __future__ import annotations

from backend_adapter import file_body, known_heads, model_client, run, sessions
from ingress import known_requests, shared
from supervisor import memory_budget
from supervisor.memory_budget import MIB, items, total_bytes
from supervisor.settings import LimitSettings, Settings, WorkerSettings


def test_the_sizes_are_those_of_the_rooms() -> None:
    assert memory_budget.UNSENT_BYTES == shared.WRITE_HIGH_BYTES
    assert memory_budget.PIECE_BYTES == file_body.PIECE_BYTES
    assert memory_budget.LEAVING == run.MAX_LEAVING
    assert memory_budget.SESSIONS_BYTES == sessions.MAX_BYTES


def test_the_heads_that_are_known_fit_their_share() -> None:
    """Each twice, as it came and taken apart; an object of Python's takes some 64 bytes more."""
    line, parts = 3 * 64, 16 * 64
    request = 2 * known_requests.MAX_BYTES + known_requests.MAX_LINES * line + parts
    assert 2 * known_requests.MAX_HEADS * request <= memory_budget.KNOWN_REQUESTS_BYTES
    received = known_heads.MAX_HEADS * (2 * known_heads.MAX_BYTES + parts)
    sent = model_client.CACHED_HEADS * (2 * model_client.CACHED_BYTES + 8 * 64)
    assert received + sent <= memory_budget.KNOWN_HEADS_BYTES


def test_with_the_default_settings_it_fits_beside_a_model() -> None:
    assert total_bytes(Settings()) <= 1664 * MIB
    assert {item.process for item in items(Settings())} == {
        "supervisor", "ingress", "backend_adapter", "reporter",
    }  # fmt: skip


def test_it_follows_the_settings() -> None:
    whole = total_bytes(Settings())
    more = LimitSettings(buffered_bytes=LimitSettings().buffered_bytes + MIB)
    assert total_bytes(Settings(limits=more)) == whole + 2 * MIB  # in a message once more
    assert total_bytes(Settings(worker=WorkerSettings(processes=2))) > whole
