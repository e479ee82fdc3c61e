"""Writes docs/errors.md: the closed list of error kinds, from ``errors.py``.

``python -m ingress.reference``; a test holds that the page is current.
"""

from __future__ import annotations

from pathlib import Path

from ingress.errors import ErrorKind

_HEAD = """# Errors

Every refusal and failure is JSON with a kind from this closed list:

    {"error": {"kind": "queue_full", "message": "…", "retry_after_s": 12.5, "request_idx": 7}}

`retry_after_s` comes with a `Retry-After` header; `request_idx` is the engine's, where known. Where
existing clients read other keys (`auth_data`, `payload`), those stand beside `error`. An event
stream that has begun ends with one `data:` event of this shape and a connection that is cut.

| status | kind | when |
|---|---|---|
"""


def page() -> str:
    """The page's text."""
    kinds = sorted(ErrorKind, key=lambda kind: (kind.status, kind.value))
    rows = (f"| {kind.status} | `{kind.value}` | {kind.doc} |\n" for kind in kinds)
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    Path("docs/errors.md").write_text(page(), "utf-8")
