"""What a request to the demo model server is, whichever API it came through.

Responsible for the words between the two APIs (``voice_tgi``, ``voice_openai``) and the hands: a
parser turns a body into a Request, its Voice words the answer, and what cannot be answered is a
Refusal in that API's own shape. It must not know about sockets, pace, or how words are made.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from supervisor.demo.generation import Ask
from supervisor.demo.markov import Token

#: Words that one request may ask for.
MAX_TOKENS = 65_536

#: A tag longer than this is cut.
TAG_CHARS = 128

Json = dict[str, Any]


class Refusal(Exception):
    """The request cannot be answered. Carries the HTTP status and the body to answer with."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Result(NamedTuple):
    """A finished generation."""

    text: str
    tokens: list[Token]
    made: int  #: words made; more than handed out where a stop text was left out
    finish: Literal["length", "stop"]


class Voice(Protocol):
    """How one API words its answer to one request."""

    def whole(self, result: Result) -> bytes:
        """The body of an answer that is not streamed."""

    def opening(self) -> bytes:
        """Events before the first word."""

    def token(self, index: int, token: Token) -> bytes:
        """The event of one word; ``index`` counts from 0."""

    def closing(self, index: int, last: Token | None, result: Result) -> bytes:
        """The events of the last word, if one is left, and of the end."""


class Request(NamedTuple):
    """One understood request."""

    ask: Ask
    stream: bool
    tag: str  #: the client's name for it (``request_id`` or ``user``); "" when it gave none
    voice: Voice


class Context(NamedTuple):
    """What a request does not say about itself."""

    model: str
    id: str  #: unique per request
    created: int  #: wall clock, seconds
    seed: int  #: used where the request names none


Parser = Callable[[bytes, Context], Request]

TokenCount = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Stops = Annotated[list[Stop], Meta(max_length=4)]


class Tagged(msgspec.Struct, frozen=True, kw_only=True):
    """What every body may say about who sent it."""

    user: str | None = None
    request_id: str | None = None

    @property
    def tag(self) -> str:
        """The client's name for the request, "" when it gave none."""
        return (self.request_id or self.user or "")[:TAG_CHARS]


def choose_seed(prompt: str, sampling: bool, named: int | None, context: Context) -> int:
    """The seed to use; without sampling it follows from the prompt, so the text does too."""
    if not sampling:
        return zlib.crc32(prompt.encode())
    return context.seed if named is None else named


def event(data: Json, prefix: bytes = b"data: ") -> bytes:
    """One server-sent event."""
    return prefix + msgspec.json.encode(data) + b"\n\n"
