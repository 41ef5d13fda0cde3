"""Examples of rows and of neutral items."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from gradiend_hub.data import Row
from gradiend_hub.errors import DataError

from .base import Objective
from .samples import Example


def examples_of(objective: Objective, rows: Sequence[Row], *, what: str = "dataset") -> list[Example]:
    """Make an example of every row; if some cannot be, one error names the first and counts them all."""
    examples: list[Example] = []
    problems: list[str] = []
    for number, row in enumerate(rows):
        try:
            examples.append(objective.example(row))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        raise DataError(f"{what}: {len(problems)} of {len(rows)} rows cannot be used; the first is {problems[0]}")
    return examples


def neutral_examples(objective: Objective, items: Sequence[Any], *, seed: int = 0) -> list[Example]:
    """Draw one real output of each neutral item as an example of itself; items without any are left out."""
    rng = random.Random(seed)
    return [e for e in (objective.neutral_example(item, rng) for item in items) if e is not None]


def other_examples(
    objective: Objective, rows: Sequence[Row], fillers: Mapping[str, Sequence[Any]] | None = None, *, seed: int = 0
) -> list[Example]:
    """Draw one real output of each row's input that is none of the classes'; rows without any are left out."""
    rng = random.Random(seed)
    words = [word for of_class in (fillers or {}).values() for word in of_class]
    words += dict.fromkeys(word for row in rows for word in (row.factual, row.alternative))
    return [e for e in (objective.other_example(row, rng, words) for row in rows) if e is not None]


def require_readable(
    objective: Objective, rows: Sequence[Row], fillers: Mapping[str, Sequence[Any]] | None, *, what: str = "the data"
) -> None:
    """Find out before training what the strength curve needs: every output of the classes can be read at every row.

    Args:
        objective: Of the base model.
        rows: The rows that are going to be measured.
        fillers: Outputs by class, as in `GradiendConfig.fillers`.
        what: How messages call the rows.

    Raises:
        DataError: There are no outputs, one cannot be read at some row, or those of two classes have the same ids there (a
            tokenizer without upper case makes German "Sie" and "sie" one); the first row is named and all are counted.
    """
    problems, alike = [], []
    for number, row in enumerate(rows):
        try:
            readings = objective.readings(row, fillers or {})
            ids = [
                frozenset((n, i) for n, reading in enumerate(readings) for i in reading.outputs[of])
                for of in range(len(fillers or {}))
            ]
            if len({*ids}) < len(ids):
                alike.append(f"row {number} ({objective.show(row)[:60]!r})")
        except DataError as error:
            problems.append(f"row {number} ({objective.show(row)[:60]!r}): {error}")
    if problems:
        raise DataError(
            f"The probability of the classes cannot be read on {len(problems)} of {len(rows)} rows of {what}, because a "
            f"word of the fillers {dict(fillers or {})} is not usable there. The first is {problems[0]} Leave these rows "
            "out, or name other words in GradiendConfig.fillers."
        )
    if alike:
        raise DataError(
            f"The base model writes the words of the fillers {dict(fillers or {})} alike at {len(alike)} of {len(rows)} "
            f"rows of {what}, so no probability tells the classes apart. The first is {alike[0]}. Use a base model whose "
            "tokenizer tells these words apart, leave the rows out, or name other words in GradiendConfig.fillers."
        )
