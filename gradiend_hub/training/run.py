"""A training: what is learned from what, and how its solutions become a direction on the base model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.references import References
from gradiend_hub.base_model import base_commit, base_name
from gradiend_hub.comparison.references import references_of
from gradiend_hub.data import Row
from gradiend_hub.encoding import preactivations, reading_sign
from gradiend_hub.evaluation import StrengthProbe, calibrate
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.evaluation.probe import OWN_TOKENS
from gradiend_hub.evaluation.report import ReferenceReport
from gradiend_hub.evaluation.sets import damage_items
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Example, Objective, examples_of
from gradiend_hub.progress import counted
from gradiend_hub.solvers import (
    ClassMeans,
    Contrasts,
    Convergence,
    SeedReport,
    Solution,
    calibrated,
    convergence,
    damping_weights,
    gain_of,
    seed_report,
)
from gradiend_hub.solvers.base import LEVEL

from .args import GradiendTrainingArguments
from .data import CALIBRATION_ROWS, TrainingData
from .decoders import best_damped, chosen_damping, pruned, with_mean_decoder

__all__ = ["Finished", "TrainingRun", "as_direction", "config_for"]

FEWEST_ROWS = 16
"""Fewest validation rows from which orientation and gain of a solution are read; with fewer, training rows are."""

MOST_ROWS = 4 * CALIBRATION_ROWS
"""Most of them."""

COMPARED_ROWS, COMPARED_TOKENS = 60, 1000
"""Validation rows of each class and neutral tokens on which dampings are compared."""

LEAST_LEVEL = 0.05
"""Typical |h| of an encoder that has learned nothing."""


def config_for(config: GradiendConfig, base: nn.Module, args: GradiendTrainingArguments) -> GradiendConfig:
    """Copy a configuration for a new direction of a base model, whose identity and measurements are its own.

    The base model's name is `base_model_id`, that of the model itself, or, for one that has none, that of the configuration.
    """
    own = {
        "base_model_name_or_path": args.base_model_id or base_name(base) or config.base_model_name_or_path,
        "revision": None if args.base_model_id else base_commit(base),
        "auto_mapping": None,
        "gradiend_version": None,
        "transformers_version": None,
    }
    if config.parameters is not None:  # it is that of another direction
        own |= {"parameters": None, "has_bias": False, "safe_band": None, "break_point": None}
        own |= {"strength_unit": 1.0, "strength": 1.0}
    return replace(copy.deepcopy(config), **own)  # type: ignore[arg-type]


def as_direction(solution: Solution, scope: Scope) -> Direction:
    """Divide a solution by parameter, and add the fingerprint of the base model that the scope belongs to."""
    encoder, decoder = scope.split(solution.encoder), scope.split(solution.decoder)
    bias = scope.split(solution.decoder_bias)
    return Direction(
        {
            name: ParameterDirection(
                tuple(parameter.shape), decoder[name].cpu(), bias[name].cpu(), encoder[name].cpu(), scope.kept.get(name)
            )
            for name, parameter in scope.parameters.items()
        },
        solution.encoder_bias,
        Fingerprint.of(scope.parameters),
    )


@dataclass(frozen=True)
class Reading:
    """A calibrated solution, and what it encodes.

    Attributes:
        h, labels: feature values of the judging rows, as readers get them, and the signs of the classes of the words that
            stand there, [N] each.
        seeds: how it compares with the training's other runs, if there are several.
    """

    solution: Solution
    h: Tensor
    labels: Tensor
    seeds: SeedReport | None = None


@dataclass(frozen=True)
class Finished:
    """A finished solution.

    Attributes:
        solution, scope: the solution and its coordinates.
        effects: effect by damping where dampings were compared.
        judged: how it encodes the judging rows.
        weights: factors [n] by which a damage-aware decoder was made of the plain one, in the scope of the training.
        h: feature values of all validation rows, [N], if these were the judging rows.
    """

    solution: Solution
    scope: Scope
    effects: dict[float, float]
    judged: Convergence
    weights: Tensor | None = None
    h: Tensor | None = None


@dataclass(frozen=True)
class TrainingRun:
    """Base model, settings and data of one training; `scope` is that of the solutions' vectors."""

    base_model: nn.Module
    objective: Objective
    config: GradiendConfig
    args: GradiendTrainingArguments
    scope: Scope
    data: TrainingData

    @property
    def is_judged_by_validation(self) -> bool:
        """Return whether there are validation rows enough to judge solutions by."""
        return len(self.data.eval_rows) >= FEWEST_ROWS

    @cached_property
    def judging(self) -> tuple[list[Example], Tensor]:
        """Examples and labels of rows by which solutions are oriented, scaled, compared and judged.

        These are validation rows, as the base model may have seen the training rows, whose gradients are unlike others then.
        """
        if self.is_judged_by_validation:
            return self.labelled(spread(self.data.eval_rows, MOST_ROWS))
        chosen, dataset = self.data.dataset.sample(CALIBRATION_ROWS), self.data.dataset
        return [dataset.examples[i] for i in chosen], torch.tensor([dataset.labels[i] for i in chosen])

    def labelled(self, rows: Sequence[Row]) -> tuple[list[Example], Tensor]:
        """Tokenise rows. Returns their examples and training labels ±1."""
        classes = self.config.feature_classes or []
        labels = torch.tensor([row.label(classes, self.config.source) for row in rows])
        return examples_of(self.objective, rows, what="eval_dataset"), labels

    def read(self, solution: Solution, scope: Scope) -> Reading:
        """Orient a solution, set its gain, and encode the judging rows by it."""
        examples, labels = self.judging
        z = self.preactivations(solution, examples, scope)
        usable = z.isfinite()  # training leaves out rows of other kinds, too
        z, labels = z[usable], labels[usable]
        sign, h = reading_sign(self.config.source), torch.tanh(gain_of(z, labels) * z)
        return Reading(calibrated(solution, z, labels), sign * h, sign * labels)

    def encode(self, solution: Solution, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Encode rows by a calibrated solution. Returns h and labels as in `Reading`, [N] each."""
        examples, labels = self.labelled(rows)
        sign = reading_sign(self.config.source)
        return sign * torch.tanh(self.preactivations(solution, examples, self.scope)), sign * labels

    def best(self, solutions: Sequence[Solution]) -> Reading:
        """Choose the run with the best correlation on the judging rows."""
        readings = [self.read(solution, self.scope) for solution in solutions]
        if len(readings) == 1:
            return readings[0]
        seeds, rates = zip(*self.args.runs, strict=True)
        h, calibrated_ones = torch.stack([r.h for r in readings]), [r.solution for r in readings]
        found = seed_report(calibrated_ones, h, readings[0].labels, seeds=seeds, rates=rates)
        return replace(readings[found.chosen], seeds=found)

    def preactivations(self, solution: Solution, examples: Sequence[Example], scope: Scope) -> Tensor:
        """z of every example, [N]."""
        return preactivations(
            self.base_model,
            self.objective,
            examples,
            scope.dense_tensors(solution.encoder),
            solution.encoder_bias,
            source=self.config.source,
            batch_size=self.args.eval_batch_size,
        )

    def finished(self, read: Reading, target_means: ClassMeans | None) -> Finished:
        """Give a solution the decoder and the coordinates that the arguments ask for, and judge its encoder.

        An encoder that was not learned is made as quiet as it is uncertain: its typical |h| is not 0.9, but that times its
        correlation.
        """
        args, scope, solution = self.args, self.scope, read.solution
        effects: dict[float, float] = {}
        weights: Tensor | None = None
        if args.decoder != "solver":
            assert target_means is not None
            solution = with_mean_decoder(solution, target_means)
        if args.decoder == "damage_aware":
            with GradientReader(self.base_model, scope) as reader:
                texts, rows = self.data.fisher_texts, spread(self.data.rows, len(self.data.fisher_texts))
                fisher = diagonal_fisher(reader, self.objective, texts, rows, seed=args.seed)
            effect = self.effect if self.data.eval_rows and self.data.texts else None
            with counted("measuring dampings"):
                (solution, scope), effects = best_damped(
                    solution, scope, fisher, density=args.final_density, effect=effect
                )
            weights = damping_weights(fisher, chosen_damping(effects))
        else:
            solution, scope = pruned(solution, scope, solution.decoder.abs(), args.final_density)
        if scope is not self.scope:  # fewer coordinates make a smaller z
            read = self.read(solution, scope)
            solution = read.solution
        judged = convergence(read.h, read.labels)
        if judged.faults:
            solution = solution.quieter(max(LEAST_LEVEL, LEVEL * judged.correlation))
        every_row = self.is_judged_by_validation and len(read.h) == len(self.data.eval_rows)
        h = read.h if every_row and not judged.faults else None
        return Finished(solution, scope, effects, judged, weights, h)

    def references(
        self, direction: Direction, contrasts: Contrasts | None, weights: Tensor | None
    ) -> tuple[References | None, ReferenceReport | None]:
        """What a finished direction is compared with later; nothing where the rows were too few for two halves."""
        if contrasts is None:
            return None, None
        return references_of(contrasts, direction, self.scope, self.config, weights)

    def effect(self, solution: Solution, scope: Scope) -> float:
        """Measure a solution's effect on some validation rows at the best dose that every damage set bears."""
        model = GradiendModel.from_direction(self.base_model, as_direction(solution, scope), copy.deepcopy(self.config))
        try:
            others = damage_items(model, self.objective, self.data.damage_sets, seed=self.args.seed)
            sets = {"own": OWN_TOKENS, "others": others, "seed": self.args.seed}
            probe = StrengthProbe(model, self.objective, self.data.eval_rows, self.data.texts, **sets)
            probe = probe.subset(COMPARED_ROWS, COMPARED_TOKENS)
            calibrate(probe, floor=self.args.quality_floor)
            return probe.effect(probe.measure(1.0), probe.measure(-1.0))
        finally:
            model.unload()
