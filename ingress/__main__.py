"""``python -m ingress <name>``: started by the supervisor, never by hand."""

from __future__ import annotations

import sys

from ingress.process import Ingress
from supervisor import child

if __name__ == "__main__":
    child.run(sys.argv[1] if len(sys.argv) > 1 else "ingress-0", Ingress)
