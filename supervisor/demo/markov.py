"""A Markov chain over words: what the demo model server thinks with.

Responsible for learning which word follows which two, and for walking that chain. Its law: the
same text, prompt, settings and draws give the same words, always. It must not know about HTTP,
tokens per second, or where random numbers come from: they are passed in, as numbers in [0, 1).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

#: Where two words have only ever been followed by one third word, the chain sometimes looks at
#: the last word alone, or it would recite its text.
WANDER = 0.06

#: At the end of a sentence it sometimes comes back to what the prompt was about.
RETURN = 0.35

#: Of a prompt only the end is read; the rest of a long one would not change the subject.
PROMPT_CHARS = 4096

_EDGES = ".,;:!?()[]{}'\"`*-"
_SENTENCE_ENDS = (".", "?", "!")


class Token(NamedTuple):
    """One word with its punctuation."""

    id: int
    text: str  #: begins with a space, but for the first of a text
    logprob: float


class _Options(NamedTuple):
    """What may follow, the most frequent first."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]  #: relative to the first, which is 1.0


class _Sentence(NamedTuple):
    first: int
    second: int


class Markov:
    """The chain, learnt from one text.

    ``text``: paragraphs in plain words; lines that begin with ``#`` are headings and are skipped.
    Raises ValueError when the text has no sentence of at least two words.
    """

    def __init__(self, text: str) -> None:
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        spoken = " ".join(lines).split()
        self.words: tuple[str, ...] = tuple(dict.fromkeys(spoken))
        ids = {word: number for number, word in enumerate(self.words)}
        chain = [ids[word] for word in spoken]

        pairs: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        singles: defaultdict[int, Counter[int]] = defaultdict(Counter)
        # The text is closed into a ring, so that every pair has a successor.
        for first, second, third in zip(chain, chain[1:] + chain[:1], chain[2:] + chain[:2]):
            pairs[first, second][third] += 1
            singles[first][second] += 1
        self._pairs = {pair: _options(counts) for pair, counts in pairs.items()}
        self._singles = {word: _options(counts) for word, counts in singles.items()}

        self._ends = frozenset(ids[word] for word in self.words if word.endswith(_SENTENCE_ENDS))
        self._sentences: list[_Sentence] = []
        about: defaultdict[str, set[int]] = defaultdict(set)
        for sentence in _sentences(chain, self._ends):
            # A text that answers should not begin by asking.
            if len(sentence) < 2 or self.words[sentence[-1]].endswith("?"):
                continue
            for word in sentence:
                about[_bare(self.words[word])].add(len(self._sentences))
            self._sentences.append(_Sentence(sentence[0], sentence[1]))
        if not self._sentences:
            raise ValueError("the text to learn from has no sentence of two words or more")
        self._about = {word: tuple(sorted(where)) for word, where in about.items()}

    def walk(
        self,
        prompt: str,
        draw: Callable[[], float],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[Token]:
        """Words without end, about the prompt where it names something known.

        ``draw``: uniform numbers in [0, 1). ``temperature`` (> 0) flattens or sharpens the choice,
        ``top_p`` in (0, 1] cuts off its tail.
        """
        subject = self._subject(prompt)
        exponent = 1.0 / temperature
        space = ""
        while True:
            start = subject[int(draw() * len(subject))]
            certainty = -math.log(len(subject))
            yield Token(start.first, space + self.words[start.first], certainty)
            space = " "
            before, last = start
            yield Token(last, " " + self.words[last], 0.0)
            while not (last in self._ends and draw() < RETURN):
                options = self._pairs[before, last]
                if len(options.ids) == 1 and draw() < WANDER:
                    options = self._singles[last]
                chosen, logprob = _pick(options, draw, exponent, top_p)
                before, last = last, chosen
                yield Token(chosen, " " + self.words[chosen], logprob)

    def _subject(self, prompt: str) -> list[_Sentence]:
        """The sentences nearest to the prompt; all of them when it names nothing known."""
        asked = {_bare(word) for word in prompt[-PROMPT_CHARS:].split()}
        scores: Counter[int] = Counter()
        for word in asked:
            where = self._about.get(word, ())
            for number in where:
                # A rare word says more about the subject than a frequent one.
                scores[number] += 1000 // len(where)
        if not scores:
            return self._sentences
        best = max(scores.values())
        return [self._sentences[n] for n, score in sorted(scores.items()) if 2 * score >= best]


def _bare(word: str) -> str:
    """The word as it is compared with a prompt's: one queue, two Queues!"""
    return word.strip(_EDGES).casefold().removesuffix("s")


def _options(counts: Counter[int]) -> _Options:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    most = ranked[0][1]
    return _Options(tuple(word for word, _ in ranked), tuple(n / most for _, n in ranked))


def _sentences(chain: Iterable[int], ends: frozenset[int]) -> Iterator[list[int]]:
    sentence: list[int] = []
    for word in chain:
        sentence.append(word)
        if word in ends:
            yield sentence
            sentence = []


def _pick(
    options: _Options, draw: Callable[[], float], exponent: float, top_p: float
) -> tuple[int, float]:
    """One of the options and the logarithm of how likely it was."""
    if len(options.ids) == 1:
        return options.ids[0], 0.0
    weights = [weight**exponent for weight in options.weights]
    total = sum(weights)
    if top_p < 1.0:
        kept, enough, total_kept = 0, top_p * total, 0.0
        while total_kept < enough:
            total_kept += weights[kept]
            kept += 1
        weights, total = weights[:kept], total_kept
    mark = draw() * total
    for word, weight in zip(options.ids, weights):
        mark -= weight
        if mark < 0.0:
            return word, math.log(weight / total)
    return options.ids[0], math.log(weights[0] / total)
