"""What every section of the settings is made of: its base class, and the types of its fields.

A leaf: it reads nothing, names no setting and imports nothing of ours.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section of the tree."""


def doc(text: str, env: str | None = None, secret: bool = False, **bounds: Any) -> Meta:
    """What a field is for, and what fits.

    Args:
        text: the reference text of docs/.
        env: the variable that the platform uses for it.
        secret: it is shown nowhere.
        bounds: as for ``msgspec.Meta``.
    """
    extra: dict[str, Any] = {}
    if env is not None:
        extra["env"] = env
    if secret:
        extra["secret"] = True
    return Meta(description=text, extra=extra, **bounds)


Seconds = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Bytes = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
