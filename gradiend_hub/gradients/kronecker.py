"""Kronecker factors of the Fisher information of text: what it needs of each layer's inputs and outputs.

Of a matrix with y = x·Wᵀ they are A = E[x xᵀ] over tokens and S = E[δ δᵀ], with labels drawn by the model itself (Martens
and Grosse 2015). Of a long side only C·Ω is summed, for a fixed Gaussian Ω of `COLUMNS` columns, and in the end
C ≈ Y·(ΩᵀY)⁺·Yᵀ (Nyström); what that misses is spread evenly. Of a vector it is the diagonal of its Fisher information. The
matrices of a stack (experts) share one S and one A, of all tokens that any of them was given: few reach each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradiend_hub.artifact.fields import matrix_shape
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.data import Row
from gradiend_hub.objectives import Objective, Sample

from .factor_reader import FactorReader, stacks
from .factors import Outer
from .fisher import sampled_losses

COLUMNS = 64
"""Columns of the sketch of a side that is longer."""

HARDLY = 1e-6
"""Sensitivity, relative to the typical one, below which a parameter is one that text hardly uses. It is the product of both
sides' mean diagonals, or the mean of a vector's; that of keys' biases is 1e-14."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """A symmetric matrix C [d, d] ≥ 0 as V·diag(values)·Vᵀ + rest·I.

    Attributes:
        values: [m], largest last.
        vectors: V, [d, m].
        rest: what is in every other direction.
        mean: mean of the diagonal of C.
        diagonal: [d].
    """

    values: Tensor
    vectors: Tensor
    rest: float
    mean: float
    diagonal: Tensor

    def solve(self, right: Tensor, damping: float) -> Tensor:
        """(C + damping·mean·I)⁻¹ times a matrix [d, k], or a stack, in fp64; over the mean alone for infinite damping."""
        floor = max(self.rest + damping * self.mean, 1e-38)
        right = right.double()
        shrink = 1 / (self.values + floor) - 1 / floor
        return right / floor + self.vectors @ (shrink[:, None] * (self.vectors.T @ right))

    def quadratic(self, right: Tensor) -> Tensor:
        """Rᵀ·C·R of a matrix R [d, k], or of each in a stack, in fp64: [k, k]."""
        right = right.double()
        if not len(self.values):  # of one-hot vectors
            return right.mT @ (self.diagonal[:, None] * right)
        within = self.vectors.T @ right
        return within.mT @ (self.values[:, None] * within) + self.rest * (right.mT @ right)

    def solve_diagonal(self, right: Tensor, damping: float) -> Tensor:
        """The same with the diagonal of C alone."""
        return right.double() / (self.diagonal + damping * self.mean).clamp(min=1e-38)[:, None]


class _Side:
    """Running sums behind a `Curvature`: C·Ω, or C itself where it is no larger, and its diagonal."""

    def __init__(self, length: int, omega: Tensor | None, device: torch.device) -> None:
        self.omega = omega
        self.sums = torch.zeros(length, length if omega is None else omega.shape[1], device=device)
        self.diagonal = torch.zeros(length, device=device)

    def add(self, rows: Tensor) -> None:
        """Add Σ_t r_t r_tᵀ for rows [T, d]."""
        rows = rows.to(self.sums)
        self.sums.addmm_(rows.T, rows if self.omega is None else rows @ self.omega.to(rows))
        self.diagonal += rows.square().sum(0)

    def add_lookup(self, rows: Tensor) -> None:
        """Add Σ_t e_t e_tᵀ for the row numbers t, of one-hot vectors."""
        self.diagonal += torch.bincount(rows, minlength=len(self.diagonal)).to(self.diagonal)

    def read(self, count: int) -> Curvature:
        """The mean over `count` tokens."""
        diagonal = self.diagonal.double().cpu() / count
        y = self.sums.double().cpu() / count
        if not bool(y.any()):  # of one-hot vectors: diagonal, and long
            return Curvature(diagonal[:0], y[:, :0], 0.0, float(diagonal.mean()), diagonal)
        if self.omega is None:
            values, vectors = torch.linalg.eigh((y + y.T) / 2)
            return Curvature(values.clamp(min=0), vectors, 0.0, float(diagonal.mean()), diagonal)
        omega = self.omega.double().cpu()
        # so that rounding leaves no negative values (Tropp et al. 2017, fixed-rank PSD)
        shift = 1e-10 * float(y.norm())
        y = y + shift * omega
        core = omega.T @ y
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        good = values > 1e-12 * values[-1]
        left = y @ (vectors[:, good] / values[good].sqrt())
        u, s, _ = torch.linalg.svd(left, full_matrices=False)
        found = (s.square() - shift).clamp(min=0).flip(0)
        rest = max(float(diagonal.sum() - found.sum()), 0.0) / max(len(diagonal) - len(found), 1)
        return Curvature(found, u.flip(1), rest, float(diagonal.mean()), diagonal)


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """S and A by name of a matrix, and the diagonal Fisher information of everything else, flat, fp64.

    Attributes:
        outputs, inputs: by matrix: of its rows and of its columns.
        diagonals: by other parameter: [k].
        bytes: memory of the running sums.
    """

    outputs: Mapping[str, Curvature]
    inputs: Mapping[str, Curvature]
    diagonals: Mapping[str, Tensor]
    bytes: int

    def trusted(self) -> KroneckerFactors:
        """Take what text hardly uses to be as sensitive as what is typical.

        Of a parameter that no text reaches, such as an expert that it is not routed to, nothing is known; of the bias of an
        attention's keys, which changes no output, the gradient is rounding noise. Divided by what was measured there, both
        would have nearly all of an edit's norm.
        """
        means = {name: float(values.mean()) for name, values in self.diagonals.items()}
        both = {name: side.mean * self.inputs[name].mean for name, side in self.outputs.items()}
        typical, typical_both = _typical(means.values()), _typical(both.values())
        unused = {name for name, sensitivity in both.items() if sensitivity < HARDLY * typical_both}
        return KroneckerFactors(
            _flattened(self.outputs, unused),
            _flattened(self.inputs, unused),
            {n: v if means[n] >= HARDLY * typical else v.new_full((1,), typical) for n, v in self.diagonals.items()},
            self.bytes,
        )

    def damage(self, parts: Mapping[str, Tensor | Factors]) -> float:
        """Damage of an edit to second order, ½·Σ tr(Δᵀ S Δ A) + ½·Σ d²·F, in nats a token; 0 where nothing is known."""
        found = 0.0
        for name, part in parts.items():
            if isinstance(part, Factors) and name in self.outputs:
                both = self.outputs[name].quadratic(part.b) * self.inputs[name].quadratic(part.a.mT)
                found += 0.5 * float(both.sum())
            elif isinstance(part, Factors) and name in self.diagonals:
                found += 0.5 * part.inner(part) * float(self.diagonals[name].mean())
            elif isinstance(part, Tensor) and name in self.diagonals:
                found += 0.5 * float((part.double().flatten().square() * self.diagonals[name]).sum())
        return found


def _typical(means: Iterable[float]) -> float:
    """The median of some means that are not 0; 1 without any."""
    return float(np.median([mean for mean in means if mean > 0] or [1.0]))


def _flattened(sides: Mapping[str, Curvature], names: Collection[str]) -> dict[str, Curvature]:
    """Give the sides of some matrices the typical mean in all directions."""
    typical, found = _typical(side.mean for side in sides.values()), dict(sides)
    for name in names:
        side = sides[name]
        flat = torch.full_like(side.diagonal, typical)
        found[name] = Curvature(side.values[:0], side.vectors[:, :0], typical, typical, flat)
    return found


class _Sums:
    def __init__(self, reader: FactorReader, columns: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        omegas: dict[int, Tensor] = {}
        self.rows: dict[str, _Side] = {}
        self.columns: dict[str, _Side] = {}
        self.squares: dict[str, Tensor] = {}
        self.batch: dict[str, Tensor] = {}
        self.routed: dict[str, int] = {}
        stacked = stacks(reader.model, reader.scope)
        for name, parameter in reader.scope.parameters.items():
            if name in reader.own:
                continue
            *_, rows, across = matrix_shape(parameter.shape, name in stacked)
            device = reader.device if parameter.is_meta else parameter.device
            for sides, d in ((self.rows, rows), (self.columns, across)):
                if d > columns and d not in omegas:
                    omegas[d] = torch.randn(d, columns, generator=generator)
                sides[name] = _Side(d, omegas.get(d), device)

    def sink(self, name: str, part: Outer | Tensor) -> None:
        if isinstance(part, Outer):
            left, right = part.flat()
            self.columns[name].add(right)
            (self.rows[name].add_lookup if part.is_lookup else self.rows[name].add)(left)
            if part.number is not None:
                self.routed[name] = self.routed.get(name, 0) + len(left)
        else:
            self.batch[name] = self.batch[name] + part.flatten() if name in self.batch else part.flatten()

    def end_of_batch(self) -> None:
        for name, gradient in self.batch.items():
            square = gradient.double().square()
            self.squares[name] = self.squares[name] + square if name in self.squares else square
        self.batch.clear()

    @property
    def bytes(self) -> int:
        sides = [*self.rows.values(), *self.columns.values()]
        return sum(s.sums.nbytes + s.diagonal.nbytes for s in sides) + sum(s.nbytes for s in self.squares.values())


def kronecker_factors(
    reader: FactorReader,
    objective: Objective,
    texts: Sequence[str],
    rows: Sequence[Row] = (),
    replies: Sequence[Sample] = (),
    *,
    batch_size: int = 8,
    seed: int = 0,
    draws: int = 1,
    columns: int = COLUMNS,
) -> KroneckerFactors:
    """Read the Kronecker factors of text, in one forward and one input-gradient pass of each batch.

    Args:
        reader: entered, of the scope that the decoder lives on.
        texts: what an edit should spare; others than those on which damage is measured later.
        rows: feature rows, whose own texts are read beside them.
        replies: further samples that are read beside them, e.g. a model's own replies to prompts in its chat format.
        batch_size: texts per pass.
        seed: decides which tokens are masked, which labels are drawn, and Ω.
        draws: how often each text is read.
        columns: of Ω.

    Raises:
        DataError: no text has a token that is scored.
        TrainingError: many texts have no finite probabilities.
    """
    sums: _Sums | None = None
    tokens = 0
    options = {"batch_size": batch_size, "seed": seed, "draws": draws}
    for loss, scored in sampled_losses(reader, objective, texts, rows, replies, **options):
        if sums is None:  # the first pass has told which parameters no hook sees
            sums = _Sums(reader, columns, seed)
        reader.read(loss, sums.sink)
        sums.end_of_batch()
        tokens += scored
    assert sums is not None
    # of a stack: the information of a typical one of its E matrices, which gets 1/E of the tokens
    means = {n: count * len(reader.scope.parameters[n]) for n, count in sums.routed.items()}
    return KroneckerFactors(
        {name: side.read(tokens) for name, side in sums.rows.items()},
        {name: side.read(means.get(name, tokens)) for name, side in sums.columns.items()},
        {name: square.cpu() / tokens for name, square in sums.squares.items()},
        sums.bytes,
    )
