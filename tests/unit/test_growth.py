"""Signs of a model that loads silently."""

from __future__ import annotations

import pytest

from supervisor.growth import Growth, Look, look

GB, MB = 2**30, 2**20


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (Look(110.0, 9 * GB, 850 * MB), "disk +4.0 GB, network 85 MB/s"),
        (Look(110.0, 5 * GB, 20 * MB), "network 2 MB/s"),
        (Look(110.0, 6 * GB, 0), "disk +1.0 GB"),
        (Look(110.0, 5 * GB + 1000, 1000), ""),
        (Look(110.0, 1 * GB, 0), ""),  # something was deleted
        (Look(100.0, 5 * GB, 0), ""),
    ],
)
def test_what_has_grown(after: Look, said: str) -> None:
    looks = iter([Look(100.0, 5 * GB, 0), after, after])
    growth = Growth(lambda: next(looks))
    assert growth.words() == said
    assert growth.words() == ""  # since the last look


def test_a_real_look() -> None:
    before, after = look(), look()
    assert before.disk_bytes > 0
    assert after.at >= before.at and after.received_bytes >= before.received_bytes >= 0
