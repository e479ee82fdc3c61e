"""``init --from worker.py``: the worker.toml that a file amounts to, where it has no functions.

What only code can do is not guessed at: a file with functions that take part in requests stays what
it is, and the refusal names them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


class HasFunctions(Exception):
    """The file cannot be written as settings; the text names what keeps it from being so."""


def as_toml(values: Mapping[str, Any], script: str) -> str:
    """The text of a worker.toml.

    Args:
        values: what the file amounts to, section → name → value.
        script: its path, for the first line.

    Raises:
        HasFunctions: it has functions.
    """
    if functions := list(_functions(values)):
        raise HasFunctions(
            f"{script} has functions that settings cannot express ({'; '.join(functions)}): run it"
            " as it is"
        )
    lines = [f"# What {script} amounts to. Every setting: docs/settings.md.", ""]
    for section, content in values.items():
        if section != "route" and content:
            lines += [f"[{section}]", *_lines(content), ""]
    for route in values["route"]:
        lines += ["[[route]]", *_lines(route), ""]
    return "\n".join(lines)


def _functions(values: Mapping[str, Any]) -> Iterator[str]:
    for route in values["route"]:
        if route["hosted"]:
            yield f"{route['path']}: a response"
        elif route["prepare"]:
            yield f"{route['path']}: a payload or workload"
    if values["benchmark"] and not values["benchmark"].get("payloads"):
        yield f"{values['benchmark']['route']}: payloads of the benchmark"
    if values["model"].get("lifecycle"):
        yield "a lifecycle"


def _lines(content: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} = {_value(value)}"
        for name, value in content.items()
        if name not in ("prepare", "hosted", "sampled") and value != []
    ]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "inf" if math.isinf(value) else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_value(v)}' for k, v in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
