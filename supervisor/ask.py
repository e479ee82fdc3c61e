"""``ask``: the seven steps of one request, walked by a client.

    1  client → engine       POST /route/
    2  engine → client       a worker's URL and signed auth_data
    3  client → worker       POST <route> {"auth_data", "payload"}
    4  worker → model        the payload
    5  model → worker        its answer
    6  worker → client       the answer, as it comes
    7  worker → engine       what became of it

Steps 4 and 5 happen inside the worker; what can be told of them is what goes in and comes out.
Protocol: the serverless engine's (its clients do the same). Keys and signatures are never shown
whole. Nothing of the worker is imported here: it is a client like any other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from supervisor.answer_text import AnswerError, text_of, texts_of_stream
from supervisor.plain_http import Answer, HttpError, request

#: Seconds to wait for a ready worker.
ROUTE_DEADLINE_S = 60.0
ROUTE_POLL_S = 0.25
#: Seconds after which the person is told what is being waited for.
PATIENCE_S = 2.0
#: Seconds for the engine to answer one request.
ENGINE_TIMEOUT_S = 10.0
#: Seconds for the report of step 7 to arrive; workers report once a second.
REPORT_DEADLINE_S = 10.0
REPORT_POLL_S = 0.1
#: Routes that are preferred when none is named, in this order.
PREFERRED = ("/v1/chat/completions", "/v1/completions", "/generate_stream", "/generate")

#: Called with (step, what happens, message) for each step.
Show = Callable[[int, str, Any], None]


class AskError(Exception):
    """The request failed; the text says at which step and what to do."""


class Question(msgspec.Struct, frozen=True):
    """One request and where to send it."""

    engine: str
    endpoint: str
    api_key: str
    route: str
    payload: dict[str, Any]
    #: work that the engine is asked to reserve
    cost: float = 100.0
    #: the engine is the local one, whose record can be read
    local: bool = False
    #: step 7 is wanted: look for what the engine recorded
    watch: bool = False
    #: PEM file of certificates to trust
    cafile: str | None = None


def choose_route(routes: list[str], stream: bool) -> str:
    """The route to ask when none is named; ``stream``: the answer may come as a stream.

    Raises:
        AskError: there is none.
    """
    for path in PREFERRED:
        if path in routes and (stream or path != "/generate_stream"):
            return path
    if not routes:
        raise AskError("which route? name one: --route /generate")
    return routes[0]


def make_payload(route: str, text: str, max_tokens: int, stream: bool) -> dict[str, Any]:
    """The payload of TEXT as the API behind ``route`` wants it."""
    if route.endswith("/chat/completions"):
        messages = [{"role": "user", "content": text}]
        return {"messages": messages, "max_tokens": max_tokens, "stream": stream}
    if route.endswith("/completions"):
        return {"prompt": text, "max_tokens": max_tokens, "stream": stream}
    return {"inputs": text, "parameters": {"max_new_tokens": max_tokens}}


def walk(question: Question, show: Show, write: Callable[[str], object]) -> None:
    """Walk the steps; ``write`` gets the answer's text as it comes.

    Raises:
        AskError: a step failed.
    """
    try:
        route = _route(question, show)
        body = {"auth_data": route, "payload": question.payload}
        url = str(route["url"]).rstrip("/") + question.route
        show(3, f"client posts to {url}", body)
        answer = request(url, body, cafile=question.cafile)
        try:
            show(4, "worker passes the payload on to the model server", question.payload)
            _answer(answer, show, write)
        finally:
            answer.close()
        if question.watch:
            _report(question, route, show)
    except (HttpError, AnswerError) as error:
        raise AskError(str(error)) from None


def _route(question: Question, show: Show) -> dict[str, Any]:
    """Steps 1 and 2: a worker's URL and what to show it."""
    url = f"{question.engine.rstrip('/')}/route/"
    asked = {
        "endpoint": question.endpoint,
        "api_key": question.api_key,
        "cost": question.cost,
        "request_idx": 0,
        "replay_timeout": ROUTE_DEADLINE_S,
    }
    began = time.monotonic()
    end, patient = began + ROUTE_DEADLINE_S, True
    show(1, f"client asks {url}", asked)
    while True:
        try:
            told = _routed(url, asked, question)
        except HttpError as error:
            if not question.local:
                raise
            told = {"status": str(error)}  # the worker starts, or restarts it
        if "url" in told:
            show(2, "engine names a worker", told)
            return told
        if time.monotonic() >= end:
            status = told.get("status", "no worker is ready")
            raise AskError(f"no worker within {ROUTE_DEADLINE_S:g} s: {status}")
        if patient and time.monotonic() - began > PATIENCE_S:
            patient = False
            print(f"ask: waiting for a ready worker ({told.get('status', '')})", file=sys.stderr)
        asked["request_idx"] = told.get("request_idx", 0)
        time.sleep(ROUTE_POLL_S)


def _routed(url: str, asked: dict[str, Any], question: Question) -> dict[str, Any]:
    answer = request(url, asked, timeout_s=ENGINE_TIMEOUT_S, cafile=question.cafile)
    try:
        if answer.status != 200:
            raise AskError(f"the engine refused: {_refusal(answer)}")
        told = answer.json()
    finally:
        answer.close()
    if not isinstance(told, dict):
        raise AskError(f"{url}: the answer is not a JSON object")
    return told


def _answer(answer: Answer, show: Show, write: Callable[[str], object]) -> None:
    """Steps 5 and 6."""
    if answer.status >= 400:
        refusal = _refusal(answer)
        show(6, f"worker answers {answer.status}", refusal)
        raise AskError(refusal)
    streamed = answer.content_type.startswith("text/event-stream")
    how = "streams" if streamed else "sends"
    show(5, "model server answers the worker", {"content_type": answer.content_type})
    try:
        said = "".join(_spoken(answer, streamed, write))
    finally:
        write("\n")  # what went wrong is said on a line of its own
    show(6, f"worker {how} the answer", {"status": answer.status, "text": said})


def _spoken(answer: Answer, streamed: bool, write: Callable[[str], object]) -> Iterator[str]:
    if streamed:
        parts = texts_of_stream(answer.pieces())
    else:
        parts = iter([text_of(answer.whole(), answer.content_type)])
    for part in parts:
        write(part)
        yield part


def _refusal(answer: Answer) -> str:
    """An error answer in one line: status, kind, message, when to come back."""
    body = answer.whole()
    try:
        error = json.loads(body)
        error = error.get("error", error) if isinstance(error, dict) else error
    except ValueError:
        error = body.decode("utf-8", "replace").strip()[:300]
    if isinstance(error, dict) and "message" in error:
        said = f"{error.get('kind') or error.get('type') or 'error'}: {error['message']}"
    else:
        said = error if isinstance(error, str) else json.dumps(error)[:300]
    later = f" (Retry-After {answer.retry_after} s)" if answer.retry_after else ""
    return f"{answer.status} {said}{later}"


def _report(question: Question, route: dict[str, Any], show: Show) -> None:
    """Step 7, where it can be seen: what the local engine recorded."""
    if not question.local:
        show(7, "worker reports to the engine (a remote engine does not show its record)", None)
        return
    url = f"{question.engine.rstrip('/')}/demo/record?since=0"
    end = time.monotonic() + REPORT_DEADLINE_S
    while True:
        try:
            record = _json(url)
        except HttpError as error:  # it stopped with the worker; the answer itself is complete
            show(7, f"what the engine recorded cannot be seen: {error}", None)
            return
        for entry in record["requests"]:
            if entry["request_idx"] == route["request_idx"]:
                last = record["status"][-1] if record["status"] else None
                show(7, "worker reported to the engine", {"request": entry, "worker": last})
                return
        if time.monotonic() >= end:
            raise AskError(
                f"the engine has no report of request {route['request_idx']}"
                f" after {REPORT_DEADLINE_S:g} s: see `logs reporter`"
            )
        time.sleep(REPORT_POLL_S)


def _json(url: str) -> Any:
    answer = request(url, timeout_s=ENGINE_TIMEOUT_S)
    try:
        return answer.json()
    finally:
        answer.close()


_HIDDEN = ("api_key", "signature", "mtoken")


def masked(message: Any) -> Any:
    """A message that people may see: keys and signatures cut to their first characters."""
    if isinstance(message, dict):
        return {
            key: _cut(value) if key in _HIDDEN and isinstance(value, str) else masked(value)
            for key, value in message.items()
        }
    if isinstance(message, list):
        return [masked(part) for part in message]
    return message


def _cut(secret: str) -> str:
    return f"{secret[:4]}…({len(secret)} characters)" if len(secret) > 16 else "***"


def show_json(step: int, what: str, message: Any) -> None:
    """One JSON object a line, for ``--json``."""
    line = {"step": step, "what": what, "message": masked(message)}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def show_nothing(step: int, what: str, message: Any) -> None:
    """For people who want the answer only."""


def write_now(text: str) -> None:
    """To the terminal at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
