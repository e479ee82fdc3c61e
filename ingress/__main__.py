"""``python -m ingress NAME FD…``: started by the supervisor, never by hand.

The descriptors are those of the client port.
"""

from __future__ import annotations

import sys

from ingress.process import Ingress
from supervisor import child
from supervisor.client_port import borrowed

if __name__ == "__main__":
    _, name, *fds = sys.argv
    port = borrowed(map(int, fds))
    child.run(name, lambda runtime: Ingress(runtime, port))
