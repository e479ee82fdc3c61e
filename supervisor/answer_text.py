"""Pure: the words within an answer, whichever API it came from.

Understands OpenAI's completions and chat completions, TGI's generate, Ollama's, whole or streamed
as server-sent events or JSON lines. What it does not know is shown as it is. A leaf.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

#: Bytes of one event; longer ones are no text.
MAX_EVENT_BYTES = 1 << 20


class AnswerError(Exception):
    """The answer is an error, or no answer; the text is what it says."""


def texts_of_stream(pieces: Iterable[bytes]) -> Iterator[str]:
    """The texts of a stream of events, as they come; the events themselves where none has any.

    Raises:
        AnswerError: an event is an error, or too long.
    """
    rest, strange, understood = b"", bytearray(), False
    for piece in chain(pieces, [b"\n"]):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            text = _text_of_event(data)
            if text is not None:
                understood = True
                yield text
            elif data.startswith(b"{") and len(strange) < MAX_EVENT_BYTES:
                strange += data + b"\n"
        if len(rest) > MAX_EVENT_BYTES:
            raise AnswerError("an event is longer than a megabyte")
    if not understood:
        yield strange.decode("utf-8", "replace").rstrip()


def _text_of_event(data: bytes) -> str | None:
    """Its words; None: it has none that we know of."""
    if not data.startswith(b"{"):
        return None  # a blank, a comment, an event's name, [DONE]
    try:
        event = json.loads(data)
    except ValueError:
        raise AnswerError(f"an event is not JSON: {data[:200]!r}") from None
    return _words(event)


def text_of(body: bytes, content_type: str) -> str:
    """The text of a whole answer.

    Raises:
        AnswerError: it is an error.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        if content_type.startswith("text/"):
            return body.decode("utf-8", "replace")
        return f"({len(body)} bytes of {content_type or 'unknown type'})"
    text = _words(answer)
    return json.dumps(answer, indent=2, ensure_ascii=False) if text is None else text


def _words(answer: Any) -> str | None:
    """The words of one JSON value; None: it has none that we know of."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, dict):
        return None
    if answer.get("error"):
        error = answer["error"]
        raise AnswerError(_error_text(error))
    match answer:
        case {"choices": [dict() as choice, *_]}:
            message = choice.get("delta") or choice.get("message")
            text = message.get("content") if isinstance(message, dict) else choice.get("text")
            return text if isinstance(text, str) else ""
        case {"token": {"text": str(text), "special": True}}:
            return ""
        case {"token": {"text": str(text)}}:
            return text
        case {"generated_text": str(text)} | {"response": str(text)}:
            return text
        case {"message": {"content": str(text)}}:
            return text
    return None


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        kind = error.get("kind") or error.get("type") or "error"
        return f"{kind}: {error.get('message', error)}"
    return str(error)
