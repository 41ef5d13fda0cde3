"""The seam between data and gradients.

An objective says what a record of a data set is, how its input becomes a batch of a model, where the outputs are read and
which outputs there are. It knows nothing of encoders, decoders or solvers, and these know nothing of texts or images:
a classifier of images is an objective with one position and as many outputs as there are labels.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gradiend_hub.data import Row, class_fillers
from gradiend_hub.data.rows import neutral_text
from gradiend_hub.errors import ConfigError, DataError

from .prompts import Prompt
from .samples import (
    IGNORED,
    Answer,
    Batch,
    Example,
    PairBatch,
    QualityItem,
    Reading,
    Sample,
    output_nll,
    same_inputs,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Objective(ABC):
    """Turns rows into batches with labelled positions, and reads a model's outputs there.

    Subclass it for a task of your own, and make it known with `register_objective`.

    Args:
        processor: What prepares inputs: the base model's tokenizer or image processor; `None` if nothing is needed.
        name_or_path: How messages call the base model.
    """

    name: ClassVar[str]
    """What configurations call it."""

    task: ClassVar[str]
    """The Hub's name for what such models do, e.g. "fill-mask"."""

    auto_class: ClassVar[Any]
    """The transformers class that loads such models, e.g. `AutoModelForMaskedLM`."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that all its records have: by them it is chosen among the objectives of a model's head."""

    relative: ClassVar[bool] = False
    """Whether the probability of a class at a row is its share of those of both, e.g. of two long completions."""

    per_token: bool = False
    """Whether −log P of an output is divided by its number of positions."""

    asks: ClassVar[str] = "TEXT WITH [MASK]"
    """What `complete` takes, in the words of a command's help."""

    probability_note: ClassVar[str] = ""
    """What cards say about the probability of a class at a row, where it is not the outputs' own."""

    answers_name: ClassVar[str] = "Likeliest outputs with their probabilities."
    """What cards say of the answers that `complete` gives."""

    read_name: ClassVar[str] = "the output"
    """What an encoding reads the class of, in the words of a card."""

    output_name: ClassVar[str] = "output"
    """What a row has one of, and a class several, in the words of a card."""

    def __init__(self, processor: Any, *, name_or_path: str = "the base model") -> None:
        self.processor = processor
        self.name_or_path = name_or_path

    # -- which models, which data -----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a model class of that name, with that configuration, has the head for this objective."""

    @classmethod
    def of_model(cls, model: nn.Module, processor: Any, *, max_length: int | None = None) -> Self:
        """Make the objective of a base model; `max_length` is the longest input, where inputs have a length.

        Raises:
            BaseModelError: The model is not of the kind.
        """
        name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        return cls(processor, name_or_path=name, **cls.traits(model, processor, max_length))

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return what the constructor takes of a model beside its processor; raises `BaseModelError` as `of_model` does."""
        return {}

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        """Load what prepares a model's inputs; `None` if nothing is needed."""
        return None

    @classmethod
    def reads_columns(cls, columns: Collection[str]) -> bool:
        """Return whether data with these columns can be its own; of several objectives of one head, that one is chosen."""
        return {*cls.columns} <= {*columns}

    def configure(self, **options: Any) -> None:
        """Set what `GradiendConfig.objective_options` says.

        Raises:
            ConfigError: There is no such option, or a value is unusable.
        """
        if options:
            raise ConfigError(
                f"The objective {self.name!r} has no option {sorted(options)[0]!r}: see objective_options."
            )

    @property
    def options(self) -> dict[str, Any]:
        """Options as they are, which `configure` takes back and a direction's configuration keeps."""
        return {}

    @property
    def key(self) -> str:
        """Everything that decides what a row's gradient is, beside weights and samples."""
        return self.name

    @abstractmethod
    def read(self, record: Mapping[str, Any]) -> Row:
        """Make a row of a record of a data set. Raises `DataError` without the number of the record."""

    @abstractmethod
    def record(self, row: Any) -> dict[str, Any]:
        """Return the record of JSON values that `read` makes this row of."""

    def prepare(self, rows: Sequence[Any], *, what: str = "dataset") -> list[Any]:
        """Return the rows to learn from or to measure in place of those that were read, e.g. both transitions of a pair.

        Raises:
            DataError: Too many rows are unusable; the message calls the data `what`.
        """
        return list(rows)

    def fillers(self, rows: Sequence[Any], classes: Sequence[str]) -> dict[str, list[str]]:
        """Return the outputs of each class that are read at every row; none where each row has its own."""
        return class_fillers(rows, classes)

    # -- rows and neutral items as samples ----------------------------------------------------------------------------

    @abstractmethod
    def sample(self, row: Any, output: Any) -> Sample:
        """Return the input of a row with the ids of one output, by its name, as labels.

        Raises:
            DataError: The row has no place for it, or the output is unknown.
        """

    def samples(self, row: Any, outputs: Sequence[Any]) -> list[Sample]:
        """Return a sample for each of some outputs; those that read the same logits share their inputs."""
        found: list[Sample] = []
        for output in outputs:
            sample = self.sample(row, output)
            twin = next(
                (s for s in found if s.inputs is not sample.inputs and same_inputs(s.inputs, sample.inputs)), None
            )
            found.append(sample if twin is None else Sample(twin.inputs, sample.positions, sample.labels, sample.cost))
        return found

    def example(self, row: Any) -> Example:
        """Return the factual and the alternative sample of a row."""
        return Example(*self.samples(row, (row.factual, row.alternative)))

    def outputs(self, row: Any, name: Any) -> tuple[int, ...]:
        """Return the ids of an output, by its name, at the row's position."""
        return self.sample(row, name).labels

    def spelling(self, row: Any, classes: Mapping[str, Sequence[Any]]) -> Callable[[Any], Any]:
        """Return what writes the classes' outputs as the row has its own, e.g. with a capital at a sentence's beginning."""
        return lambda output: output

    def readings(self, row: Any, classes: Mapping[str, Sequence[Any]]) -> list[Reading]:
        """Return the inputs in which the outputs of the classes are read, with their ids.

        Args:
            row: The row.
            classes: Names of outputs by class, as in `GradiendConfig.fillers`.

        Raises:
            DataError: An output cannot be read at this row.
        """
        if not any(classes.values()):
            raise DataError("The direction's config names no fillers, so class probabilities cannot be read.")
        written = self.spelling(row, classes)
        named = list(dict.fromkeys((of, written(o)) for of, names in enumerate(classes.values()) for o in names))
        readings: list[Reading] = []
        for (of, _), sample in zip(named, self.samples(row, [output for _, output in named]), strict=True):
            reading = next((r for r in readings if r.sample.reads_as(sample)), None)
            if reading is None:
                reading = Reading(sample, [[] for _ in classes])
                readings.append(reading)
            if sample.labels not in reading.outputs[of]:
                reading.outputs[of].append(sample.labels)
        return readings

    def row_readings(self, chances: Tensor) -> dict[str, Tensor]:
        """Return further figures of each row, [rows], by name, of log P of both classes, [rows, 2]; by default none."""
        return {}

    def read_neutral(self, record: Mapping[str, Any]) -> Any:
        """Make an item without the feature of a record: by default a text in the column `text`."""
        return neutral_text(record)

    @abstractmethod
    def neutral_example(self, item: Any, rng: random.Random) -> Example | None:
        """Return one random real output of a neutral item as factual and alternative; `None` if it has none."""

    def other_example(self, row: Any, rng: random.Random, avoid: Sequence[Any] = ()) -> Example | None:
        """Return another real output of a row's input, which is none of `avoid`; `None` if there is none."""
        return None

    @abstractmethod
    def quality_samples(self, item: Any, rng: random.Random, draws: int = 1) -> list[Sample]:
        """Return up to `draws` samples of a neutral item that share no output: what an edit should leave as it is."""

    def read_damage(self, record: Mapping[str, Any]) -> Any:
        """Make an item of a damage set of a record: as `read_neutral`, or, for models that generate text, a `Prompt`."""
        return self.read_neutral(record)

    def chat_prompts(self, *, fitted: bool = False) -> list[Prompt]:
        """Return prompts in the model's chat template; none for a model without one.

        Args:
            fitted: Those whose replies decoders are made to spare, instead of those on which damage is measured.
        """
        return []

    def own_samples(self, row: Any, rng: random.Random, avoid: Collection[int] = ()) -> list[Sample]:
        """Return samples of a row's own input, its factual output in place, with other outputs of it as labels.

        An edit should leave these as they are; there are none where an input has no other output than the row's.

        Args:
            row: The row.
            rng: Draws, where not all can be read.
            avoid: Ids that are no labels, e.g. `class_outputs`.
        """
        return []

    def class_outputs(self, classes: Mapping[str, Sequence[Any]], readings: Sequence[Reading] = ()) -> set[int]:
        """Return the ids by which outputs of the classes begin: what collateral damage leaves out.

        Args:
            classes: Names of outputs by class.
            readings: Those of the rows that are measured.
        """
        return {ids[0] for reading in readings for outputs in reading.outputs for ids in outputs}

    def joined(self, first: Sample, second: Sample) -> Sample | None:
        """Return one sample that reads what two read, the positions of `first` before those of `second`; `None` if no input
        serves both. The labels of `first` are ignored.
        """
        return None

    def quality_items(self, neutral: Sequence[Any], *, labels: int, draws: int = 1, seed: int = 0) -> list[QualityItem]:
        """Return samples of neutral items with at least `labels` outputs in all, if they have as many.

        Args:
            neutral: Items as `read_neutral` makes them; one that is there twice is one unit.
            labels: Outputs that are wanted. Each item is drawn from again until there are as many.
            draws: Most times that an item is drawn from.
            seed: Decides which outputs are drawn.
        """
        rng = random.Random(seed)
        units = {item: number for number, item in enumerate(neutral)} if neutral else {}
        drawn = [(units[item], self.quality_samples(item, rng, draws)) for item in neutral]
        items: list[QualityItem] = []
        for draw in range(draws):
            items += [QualityItem(unit, samples[draw]) for unit, samples in drawn if draw < len(samples)]
            if sum(len(item.sample.labels) for item in items) >= labels:
                break
        return items

    # -- batches and losses -------------------------------------------------------------------------------------------

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch of samples."""

    def collate_pairs(self, examples: Sequence[Example]) -> PairBatch:
        """Make a batch of examples, shared if every factual sample reads as its alternative."""
        factual = self.collate([e.factual for e in examples])
        alternative = [e.alternative for e in examples]
        if not all(e.factual.reads_as(e.alternative) for e in examples):
            return PairBatch(factual, self.collate(alternative))
        width = factual.labels.shape[1]
        labels = torch.tensor([[*s.labels, *[IGNORED] * (width - len(s.labels))] for s in alternative])
        return PairBatch(factual, Batch(factual.inputs, factual.positions, labels, tuple(alternative)))

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of outputs V."""

    @abstractmethod
    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of all outputs at the positions that are read: [B, S, V], fp32 or wider."""

    def losses(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return −log P of the factual and of the alternative output, each [B]; one forward when inputs are equal."""
        factual = self.log_probs(model, batch.factual)
        alternative = factual if batch.shared else self.log_probs(model, batch.alternative)
        return self.nll(factual, batch.factual.labels), self.nll(alternative, batch.alternative.labels)

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return −log P of each row's output, [B]."""
        return self.nll(self.log_probs(model, batch), batch.labels)

    def nll(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Return −log P of each row's output, [B], of log-probabilities [B, S, V] at its positions and its labels [B, S]."""
        total = output_nll(log_probs, labels)
        return total / (labels != IGNORED).sum(-1) if self.per_token else total

    # -- for people -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, sample: Sample) -> tuple[str, str]:
        """Return the input of a sample as text, with `[MASK]` where the output is read, and its output."""

    @abstractmethod
    def show(self, row: Any) -> str:
        """Return a row as one line of text, its factual output marked."""

    def small_row(self, row: Any) -> Any:
        """Return the row, or one like it that is small enough to travel with a direction."""
        return row

    def decisions(self, row: Any) -> dict[str, Sample]:
        """Return the inputs of a row that a classifier decides on, by class, each with the label that it really has.

        There are none where an output is no decision, e.g. a word of many that fit.
        """
        return {}

    def asked_row(self, prompt: Any, outputs: Mapping[str, Sequence[Any]]) -> Any:
        """Return a row that asks for the outputs of two classes at an input; `None` where an input alone cannot tell."""
        return None

    def prompt_of(self, text: str) -> Any:
        """Return the input that a user names on a command line: by default the text itself."""
        return text

    def picture(self, prompt: Any) -> str | None:
        """Return a small picture of an input, as a `data:` address; `None` where a text shows it."""
        return None

    def prompts(self, rows: Sequence[Any]) -> list[Any]:
        """Return a few inputs of each class that show what a model says; none where there is nothing to show."""
        return []

    def complete(
        self, model: nn.Module, inputs: Sequence[Any], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return what the model says to each of some inputs, as it is now.

        Args:
            model: The base model, edited or not.
            inputs: Inputs as a user writes them, or as `prompts` returns them.
            top: Number of likeliest outputs.
            tokens: Length of a continuation.
            hints: Outputs that are known to fit, e.g. the words of the classes.
        """
        raise DataError(f"The objective {self.name!r} has nothing to complete.")

    def generate(self, model: nn.Module, inputs: Sequence[Any], *, tokens: int, batch_size: int = 32) -> list[Sample]:
        """Return what the model goes on with after each of some inputs, greedily, as labels behind the input.

        Args:
            model: The base model, edited or not.
            inputs: Inputs as `prompts` returns them, or items as `read_neutral` does.
            tokens: Most new tokens; a text may end before, and its last label is then the token that ends it.
            batch_size: Most inputs in a batch.

        Raises:
            DataError: Models of this objective generate no text.
        """
        raise DataError(f"The objective {self.name!r} generates no text.")
