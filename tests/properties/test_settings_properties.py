"""Whatever is said to be a setting gives a tree that can be handed on, or named faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import settings_sources
from supervisor.settings import Settings
from supervisor.settings_rules import unfit
from supervisor.settings_sources import SettingsError, load

FIELDS = settings_sources.fields()
OWN = [field.own_variable for field in FIELDS] + [f.variable for f in FIELDS if f.variable]
OTHERS = ["UNSECURED", "PUBLIC_IPADDR", "VAST_TCP_PORT_3000", "XDG_STATE_HOME", "HOME"]

any_text = st.text(st.characters(), max_size=40)  # surrogates included
LIKELY = [
        "", " ", "0", "-1", "3000", "65536", "nan", "inf", "-inf", "1e999", "1_0", "٣", "true",
        "[", "[]", "[1]", '["a"]', "a,b", "{}", "{ a = 1 }", "[" * 3000, "9" * 5000, "http://h:1",
        "http://[", "http://h:x", "http://h:1/x", "//", "/", "/a", "1979-05-27", "1\nvalue = 2",
        "signature", "none", "json", "192.0.2.1", "\0", "\udcff", "http://\u2100",
]  # fmt: skip
texts = st.sampled_from(LIKELY) | any_text


def judged(load_it: Any) -> None:
    """A tree that survives the hand-off, or faults that each say where and what."""
    faults = None
    try:
        settings = load_it()
    except SettingsError as error:
        faults = error.faults
    if faults is not None:
        assert faults
        assert all(fault.place and fault.message for fault in faults)
        return
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings)
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(settings)
    assert settings.worker.state_dir.startswith("/")
    assert not settings.model.url.endswith("/")


@given(st.dictionaries(st.sampled_from(OWN + OTHERS), texts, max_size=6))
def test_any_text_in_any_variable(environ: dict[str, str]) -> None:
    judged(lambda: load(None, environ))


@given(st.dictionaries(st.sampled_from([f.path for f in FIELDS]) | any_text, texts, max_size=4))
def test_any_text_in_any_flag(flags: dict[str, str]) -> None:
    judged(lambda: load(None, {}, flags))


@pytest.mark.parametrize("variable", OWN)
def test_each_likely_text_in_each_variable(variable: str) -> None:
    for text in LIKELY:
        judged(lambda text=text: load(None, {variable: text}))


keys = st.sampled_from([*{f.name for f in FIELDS}, *settings_sources.sections()]) | st.text(
    "ab.-\"' é", max_size=4
)
leaves = st.sampled_from(
    ["1", "-1", "0.5", "nan", "inf", "true", '"x"', '"/a"', '"http://h:1"', "''", "1979-05-27",
     "07:32:00", "[]", "{}", '"\\u0000"', "9223372036854775808", "[[1, 2], ['a']]"]
)  # fmt: skip
lines = st.one_of(
    st.builds("{} = {}".format, keys, leaves),
    st.builds("[{}]".format, st.sampled_from(list(settings_sources.sections())) | keys),
    st.builds("[[{}]]".format, st.sampled_from(["route", "worker"]) | keys),
    st.builds("[{}.{}]".format, keys, keys),
    st.text(max_size=12),
)


@given(st.lists(lines, max_size=12))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join(content), "utf-8", errors="replace")
    judged(lambda: load(path, {}))


@given(st.binary(max_size=60))
def test_any_bytes_as_a_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(content)
    judged(lambda: load(path, {}))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(values)
def test_what_is_fit_can_be_handed_on(value: Any) -> None:
    if not unfit(value):
        packed = msgspec.msgpack.encode(value)
        assert msgspec.msgpack.decode(packed) == value


def test_nesting_has_an_end() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert "levels deep" in unfit(deep)
    while isinstance(deep, list):  # taken apart by hand: its own end would recurse
        deep = deep.pop()
