"""Pure: which texts of the settings and the environment are secrets.

It knows them by the names that people give them, and must not know where they would be shown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from supervisor.settings import Settings

#: Last words of the names of what is secret (HF_TOKEN, OPENAI_API_KEY, --api-key) …
_SECRET_WORDS = frozenset(("TOKEN", "KEY", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS"))
#: … whose value has at least this many characters; shorter ones are words like "true".
MIN_SECRET = 8


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Texts that must never appear in a log, an error, a metric or a page.

    The engine's token; and, because a model server prints what it was given, every value whose
    name says that it is one: of a variable, or of a flag or a variable in ``model.command``, also
    where several words of it are one item (``sh -c``).
    """
    found = [settings.engine.token]
    for name, value in (*environ.items(), *settings.model.env.items()):
        if _names_secret(name) and len(value) >= MIN_SECRET:
            found.append(value)
    for words in _command_lines(settings.model.command):
        found += _secret_words(words)
    return list(dict.fromkeys(text for text in found if text))


def _command_lines(words: list[str]) -> Iterator[list[str]]:
    """The command as it is, and each item that is a command line itself, taken apart as a shell
    does, and within that again.
    """
    lines = [words]
    while lines:
        line = lines.pop()
        yield line
        for word in line:
            parts = _parts(word)
            if parts != [word]:  # they are shorter, so this ends
                lines.append(parts)


def _parts(word: str) -> list[str]:
    word = word.replace("\\\n", " ")
    lexer = shlex.shlex(word, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:  # a quote that is never closed
        return re.split(r"[\s\"';&|()<>]+", word)


def _secret_words(words: list[str]) -> Iterator[str]:
    """Of a command: ``--api-key VALUE``, ``--api-key=VALUE``, ``API_KEY=VALUE``."""
    for word, following in zip(words, [*words[1:], ""]):
        name, separator, value = word.partition("=")
        value = value if separator else following
        given = separator or name.startswith("-")
        if given and _names_secret(name) and len(value) >= MIN_SECRET:
            yield value


def _names_secret(name: str) -> bool:
    return name.upper().replace("-", "_").rpartition("_")[2] in _SECRET_WORDS
