"""What the limit of file descriptors leaves for connections."""

from __future__ import annotations

import subprocess
import sys

from supervisor import file_limit

_PROGRAM = """
import resource
from supervisor import file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
print(*(file_limit.connections(most, each) for most in (10**9, 10) for each in (1, 2, 3)))
file_limit.raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), file_limit.connections(10**9, 1))
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1024))
print(file_limit.connections(10**9, 2))
"""


def test_connections_stay_below_the_limit_of_descriptors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    left = 1024 - file_limit.RESERVED
    assert done.stdout.splitlines() == ["64 32 21 10 10 10", f"1024 1024 {left}", "1"]
