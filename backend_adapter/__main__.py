"""``python -m backend_adapter <name>``: started by the supervisor, never by hand."""

from __future__ import annotations

from backend_adapter.process import Adapter
from supervisor import child

if __name__ == "__main__":
    child.run("backend_adapter", Adapter)
