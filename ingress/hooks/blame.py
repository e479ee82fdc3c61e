"""What is logged of an exception that user code raised at a request: all but what the client sent.

The trace, the types and the code's own words are what its author needs; the texts of the request
that stand in them are the client's, and may be its keys. Law: no text of ``MIN_TEXT`` characters or
more that the client sent is logged, whole, or cut off at one end; where there are too many to look
for, or the trace is too long to look in, no message is. Pure. It must not know which hook it was.
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
#: Characters of a trace that are looked at, and logged.
MAX_CHARS = 16_000
_HIDDEN = "***"


def told(error: BaseException, body: bytes, others: Iterable[str] = ()) -> str:
    """The trace of ``error``, without what came in ``body`` (JSON) or is one of ``others``."""
    try:
        texts = _texts([json.loads(body) if body else None, *others])
    except (ValueError, RecursionError):
        texts = [""] * (MAX_TEXTS + 1)
    trace = "".join(traceback.format_exception(error)).rstrip()
    # never the end of a longer one: a text that was cut there is known by neither of its ends
    if len(texts) > MAX_TEXTS or len(trace) > MAX_CHARS:
        frames = "".join(traceback.format_tb(error.__traceback__))[-MAX_CHARS:]
        return f"{frames}{type(error).__name__} (its message may hold what the client sent)"
    written = [form for text in sorted(texts, key=len, reverse=True) for form in _written(text)]
    for form in written:  # each as a whole first: the end of one may stand within another
        trace = trace.replace(form, _HIDDEN)
    for form in written:
        trace = _without_ends(trace, form)
    return trace


def _texts(value: Any) -> list[str]:
    """Every text in a JSON value but the names of its fields; a few more than MAX_TEXTS at most.

    Of a long one its two ends: a trace has no room for more.
    """
    found: list[str] = []
    todo = [value]
    while todo and len(found) <= MAX_TEXTS:
        each = todo.pop()
        if isinstance(each, str):
            if len(each) >= MIN_TEXT:
                found += [each] if len(each) <= MAX_CHARS else [each[:MAX_CHARS], each[-MAX_CHARS:]]
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return found


def _written(text: str) -> set[str]:
    """How it looks as it is, in Python, and in JSON of either kind."""
    in_json = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    return {text, repr(text)[1:-1], *in_json}


def _without_ends(trace: str, text: str) -> str:
    """Hide the beginning of ``text``, or its end, where that stands alone."""
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
