"""OpenAI's API: ``/v1/completions`` and ``/v1/chat/completions``, as vLLM serves them.

Its law: what it does not understand it refuses with 400 (404 for a model that is not served) and
``{"error": {"message", "type", "param", "code"}}``. The stop text is not part of the answer.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from supervisor.demo.bodies import BadBody, read_body
from supervisor.demo.generation import Ask
from supervisor.demo.markov import Token
from supervisor.demo.model_api import (
    Context,
    Json,
    Refusal,
    Request,
    Result,
    Seed,
    Stop,
    Stops,
    Tagged,
    TokenCount,
    Voice,
    choose_seed,
    event,
)


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _OpenAiBody(Tagged, frozen=True, kw_only=True):
    model: str | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = 1.0
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1)] = 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class _CompletionBody(_OpenAiBody, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class _ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[_Part] | None = None

    @property
    def said(self) -> str:
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class _ChatBody(_OpenAiBody, frozen=True, kw_only=True):
    messages: Annotated[list[_ChatMessage], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None


class _OpenAi:
    """What ``/v1/completions`` and ``/v1/chat/completions`` share."""

    id_prefix: str
    whole_kind: str
    piece_kind: str

    def __init__(self, sent: _OpenAiBody, prompt: str, context: Context) -> None:
        self._context = context
        self._prompt_tokens = len(prompt.split())
        self._with_usage = sent.stream_options is not None and sent.stream_options.include_usage

    def whole(self, result: Result) -> bytes:
        choice = self._said(result.text) | {"finish_reason": result.finish}
        return msgspec.json.encode(
            self._frame(self.whole_kind, [choice]) | {"usage": self._usage(result)}
        )

    def opening(self) -> bytes:
        return b""

    def token(self, index: int, token: Token) -> bytes:
        return self._piece(token.text, None)

    def closing(self, index: int, last: Token | None, result: Result) -> bytes:
        end = self._piece(last.text if last else "", result.finish)
        if self._with_usage:
            end += event(self._frame(self.piece_kind, []) | {"usage": self._usage(result)})
        return end + b"data: [DONE]\n\n"

    def _said(self, text: str) -> Json:
        raise NotImplementedError

    def _delta(self, text: str) -> Json:
        raise NotImplementedError

    def _piece(self, text: str, finish: str | None) -> bytes:
        choice = self._delta(text) | {"finish_reason": finish}
        return event(self._frame(self.piece_kind, [choice]))

    def _frame(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id_prefix + self._context.id,
            "object": kind,
            "created": self._context.created,
            "model": self._context.model,
            "choices": choices,
        }

    def _usage(self, result: Result) -> Json:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": result.made,
            "total_tokens": self._prompt_tokens + result.made,
        }


class _Completion(_OpenAi):
    id_prefix = "cmpl-"
    whole_kind = piece_kind = "text_completion"

    def _said(self, text: str) -> Json:
        return {"index": 0, "text": text, "logprobs": None}

    _delta = _said


class _Chat(_OpenAi):
    id_prefix = "chatcmpl-"
    whole_kind, piece_kind = "chat.completion", "chat.completion.chunk"

    def opening(self) -> bytes:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event(self._frame(self.piece_kind, [role]))

    def _said(self, text: str) -> Json:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": None}

    def _delta(self, text: str) -> Json:
        return {"index": 0, "delta": {"content": text}, "logprobs": None}


def openai_error(status: int, kind: str, message: str, param: str | None = None) -> Refusal:
    """A refusal in OpenAI's shape."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return Refusal(status, body)


_Body = TypeVar("_Body", bound=_OpenAiBody)

_COMPLETION_BODY = msgspec.json.Decoder(_CompletionBody)
_CHAT_BODY = msgspec.json.Decoder(_ChatBody)


def _openai_body(body: bytes, decoder: msgspec.json.Decoder[_Body], context: Context) -> _Body:
    try:
        sent = read_body(body, decoder)
    except BadBody as error:
        raise openai_error(400, "BadRequestError", str(error)) from None
    if sent.model is not None and sent.model != context.model:
        message = f"The model `{sent.model[:200]}` does not exist."
        raise openai_error(404, "NotFoundError", message, "model")
    return sent


def _openai_request(
    sent: _OpenAiBody, prompt: str, max_tokens: int, context: Context, voice: Voice
) -> Request:
    temperature = 1.0 if sent.temperature is None else sent.temperature
    ask = Ask(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature or 1.0,
        top_p=sent.top_p or 1.0,
        seed=choose_seed(prompt, temperature > 0, sent.seed, context),
        stop=sent.stops,
    )
    return Request(ask, sent.stream, sent.tag, voice)


def parse_completion(body: bytes, context: Context) -> Request:
    """A body of ``/v1/completions``. Raises Refusal (400; 404 for another model)."""
    sent = _openai_body(body, _COMPLETION_BODY, context)
    prompt = sent.prompt if isinstance(sent.prompt, str) else sent.prompt[0]
    voice = _Completion(sent, prompt, context)
    return _openai_request(sent, prompt, sent.max_tokens or 16, context, voice)


def parse_chat(body: bytes, context: Context) -> Request:
    """A body of ``/v1/chat/completions``. Raises Refusal (400; 404 for another model).

    The last message of the user is what the answer is about; all messages count as the prompt.
    """
    sent = _openai_body(body, _CHAT_BODY, context)
    said = [message.said for message in sent.messages if message.role == "user"]
    voice = _Chat(sent, " ".join(message.said for message in sent.messages), context)
    max_tokens = sent.max_completion_tokens or sent.max_tokens or 256
    return _openai_request(sent, said[-1] if said else "", max_tokens, context, voice)
