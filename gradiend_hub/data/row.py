"""Rows: an input of a model with a factual and an alternative output, and the feature class of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError

COLUMNS = ("masked", "factual", "alternative", "factual_class", "alternative_class")
"""Columns of a record that becomes a `TextRow`."""


@dataclass(frozen=True)
class Row:
    """One record of two feature classes, whatever an objective's inputs and outputs are.

    Attributes:
        input: What the model reads, e.g. a text with a slot, or an image.
        factual: The output that belongs to the input, e.g. the word that stood there, or the image's label.
        alternative: Another output, of another class.
        factual_class: Feature class of `factual`.
        alternative_class: Feature class of `alternative`.
    """

    input: Any
    factual: Any
    alternative: Any
    factual_class: str
    alternative_class: str

    @property
    def group(self) -> Any:
        """Key that rows which depend on each other share, e.g. their prompt; `None` where each is for itself."""
        return None

    def label(self, feature_classes: Sequence[str], source: str) -> float:
        """Return the training label: +1 if the output that gives the source gradient is of the first class, else −1.

        With source "alternative" that is the alternative, with "factual" and "diff" the factual one.
        """
        of = self.alternative_class if source == "alternative" else self.factual_class
        return 1.0 if of == feature_classes[0] else -1.0


@dataclass(frozen=True)
class TextRow(Row):
    """A text with one slot and two words for it. `[MASK]` stands for the slot, whatever the model's mask token is."""

    input: str
    factual: str
    alternative: str

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    @property
    def masked(self) -> str:
        """The text with `[MASK]` at the slot."""
        return self.input

    @property
    def text(self) -> str:
        """The text with the factual word in the slot."""
        return self.input.replace(SLOT, self.factual)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> TextRow:
        """Read a record of a data set.

        Raises:
            DataError: A column is missing, or a value is no text.
        """
        if missing := [c for c in COLUMNS if c not in record]:
            raise DataError(
                f"column {missing} is missing. Expected the columns {list(COLUMNS)}, found {sorted(map(str, record))}. "
                f"A row is a text with one {SLOT}, two fillers and their classes."
            )
        for name in COLUMNS:
            value = record[name]
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{name!r} must be a non-empty text, found {value!r}.")
        return cls(*(record[name] for name in COLUMNS))

    def record(self) -> dict[str, str]:
        """Return the record that `read` reads back."""
        values = (self.input, self.factual, self.alternative, self.factual_class, self.alternative_class)
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class LabelRow(Row):
    """An input of a classifier, its label, and another label that it could get."""

    factual: str
    alternative: str

    def asks(self, output: str) -> tuple[Any, str]:
        """Return the input and the label that an output stands for: here each output is a label of the one input."""
        return self.input, output


def _key(value: Any) -> Any:
    """A text, or the digest of an image."""
    return value if isinstance(value, str) else hashlib.sha256(np.asarray(value).tobytes()).digest()


@dataclass(frozen=True)
class CounterfactualRow(Row):
    """Two inputs of a classifier that differ in one concept only, and so have one label.

    Its outputs are the two inputs, named by their classes: how likely the class is, is how likely the label is on its input.

    Attributes:
        counterfactual: The input of the other class.
        shared_label: Label of both.
    """

    factual: str
    alternative: str
    counterfactual: Any
    shared_label: str

    @property
    def group(self) -> Any:
        """Both inputs, whichever is the counterfactual one."""
        return frozenset(map(_key, (self.input, self.counterfactual)))

    def asks(self, output: str) -> tuple[Any, str]:
        """Return the input and the label that an output, the name of a class, stands for."""
        if output not in (self.factual, self.alternative):
            raise DataError(f"unknown input {output!r}: the row has {self.factual!r} and {self.alternative!r}.")
        return (self.input if output == self.factual else self.counterfactual), self.shared_label
