"""From what a solver has learned to a direction: the best run, its orientation and gain, its decoder and coordinates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.data import Row
from gradiend_hub.encoding import preactivations, reading_sign
from gradiend_hub.evaluation import StrengthProbe, calibrate
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Example, Objective, examples_of
from gradiend_hub.progress import counted
from gradiend_hub.solvers import ClassMeans, SeedReport, Solution, calibrated, seed_report
from gradiend_hub.training.batches import TransitionDataset

from .args import GradiendTrainingArguments
from .decoders import kindest, pruned, with_mean_decoder

__all__ = ["Learned", "LearnedFrom", "as_direction"]

CALIBRATION_ROWS = 128
"""Training rows from which orientation and gain of a solution are read."""

RUN_ROWS = 32
"""The same while runs are compared, all but one of which are then left behind."""

COMPARED_ROWS, COMPARED_TOKENS = 60, 1000
"""Validation rows of each class and neutral tokens on which dampings are compared."""


def as_direction(solution: Solution, scope: Scope) -> Direction:
    """A solution by parameter, with the fingerprint of the base model that the scope belongs to."""
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
class LearnedFrom:
    """The data of a training.

    Attributes:
        dataset: the tokenised training rows, and `rows` as they are.
        eval_rows, texts: what runs and dampings are compared on; training rows, or nothing, where there are none.
        fisher_texts: what the Fisher information is estimated from.
    """

    dataset: TransitionDataset
    rows: Sequence[Row]
    eval_rows: Sequence[Row] = ()
    texts: Sequence[str] = ()
    fisher_texts: Sequence[str] = ()


@dataclass(frozen=True)
class Learned:
    """Reads solutions on the base model that they were learned on; `scope` is that of the solutions' vectors."""

    base_model: nn.Module
    objective: Objective
    config: GradiendConfig
    args: GradiendTrainingArguments
    scope: Scope
    data: LearnedFrom

    def best(self, solutions: Sequence[Solution]) -> tuple[Solution, SeedReport | None]:
        """The run with the best correlation on validation rows (training rows if there are no others), calibrated.

        Returns:
            The solution and, if there are several runs, how they compare.
        """
        if len(solutions) == 1:
            return self.calibrated(solutions, self.scope)[0], None
        compared = self.calibrated(solutions, self.scope, RUN_ROWS)
        rows = self.data.eval_rows or [self.data.rows[i] for i in self.data.dataset.sample(CALIBRATION_ROWS)]
        encoded = [self.encode(solution, rows) for solution in compared]
        seeds, rates = zip(*self.args.runs, strict=True)
        found = seed_report(compared, torch.stack([h for h, _ in encoded]), encoded[0][1], seeds=seeds, rates=rates)
        return self.calibrated([solutions[found.chosen]], self.scope)[0], found

    def calibrated(self, solutions: Sequence[Solution], scope: Scope, count: int = CALIBRATION_ROWS) -> list[Solution]:
        """The same solutions with orientation and gain read from training rows, `count` of them if there are as many."""
        chosen = self.data.dataset.sample(count)
        examples = [self.data.dataset.examples[i] for i in chosen]
        labels = torch.tensor([self.data.dataset.labels[i] for i in chosen])
        ready = []
        for found in solutions:
            z = self.preactivations(found, examples, scope)
            usable = z.isfinite()  # the rows that training left out
            ready.append(calibrated(found, z[usable], labels[usable]))
        return ready

    def encode(self, solution: Solution, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Feature values and labels of rows, each [N]."""
        z = self.preactivations(solution, examples_of(self.objective, rows, what="eval_dataset"), self.scope)
        classes = self.config.feature_classes or []
        return reading_sign(self.config.source) * torch.tanh(z), torch.tensor(
            [row.label(classes, "factual") for row in rows]
        )

    def preactivations(self, solution: Solution, examples: Sequence[Example], scope: Scope) -> Tensor:
        """z of every example, [N]."""
        return preactivations(
            self.base_model, self.objective, examples, scope.dense_tensors(solution.encoder), solution.encoder_bias,
            source=self.config.source, batch_size=self.args.eval_batch_size,
        )  # fmt: skip

    def finished(
        self, solution: Solution, target_means: ClassMeans | None
    ) -> tuple[Solution, Scope, dict[float, float]]:
        """The solution with the decoder and on the coordinates that the arguments ask for.

        Returns:
            Solution, scope, and the effect by damping where dampings were compared.
        """
        args, scope = self.args, self.scope
        tried: dict[float, float] = {}
        if args.decoder != "solver":
            assert target_means is not None
            solution = with_mean_decoder(solution, target_means)
        if args.decoder == "fisher":
            with GradientReader(self.base_model, scope) as reader:
                fisher = diagonal_fisher(reader, self.objective, self.data.fisher_texts, seed=args.seed)
            effect = self.effect if self.data.eval_rows and self.data.texts else None
            with counted("measuring dampings"):
                (solution, scope), tried = kindest(solution, scope, fisher, density=args.final_density, effect=effect)
        else:
            solution, scope = pruned(solution, scope, solution.decoder.abs(), args.final_density)
        if scope is not self.scope:  # fewer coordinates make a smaller z
            (solution,) = self.calibrated([solution], scope)
        return solution, scope, tried

    def effect(self, solution: Solution, scope: Scope) -> float:
        """Effect on some validation rows at the best dose that neutral text bears."""
        model = GradiendModel.from_direction(self.base_model, as_direction(solution, scope), copy.deepcopy(self.config))
        try:
            probe = StrengthProbe(model, self.objective, self.data.eval_rows, self.data.texts, seed=self.args.seed)
            probe = probe.subset(COMPARED_ROWS, COMPARED_TOKENS)
            calibrate(probe, floor=self.args.quality_floor)
            return probe.effect(probe.measure(1.0), probe.measure(-1.0))
        finally:
            model.unload()
