"""A trained direction measured, and rows encoded by it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PredictionOutput

from gradiend_hub.artifact.direction import Direction
from gradiend_hub.data import Row, read_neutral, read_rows, require_classes
from gradiend_hub.data.loading import is_named
from gradiend_hub.encoding import encode_rows, encoder_tensors
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import (
    EvaluationSettings,
    SplitReport,
    encoder_report,
    evaluate_direction,
    flat_encoder,
)
from gradiend_hub.progress import shown
from gradiend_hub.scope import Scope
from gradiend_hub.solvers import Convergence

from .args import GradiendTrainingArguments
from .data import MeasuredRows, read_measured, records, without
from .judging import judged_by
from .publishing import PublishingTrainer
from .run import Reading, TrainingRun

logger = logging.getLogger(__name__)

_FIGURES = ("correlation", "accuracy", "auc", "runtime")


def require_metric(args: GradiendTrainingArguments, classes: Sequence[str], sets: Sequence[str]) -> None:
    """Refuse a `metric_for_best_model` that no evaluation between the steps has.

    Args:
        sets: names of the validation sets.

    Raises:
        ConfigError: with the metrics that there are.
    """
    if args.eval_strategy == "no" or args.metric_for_best_model is None:
        return
    plain = [*_FIGURES, *(f"mean_{name}" for name in classes)]
    known = [*plain, *(f"{name}_{figure}" for name in sets if name for figure in plain)]
    if args.metric_for_best_model.removeprefix("eval_") not in known:
        raise ConfigError(
            f"metric_for_best_model={args.metric_for_best_model!r}: evaluations between the steps have "
            f"{', '.join(known)}. Choose one of these."
        )


def named_sets(run: TrainingRun, given: Any, neutral: Any, what: str, *, own: bool) -> dict[str, MeasuredRows]:
    """Read the sets of rows that an evaluation is asked for, by name; the name of a single set is empty.

    Args:
        given: rows, several sets by name, or the name of one of the training's own validation sets.
        neutral: sentences; default: the training's own.
        what: what messages call the rows.
        own: take all of the training's own validation sets.

    Raises:
        ConfigError: there is no such set.
        DataError: a row is unusable.
    """
    texts = run.data.texts
    if neutral is not None:
        read = read_neutral(records(neutral, "neutral_dataset"), run.objective.read_neutral, what="neutral_dataset")
        texts = without(read, run.data.fisher_texts)
    if own or isinstance(given, str):
        found = {name: rows for name, rows in run.data.eval_sets.items() if own or name == given}
        if not found:
            there = "" if own else f"; the trainer has {sorted(run.data.eval_sets)}, and no {given!r}"
            raise ConfigError(f"evaluate() needs an eval_dataset, given to the trainer or to this call{there}.")
        return {name: MeasuredRows(rows, texts) for name, rows in found.items()}
    classes = require_classes(run.config.feature_classes)
    return {
        name: MeasuredRows(read_measured(rows, run.objective, classes, run.data.fillers, what=name or what), texts)
        for name, rows in (given if isinstance(given, Mapping) and not is_named(given) else {"": given}).items()
    }


def measure(
    run: TrainingRun,
    direction: Direction,
    measured: MeasuredRows,
    *,
    choose_unit: bool,
    encoded: Tensor | None = None,
    control_norms: Sequence[list[float]] = (),
) -> SplitReport:
    """Measure a direction on rows and neutral texts.

    Args:
        choose_unit: write its strength unit into the config.
        encoded: feature values of the rows, [N], if they are known.
        control_norms: of the random directions where the unit was chosen.
    """
    config, args = run.config, run.args
    settings = EvaluationSettings(
        floor=args.quality_floor,
        controls=args.controls,
        batch_size=args.eval_batch_size,
        seed=args.seed,
        tokens=args.quality_tokens,
        own_tokens=args.quality_tokens // 2,
    )
    with run.applied(direction) as model:
        split = evaluate_direction(
            model,
            run.objective,
            measured.rows,
            measured.texts,
            settings,
            damage_sets=run.data.damage_sets,
            choose_unit_for=args.goal if choose_unit else None,
            trained_words=run.data.trained_words,
            encoded=encoded,
            control_norms=control_norms,
        )
        found = model.active_peft_config
        config.strength_unit, config.strength = found.strength_unit, found.strength
        config.safe_band, config.break_point = found.safe_band, found.break_point
    return split


class MeasuringTrainer(PublishingTrainer):
    """The part of `GradiendTrainer` that evaluates, predicts and judges."""

    control: Any
    scope: Scope
    _classes: tuple[str, str]
    _h: Tensor | None = None
    """Feature values of the validation rows, [N], which choosing the direction has read."""

    def _shown(self) -> AbstractContextManager[None]:
        return shown(not self.args.disable_tqdm)

    def _best(self) -> Reading:
        raise NotImplementedError

    def _judge(self, found: Convergence) -> None:
        """Say in log and report whether the direction was learned; it takes every set of rows that can tell."""
        if found.faults:  # rows too few to show that it was learned may show that it was not
            self.report.converged, self.report.verdict = False, f"{found.of}: {'; '.join(found.faults)}"
            logger.warning(
                "Not learned, by its encodings of %s. What is saved says so. Check that the classes differ in these "
                'texts, and give more rows or steps, or another source than "%s".',
                self.report.verdict,
                self.gradiend_config.source,
            )
        elif found.unjudged and self.report.converged is None:
            self.report.verdict = f"not judged: {found.unjudged}"
            logger.warning(
                "Whether this was learned is not known: %s. Give more rows as eval_dataset or test_dataset.",
                found.unjudged,
            )
        elif not found.unjudged and self.report.converged is None:
            self.report.converged, self.report.verdict = True, ""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        neutral_dataset: Iterable[dict[str, Any]] | None = None,
    ) -> dict[str, float]:
        """Measure the direction; the whole record is in `trainer.report`.

        While training only the encoder is read. Afterwards the strength curve is measured, too. On the trainer's own
        `eval_dataset` the strength unit is chosen first; on any other data the unit is used as it is (give such data a
        prefix, e.g. "test", and neutral sentences of its own).

        Args:
            eval_dataset: rows, several sets of rows by name, or the name of one of the trainer's sets; default: its own.

        Returns:
            Figures as `Trainer` logs them, with the prefix: `eval_correlation`, `eval_accuracy`, `eval_quality`, …; those of
            a named set as `eval_NAME_correlation`, and of the trainer's first one without its name, too.
        """
        own = eval_dataset is None or eval_dataset is self.eval_dataset
        sets = named_sets(self._run, eval_dataset, neutral_dataset, metric_key_prefix, own=own)
        return self._evaluate_sets(sets, metric_key_prefix, own=own)

    def evaluate_test(self) -> dict[str, float]:
        """Measure the direction on the trainer's `test_dataset`; figures are named `test_correlation`, ….

        Raises:
            ConfigError: the trainer has none.
        """
        if self._run.data.test is None:
            raise ConfigError("evaluate_test() needs a test_dataset, given to the trainer.")
        return self._evaluate_sets({"": self._run.data.test}, "test", own=False)

    def _evaluate_sets(self, sets: Mapping[str, MeasuredRows], prefix: str, *, own: bool) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for number, (name, measured) in enumerate(sets.items()):
            full, first = f"{prefix}_{name}" if name else prefix, own and not number
            start = time.perf_counter()
            if self.is_in_train:
                with self._shown():
                    figures = self._read_encoder(measured.rows)
            else:
                with self._kept(f"The measurement on {full} failed"), self._shown():
                    figures = self._measure(measured, first, prefix if first else full)
            figures["runtime"] = time.perf_counter() - start
            for key in sorted({full, prefix} if first else {full}):
                metrics |= {f"{key}_{figure}": value for figure, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _read_encoder(self, rows: Sequence[Row]) -> dict[str, float]:
        """Encode rows by what has been learned so far."""
        read = self._best()
        h, labels = read.h, read.labels
        if rows is not self._run.data.eval_rows or len(rows) != len(h):
            h, labels = self._run.encode(read.solution, rows)
        return flat_encoder(encoder_report(h, labels, self._classes))

    def _measure(self, measured: MeasuredRows, choose_unit: bool, name: str) -> dict[str, float]:
        start, direction, run = time.perf_counter(), self.direction, self._run
        h = self._h if measured.rows is run.data.eval_rows else None
        if name == "test" and not any(measured.rows is rows for rows in run.data.eval_sets.values()):
            h, labels = run.encode_by(*encoder_tensors(direction), measured.rows)
            self._judge(judged_by(h, labels, measured.rows, of="test rows"))
        norms = next((of.control_norms for of in self.report.splits.values() if of.search and not choose_unit), [])
        split = measure(run, direction, measured, choose_unit=choose_unit, encoded=h, control_norms=norms)
        self.report.splits[name] = split
        if choose_unit:
            sets = sorted(split.curve[0].damage) if split.curve else []
            self.report.settings = {
                "quality_floor": self.args.quality_floor,
                "quality_tokens": self.args.quality_tokens,
                "goal": self.args.goal,
                "damage_sets": sets,
            }
        self.report.seconds[f"evaluate {name}"] = time.perf_counter() - start
        self._keep_direction()
        return split.flat()

    def predict(
        self,
        test_dataset: Iterable[dict[str, Any]],
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Encode rows with what has been learned.

        Returns:
            `predictions`: feature values in (−1, 1), [N], fp32; `label_ids`: 1 where the word in the text is of the first
            class, −1 of the second, [N]; `metrics`: correlation, accuracy, … with the prefix.
        """
        start, run, classes = time.perf_counter(), self._run, self._classes
        with self._shown():
            rows = list(records(test_dataset, "test_dataset"))
            checked = read_rows(rows, classes, read=run.objective.read, what="test_dataset", need_both=False)
            of_run = (run.base_model, run.objective, self.direction, run.config)
            h = encode_rows(*of_run, rows, batch_size=run.args.eval_batch_size)
        labels = torch.tensor([1.0 if row.factual_class == classes[0] else -1.0 for row in checked])
        figures = flat_encoder(encoder_report(h, labels, classes)) | {"runtime": time.perf_counter() - start}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        output = PredictionOutput(h.numpy(), labels.numpy(), metrics)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        return output
