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
#: … but for what tokenizers call so (--pad-token) …
_NO_SECRET = frozenset(("PAD", "EOS", "BOS", "END", "STOP", "MASK", "UNK", "SEP", "CLS"))
#: … whose value has at least this many characters; shorter ones are words like "true".
MIN_SECRET = 8
#: A word that a shell would take apart.
_TAKEN_APART = re.compile(r"[\s\"'\\;&|()<>]")
#: ``name VALUE``, ``name=VALUE``, ``"name": "VALUE"`` in any text.
_GIVEN = re.compile(
    r"""(?<![\w.-])([\w.-]{1,64})["']?([\s:=]{1,64})["'$]*(?=([^\s"'`;&|<>(){},]{8,}))"""
)


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
    if not _TAKEN_APART.search(word):
        return [word]
    lexer = shlex.shlex(word.replace("\\\n", ""), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:  # a quote that is never closed
        return word.split()


def _secret_words(words: list[str]) -> Iterator[str]:
    """Of a command: ``--api-key VALUE``, ``--api-key=VALUE``, ``API_KEY=VALUE``, and in its words,
    as they stand, whatever looks like it.
    """
    for word, following in zip(words, [*words[1:], ""]):
        name, separator, value = word.partition("=")
        if not separator and name.startswith("-") and not following.startswith("--"):
            value = following
        if _names_secret(name) and _is_secret(value):
            yield value
            yield value.removeprefix("$")  # $'…'
        if _TAKEN_APART.search(word):
            for name, between, value in _GIVEN.findall(word):
                given = name.startswith("-") or not between.isspace()
                if given and _names_secret(name) and _is_secret(value):
                    yield value


def _is_secret(value: str) -> bool:
    return len(value) >= MIN_SECRET and len(set(value)) > 2  # ======== is none


def _names_secret(name: str) -> bool:
    before, _, last = name.upper().replace("-", "_").rpartition("_")
    return last in _SECRET_WORDS and before.rpartition("_")[2] not in _NO_SECRET
