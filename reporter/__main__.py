"""``python -m reporter <name>``: started by the supervisor, never by hand."""

from __future__ import annotations

from reporter.process import Reporter
from supervisor import child

if __name__ == "__main__":
    child.run("reporter", Reporter)
