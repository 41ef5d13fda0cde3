"""Where and as which tokens the words of the classes are read at a row's slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import Row
from gradiend_hub.data.casing import Casing
from gradiend_hub.errors import DataError
from gradiend_hub.objectives import Objective, Sample


def require_readable(objective: Objective, rows: Sequence[Row], fillers: Mapping[str, Sequence[str]] | None) -> None:
    """Find out before training what the strength curve needs: every class word can be read at every row's slot.

    Args:
        rows: the rows that are going to be measured.
        fillers: words by class, as in `GradiendConfig.fillers`.

    Raises:
        DataError: there are no fillers, or some row where one of them cannot be read; the first row is named and all such
            rows are counted.
    """
    problems = []
    for number, row in enumerate(rows):
        try:
            readings_of(objective, row, fillers)
        except DataError as error:
            problems.append(f"row {number} ({row.masked[:60]!r}): {error}")
    if problems:
        raise DataError(
            f"The probability of the classes cannot be read on {len(problems)} of {len(rows)} rows, because a word of the "
            f"fillers {dict(fillers or {})} is not usable there. The first is {problems[0]} Leave these rows out, or name "
            "other words in GradiendConfig.fillers."
        )


@dataclass(frozen=True)
class Reading:
    """One input of a row, and the words of each class whose tokens are read at its slots."""

    slots: Sample
    words: list[list[tuple[int, ...]]]


def readings_of(objective: Objective, row: Row, fillers: Mapping[str, Sequence[str]] | None) -> list[Reading]:
    """The inputs in which the classes' words are read, in the case of the word that the row had.

    Words of one token share one input. A longer word's probability is the product over its slots: of as many masks in a
    masked model, of each token after the ones before it in a causal one.
    """
    if not fillers:
        raise DataError("The direction's config names no fillers, so class probabilities cannot be read.")
    cased = Casing(fillers).of_row(row, row.masked.partition(SLOT)[0])
    words = sorted(
        {
            (of, objective.filler_tokens(row.masked, cased(word)))
            for of, class_words in enumerate(fillers.values())
            for word in class_words
        }
    )
    samples = objective.slots(row.masked, [tokens for _, tokens in words])
    readings: dict[tuple[int, ...], Reading] = {}
    for (of, tokens), sample in zip(words, samples, strict=True):
        reading = readings.setdefault(sample.input_ids, Reading(sample, [[] for _ in fillers]))
        reading.words[of].append(tokens)
    return list(readings.values())


def padded(words: Sequence[Sequence[Sequence[tuple[int, ...]]]]) -> Tensor:
    """[B, C, W, K] from lists of unequal length, filled up with −1."""
    count = max(len(of_class) for row in words for of_class in row)
    length = max(len(tokens) for row in words for of_class in row for tokens in of_class)
    ids = torch.full((len(words), len(words[0]), count, length), -1)
    for b, row in enumerate(words):
        for c, of_class in enumerate(row):
            for w, tokens in enumerate(of_class):
                ids[b, c, w, : len(tokens)] = torch.tensor(tokens)
    return ids
