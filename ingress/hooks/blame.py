"""What is logged of an exception that user code raised at a request: all but what the client sent.

The trace, the types and the code's own words are what its author needs; the texts of the request
that stand in them are the client's, and may be its keys. Law: no text of ``MIN_TEXT`` characters or
more that the client sent is logged, whole, or cut off at one end; where there are too many to look
for, no message is. Pure. It must not know which hook it was.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

#: Characters; shorter texts are words ("prompt", "user"), and tell an author what went wrong.
MIN_TEXT = 8
#: Texts of one request that are looked for.
MAX_TEXTS = 1_000
#: Characters of a trace that are looked at, from its end: there stands what was raised.
MAX_CHARS = 16_000
_HIDDEN = "***"


def told(error: BaseException, body: bytes, others: Iterable[str] = ()) -> str:
    """The trace of ``error``, without what came in ``body`` (JSON) or is one of ``others``."""
    try:
        texts = _texts([json.loads(body) if body else None, *others])
    except (ValueError, RecursionError):
        texts = [""] * (MAX_TEXTS + 1)
    if len(texts) > MAX_TEXTS:
        frames = "".join(traceback.format_tb(error.__traceback__))[-MAX_CHARS:]
        return f"{frames}{type(error).__name__} (its message may hold what the client sent)"
    trace = "".join(traceback.format_exception(error)).rstrip()[-MAX_CHARS:]
    for text in sorted(texts, key=len, reverse=True):
        for written in {text, repr(text)[1:-1], json.dumps(text)[1:-1]}:
            trace = _without(trace, written)
    return trace


def _texts(value: Any) -> list[str]:
    """Every text in a JSON value but the names of its fields; one more than MAX_TEXTS at most."""
    found: list[str] = []
    todo = [value]
    while todo and len(found) <= MAX_TEXTS:
        each = todo.pop()
        if isinstance(each, str):
            found += [each] if len(each) >= MIN_TEXT else []
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return found


def _without(trace: str, text: str) -> str:
    """Hide ``text`` where it stands, and its beginning or its end where that stands alone."""
    trace = trace.replace(text, _HIDDEN)
    first, last = text[:MIN_TEXT], text[-MIN_TEXT:]
    at = trace.find(first)
    while at >= 0:
        end = at + _same(trace[at:], text)
        trace = trace[:at] + _HIDDEN + trace[end:]
        at = trace.find(first, at + len(_HIDDEN))
    at = trace.find(last)
    while at >= 0:
        end = at + MIN_TEXT
        begin = end - _same(trace[:end][::-1], text[::-1])
        trace = trace[:begin] + _HIDDEN + trace[end:]
        at = trace.find(last, begin + len(_HIDDEN))
    return trace


def _same(one: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))
