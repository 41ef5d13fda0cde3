"""Figures of text that a model goes on with, and when they call it sound."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Annotated

from gradiend_hub.artifact.validation import TWO

NLL_RISE = 1.0
"""Nats per token by which the base model may find continuations less likely than its own greedy ones, which are its
likeliest."""
DISTINCT_KEPT = 0.6
"""Share of the base model's distinct bigrams that has to be left."""
REPEAT_RISE = 0.2
"""Share of a continuation by which its longest repeat may grow."""
LENGTH_KEPT = 0.5
"""Share of the base model's length that has to be left."""
CLASS_WORDS_RISE = 0.2
"""Share of all words by which the words of a class may grow."""
NGRAMS = (1, 2, 3)
LEAST_NGRAMS = 32
"""N-grams of which a share says something."""

_WORDS = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class GenerationFigures:
    """Figures of the continuations of some prompts.

    Attributes:
        nll: Mean negative log-likelihood per token under the *base* model, in nats: mean over prompts.
        distinct: Distinct n-grams of tokens by n, as a share of all n-grams of all continuations together, each cut to the
            length that the base model's own and the edited model's both have; `None` for fewer than `LEAST_NGRAMS`.
        longest_repeat: Length of the longest sequence of tokens that a continuation has twice, as a share of the
            continuation: mean over prompts.
        length: Mean number of tokens, without the one that ends a text.
        class_words: Share of the words that are of a class, by class.
    """

    nll: float
    distinct: dict[str, float | None]
    longest_repeat: float
    length: float
    class_words: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationPoint:
    """Continuations of prompts of one kind at one strength.

    Attributes:
        strength: In units of the recommended dose.
        kind: Of the prompts, e.g. "neutral" or "feature".
        prompts: Number of prompts.
        edited: Figures of what the model writes at this strength.
        own: Those of the base model's own continuations. `longest_repeat` is that of texts as long as the edited model's,
            since any text repeats itself in the end.
        nll_rise: 95 % interval of the rise of `nll`, over prompts; `None` for fewer than two.
        faults: What is not sound beside the base model's own continuations, in words; empty if all is.
    """

    strength: float
    kind: str
    prompts: int
    edited: GenerationFigures
    own: GenerationFigures
    nll_rise: Annotated[list[float], TWO] | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Return whether nothing is at fault."""
        return not self.faults


@dataclass(frozen=True)
class Continuation:
    """One prompt with what the model goes on with, by strength as text ("-1.0", "0.0", …)."""

    prompt: str
    kind: str
    by_strength: dict[str, str]


@dataclass(frozen=True)
class GenerationReport:
    """Continuations at some strengths.

    Attributes:
        new_tokens: Most tokens of a continuation.
        points: Figures of each strength and kind of prompt.
        samples: Some of the continuations.
    """

    new_tokens: int
    points: list[GenerationPoint] = field(default_factory=list)
    samples: list[Continuation] = field(default_factory=list)

    def at(self, strength: float) -> list[GenerationPoint]:
        """Return the points of a strength, one of each kind of prompt."""
        return [point for point in self.points if point.strength == strength]

    def sound(self, strength: float) -> bool:
        """Return whether continuations at a measured strength are sound for every kind of prompt.

        Raises:
            KeyError: The strength was not measured.
        """
        if not (points := self.at(strength)):
            raise KeyError(f"No continuations at strength {strength:g}; measured: {[p.strength for p in self.points]}.")
        return all(point.sound for point in points)


def distinct(texts: Sequence[Sequence[int]], n: int) -> float | None:
    """Return the distinct n-grams of all texts together as a share of their n-grams (J. Li et al., 2016).

    `None` if there are fewer than `LEAST_NGRAMS`.
    """
    found = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len({*found}) / len(found) if len(found) >= LEAST_NGRAMS else None


def longest_repeat(text: Sequence[int]) -> float:
    """Return the longest sequence that occurs twice, as a share of a text; both may overlap, as in "ha ha ha"."""
    low, high = 0, max(len(text) - 1, 0)
    while low < high:  # what occurs twice at one length does at every shorter one
        middle = (low + high + 1) // 2
        parts = [tuple(text[i : i + middle]) for i in range(len(text) - middle + 1)]
        low, high = (middle, high) if len({*parts}) < len(parts) else (low, middle - 1)
    return low / max(len(text), 1)


def class_word_share(texts: Sequence[str], words: Mapping[str, Collection[str]]) -> dict[str, float]:
    """Return the share of the words of all texts that are among each class's words, whatever their case."""
    found = [word.casefold() for text in texts for word in _WORDS.findall(text)]
    of = {name: {word.casefold() for word in known} for name, known in words.items()}
    return {name: sum(word in known for word in found) / max(len(found), 1) for name, known in of.items()}


@dataclass(frozen=True)
class Texts:
    """Continuations of some prompts: tokens without the one that ends a text, texts, and nll per token, [prompts]."""

    tokens: list[list[int]]
    texts: list[str]
    nll: list[float]


def figures(
    written: Texts, other: Texts, words: Mapping[str, Collection[str]], lengths: Sequence[int] | None = None
) -> GenerationFigures:
    """Return the figures of continuations beside others of the same prompts.

    Args:
        written: The continuations.
        other: Those that they are compared with.
        words: Words by class.
        lengths: Lengths at which repeats are looked for: in the beginnings of all texts that are as long, or else in the
            longest text. By default, each text is looked at as it is.
    """
    cut = [tokens[: len(others)] for tokens, others in zip(written.tokens, other.tokens, strict=True)]
    longest = max(map(len, written.tokens))
    parts = [written.tokens]
    if lengths is not None:
        parts = [[t[:n] for t in written.tokens if len(t) >= min(n, longest)] for n in lengths]
    return GenerationFigures(
        nll=mean(written.nll),
        distinct={str(n): distinct(cut, n) for n in NGRAMS},
        longest_repeat=mean(mean(map(longest_repeat, part)) for part in parts),
        length=mean(map(len, written.tokens)),
        class_words=class_word_share(written.texts, words),
    )


def faults(edited: GenerationFigures, own: GenerationFigures) -> list[str]:
    """Return what is not sound about continuations beside the base model's own on the same prompts, in words."""
    found = []
    if edited.nll > own.nll + NLL_RISE:
        found.append(f"the base model finds them unlikely ({edited.nll:.2f} nats a token, its own {own.nll:.2f})")
    kept, of_own = edited.distinct["2"], own.distinct["2"]
    if kept is not None and of_own is not None and kept < DISTINCT_KEPT * of_own:
        found.append(f"{kept:.0%} of their bigrams are distinct, of its own {of_own:.0%}")
    if edited.longest_repeat > own.longest_repeat + REPEAT_RISE:
        found.append(f"{edited.longest_repeat:.0%} of a text is one repeat, of its own {own.longest_repeat:.0%}")
    if edited.length < LENGTH_KEPT * own.length:
        found.append(f"they have {edited.length:.1f} tokens, its own {own.length:.1f}")
    for name, share in edited.class_words.items():
        if share > own.class_words[name] + CLASS_WORDS_RISE:
            found.append(f"{share:.0%} of their words are of {name}, of its own {own.class_words[name]:.0%}")
    return found
