"""A training: what is learned from what, and how its solutions become a direction on the base model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.data import Row
from gradiend_hub.encoding import preactivations, reading_sign
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.evaluation.sets import REPLY_TOKENS, damage_items
from gradiend_hub.gradients import (
    FactorReader,
    GradientReader,
    KroneckerFactors,
    Scope,
    Tangent,
    diagonal_fisher,
    kronecker_factors,
    stacks,
)
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Example, Objective, Sample, evaluating, examples_of
from gradiend_hub.progress import counted
from gradiend_hub.solvers import (
    ByParameter,
    ClassMeans,
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
from .decoders import best_damped, chosen_damping, cut_to_rank, numbers_at_rank, pruned, with_mean_decoder
from .judging import MOST_ROWS, judged_by
from .natural import NATURAL, ODD, PLAIN, Edits, Outcome, best_edits, common_effect, estimate, preconditioned
from .solutions import as_direction, tangents_of

FEWEST_ROWS = 16
"""Fewest validation rows from which orientation and gain of a solution are read; with fewer, training rows are.

Whether anything was learned is not: see `judging`."""

COMPARED_ROWS, COMPARED_TOKENS = 60, 1000
"""Validation rows of each class and neutral tokens on which dampings are compared."""

CLEARLY = 0.9
"""Share of the best decoder's expected effect below which another one is not measured beside it."""

LEAST_LEVEL = 0.05
"""Typical |h| of an encoder that has learned nothing."""


@dataclass(frozen=True)
class Reading:
    """A calibrated solution, and what it encodes.

    Attributes:
        h, labels: feature values of the judging rows, as readers get them, and the signs of the classes of the words that
            stand there, [N] each.
        usable: which of the judging rows these are.
        seeds: how it compares with the training's other runs, if there are several.
    """

    solution: Solution
    h: Tensor
    labels: Tensor
    usable: Tensor
    seeds: SeedReport | None = None


@dataclass(frozen=True)
class Finished:
    """A finished solution.

    Attributes:
        solution, scope: the solution and its coordinates.
        effects: effect by damping (and sign) where dampings were compared.
        judged: how it encodes rows that were not learned from.
        weights: factors [n] by which a damage-aware decoder was made of the plain one, in the scope of the training.
        h: feature values of all validation rows, [N], if these were the judging rows.
    """

    solution: Solution
    scope: Scope
    effects: Mapping[Any, float]
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
    def numbers(self) -> int:
        """Count the numbers of one vector as the direction stores it; n, unless it is of low rank."""
        if self.args.rank is None:
            return self.scope.size
        return sum(
            numbers_at_rank(tuple(parameter.shape), self.args.rank, name in self.stacked)
            for name, parameter in self.scope.parameters.items()
        )

    @cached_property
    def stacked(self) -> frozenset[str]:
        """Names of the parameters that are stacks of matrices."""
        return stacks(self.base_model, self.scope)

    @property
    def is_judged_by_validation(self) -> bool:
        """Return whether there are validation rows enough to judge solutions by."""
        return len(self.data.eval_rows) >= FEWEST_ROWS

    @property
    def judging_rows(self) -> list[Row]:
        """Validation rows, up to a number."""
        return spread(self.data.eval_rows, MOST_ROWS)

    @cached_property
    def judging(self) -> tuple[list[Example], Tensor]:
        """Examples and labels of rows by which solutions are oriented, scaled and compared.

        These are validation rows if there are enough, as the base model may have seen the training rows, whose gradients are
        unlike others then.
        """
        if self.is_judged_by_validation:
            return self.labelled(self.judging_rows)
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
        z = self._preactivations(tangents_of(solution.encoder, scope), solution.encoder_bias, examples)
        usable = z.isfinite()  # training leaves out rows of other kinds, too
        z, labels = z[usable], labels[usable]
        sign, h = reading_sign(self.config.source), torch.tanh(gain_of(z, labels) * z)
        return Reading(calibrated(solution, z, labels), sign * h, sign * labels, usable)

    def encode(self, solution: Solution, rows: Sequence[Row], scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Encode rows by a calibrated solution. Returns h and labels as in `Reading`, [N] each."""
        return self.encode_by(tangents_of(solution.encoder, scope or self.scope), solution.encoder_bias, rows)

    def encode_by(self, encoder: Mapping[str, Tangent], bias: float, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Encode rows by an encoder in the form that `preactivations` takes. Returns h and labels as in `Reading`."""
        examples, labels = self.labelled(rows)
        sign, z = reading_sign(self.config.source), self._preactivations(encoder, bias, examples)
        return sign * torch.tanh(z), sign * labels

    def _preactivations(self, encoder: Mapping[str, Tangent], bias: float, examples: Sequence[Example]) -> Tensor:
        """z of every example, [N]."""
        of_run = {"source": self.config.source, "batch_size": self.args.eval_batch_size}
        return preactivations(self.base_model, self.objective, examples, encoder, bias, **of_run)

    def best(self, solutions: Sequence[Solution]) -> Reading:
        """Choose the run with the best correlation on the judging rows."""
        readings = [self.read(solution, self.scope) for solution in solutions]
        if len(readings) == 1:
            return readings[0]
        seeds, rates = zip(*self.args.runs, strict=True)
        h, calibrated_ones = torch.stack([r.h for r in readings]), [r.solution for r in readings]
        found = seed_report(calibrated_ones, h, readings[0].labels, seeds=seeds, rates=rates)
        return replace(readings[found.chosen], seeds=found)

    def judged(self, read: Reading, scope: Scope) -> Convergence:
        """Judge an oriented solution by validation rows.

        It may fail by training rows before, as any labels fit these; it cannot pass by them.
        """
        if self.is_judged_by_validation:  # they have chosen it, and its sign
            rows = [row for row, usable in zip(self.judging_rows, read.usable.tolist(), strict=True) if usable]
            tries = 2 * len(self.args.runs) * self.looks
            return judged_by(read.h, read.labels, rows, tries=tries, of="validation rows")
        seen = convergence(read.h, read.labels, of="training rows")
        if seen.faults:
            return seen
        rows = list(self.data.eval_rows)
        h, labels = self.encode(read.solution, rows, scope) if rows else (torch.zeros(0), torch.zeros(0))
        return judged_by(h, labels, rows, tries=self.looks, of="validation rows")

    @property
    def looks(self) -> int:
        """Count the checkpoints of which the validation rows have chosen one."""
        args = self.args
        if not args.load_best_model_at_end:
            return 1
        epoch = math.ceil(len(self.data.dataset) / args.train_batch_size)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
        every = epoch if args.eval_strategy == "epoch" else max(1, int(args.eval_steps or 1))
        return max(1, math.ceil(int(steps) / every))

    def finished(self, read: Reading, target_means: ClassMeans | None) -> Finished:
        """Give a solution the decoder and the coordinates that the arguments ask for, and judge its encoder.

        An encoder that was not learned is made as quiet as it is uncertain: its typical |h| is not 0.9, but that times its
        correlation.
        """
        args, scope, solution = self.args, self.scope, read.solution
        effects: dict[Any, float] = {}
        weights: Tensor | None = None
        if args.decoder != "solver" and not isinstance(solution.decoder, ByParameter):
            assert target_means is not None
            solution = with_mean_decoder(solution, target_means)
        by_bias: dict[str, float] = {}
        if args.decoder == "damage_aware" and self.compares:
            with counted("measuring the bias"):
                solution, by_bias = self.with_or_without_bias(solution)
        if args.decoder == "damage_aware":
            spared = self.spared
            with GradientReader(self.base_model, scope) as reader:
                fisher = diagonal_fisher(reader, self.objective, *spared, seed=args.seed)
            effect = self.effect if self.compares else None
            with counted("measuring dampings"):
                (solution, scope), effects = best_damped(
                    solution, scope, fisher, density=args.final_density, effect=effect
                )
            weights = damping_weights(fisher, chosen_damping(effects))
        elif args.final_density < 1:
            solution, scope = pruned(solution, scope, solution.decoder.abs(), args.final_density)
        is_cut = args.rank is not None and not isinstance(solution.decoder, ByParameter)
        if is_cut:
            solution = cut_to_rank(solution, scope, int(args.rank or 0), self.stacked)
        if args.decoder == "natural":
            spared = self.spared
            with FactorReader(self.base_model, scope) as by_factors:
                factors = kronecker_factors(by_factors, self.objective, *spared, seed=args.seed).trusted()
            with counted("measuring decoders"):
                solution, effects = self._natural(solution, factors)
        if is_cut or scope is not self.scope:  # fewer coordinates make a smaller z
            read = self.read(solution, scope)
            solution = read.solution
        self._probes.clear()  # it keeps distributions of the base model
        judged = self.judged(replace(read, solution=solution), scope)
        if judged.faults:
            solution = solution.quieter(max(LEAST_LEVEL, LEVEL * judged.correlation))
        every_row = self.is_judged_by_validation and len(read.h) == len(self.data.eval_rows)
        h = read.h if every_row and not judged.faults else None
        return Finished(solution, scope, effects | by_bias, judged, weights, h)

    @cached_property
    def spared(self) -> tuple[Sequence[Any], list[Row], list[Sample]]:
        """Texts that decoders are to spare: neutral ones, rows with their own text, and a chat model's replies."""
        texts, samples = self.data.fisher_texts, list[Sample]()
        if prompts := self.objective.chat_prompts(fitted=True):
            with evaluating(self.base_model), torch.inference_mode():
                samples = self.objective.generate(self.base_model, prompts, tokens=REPLY_TOKENS)
        return texts, spread(self.data.rows, len(texts)), [sample for sample in samples if sample.labels]

    @property
    def compares(self) -> bool:
        """Return whether there are validation rows and texts, by which decoders are chosen."""
        return bool(self.data.eval_rows and self.data.texts)

    def with_or_without_bias(self, solution: Solution) -> tuple[Solution, dict[str, float]]:
        """Leave out the decoder's bias where that has more effect at the same damage: neither is better on every base."""
        tried = _by_bias(solution)
        effects = {kind: self.effect(one, self.scope) for kind, one in tried.items()}
        return tried[max(effects, key=effects.__getitem__)], effects

    def _natural(self, solution: Solution, factors: KroneckerFactors) -> tuple[Solution, dict[str, float]]:
        """Choose decoders by measurement: each sign's own, or, without a bias, one for both, which makes one LoRA.

        First, from which of the plain ones they are made, with its bias or without. The plain one stays unless they have
        more effect at one common dose, which is measured of those that are expected to be near the best.
        """
        if not self.compares:
            edits = best_edits(Edits.of(solution, self.config), factors, None).edits
            return edits.solution(solution, self.config, self.args.rank), {}
        plain = self._plain(solution)
        solution, known = max(plain.values(), key=lambda one: _sum(one[1]))
        measure, is_odd = partial(self._measure, solution=solution), solution.decoder_bias is None
        choice = best_edits(Edits.of(solution, self.config), factors, measure, known, common=is_odd)
        tried = {PLAIN: solution, NATURAL: choice.edits.solution(solution, self.config, self.args.rank)}
        if is_odd:
            decoder = preconditioned(solution.decoder, factors, choice.common)
            tried[ODD] = replace(solution, decoder=decoder)
        expected = {kind: choice.rivals[kind].effect for kind in tried}
        near = [kind for kind in tried if expected[kind] >= CLEARLY * max(expected.values())]
        both = expected
        if len(near) > 1:
            both = {kind: self.effect(tried[kind], self.scope, choice.rivals[kind].dose) for kind in near}
        by_bias = {kind: _sum(outcomes) for kind, (_, outcomes) in plain.items()}
        return tried[max(both, key=both.__getitem__)], choice.effects | expected | both | by_bias

    def _plain(self, solution: Solution) -> dict[str, tuple[Solution, Mapping[int, Outcome]]]:
        """Measure a solution's decoder with its bias and without, each sign at the dose that it bears."""
        found: dict[str, tuple[Solution, Mapping[int, Outcome]]] = {}
        starts: dict[int, float | None] = {1: None, -1: None}
        for kind, one in _by_bias(solution).items():
            outcomes = self._measure(Edits.of(one, self.config), starts, one)
            found[kind] = one, outcomes
            starts = {sign: outcome.dose for sign, outcome in outcomes.items()}
        return found

    def _measure(self, edits: Edits, starts: Mapping[int, float | None], solution: Solution) -> dict[int, Outcome]:
        """Estimate what edits do on some validation rows, each sign at about the largest dose that it bears."""
        with self._probing(edits.solution(solution, self.config), self.scope) as probe:
            return {sign: estimate(probe, sign, self.args.quality_floor, start) for sign, start in starts.items()}

    def effect(self, solution: Solution, scope: Scope, start: float | None = None) -> float:
        """Measure a solution's effect on some validation rows at about the largest dose that every damage set bears.

        Args:
            start: dose to begin with.
        """
        with self._probing(solution, scope) as probe:
            return common_effect(probe, self.args.quality_floor, start)

    @contextmanager
    def applied(self, direction: Direction) -> Iterator[GradiendModel]:
        """Put a direction on the base model for as long as the block runs, at strength 0 first."""
        processor = self.objective.processor
        model = GradiendModel.from_direction(self.base_model, direction, self.config, processing_class=processor)
        try:
            yield model
        finally:
            model.unload()

    @contextmanager
    def _probing(self, solution: Solution, scope: Scope) -> Iterator[StrengthProbe]:
        """Put a solution on the base model, to be measured on some validation rows and on all damage sets."""
        with self.applied(as_direction(solution, scope)) as model:
            if not self._probes:  # the base model's replies and figures are the same for all
                others = damage_items(model, self.objective, self.data.damage_sets, seed=self.args.seed)
                tokens = self.args.quality_tokens
                sets = {"tokens": tokens, "own": tokens // 2, "others": others, "seed": self.args.seed}
                probe = StrengthProbe(model, self.objective, self.data.eval_rows, self.data.texts, **sets)
                self._probes.append(probe.subset(COMPARED_ROWS, COMPARED_TOKENS))
            yield self._probes[0].aside(model)

    @cached_property
    def _probes(self) -> list[StrengthProbe]:
        """The probe that decoders are compared with, once there is one."""
        return []


def _by_bias(solution: Solution) -> dict[str, Solution]:
    return {"with bias": solution, "without bias": replace(solution, decoder_bias=None)}


def _sum(outcomes: Mapping[int, Outcome]) -> float:
    return sum(one.effect for one in outcomes.values())
