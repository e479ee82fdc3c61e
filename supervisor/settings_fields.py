"""Pure: every setting as a person knows it, and what a text means where a setting is expected.

Read off the types of ``settings.py``, so that a new field there is at once a variable, a flag and a
row of the reference. It must not know any setting by name.
"""

from __future__ import annotations

import tomllib
import typing
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from supervisor.settings import RouteSettings, Section, Settings

#: Prefix of the variables that set any field: LIGHTERMAN_<SECTION>_<FIELD>.
PREFIX = "LIGHTERMAN_"
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off", ""}


class Field(msgspec.Struct, frozen=True):
    """One setting as a person knows it: ``section.name``, with what the reference says."""

    section: str
    name: str
    kind: Any
    default: Any
    description: str
    variable: str  #: the platform's name, or ""
    secret: bool

    @property
    def path(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"

    @property
    def own_variable(self) -> str:
        """The variable that always works."""
        return f"{PREFIX}{self.section}_{self.name}".upper()


@cache
def fields_of(section: str, struct: type[Section]) -> tuple[Field, ...]:
    """Every setting of one section."""
    hints = get_type_hints(struct, include_extras=True)
    found = []
    for info in msgspec.structs.fields(struct):
        metas = [m for m in get_args(hints[info.name])[1:] if isinstance(m, msgspec.Meta)]
        extra = {key: value for meta in metas for key, value in (meta.extra or {}).items()}
        doc = next((m.description for m in metas if m.description), "")
        default = "" if info.default is msgspec.NODEFAULT else info.default
        if info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        found.append(
            Field(
                section,
                info.name,
                hints[info.name],
                default,
                doc,
                extra.get("env", ""),
                bool(extra.get("secret")),
            )
        )
    return tuple(found)


def sections() -> dict[str, type[Section]]:
    """Name and type of every section; ``route`` is the one that may be repeated."""
    hints = get_type_hints(Settings)
    return {
        name: kind if isinstance(kind, type) and issubclass(kind, Section) else RouteSettings
        for name, kind in hints.items()
    }


def fields() -> list[Field]:
    """Every setting there is, in the order of the tree."""
    return [field for name, kind in sections().items() for field in fields_of(name, kind)]


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def from_text(text: str, kind: Any) -> Any:
    """A variable's or flag's text as the TOML value that it stands for.

    Raises:
        ValueError: says what to write instead; the text itself is not in it.
    """
    bare = _bare(kind)
    if bare is bool:
        lowered = text.strip().lower()
        if lowered in _TRUE | _FALSE:
            return lowered in _TRUE
        raise ValueError("say true or false")
    if bare in (int, float):
        try:
            return bare(text)
        except ValueError:
            raise ValueError(f"say a {'whole ' * (bare is int)}number") from None
    if bare is str or get_origin(bare) is typing.Literal:
        return text
    if get_origin(bare) is list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError as error:
        raise ValueError(f"write it as in TOML: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
