"""The client port that cannot be had: said by name, and the end of the process.

The supervisor knows the exit codes and does not start it again for nothing.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import NoReturn

from supervisor import process_tree
from supervisor.exit_codes import ExitCode
from supervisor.settings import WorkerSettings

_log = logging.getLogger("ingress")


def cannot_listen(worker: WorkerSettings, error: OSError) -> NoReturn:
    """Say why, and what to do; ends the process."""
    if error.errno == errno.EADDRINUSE:
        holder = process_tree.port_holder(worker.port) or "unknown"
        hint = f"held by {holder}; stop it or choose another with --port"
    else:
        hint = "set worker.host to an address of this machine, or to 0.0.0.0"
    _log.critical(
        "cannot listen on %s port %s: %s (%s)",
        worker.host, worker.port, error.strerror or error, hint,
    )  # fmt: skip
    os._exit(ExitCode.PORT_TAKEN)
