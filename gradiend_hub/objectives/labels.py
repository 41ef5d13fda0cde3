"""Classifiers with one label of several at one position: S = 1, V = labels. What the inputs are is left to subclasses.

Two meanings of a direction on such a model are told apart, each an objective of its own:

* A **label direction** moves the decision: the input stays, and the other label takes the place of its own.
* A **concept direction** moves what the decision depends on: the label stays, and a counterfactual input, which differs in
  the concept only, takes the place of the other. The encoder reads the concept, and the dose of goal "debias" makes the
  label as likely with the one as with the other.
"""

from __future__ import annotations

import operator
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradiend_hub.data import CounterfactualRow, LabelRow
from gradiend_hub.errors import BaseModelError, DataError

from .base import Objective
from .batching import by_turns
from .samples import Answer, Batch, Example, Sample

PROMPTS_PER_CLASS = 3


@dataclass(frozen=True)
class Labelled:
    """An input without the feature, and its label."""

    input: Any
    label: str


class LabelObjective(Objective):
    """A label direction: the same input, another label.

    Args:
        processor: The base model's tokenizer or image processor.
        labels: Names of the model's labels, in their order.
        name_or_path: How messages call the base model.
    """

    answers_name = "Likeliest labels with their probabilities."
    read_name = "the label"
    output_name = "label"

    column: ClassVar[str]
    """Column of the input."""

    heads: ClassVar[Mapping[str, Any]]
    """transformers' names of the model classes that `auto_class` loads, by model type: one, or several."""

    def __init__(self, processor: Any, *, labels: Sequence[str], **options: Any) -> None:
        super().__init__(processor, **options)
        self.labels = tuple(labels)

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a class has the head: transformers knows it, or it is called as those are."""
        known = {name for names in cls.heads.values() for name in ([names] if isinstance(names, str) else names)}
        return architecture in known or architecture.endswith(cls.auto_class.__name__.removeprefix("AutoModel"))

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the names of the labels.

        Raises:
            BaseModelError: The model's head is of another kind, or gives no one label of several: it is for regression, or
                for several labels at a time.
        """
        config = getattr(model, "config", None)
        if not any(cls.fits(kind.__name__, config) for kind in type(model).__mro__):
            raise BaseModelError(
                f"{type(model).__name__} has no head for the objective {cls.name!r}: expected a model of "
                f"{cls.auto_class.__name__}. Load the base with that head, or leave the objective out: the head chooses it."
            )
        return {"labels": label_names(getattr(model, "config", None), type(model).__name__)}

    @property
    def width(self) -> int:
        """Number of labels."""
        return len(self.labels)

    # -- rows -----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def read_input(self, value: Any) -> Any:
        """Check the input of a record. Raises `DataError`."""

    @abstractmethod
    def input_record(self, value: Any) -> Any:
        """Return the JSON value that `read_input` makes this input of."""

    def input_of(self, record: Mapping[str, Any]) -> Any:
        """Return the input of a record. Raises `DataError`."""
        return self.read_input(record[self.column])

    def input_columns(self, value: Any) -> dict[str, Any]:
        """Return the columns that `input_of` makes this input of."""
        return {self.column: self.input_record(value)}

    def read(self, record: Mapping[str, Any]) -> LabelRow:
        """Make a row of a record with the columns of the input, `label` and `alternative`.

        Where a class has several labels, `factual_class` and `alternative_class` name the classes of the two; else each
        label is a class. A model of two labels needs no `alternative`.
        """
        _require(record, (self.column, "label"))
        label = self.label(record["label"])
        if record.get("alternative") is None and len(self.labels) == 2:
            other = self.labels[label == self.labels[0]]
        else:
            _require(record, ("alternative",))
            other = self.label(record["alternative"], "alternative")
        if label == other:
            raise DataError(
                f"'label' and 'alternative' are the same, {label!r}, so there is no difference to learn from. Name another "
                "label."
            )
        classes = (record.get("factual_class", label), record.get("alternative_class", other))
        return LabelRow(self.input_of(record), label, other, *map(_class_name, classes))

    def record(self, row: Any) -> dict[str, Any]:
        """Return the record that `read` reads back."""
        classes = {"factual_class": row.factual_class, "alternative_class": row.alternative_class}
        return {**self.input_columns(row.input), "label": row.factual, "alternative": row.alternative, **classes}

    def label(self, value: Any, column: str = "label") -> str:
        """Return the name of a label that a record gives by its name or number.

        Raises:
            DataError: There is no such label, or there are several, or a number that is none of a label.
        """
        if isinstance(value, str) and value in self.labels:
            return value
        some = ", ".join(self.labels[:12]) + (", …" if len(self.labels) > 12 else "")
        if isinstance(value, (list, tuple)):
            raise DataError(f"{column!r} holds several labels, {value!r:.80}: expected one of {some}.")
        number = place_of(value)
        if 0 <= number < len(self.labels):
            return self.labels[number]
        raise DataError(
            f"{column!r} must be a label of {self.name_or_path}, found {value!r:.80}. Expected one of {some}, or its number "
            f"from 0 to {len(self.labels) - 1}."
        )

    def read_neutral(self, record: Mapping[str, Any]) -> Labelled:
        """Make an item of a record with the columns of the input and `label`, the label that the input really has."""
        _require(record, (self.column, "label"))
        return Labelled(self.input_of(record), self.label(record["label"]))

    # -- samples --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def prepared(self, value: Any) -> tuple[dict[str, Any], int]:
        """Return the inputs of a sample for an input, and its cost."""

    def sample(self, row: Any, output: str) -> Sample:
        """Return the input of a row with an output's label."""
        return self.samples(row, (output,))[0]

    def samples(self, row: Any, outputs: Sequence[str]) -> list[Sample]:
        """Return a sample for each of some outputs; those of one input share its tensors."""
        inputs: dict[Any, tuple[dict[str, Any], int]] = {}
        found = []
        for output in outputs:
            value, label = row.asks(output)
            if value not in inputs:
                inputs[value] = self.prepared(value)
            found.append(self._sample(*inputs[value], label))
        return found

    def _sample(self, inputs: Mapping[str, Any], cost: int, label: str) -> Sample:
        if label not in self.labels:
            raise DataError(f"{label!r} is no label of {self.name_or_path}; it has {', '.join(self.labels[:12])}.")
        return Sample(inputs, (self.position(inputs),), (self.labels.index(label),), cost)

    def position(self, inputs: Mapping[str, Any]) -> int:
        """Return where the label is read; a label of the whole input has the position 0."""
        return 0

    def neutral_example(self, item: Labelled, rng: random.Random) -> Example | None:
        """Return the item with its own label on both sides."""
        sample = self._sample(*self.prepared(item.input), item.label)
        return Example(sample, sample)

    def other_example(self, row: Any, rng: random.Random, avoid: Sequence[str] = ()) -> Example | None:
        """Return the row's input with a label that is none of the classes'."""
        others = [label for label in self.labels if label not in {*avoid, row.factual, row.alternative}]
        if not others:
            return None
        sample = self._sample(*self.prepared(row.input), rng.choice(others))
        return Example(sample, sample)

    def quality_samples(self, item: Labelled, rng: random.Random, draws: int = 1) -> list[Sample]:
        """Return the item with its label: there is nothing else to score in it."""
        return [self._sample(*self.prepared(item.input), item.label)]

    def decisions(self, row: Any) -> dict[str, Sample]:
        """Return the inputs of a row that the model decides on, by class, each with the label that it really has."""
        return {row.factual_class: self.sample(row, row.factual)}

    # -- batches --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def collate_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make the model's arguments of the inputs of samples."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch of samples."""
        labels, positions = (torch.tensor(of) for of in ([s.labels for s in samples], [s.positions for s in samples]))
        return Batch(self.collate_inputs([sample.inputs for sample in samples]), positions, labels, tuple(samples))

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the labels: [B, 1, V], fp32 or wider."""
        return log_softmax(model(**batch.inputs).logits).unsqueeze(1)

    # -- for people -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def named(self, inputs: Mapping[str, Any]) -> str:
        """Return the input of a sample as text."""

    def describe(self, sample: Sample) -> tuple[str, str]:
        """Return the input as text, and the label."""
        return self.named(sample.inputs), self.labels[sample.labels[0]]

    def show(self, row: Any) -> str:
        """Return the input and its label, or its class, in brackets."""
        return f"{row.input} [{row.factual}]"

    def asked_row(self, prompt: Any, outputs: Mapping[str, Sequence[str]]) -> LabelRow | None:
        """Return a row with the first label of each class for an input."""
        (first, labels), (second, others) = outputs.items()
        return LabelRow(self.read_input(prompt), labels[0], others[0], first, second)

    def prompts(self, rows: Sequence[Any]) -> list[Any]:
        """Return a few different inputs of each class, alternately."""
        groups: dict[str, list[Any]] = {}
        for row in rows:
            group = groups.setdefault(row.factual_class, [])
            if len(group) < PROMPTS_PER_CLASS and row.input not in group and self.shown(row.input):
                group.append(row.input)
        return by_turns(groups.values())

    def shown(self, value: Any) -> bool:
        """Return whether an input is short enough to be shown."""
        return True

    def complete(
        self, model: nn.Module, inputs: Sequence[Any], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return the likeliest labels of each of some inputs."""
        if not inputs:
            return []
        device = next(model.parameters()).device
        samples = [self._sample(*self.prepared(self.read_input(value)), self.labels[0]) for value in inputs]
        chances = self.log_probs(model, self.collate(samples).to(device))[:, 0].exp()
        best = chances.topk(min(top, self.width), dim=-1)
        return [
            Answer([(self.labels[i], chance) for i, chance in zip(numbers, values, strict=True)])
            for numbers, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class ConceptMixin(LabelObjective):
    """A concept direction: a counterfactual input, the same label."""

    read_name = "the input"
    probability_note = "The probability of a class is that of a row's own label, on the row's input of the class."

    def read(self, record: Mapping[str, Any]) -> CounterfactualRow:  # type: ignore[override]
        """Make a row of a record with the columns of the input, `counterfactual`, `label` and the classes of both inputs."""
        _require(record, (self.column, "counterfactual", "label", "factual_class", "alternative_class"))
        first, second = (_class_name(record[name]) for name in ("factual_class", "alternative_class"))
        if first == second:
            raise DataError(f"both inputs are of the class {first!r}: expected one of each class.")
        own, other = self.read_input(record[self.column]), self.read_input(record["counterfactual"])
        if self.prepared(own)[0] == self.prepared(other)[0]:
            raise DataError(
                f"the model reads {self.column!r} and 'counterfactual' alike, so there is no difference to learn from: "
                f"{str(own)[:80]!r}. Leave such rows out, or let them differ within the part that the model reads."
            )
        return CounterfactualRow(own, first, second, first, second, other, self.label(record["label"]))

    def record(self, row: CounterfactualRow) -> dict[str, Any]:
        """Return the record that `read` reads back."""
        classes = {"factual_class": row.factual_class, "alternative_class": row.alternative_class}
        inputs = {self.column: row.input, "counterfactual": row.counterfactual}
        found = {name: self.input_record(value) for name, value in inputs.items()}
        return {**found, "label": row.shared_label, **classes}

    def other_example(self, row: Any, rng: random.Random, avoid: Sequence[str] = ()) -> Example | None:
        """Return nothing: another label of the same input would say the same of the concept, with the other sign."""
        return None

    def asked_row(self, prompt: Any, outputs: Mapping[str, Sequence[str]]) -> None:
        """Return nothing: what the concept does shows on two inputs only."""
        return

    def decisions(self, row: Any) -> dict[str, Sample]:
        """Return both inputs, each with the label that it really has."""
        names = (row.factual, row.alternative)
        return dict(zip(names, self.samples(row, names), strict=True))


def label_names(config: Any, model: str) -> tuple[str, ...]:
    """Return the names of a classifier's labels.

    Raises:
        BaseModelError: The head is for regression or for several labels at a time, or two labels have one name.
    """
    kind, count = getattr(config, "problem_type", None), int(getattr(config, "num_labels", 0) or 0)
    if kind == "multi_label_classification":
        raise BaseModelError(
            f"{model} has a multi-label head (problem_type='multi_label_classification'): each label is decided by itself, "
            "so none is likelier at another's cost. Expected a head that gives one label of several; choose such a model."
        )
    if kind == "regression" or count == 1:
        raise BaseModelError(
            f"{model} has a regression head (problem_type={kind!r}, num_labels={count}): it gives a number, and no "
            "probabilities of labels. Expected a head that gives one label of several; choose such a model."
        )
    listed = getattr(config, "id2label", None) or {}
    if missing := [number for number in range(count) if number not in listed]:
        raise BaseModelError(
            f"{model} has {count} labels, and its config names none of the number {missing[0]}: id2label has the numbers "
            f"{sorted(listed)[:12]}. Set model.config.id2label = {{0: NAME, 1: NAME, …}}."
        )
    names = tuple(str(listed[number]) for number in range(count))
    if len({*names}) < len(names) or not names:
        raise BaseModelError(
            f"{model} has {len(names)} labels, of which some have one name: {names[:12]}. Rename them."
        )
    return names


def place_of(value: Any) -> int:
    """Return the place that an integer of any kind names; −1 for whatever else."""
    try:
        return -1 if isinstance(value, (bool, str)) else operator.index(value)
    except TypeError:
        return -1


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities in fp32 or wider."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _require(record: Mapping[str, Any], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if record.get(name) is None]:
        raise DataError(f"column {missing} is missing or empty. Found the columns {sorted(map(str, record))}.")


def _class_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"a class must be a non-empty text, found {value!r:.80}.")
    return value
