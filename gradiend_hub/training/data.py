"""Data of a training: rows and neutral texts, all of them read and checked before anything is learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.data import Row, read_neutral, read_rows, require_classes, require_distinct
from gradiend_hub.data.loading import is_named, load_rows
from gradiend_hub.data.row import COLUMNS
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.evaluation.sets import check_names
from gradiend_hub.objectives import OBJECTIVES, Objective, examples_of, other_examples, require_readable

from .args import GradiendTrainingArguments
from .batches import TransitionDataset
from .decoders import AUTO, LEARNED

CALIBRATION_ROWS = 128
"""Training rows from which orientation and gain of a solution are read."""

STREAM_LIMIT = 100_000
"""Most rows that are read of a data set without a length."""

USUAL_SPLITS = {
    "train_dataset": "train",
    "eval_dataset": "validation",
    "neutral_dataset": "train",
    "neutral_train_dataset": "train",
    "test_dataset": "test",
    "test_neutral_dataset": "test",
}
"""Split of each data set, where a name says none and there are several."""

_FISHER_TEXTS = 256
"""Most sentences that the Fisher information is estimated from."""

FEWEST_SPARED = 50
"""Fewest neutral sentences that a decoder learns from if nobody has asked for it. Where they are taken from those that
measure, these keep as many."""

FEWEST_COMPARED = 16
"""Fewest validation rows by which a decoder is chosen if nobody has asked for it."""


Rows: TypeAlias = Iterable[dict[str, Any]] | str | Path
"""A data set as a user gives it: records, or where they are."""


class Datasets(NamedTuple):
    """Data sets as a user gives them: records, or where they are. `eval_dataset` may be several, by name."""

    train_dataset: Any
    eval_dataset: Any = None
    neutral_dataset: Any = None
    neutral_train_dataset: Any = None
    test_dataset: Any = None
    test_neutral_dataset: Any = None
    damage_datasets: Mapping[str, Any] | None = None

    def opened(self) -> Datasets:
        """The same, with those that are named read from where they are."""
        return Datasets(*(_opened(dataset, what) for what, dataset in self._asdict().items()))


@dataclass(frozen=True)
class MeasuredRows:
    """Rows that a direction is measured on, and neutral texts beside them."""

    rows: Sequence[Row]
    texts: Sequence[Any] = ()


@dataclass(frozen=True)
class TrainingData:
    """Checked data of a training.

    Attributes:
        dataset: the tokenised training rows (and identity rows), and `rows` as they are.
        fillers: words of each class.
        eval_sets: validation rows by name; the name of a single set is empty. The strength unit is chosen on the first.
        texts: neutral sentences beside them.
        fisher_texts: sentences from which the Fisher information is estimated.
        test: rows and sentences that only measure the result.
        damage_sets: further texts or prompts that every evaluation reads damage on, by name.
    """

    dataset: TransitionDataset
    rows: Sequence[Row]
    fillers: dict[str, list[str]] = field(default_factory=dict)
    eval_sets: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    texts: Sequence[Any] = ()
    fisher_texts: Sequence[Any] = ()
    test: MeasuredRows | None = None
    damage_sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def eval_rows(self) -> Sequence[Row]:
        """Rows of the first validation set; none if there is no set."""
        return next(iter(self.eval_sets.values()), ())

    @property
    def trained_words(self) -> set[str]:
        """Words that fill a slot of a training row."""
        return {word for row in self.rows for word in (row.factual, row.alternative)}

    @classmethod
    def read(
        cls, given: Datasets, objective: Objective, config: GradiendConfig, args: GradiendTrainingArguments
    ) -> TrainingData:
        """Read and check everything that will be needed, up to the test rows.

        Raises:
            ConfigError: a data set is missing or of another kind.
            DataError: a row is unusable, or a class has words or rows that cannot be read.
        """
        classes, needed = require_classes(config.feature_classes), None
        if args.max_steps > 0:
            needed = max(
                args.max_steps * args.train_batch_size, args.importance_rows, args.identity_rows, CALIBRATION_ROWS
            )
        taken = records(given.train_dataset, "train_dataset", needed)
        read = f" (the first {len(taken):,} rows of a stream)" if isinstance(taken, list) else ""
        what = f"train_dataset{read}"
        prepare = partial(objective.prepare, what=what)
        try:
            rows = read_rows(taken, classes, read=objective.read, prepare=prepare, what=what)
        except DataError as error:
            raise DataError(f"{error}{_of_another_head(objective, columns_of(given.train_dataset))}") from error
        examples = examples_of(objective, rows, what="train_dataset")
        fillers = config.fillers or objective.fillers(rows, classes)
        require_distinct(fillers)
        fillers = {name: list(fillers.get(name, ())) for name in classes}
        slots = spread(rows, args.identity_rows)
        identity = other_examples(objective, slots, fillers, seed=args.row_seed)
        require_readable(objective, rows[:1], fillers, what="train_dataset")

        def measured(dataset: Any, what: str) -> list[Row]:
            return read_measured(dataset, objective, classes, fillers, what=what)

        def texts(dataset: Any, what: str) -> list[Any]:
            return [] if dataset is None else read_neutral(records(dataset, what), objective.read_neutral, what=what)

        sets = given.eval_dataset if isinstance(given.eval_dataset, Mapping) else {"": given.eval_dataset}
        eval_sets = {
            name: measured(dataset, f"eval_dataset[{name!r}]" if name else "eval_dataset")
            for name, dataset in sets.items()
            if dataset is not None
        }
        neutral, test = texts(given.neutral_dataset, "neutral_dataset"), None
        if given.test_dataset is not None:
            of_test = texts(given.test_neutral_dataset, "test_neutral_dataset") or neutral
            test = MeasuredRows(measured(given.test_dataset, "test_dataset"), of_test)
        return cls(
            TransitionDataset(rows, examples, classes, config.source, identity),
            rows,
            fillers,
            eval_sets,
            neutral,
            texts(given.neutral_train_dataset, "neutral_train_dataset")[:_FISHER_TEXTS],
            test,
            read_damage_sets(given.damage_datasets, objective),
        )


def decided(
    args: GradiendTrainingArguments, config: GradiendConfig, data: TrainingData
) -> tuple[GradiendTrainingArguments, TrainingData]:
    """Decide what `decoder="auto"` is, and set aside the sentences that a decoder is to spare, if none are given.

    Raises:
        ConfigError: the decoder that is asked for learns from sentences, and there are too few.
    """
    fits = args.solver == "closed_form" and args.final_density == config.density == 1
    chooses = len(data.eval_rows) >= FEWEST_COMPARED and bool(data.texts)
    if args.decoder not in LEARNED and not (args.decoder == AUTO and fits and chooses):
        return (args.with_decoder("solver") if args.decoder == AUTO else args), data
    if not data.fisher_texts and len(data.texts) >= 2 * FEWEST_SPARED:
        every = max(2, math.ceil(len(data.texts) / _FISHER_TEXTS))
        measured = [text for number, text in enumerate(data.texts) if number % every != 1]
        spared = data.texts[1::every]
        test = data.test
        if test is not None:
            test = replace(test, texts=without(test.texts, spared))
        sets = {name: without(texts, spared) for name, texts in data.damage_sets.items()}
        data = replace(data, texts=measured, fisher_texts=spared, test=test, damage_sets=sets)
    if args.decoder == AUTO:
        return args.with_decoder("natural" if len(data.fisher_texts) >= FEWEST_SPARED else "solver"), data
    if data.fisher_texts:
        return args, data
    raise ConfigError(
        f"decoder={args.decoder!r} needs neutral_train_dataset: sentences that no evaluation reads. Give some, or at least "
        f"{2 * FEWEST_SPARED} in neutral_dataset, of which every other one is set aside; found {len(data.texts)}."
    )


def without(texts: Sequence[Any], spared: Sequence[Any]) -> Sequence[Any]:
    """Leave out what a decoder has learned from, as that hides damage; nothing where nothing else is left."""
    learned = {text for text in spared if isinstance(text, str)}
    return [text for text in texts if not isinstance(text, str) or text not in learned] or texts


def read_damage_sets(given: Any, objective: Objective) -> dict[str, list[Any]]:
    """Read further data sets on which damage is measured, by name.

    Raises:
        ConfigError: it is no mapping of names to data sets, or a name is taken.
        DataError: a record is unusable, or a set is empty.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"damage_datasets must be data sets by name, e.g. {{'chat': dataset}}, found {type(given).__name__}."
        )
    check_names(list(given))
    what = {name: f"damage_datasets[{name!r}]" for name in given}
    return {n: read_neutral(records(of, what[n]), objective.read_damage, what=what[n]) for n, of in given.items()}


def columns_of(dataset: Any) -> list[str]:
    """Return the columns of a data set, as far as they can be known without reading from a stream; else none."""
    named = getattr(dataset, "column_names", None)
    first = dataset[0] if isinstance(dataset, Sequence) and not isinstance(dataset, str) and len(dataset) else None
    return [str(name) for name in named or (first if isinstance(first, Mapping) else ())]


def _of_another_head(objective: Objective, columns: Sequence[str]) -> str:
    """Say which head rows with these columns are for, where it is not that of the objective; else nothing."""
    needed = {name: {*of.columns} or {*COLUMNS} for name, of in OBJECTIVES.items()}
    fitting = [of for name, of in OBJECTIVES.items() if needed[name] <= {*columns}]
    if not fitting or any(of.auto_class is objective.auto_class for of in fitting):
        return ""
    most = max(len(needed[of.name]) for of in fitting)
    named = dict.fromkeys(of.auto_class.__name__ for of in fitting if len(needed[of.name]) == most)
    return (
        f" Rows with these columns are for a model of {' or '.join(named)}, and {objective.name_or_path} was loaded with "
        f"the head of {objective.name!r} ({objective.auto_class.__name__})."
    )


def read_measured(
    dataset: Any, objective: Objective, classes: Sequence[str], fillers: Mapping[str, Sequence[str]], *, what: str
) -> list[Row]:
    """Read rows to measure a direction on, and check that the objective reads them and the words of both classes."""
    prepare = partial(objective.prepare, what=what)
    rows = read_rows(records(dataset, what), classes, read=objective.read, prepare=prepare, what=what)
    examples_of(objective, rows, what=what)
    require_readable(objective, rows, fillers, what=what)
    return rows


def records(dataset: Any, what: str, needed: int | None = None) -> Iterable[dict[str, Any]]:
    """Return the records of a data set, of one without a length as many as are needed.

    Args:
        dataset: an iterable of dictionaries, or what `gradiend_hub.data.loading.load_rows` opens.
        what: what messages call it, and the usual split follows from.
        needed: rows that the training uses, if that is known; default: all, up to `STREAM_LIMIT`.

    Raises:
        ConfigError: it is no iterable of dictionaries, or a stream with more rows than the limit.
    """
    dataset = _opened(dataset, what)
    if advice := _next_step(dataset):
        raise ConfigError(f"{what} must be an iterable of dictionaries, e.g. a datasets.Dataset. {advice}")
    stream: Iterator[dict[str, Any]] = iter(dataset)
    if isinstance(dataset, Sized):
        return islice(stream, len(dataset))  # a map-style data set of torch need not end its own iteration
    found = list(islice(stream, min(needed or STREAM_LIMIT, STREAM_LIMIT)))
    if needed is None and len(found) == STREAM_LIMIT and next(stream, None) is not None:
        raise ConfigError(
            f"{what} is a stream of more than {STREAM_LIMIT:,} rows, which are all read before the training. Give as "
            f"many as you need, {what}=stream.take(COUNT), or for the training rows set max_steps."
        )
    return found


def _opened(dataset: Any, what: str) -> Any:
    return load_rows(dataset, USUAL_SPLITS.get(what, "test"), what) if is_named(dataset) else dataset


def _next_step(dataset: Any) -> str:
    """Say what to do about an object that is no data set; empty for one that is."""
    if dataset is None:
        return "It is missing."
    if isinstance(dataset, Mapping):
        return f"This is a dictionary with the keys {list(dataset)}: give one of its data sets."
    is_iterable = isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")
    return "" if is_iterable else f"Found {type(dataset).__name__}."
