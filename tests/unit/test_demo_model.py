"""The demo model server: its rules in this process, its behaviour as the real program."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import string
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.demo import faults, tally
from supervisor.demo.faults import Faults
from supervisor.demo.generation import Ask, Generation
from supervisor.demo.markov import Markov
from supervisor.demo.model import CORPUS
from tests.kit.demo_programs import Program, running
from tests.kit.wait import wait_until

MODULE = "supervisor.demo.model"
QUESTION = "What is the answer to the universe?"
MARKOV = Markov(CORPUS.read_text(encoding="utf-8"))


def walked(prompt: str, seed: int, words: int = 40, **settings: float) -> str:
    steps = MARKOV.walk(prompt, random.Random(seed).random, **settings)
    return "".join(token.text for token in islice(steps, words))


# ------------------------------------------------------------------------------- the chain


def test_the_same_draws_give_the_same_text_and_others_another() -> None:
    texts = [walked(QUESTION, seed) for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


@given(
    prompt=st.text(max_size=200),
    seed=st.integers(0, 2**32),
    temperature=st.floats(min_value=0, exclude_min=True, max_value=1e6),
    top_p=st.floats(min_value=0, exclude_min=True, max_value=1),
)
def test_any_prompt_and_setting_gives_words_of_the_text(
    prompt: str, seed: int, temperature: float, top_p: float
) -> None:
    known = set(MARKOV.words)
    tokens = list(islice(MARKOV.walk(prompt, random.Random(seed).random, temperature, top_p), 30))
    assert [token.text.strip() for token in tokens] == [MARKOV.words[token.id] for token in tokens]
    assert {token.text.strip() for token in tokens} <= known
    assert all(token.logprob <= 0 for token in tokens)
    assert not tokens[0].text.startswith(" ")
    assert all(token.text.startswith(" ") for token in tokens[1:])


@pytest.mark.parametrize("word", ["lighthouse", "queues", "GPU", "signature"])
def test_the_text_is_about_what_was_asked(word: str) -> None:
    singular = word.removesuffix("s").casefold()
    # Two sentences and a half: the first was chosen for the word, though the chain may leave it.
    about = sum(singular in walked(f"Tell me of {word}!", seed).casefold() for seed in range(20))
    chance = sum(singular in walked("", seed).casefold() for seed in range(20))
    assert about > chance


def test_a_narrow_choice_takes_the_likeliest_word() -> None:
    chain = Markov("The sea is calm. The sea is calm. The sea is deep. The sea is calm.")
    text = "".join(t.text for t in islice(chain.walk("", lambda: 0.999, 1.0, 0.5), 4))
    assert text == "The sea is calm."


def test_a_text_without_a_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentence"):
        Markov("# Only a heading.\n\nno end\n")


# -------------------------------------------------------------------------- one generation


def generated(**settings: Any) -> tuple[list[str], Generation]:
    ask = Ask(prompt=QUESTION, **settings)
    generation = Generation(MARKOV, ask, random.Random(ask.seed).random)
    parts: list[str] = []
    while generation.finish is None:
        parts += [token.text for token in generation.step()]
    assert "".join(parts) == generation.text
    return parts, generation


@given(
    seed=st.integers(0, 1000),
    max_tokens=st.integers(1, 60),
    cuts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 25)), min_size=1, max_size=4),
    keep=st.booleans(),
)
def test_stop_texts_end_the_answer(
    seed: int, max_tokens: int, cuts: list[tuple[int, int]], keep: bool
) -> None:
    words, plain = generated(seed=seed, max_tokens=max_tokens)
    assert (plain.made, plain.finish, len(words)) == (max_tokens, "length", max_tokens)
    whole = "".join(words)
    stops = tuple(whole[at % len(whole) :][:size] for at, size in cuts)
    _, stopped = generated(seed=seed, max_tokens=max_tokens, stop=stops, keep_stop=keep)
    # Words are made one by one; the first that completes a stop text is the last.
    last = next(n for n in range(1, max_tokens + 1) if any(s in "".join(words[:n]) for s in stops))
    said = "".join(words[:last])
    expected = said if keep else said[: min(said.find(stop) for stop in stops if stop in said)]
    assert (stopped.text, stopped.finish, stopped.made) == (expected, "stop", last)


def test_a_stop_text_that_never_comes_holds_nothing_back_at_the_end() -> None:
    words, _ = generated(seed=3, max_tokens=20)
    others, generation = generated(seed=3, max_tokens=20, stop=(words[-1] + "\x00",))
    assert (others, generation.finish) == (words, "length")


def test_a_step_after_the_end_is_a_mistake() -> None:
    _, generation = generated(max_tokens=1)
    with pytest.raises(RuntimeError, match="over"):
        generation.step()


# ---------------------------------------------------------------------- faults and counters


def test_every_fault_is_in_the_help_and_can_be_written_as_a_flag() -> None:
    for kind in get_args(faults.AnyFault):
        name = faults.kind_of(kind)
        assert f"\n  {name}" in "\n" + faults.help_text()
        assert isinstance(faults.parse_flag(name), kind)
    assert faults.parse_flag("crash:after=3,code=4") == faults.Crash(after=3, code=4)


@pytest.mark.parametrize("text", ["", "nope", "crash:after", "crash:after=x", "crash:when=1"])
def test_a_fault_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text)):
        faults.parse_flag(text)


def test_faults_count_requests() -> None:
    state = Faults()
    state.set(faults.Status(code=503, count=2, health=True))
    state.set(faults.Crash(after=4))
    assert state.for_health() == faults.Status(code=503, count=2, health=True)
    kinds = [type(state.for_request()) for _ in range(4)]
    assert kinds == [faults.Status, faults.Status, type(None), faults.Crash]
    assert state.for_health() is None
    state.set(faults.CloseMidStream(after=1, count=2))
    assert [state.for_generation() is None for _ in range(3)] == [False, False, True]
    state.set(faults.Slow(delay_s=1))
    state.set(faults.Clear())
    assert state.active == []
    assert state.for_request() is None


def test_tags_are_bounded() -> None:
    counters = tally.Tally()
    for number in range(tally.MAX_TAGS + 5):
        counters.receive(str(number))
    counters.receive("0")
    view = counters.view()
    assert view["untracked"] == 5
    assert len(view["tags"]["received"]) == tally.MAX_TAGS
    assert view["tags"]["received"]["0"] == 2


# ------------------------------------------------------------------------------ the program


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One server for the tests that leave it as they found it."""
    with running(MODULE, tmp_path_factory.mktemp("model") / "log") as program:
        yield loaded(program)


def loaded(program: Program) -> Program:
    program.listening()
    wait_until(lambda: program.ask("GET", "/health")[0] == 200)
    return program


def events(body: bytes) -> list[Any]:
    """The JSON of server-sent events, ``[DONE]`` as text."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    data = [block.removeprefix("data:").strip() for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


PARAMETERS = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 7}


def test_tgi_generates_and_streams_the_same(server: Program) -> None:
    body = {"inputs": QUESTION, "parameters": PARAMETERS}
    whole = server.post("/generate", body)
    assert list(whole) == ["generated_text"]
    assert len(whole["generated_text"].split()) == 12
    status, streamed = server.ask("POST", "/generate_stream", body)
    assert status == 200
    assert streamed.startswith(b'data:{"index":1,"token":{"id":')
    pieces = events(streamed)
    assert "".join(piece["token"]["text"] for piece in pieces) == whole["generated_text"]
    assert [piece["index"] for piece in pieces] == list(range(1, 13))
    assert [piece["generated_text"] for piece in pieces[:-1]] == [None] * 11
    assert pieces[-1]["generated_text"] == whole["generated_text"]
    assert pieces[-1]["details"] == {"finish_reason": "length", "generated_tokens": 12, "seed": 7}


def test_tgi_tells_details_and_stops(server: Program) -> None:
    body = {"inputs": QUESTION, "parameters": {**PARAMETERS, "stop": [" "], "details": True}}
    answer = server.post("/generate", body)
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert len(answer["details"]["tokens"]) == answer["details"]["generated_tokens"] == 2
    assert " " in answer["generated_text"]


def test_without_sampling_the_prompt_decides(server: Program) -> None:
    body = {"prompt": QUESTION, "temperature": 0}
    first, second = (server.post("/v1/completions", body) for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["id"] != second["id"]
    assert server.post("/generate", {"inputs": QUESTION}) == server.post(
        "/generate", {"inputs": QUESTION}
    )


def test_openai_completions(server: Program) -> None:
    body = {"model": "harbour-markov", "prompt": [QUESTION], "max_tokens": 9, "seed": 4}
    whole = server.post("/v1/completions", body)
    assert (whole["object"], whole["id"][:5]) == ("text_completion", "cmpl-")
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    _, streamed = server.ask("POST", "/v1/completions", {**body, "stream": True})
    *pieces, done = events(streamed)
    assert done == "[DONE]"
    assert "".join(p["choices"][0]["text"] for p in pieces) == whole["choices"][0]["text"]
    assert [p["choices"][0]["finish_reason"] for p in pieces] == [None] * 8 + ["length"]
    stop = whole["choices"][0]["text"][3:9]
    cut = server.post("/v1/completions", {**body, "stop": stop})["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole["choices"][0]["text"][:3], "stop")


def test_openai_chat(server: Program) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    body = {"messages": messages, "max_tokens": 5, "seed": 4}
    whole = server.post("/v1/chat/completions", body)
    assert whole["object"] == "chat.completion"
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant" and len(message["content"].split()) == 5
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, streamed = server.ask("POST", "/v1/chat/completions", {**body, **options})
    first, *pieces, usage, done = events(streamed)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert said == message["content"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert done == "[DONE]"


def test_models_are_listed(server: Program) -> None:
    assert [model["id"] for model in server.get("/v1/models")["data"]] == ["harbour-markov"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/generate", b"{", 422, "no valid JSON"),
        ("/generate", b'{"z": ' + b"[" * 100_000, 422, "no valid JSON"),
        ("/generate", {}, 422, "inputs"),
        ("/generate", {"inputs": 3}, 422, "$.inputs"),
        ("/generate", {"inputs": "", "parameters": {"max_new_tokens": 0}}, 422, "max_new_tokens"),
        ("/generate_stream", {"inputs": "", "parameters": {"stop": [""]}}, 422, "stop"),
        ("/v1/completions", b"\xff", 400, "no valid JSON"),
        ("/v1/completions", {"prompt": "x", "n": 2}, 400, "$.n"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**9}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "model": "gpt-0"}, 404, "gpt-0"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", b'{"temperature": NaN}', 400, "no valid JSON"),
        ("/demo/fault", {"kind": "boredom"}, 422, "boredom"),
        ("/demo/fault", {"kind": "crash_on_start"}, 422, "--fault"),
    ],
)
def test_bad_input_is_refused_as_the_real_servers_do(
    server: Program, path: str, body: Any, status: int, says: str
) -> None:
    got, answer = server.ask("POST", path, body)
    assert got == status
    assert says in json.dumps(json.loads(answer))


def test_a_client_that_leaves_frees_its_slot_and_is_counted(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    flags = ("--slots", "1", "--tokens-per-second", "20", "--journal", str(journal))
    with running(MODULE, tmp_path / "log", *flags) as program:
        loaded(program)
        running_one, waiting_one = program.connect(), program.connect()
        endless = {"prompt": QUESTION, "max_tokens": 60_000, "stream": True}
        running_one.request("POST", "/v1/completions", json.dumps(endless | {"user": "first"}))
        answer = running_one.getresponse()
        assert answer.readline().startswith(b"data: ")
        waiting_one.request("POST", "/v1/completions", json.dumps(endless | {"user": "second"}))
        wait_until(lambda: program.get("/demo/stats")["waiting"] == 1)
        waiting_one.close()
        wait_until(lambda: program.get("/demo/stats")["waiting"] == 0)
        assert program.get("/demo/stats")["cancelled"] == 1
        assert program.get("/demo/stats")["running"] == 1

        third = {"prompt": QUESTION, "max_tokens": 2, "request_id": "third"}
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(program.post("/v1/completions", third))
        )
        thread.start()
        wait_until(lambda: program.get("/demo/stats")["waiting"] == 1)
        answer.close()
        running_one.close()
        thread.join(30)
        assert answers[0]["usage"]["completion_tokens"] == 2

        stats = program.get("/demo/stats")
        assert (stats["requests"], stats["cancelled"], stats["finished"]) == (3, 2, 1)
        assert (stats["running"], stats["waiting"], stats["generations"]) == (0, 0, 2)
        assert stats["tags"]["received"] == {"first": 1, "second": 1, "third": 1}
        assert stats["tags"]["finished"] == {"third": 1}
        assert "Request first cancelled: the client went away" in program.printed
        pid = program.process.pid
        lines = [f"received {tag} {pid}" for tag in ("first", "second", "third")]
        assert journal.read_text().splitlines() == [*lines, f"finished third {pid}"]


def test_it_is_not_healthy_while_it_loads_and_stops_at_once(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--load-seconds", "3000") as program:
        program.listening()
        assert program.ask("GET", "/health")[0] == 503
        assert program.ask("POST", "/generate", {"inputs": "x"})[0] == 503
        assert program.stop() == 0
        assert "startup complete" not in program.printed


def test_it_says_so_when_it_cannot_listen(server: Program, tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--port", str(server.port)) as second:
        assert second.wait() == 78
        assert f"cannot listen on 127.0.0.1:{server.port}" in second.printed


# --------------------------------------------------------------------- faults, as they look


def fault(program: Program, kind: str, **fields: Any) -> Any:
    return program.post("/demo/fault", {"kind": kind, **fields})


def test_status_and_health_faults_pass(server: Program) -> None:
    fault(server, "status", code=503, count=2)
    fault(server, "stop_after_health", after=1)
    codes = [server.ask("POST", "/generate", {"inputs": "x"})[0] for _ in range(3)]
    assert codes == [503, 503, 200]
    assert [server.ask("GET", "/health")[0] for _ in range(3)] == [200, 500, 500]
    fault(server, "none")
    assert server.ask("GET", "/health")[0] == 200


def test_a_hang_answers_nobody_until_it_ends(server: Program) -> None:
    fault(server, "hang")
    asked = [("GET", "/health", None), ("POST", "/generate", '{"inputs": "x"}')]
    connections = [server.connect() for _ in asked]
    before = server.get("/demo/stats")
    for connection, (method, path, body) in zip(connections, asked, strict=True):
        connection.request(method, path, body)
    wait_until(lambda: server.get("/demo/stats")["requests"] == before["requests"] + 1)
    for connection in connections:
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        connection.sock.settimeout(30)
    fault(server, "none")
    assert [connection.getresponse().status for connection in connections] == [200, 200]
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        ("malformed", http.client.BadStatusLine),
        ("large_headers", http.client.LineTooLong),
        ("truncated", http.client.IncompleteRead),
    ],
)
def test_bad_responses_are_bad(server: Program, variant: str, error: type[Exception]) -> None:
    fault(server, "bad_response", variant=variant)
    with pytest.raises(error):
        server.ask("POST", "/generate", {"inputs": "x"})
    assert server.ask("POST", "/generate", {"inputs": "x"})[0] == 200


def test_a_stream_can_be_closed_in_the_middle(server: Program) -> None:
    fault(server, "close_mid_stream", after=3)
    with pytest.raises(http.client.IncompleteRead) as caught:
        server.ask("POST", "/generate_stream", {"inputs": "x"})
    assert len(events(caught.value.partial)) == 3
    assert server.get("/demo/stats")["running"] == 0


def test_a_flood_is_printed(server: Program) -> None:
    written = fault(server, "flood_log", megabytes=2, long_line_mb=1)["written_bytes"]
    assert written >= 3 * 2**20
    assert max(map(len, server.printed.splitlines())) >= 2**20


def test_a_forgotten_port_refuses_but_what_is_open_goes_on(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--fault", "no_ready_line") as program:
        loaded(program)
        connection = program.connect()
        connection.request("POST", "/demo/fault", '{"kind": "forget_port"}')
        assert connection.getresponse().read()
        with pytest.raises(ConnectionRefusedError):
            program.ask("GET", "/health")
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        assert program.stop() == 0
        assert "startup complete" not in program.printed


@pytest.mark.parametrize(
    ("flag", "code"), [("crash", -signal.SIGKILL), ("crash_on_start:code=3", 3)]
)
def test_it_crashes_at_start(tmp_path: Path, flag: str, code: int) -> None:
    with running(MODULE, tmp_path / "log", "--fault", flag) as program:
        assert program.wait() == code


def test_it_crashes_at_the_chosen_request(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--fault", "crash:after=2,code=9") as program:
        loaded(program)
        assert program.ask("POST", "/generate", {"inputs": "x"})[0] == 200
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            program.ask("POST", "/generate", {"inputs": "x"})
        assert program.wait() == 9


def test_it_dies_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--fault", "mid_stream_crash:after=4") as program:
        loaded(program)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)) as caught:
            program.ask("POST", "/generate_stream", {"inputs": "x"})
        assert program.wait() == -signal.SIGKILL
        if isinstance(caught.value, http.client.IncompleteRead):
            assert len(events(caught.value.partial)) == 4


def test_a_blocked_loop_answers_nothing_and_hears_no_signal(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log") as program:
        loaded(program)
        assert fault(program, "hang_event_loop") == {"ok": True}
        program.process.terminate()
        connection = program.connect()
        connection.timeout = 0.2
        connection.request("GET", "/demo/stats")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        assert program.process.poll() is None


def test_it_can_refuse_to_stop(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--fault", "refuse_term") as program:
        loaded(program)
        program.process.terminate()
        wait_until(lambda: "ignoring SIGTERM" in program.printed)
        assert program.ask("GET", "/health")[0] == 200
        fault(program, "none")
        assert program.stop() == 0


def test_it_can_leave_a_grandchild_that_holds_the_port(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log") as program:
        loaded(program)
        pid = fault(program, "leave_grandchild", hold_port=True)["grandchild_pid"]
        try:
            assert os.getsid(pid) not in (os.getsid(0), os.getsid(program.process.pid))
            assert psutil.Process(pid).ppid() != program.process.pid
            assert program.stop() == 0
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", program.port))
        finally:
            os.kill(pid, signal.SIGKILL)


def test_sigterm_ends_a_running_stream(tmp_path: Path) -> None:
    with running(MODULE, tmp_path / "log", "--tokens-per-second", "10") as program:
        loaded(program)
        connection = program.connect()
        body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 60_000}}
        connection.request("POST", "/generate_stream", json.dumps(body))
        answer = connection.getresponse()
        assert answer.readline()
        assert program.stop() == 0
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()


def test_the_text_reads_like_text() -> None:
    text = walked(QUESTION, 1, 200)
    assert set(text) <= set(string.ascii_letters + " .,:;?!'-")
    assert text[0].isupper()
    assert text.count(".") + text.count("?") >= 5
