"""``python -m supervisor``: the only command on an instance.

Before anything of ours is imported: is this package all ours? Another distribution, a process
manager, ships a package of the same name; in one environment the two overwrite each other's files.
"""

from __future__ import annotations

import os
import sys

import supervisor

#: ``ExitCode.MIXED_INSTALL``; that module may be somebody else's by now.
_BROKEN = 72
_REMEDY = "install lighterman in an environment of its own: python -m venv"


def _mixed() -> str:
    """Why this package cannot be trusted; "" when it can."""
    here = os.path.dirname(os.path.abspath(__file__))
    if getattr(supervisor, "DISTRIBUTION", None) != "lighterman":
        where = supervisor.__file__
        return f"another distribution's package `supervisor` is imported instead of ours: {where}"
    if os.path.exists(os.path.join(here, "supervisord.py")):
        return f"{here} also holds the process manager `supervisor` (supervisord)"
    return ""


def main() -> int:
    """Run the command line; returns the exit code."""
    trouble = _mixed()
    if not trouble:
        try:
            from supervisor import cli
        except ImportError as error:
            if (error.name or "").split(".")[0] == "supervisor":
                trouble = f"a module of ours is missing or somebody else's ({error})"
            else:
                trouble = f"a library is missing ({error})"
        else:
            return cli.main(sys.argv[1:])
    print(f"supervisor: {trouble}; {_REMEDY}", file=sys.stderr)
    return _BROKEN


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
