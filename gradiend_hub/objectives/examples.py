"""Examples of rows and of neutral text."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import Row
from gradiend_hub.errors import DataError

from .base import Example, Objective


def tokenize_rows(objective: Objective, rows: Sequence[Row], *, what: str = "dataset") -> list[Example]:
    """Tokenise every row; if some cannot be, one error names the first and counts them all."""
    examples: list[Example] = []
    problems: list[str] = []
    for number, row in enumerate(rows):
        try:
            examples.append(objective.tokenize(row.masked, row.factual, row.alternative))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        raise DataError(f"{what}: {len(problems)} of {len(rows)} rows cannot be used; the first is {problems[0]}")
    return examples


def neutral_examples(objective: Objective, texts: Sequence[str], *, seed: int = 0) -> list[Example]:
    """One random real token of each text as a slot that is filled with that token itself."""
    rng = random.Random(seed)
    return [e for e in (objective.neutral_example(text, rng) for text in texts) if e is not None]


def other_examples(objective: Objective, rows: Sequence[Row], *, seed: int = 0) -> list[Example]:
    """One random token of each row's text that is no filler's, as a slot that is filled with that token itself."""
    rng = random.Random(seed)
    words = {(row.masked, word) for row in rows for word in (row.factual, row.alternative)}
    fillers = {token for masked, word in words for token in objective.filler_tokens(masked, word)}
    found: list[Example] = []
    for row in rows:
        text = row.masked.replace(SLOT, row.factual)
        tries = (objective.neutral_example(text, rng) for _ in range(8))
        found += [e for e in tries if e is not None and e.factual.labels[0] not in fillers][:1]
    return found
