"""Signs that a model loads although it prints nothing: the disk fills, the network brings bytes.

Figures of the whole machine, between two looks: they are the model's where nothing else happens.
It must not know who loads what.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

_GB, _MB = 2**30, 2**20
#: Less than this is everyday noise.
LEAST_GB, LEAST_MB_S = 0.1, 1.0


class Look(msgspec.Struct, frozen=True):
    """What was seen at one moment."""

    at: float  #: monotonic seconds
    disk_bytes: int  #: used on the root file system
    received_bytes: int  #: over every interface but loopback


def look() -> Look:
    """Look now; what cannot be seen counts as 0."""
    import psutil  # a model that loads quickly is not looked at

    try:
        disk_bytes = psutil.disk_usage("/").used
    except OSError:
        disk_bytes = 0
    try:
        by_name = psutil.net_io_counters(pernic=True)
    except OSError:
        by_name = {}
    received = sum(count.bytes_recv for name, count in by_name.items() if name != "lo")
    return Look(time.monotonic(), disk_bytes, received)


class Growth:
    """What has grown since the last look.

    ``look``: takes one.
    """

    def __init__(self, look: Callable[[], Look] = look) -> None:
        self._look = look
        self._last = look()

    def words(self) -> str:
        """For people: "disk +1.5 GB, network 85 MB/s"; "" where nothing moved."""
        last, now = self._last, self._look()
        self._last = now
        disk_gb = (now.disk_bytes - last.disk_bytes) / _GB
        network_mb_s = (now.received_bytes - last.received_bytes) / _MB
        network_mb_s /= max(now.at - last.at, 0.001)
        parts = [f"disk +{disk_gb:.1f} GB"] if disk_gb >= LEAST_GB else []
        parts += [f"network {network_mb_s:.0f} MB/s"] if network_mb_s >= LEAST_MB_S else []
        return ", ".join(parts)
