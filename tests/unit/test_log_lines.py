"""One format for every line, and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest

from supervisor import log_lines
from supervisor.log_lines import Lines, configure, masker

FIRST_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error|critical)"
)


def record(message: object, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("room", level, __file__, 1, message, args, None)
    made.created, made.msecs = 1_795_425_361.123, 123.9
    return made


def text(message: object, *args: object, secrets: tuple[str, ...] = ()) -> str:
    return Lines("ingress-0", "text", masker(secrets)).format(record(message, *args))


def as_json(message: object, *args: object, secrets: tuple[str, ...] = ()) -> dict[str, str]:
    line = Lines("ingress-0", "json", masker(secrets)).format(record(message, *args))
    assert "\n" not in line
    return dict(json.loads(line))


def test_a_line_for_people() -> None:
    assert text("listening on %s", "127.0.0.1:3000") == (
        "2026-11-23T09:16:01.123Z info    ingress-0       listening on 127.0.0.1:3000"
    )


def test_a_line_for_machines() -> None:
    assert as_json('a "quoted" %d\nand more', 1) == {
        "time": "2026-11-23T09:16:01.123Z",
        "level": "info",
        "process": "ingress-0",
        "message": 'a "quoted" 1\nand more',
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_every_level_looks_alike(level: str) -> None:
    made = record("x", level=getattr(logging, level.upper()))
    line = Lines("a", "text", masker(())).format(made)
    assert line.split()[1:] == [level, "a", "x"]
    assert FIRST_LINE.match(line)


def test_only_a_first_line_begins_with_a_time() -> None:
    forged = text("first\n2026-11-23T09:16:01.123Z error   supervisor      all is lost\r\nend\n")
    first, *rest = forged.split("\n")
    assert FIRST_LINE.match(first)
    assert all(line.startswith("    ") for line in rest)
    assert [line for line in rest if FIRST_LINE.match(line)] == []


def test_control_characters_are_shown_and_not_sent_to_the_terminal() -> None:
    line = text("a\rb\x1b[2Jc\x00d\x7fe\x9bf\tg ü €")
    assert line.endswith("a\\x0db\\x1b[2Jc\\x00d\\x7fe\\x9bf\tg ü €")
    assert as_json("a\x1bb")["message"] == "a\x1bb"


def test_text_that_is_no_unicode_is_still_a_line() -> None:
    for line in (text("a\udcffb"), as_json("a\udcffb")["message"]):
        assert line.endswith("a\\udcffb")
        line.encode()


def test_a_line_is_bounded() -> None:
    assert len(text("x" * 100_000)) < log_lines.MAX_LINE + 100
    assert len(as_json("x" * 100_000)["message"]) == log_lines.MAX_LINE


SECRET = "s3cr3t/tok'en\\"


@pytest.mark.parametrize(
    "line",
    [
        text("token %s", SECRET, secrets=(SECRET,)),
        text("token %r", SECRET, secrets=(SECRET,)),
        text(f"{SECRET}{SECRET}", secrets=("", SECRET)),
        text("GET /?t=s3cr3t%2Ftok%27en%5C", secrets=(SECRET,)),
        as_json("token %s", SECRET, secrets=(SECRET,))["message"],
        text({"mtoken": SECRET}, secrets=(SECRET,)),
        text("too few %s %s", SECRET, secrets=(SECRET,)),
        text("not a number %d", SECRET, secrets=(SECRET,)),
        text("x" * (log_lines.MAX_LINE - 5) + SECRET, secrets=(SECRET,)),
    ],
)
def test_a_secret_is_masked_wherever_it_stands(line: str) -> None:
    assert "s3cr3t" not in line
    assert "***" in line


def test_the_longer_secret_is_masked_first() -> None:
    assert masker(["abc", "abcdef"])("abcdef abc") == "*** ***"


def test_without_secrets_nothing_is_masked() -> None:
    assert masker(["", ""])("*** and ''") == "*** and ''"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_secret_is_masked_in_a_traceback(style: str) -> None:
    made = record("it failed")
    try:
        raise ValueError(f"bad token {SECRET}")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = Lines("a", style, masker((SECRET,))).format(made)
    assert "s3cr3t" not in line
    assert "ValueError: bad token ***" in line
    assert "Traceback" in line


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before, afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    noisy = {name: logging.getLogger(name).level for name in ("aiohttp", "asyncio")}
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.captureWarnings(False)
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)


def test_everything_that_is_logged_goes_to_stderr(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root.addHandler(logging.NullHandler())
    configure("reporter", "text", "info", masker((SECRET,)))
    assert len(root.handlers) == 1
    logging.getLogger("reporter.engine").info("posted with %s", SECRET)
    logging.getLogger("reporter.engine").debug("nobody asked")
    logging.getLogger("aiohttp.access").info("GET /")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    lines = written.getvalue().splitlines()
    assert lines[0].endswith("info    reporter        posted with ***")
    assert "DeprecationWarning: old" in lines[1]
    assert sum(bool(FIRST_LINE.match(line)) for line in lines) == 2


def test_a_secret_that_is_no_utf8_is_masked_too() -> None:
    """A variable may hold any bytes."""
    mask = masker(["k3y\udcff"])
    assert mask("a k3y\udcff b k3y%FF") == "a *** b ***"


@pytest.mark.parametrize(
    "written", ['k3y/ "\u00e9\\', "k3y/ \"\u00e9\\\\", 'k3y/ \\"\\u00e9\\\\', "k3y/%20%22%C3%A9%5C",
                "k3y%2F%20%22%C3%A9%5C"]
)  # fmt: skip
def test_however_a_secret_is_written(written: str) -> None:
    assert masker(['k3y/ "\u00e9\\'])(f"a {written} b") == "a *** b"
