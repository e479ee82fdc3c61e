"""Our log in a process that runs people's code: it goes on, whatever that does to logging.

A file may close its streams, replace the root logger's handlers, or disable every logger that it
did not make (``logging.config.dictConfig`` does so unless told otherwise). What hooks did wrong is
still told then.
"""

from __future__ import annotations

import logging
import os
from typing import TextIO

#: Loggers of ours in this process.
_OURS = ("hooks", "child")


class _Kept(logging.Logger):
    """Nobody disables it."""

    disabled = property(lambda self: False, lambda self, value: None)


class _Handler(logging.StreamHandler[TextIO]):
    """Says nothing where it cannot write: its stream is its own."""

    def handleError(self, record: logging.LogRecord) -> None:
        """There is nowhere to say so."""


def keep() -> None:
    """Give our loggers a handler and a descriptor of their own. Once, after ``child.enter``."""
    usual = logging.getLogger().handlers[0]
    handler = _Handler(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace"))
    handler.setFormatter(usual.formatter)
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.__class__ = _Kept
        logger.setLevel(logging.getLogger().level)
        logger.handlers[:] = [handler]
        logger.propagate = False
