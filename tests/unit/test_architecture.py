"""The rules of the house that a reader of the imports can check."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

import backend_adapter.messages
import reporter.messages
import supervisor.messages
from supervisor.messages import Message

ROOT = Path(__file__).parents[2]
#: From the ground up: each may import itself and those before it.
FLOORS = ("supervisor", "reporter", "backend_adapter", "ingress")
MODULES = sorted(
    path for floor in FLOORS for path in (ROOT / floor).rglob("*.py") if path.is_file()
)
#: Rooms that hold rules only: (event, now) in, commands out. CI asks for every branch of them.
PURE = (ROOT / ".ci" / "pure_rooms").read_text().split()
HANDS = {
    "os", "time", "asyncio", "zmq", "socket", "logging", "random", "threading", "subprocess",
    "secrets", "signal", "selectors", "multiprocessing", "uvloop", "aiohttp", "psutil",
}  # fmt: skip
MAX_LINES = 400


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in the file, those inside functions too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import hides where it points"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    """The first part of every import."""
    return {module.partition(".")[0] for module in imports(path)}


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 50
    assert {name_of(path).partition("/")[0] for path in MODULES} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    floor = FLOORS.index(name_of(path).partition("/")[0])
    uphill = tops(path) & set(FLOORS[floor + 1 :])
    assert not uphill
    assert "tests" not in tops(path)


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_has_no_hands(room: str) -> None:
    assert (ROOT / room).is_file(), "a pure room is gone: name its successor here"
    assert not tops(ROOT / room) & HANDS


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_builds_on_pure_rooms(room: str) -> None:
    """What it imports of ours, and so on, is free of hands as well."""
    seen: set[Path] = set()
    todo = [ROOT / room]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert not tops(path) & HANDS, name_of(path)
        for module in imports(path):
            candidate = ROOT / (module.replace(".", "/") + ".py")
            if module.partition(".")[0] in FLOORS and candidate.is_file():
                todo.append(candidate)


def test_one_room_knows_zeromq() -> None:
    assert [name_of(path) for path in MODULES if "zmq" in tops(path)] == ["supervisor/wire.py"]


def environment_reads(path: Path) -> list[int]:
    """Lines that touch this process's environment."""
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [node.lineno for alias in node.names if alias.name in names]
    return found


def test_one_room_reads_the_environment() -> None:
    readers = {name_of(path) for path in MODULES if environment_reads(path)}
    assert readers == {"supervisor/settings_sources.py"}


#: Last words of the names of what nobody may guess letter by letter, or compares to what is so.
SECRETS = ("token", "signature", "digest", "mac", "secret", "password", "auth", "sha256")


def last_word(side: ast.expr) -> str:
    """The last word of the name of one side: of the variable, attribute, key, or call."""
    match side:
        case (
            ast.Subscript(slice=ast.Constant(value=str(name)))
            | ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_])
        ):
            return name.lower().rpartition("_")[2]
        case ast.Attribute(value=inner, attr="encode" | "decode" | "lower" | "strip"):
            return last_word(inner)  # what it is stays
        case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
            return last_word(inner)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lower().rpartition("_")[2]
        case _:
            return ""


def careless(tree: ast.AST) -> list[int]:
    """Lines where a secret is compared in a time that tells how much of it was right."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if isinstance(operator, ast.Eq | ast.NotEq) and any(
                last_word(side).endswith(SECRETS) for side in (left, right)
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_secret_is_compared_letter_by_letter(path: Path) -> None:
    assert not careless(parsed(path)), "hmac.compare_digest takes as long for any two"


@pytest.mark.parametrize(
    "text",
    [
        "given == token",
        "a != settings.engine.token",
        "call['signature'] == b",
        "call.get('signature') == b",
        "hashlib.sha256(given).digest() == b",
        "hashlib.sha256(given).hexdigest() != b",
        "a == self._secret.encode()",
        "given == b == self.api_token[1:]",
        "session.auth == call.auth",
    ],
)
def test_such_a_comparison_is_found(text: str) -> None:
    assert careless(ast.parse(text)) == [1]


@pytest.mark.parametrize(
    "text", ["max_tokens == 1", "auth is None", "len(signature) == 64", "token in tokens", "a < b"]
)
def test_others_are_not(text: str) -> None:
    assert careless(ast.parse(text)) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    doc = ast.get_docstring(parsed(path))
    assert doc, "a module opens with what it is responsible for"
    assert len(doc.split()) >= 4


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_one_noun(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_a_drawer(path: Path) -> None:
    assert not {"util", "utils", "helpers", "misc", "common"} & set(path.stem.split("_"))


# ------------------------------------------------------------------ the words

UNIONS: dict[str, Any] = {
    f"{module.__name__.partition('.')[0]}.{name}": union
    for module in (supervisor.messages, reporter.messages, backend_adapter.messages)
    for name, union in vars(module).items()
    if name.startswith(("To", "From")) and typing.get_args(union)
}
TYPES: list[type[Message]] = sorted(
    {kind for union in UNIONS.values() for kind in typing.get_args(union)},
    key=lambda kind: (kind.__module__, kind.__name__),
)


def words(module: ModuleType) -> set[type]:
    return {
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, Message)
        and each.__module__ == module.__name__
        and each.__struct_config__.tag is not None
    }


def test_every_socket_has_its_words() -> None:
    assert set(UNIONS) == {
        "supervisor.ToSupervisor",
        "supervisor.FromSupervisor",
        "reporter.ToReporter",
        "reporter.FromReporter",
        "backend_adapter.ToAdapter",
        "backend_adapter.FromAdapter",
    }
    for module in (supervisor.messages, reporter.messages, backend_adapter.messages):
        assert words(module) <= set(TYPES), "a message that no socket carries"


@pytest.mark.parametrize("name", sorted(UNIONS))
def test_tags_are_unique_within_a_union(name: str) -> None:
    tags = [kind.__struct_config__.tag for kind in typing.get_args(UNIONS[name])]
    assert len(set(tags)) == len(tags)
    assert all(isinstance(tag, int) for tag in tags)


def some(kind: Any) -> Any:
    """A value of the type that is not its default."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [some(args[0])]
    if origin is dict:
        return {some(args[0]): some(args[1])}
    if args:
        return some(args[0])
    if issubclass(kind, msgspec.Struct):
        return filled(kind)
    data = b"\x00\xff"
    values: dict[type, Any] = {
        int: 3, float: 0.1 + 0.2, str: "tëxt", bytes: data, memoryview: memoryview(data)
    }  # fmt: skip
    return True if kind is bool else values[kind]


def filled(kind: type[msgspec.Struct]) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{name: some(hints[name]) for name in kind.__struct_fields__})


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_message_crosses_a_socket_unchanged(kind: type[Message]) -> None:
    message = filled(kind)
    unions = [union for union in UNIONS.values() if kind in typing.get_args(union)]
    assert unions
    for union in unions:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=union) == message


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_message_is_frozen_described_and_made_for_the_wire(kind: type[Message]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.array_like
    assert kind.__doc__
    with pytest.raises(AttributeError):
        setattr(filled(kind), (*kind.__struct_fields__, "body")[0], 1)
    assert kind.bulky == (typing.get_type_hints(kind).get("body") in (bytes, memoryview))


def test_the_list_of_messages_is_not_empty() -> None:
    assert len(TYPES) > 20
