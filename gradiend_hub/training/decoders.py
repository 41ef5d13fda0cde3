"""Decoders made after training: of class means, damage-aware, or on fewer coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gradiend_hub.artifact.fields import matrix_shape
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.gradients import Scope
from gradiend_hub.gradients.importance import top_k
from gradiend_hub.solvers import (
    DAMPINGS,
    UNMEASURED,
    ByParameter,
    ClassMeans,
    Solution,
    Vector,
    damage_aware,
    effect_shares,
)

AUTO, LEARNED = "auto", ("damage_aware", "natural")
"""The decoder that data and arguments decide, and those that are learned from text."""

DECODERS = (AUTO, "solver", "mean", *LEARNED)
"""Values of the argument `decoder`."""

RANK = 8
"""Rank of a natural decoder, if none is named."""

Kept = tuple[Solution, Scope]


def with_mean_decoder(solution: Solution, target_means: ClassMeans) -> Solution:
    """Give a solution the decoder that predicts each class's mean target from its typical feature value, ±0.9."""
    decoder, bias = target_means.fit()
    return replace(solution, decoder=decoder, decoder_bias=bias)


def pruned(solution: Solution, scope: Scope, shares: Tensor, density: float) -> Kept:
    """Restrict a solution to the coordinates with the largest shares, `max(1, round(density · n))` of them.

    Args:
        scope: of the solution's vectors.
        shares: what each coordinate is worth, [n], ≥ 0.
    """
    if density == 1:
        return solution, scope
    chosen = top_k(scope.split(shares), max(1, round(density * scope.size)))
    starts = {name: where.start for name, where in scope.slices().items()}
    flat = torch.cat([starts[name] + positions for name, positions in chosen.items()])
    return solution.mapped(lambda vector: vector[flat]), scope.keep(chosen)


def numbers_at_rank(shape: tuple[int, ...], rank: int, stacked: bool = False) -> int:
    """Count the numbers of a parameter's vector at a rank: both factors of each matrix, or a vector as it is."""
    size = math.prod(shape)
    if len(shape) < 2:
        return size
    *stack, rows, columns = matrix_shape(shape, stacked)
    numbers = math.prod(stack) * min(rank, rows, columns) * (rows + columns)
    return min(size, numbers) if stacked else numbers


def constant(scope: Scope, rank: int | None, value: float, stacked: Collection[str] = ()) -> Vector:
    """A vector over a scope whose stored numbers are all the same, of low rank if one is given.

    Args:
        stacked: parameters that are stacks of matrices, as `Sketching` takes them.
    """
    if rank is None:
        return torch.full((scope.size,), value)
    parts: dict[str, Tensor | Factors] = {}
    for name, parameter in scope.parameters.items():
        if parameter.ndim < 2:
            parts[name] = torch.full(parameter.shape, value)
            continue
        *stack, rows, columns = matrix_shape(parameter.shape, name in stacked)
        r = min(rank, rows, columns)
        parts[name] = Factors(torch.full((*stack, rows, r), value), torch.full((*stack, r, columns), value))
    return ByParameter(parts)


def cut_to_rank(solution: Solution, scope: Scope, rank: int, stacked: Collection[str] = ()) -> Solution:
    """Replace every matrix of a solution's vectors [n] by the nearest one of a rank, by its factors.

    Args:
        stacked: parameters that are stacks of matrices, as `Sketching` takes them.
    """

    def cut(vector: Tensor) -> ByParameter:
        parts: dict[str, Tensor | Factors] = {}
        for name, values in scope.split(vector).items():
            shape = tuple(scope.parameters[name].shape)
            parts[name] = values.cpu()
            if len(shape) > 1:
                matrix = values.cpu().view(matrix_shape(shape, name in stacked))
                if name not in stacked or numbers_at_rank(shape, rank, stacked=True) < len(values):
                    parts[name] = Factors.nearest(matrix, min(rank, *matrix.shape[-2:]))
        return ByParameter(parts)

    return solution.mapped(cut)


def best_damped(
    solution: Solution,
    scope: Scope,
    fisher: Tensor,
    *,
    density: float = 1.0,
    effect: Callable[[Solution, Scope], float] | None = None,
) -> tuple[Kept, dict[float, float]]:
    """Make the damage-aware decoder whose damping has the most effect at an allowed damage.

    Coordinates are left out before dampings are compared, for each damping by its own ranking: what is best for all
    coordinates is not for the few that stay, which move further and want more damping. (On the bundled masked model at 1 %
    of the coordinates, effects at 1 % damage are .63, .63 and .68 at 0.1, 1 and 10; at all, .72, .72 and less.) Dampings are
    tried from the largest, and as long as a smaller one is better.

    Args:
        fisher: F at the scope's coordinates, [n].
        density: share of the coordinates to keep, by w_d²/(F + damping).
        effect: measures a candidate on validation rows; without it, `UNMEASURED` is the damping.

    Returns:
        The chosen solution with its scope, and the effect by damping of those that were tried.
    """

    def candidate(damping: float) -> Kept:
        return pruned(damage_aware(solution, fisher, damping), scope, effect_shares(solution, fisher, damping), density)

    if effect is None:
        return candidate(chosen_damping({})), {}
    measured: dict[float, float] = {}
    for damping in DAMPINGS:
        measured[damping] = effect(*candidate(damping))
        if measured[damping] < max(measured.values()):
            break
    return candidate(chosen_damping(measured)), measured


def chosen_damping(measured: Mapping[float, float]) -> float:
    """The damping of most effect, the larger one of equal ones; `UNMEASURED` where none was measured."""
    return max(measured, key=lambda damping: (measured[damping], damping), default=UNMEASURED)
