"""TGI's API: ``/generate`` and ``/generate_stream`` of text-generation-inference.

Its law: what it does not understand it refuses with 422 ``{"error", "error_type"}``. Sampling is
off unless asked for, and the stop text is part of the answer, as there.
"""

from __future__ import annotations

from typing import Annotated

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
    Stops,
    Tagged,
    TokenCount,
    choose_seed,
    event,
)


class _TgiParameters(msgspec.Struct, frozen=True):
    max_new_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(gt=0, le=1000)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    do_sample: bool = False
    seed: Seed | None = None
    stop: Stops = []
    details: bool = False


class _TgiBody(Tagged, frozen=True):
    inputs: str
    parameters: _TgiParameters | None = None


_BODY = msgspec.json.Decoder(_TgiBody)


class _Tgi:
    """``/generate`` and ``/generate_stream`` of text-generation-inference."""

    def __init__(self, ask: Ask, details: bool) -> None:
        self._ask = ask
        self._details = details

    def whole(self, result: Result) -> bytes:
        body: Json = {"generated_text": result.text}
        if self._details:
            tokens = [_tgi_token(token) for token in result.tokens]
            body["details"] = {**self._end(result), "prefill": [], "tokens": tokens}
        return msgspec.json.encode(body)

    def opening(self) -> bytes:
        return b""

    def token(self, index: int, token: Token) -> bytes:
        return self._piece(index, token, None, None)

    def closing(self, index: int, last: Token | None, result: Result) -> bytes:
        if last is None:
            raise ValueError("TGI's last event is that of the last word, and there is none")
        return self._piece(index, last, result.text, self._end(result))

    def _piece(self, index: int, token: Token, text: str | None, details: Json | None) -> bytes:
        piece = {
            "index": index + 1,
            "token": _tgi_token(token),
            "generated_text": text,
            "details": details,
        }
        return event(piece, b"data:")

    def _end(self, result: Result) -> Json:
        return {
            "finish_reason": "length" if result.finish == "length" else "stop_sequence",
            "generated_tokens": result.made,
            "seed": self._ask.seed,
        }


def _tgi_token(token: Token) -> Json:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": False}


def parse_generate(body: bytes, context: Context, *, stream: bool = False) -> Request:
    """A body of ``/generate``. Raises Refusal (422)."""
    try:
        sent = read_body(body, _BODY)
    except BadBody as error:
        raise Refusal(
            422, {"error": f"Input validation error: {error}", "error_type": "validation"}
        ) from None
    given = sent.parameters or _TgiParameters()
    sampling = given.do_sample or given.temperature is not None or given.top_p is not None
    ask = Ask(
        prompt=sent.inputs,
        max_tokens=given.max_new_tokens or 100,
        temperature=given.temperature or 1.0,
        top_p=given.top_p or 1.0,
        seed=choose_seed(sent.inputs, sampling, given.seed, context),
        stop=tuple(given.stop),
        keep_stop=True,
    )
    return Request(ask, stream, sent.tag, _Tgi(ask, given.details))


def parse_generate_stream(body: bytes, context: Context) -> Request:
    """A body of ``/generate_stream``. Raises Refusal (422)."""
    return parse_generate(body, context, stream=True)
