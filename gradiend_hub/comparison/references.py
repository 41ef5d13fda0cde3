"""References that a finished direction is compared with later: controls, gradient in short form, and split halves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.references import References
from gradiend_hub.evaluation.report import ReferenceReport
from gradiend_hub.gradients import Scope
from gradiend_hub.solvers import ByParameter, Contrasts, Vector

from .similarity import Sides
from .vectors import Frame, Vectors

FEWEST, MOST = 4096, 2**18
"""Entries that are kept of a vector: a thousandth, and within these. With 4,096 of a control's 2.0 M coordinates, its cosine
with a direction is .97 correlated with that of all (bundled masked model, 84 pairs of seven features)."""

TOPS = (100, 1000, 0.01)
"""Numbers (and share) of largest entries for which overlaps are measured."""

NEAR = 0.95
"""Cosine with the gradient from which a decoder stands for it, up to scale: of the whole vector more is right than of a
thousandth of the gradient's own entries. (It is below 1 where rows of the smaller class were read again.)"""

RANKED = 2**16
"""Coordinates from which Spearman's correlation of whole vectors is read, evenly spread."""


def references_of(
    contrasts: Contrasts,
    direction: Direction,
    scope: Scope,
    config: GradiendConfig,
    weights: Tensor | None = None,
) -> tuple[References, ReferenceReport]:
    """Make what a direction is compared with, and measure what can only be measured on the whole vectors.

    Args:
        contrasts: of the target gradient, [n] in the scope of the training, or of low rank, as by sketches.
        direction: the finished one, whose coordinates may be fewer.
        scope: of the contrasts.
        weights: factors [n] by which the decoder was made of the mean gradient, e.g. damage-aware; default: 1.
    """
    weighted = contrasts if weights is None else contrasts.weighted(weights)
    sign = config.decoder_sign or 1
    controls = [_direction(vector * float(sign), scope) for vector in weighted.controls]
    halves = [_direction(vector * float(sign), scope) for vector in (weighted.first, weighted.second)]
    pruned = [*halves, *controls]
    is_sparse = any(part.indices is not None for part in direction.parameters.values())
    if is_sparse and direction.entries < scope.size:  # factors are few numbers, too, but of all coordinates
        pruned = [vector.to_sparse(entries=direction.entries) for vector in pruned]
    gradient, scale, cosine = None, None, None
    if config.target == "diff":  # of another target, the log-odds' gradient is not on the stream
        gradient, scale, cosine = _gradient(contrasts, weighted, direction, scope, sign)
    entries = min(max(FEWEST, scope.size // 1000), MOST, scope.size)
    short = tuple(control.to_sparse(entries=entries) for control in controls)
    report = ReferenceReport(
        rows=contrasts.rows,
        split_half={name: values[0] for name, values in _figures(pruned[0], [pruned[1]]).items()},
        control=_figures(Direction(direction.parameters) * sign, pruned[2:]),
        gradient_cosine=cosine,
    )
    return References(short, gradient, scale), report


def _direction(vector: Vector, scope: Scope) -> Direction:
    """A vector [n] by parameter."""
    parts = vector.parts if isinstance(vector, ByParameter) else scope.split(vector)
    return Direction(
        {
            name: ParameterDirection(
                tuple(scope.parameters[name].shape),
                values.cpu() if isinstance(values, Tensor) else values,
                indices=scope.kept.get(name),
            )
            for name, values in parts.items()
        }
    )


def _gradient(
    contrasts: Contrasts, weighted: Contrasts, direction: Direction, scope: Scope, sign: int
) -> tuple[Direction | None, float | None, float]:
    """The gradient of the log-odds in short form, or the scale at which the decoder is it; and their cosine."""
    gradient = _direction(contrasts.mean * float(sign), scope)
    product, square = sign * direction.inner(gradient, 1.0, 0.0), direction.norm(1.0, 0.0) ** 2
    within = _norm_within(gradient, direction)
    cosine = product / (square**0.5 * within) if square and within else 0.0
    if cosine >= NEAR:
        return None, product / square, cosine
    entries = min(max(FEWEST, scope.size // 1000), MOST, scope.size)
    if weighted is contrasts:  # the share of an entry is its square
        short = gradient.to_sparse(entries=entries)
    else:
        places = _direction((contrasts.mean * weighted.mean).abs(), scope).to_sparse(entries=entries)
        parts = {}
        for name, part in places.parameters.items():
            whole = gradient.parameters[name]
            assert part.indices is not None
            at = part.indices if whole.indices is None else torch.searchsorted(whole.indices, part.indices)
            parts[name] = ParameterDirection(part.shape, whole.values[at.long()], indices=part.indices)
        short = Direction(parts)
    left = sign * direction.inner(short, 1.0, 0.0)
    # what the direction does to its own feature is right, whatever the entries that were left out would add
    return (short * (product / left) if product > 0 and left > 0 else short), None, cosine


def _norm_within(gradient: Direction, direction: Direction) -> float:
    """Norm of a gradient at the coordinates that a direction has."""
    if all(part.indices is None for part in direction.parameters.values()):
        return Direction({name: gradient.parameters[name] for name in direction.parameters}).norm(1.0, 0.0)
    ones = {
        name: ParameterDirection(part.shape, torch.ones_like(part.values), indices=part.indices)
        for name, part in direction.parameters.items()
    }
    squares = {
        name: ParameterDirection(part.shape, part.values.square(), indices=part.indices)
        for name, part in gradient.parameters.items()
    }
    return math.sqrt(Direction(ones).inner(Direction(squares)))


def _figures(one: Direction, others: list[Direction]) -> dict[str, list[float]]:
    """Similarities of a vector and several, by name of the measure."""
    frame = Frame.of([{n: p.shape for n, p in d.parameters.items()} for d in (one, *others)])
    sides = Sides(Vectors(frame, [one]), Vectors(frame, others))
    found = {"cosine": sides.cosine()}
    for top in TOPS:
        found[f"overlap {top}"], found[f"mass_overlap {top}"] = sides.overlap(top), sides.mass_overlap(top)
    named = {name: [float(value) for value in values[0]] for name, values in found.items()}
    if frame.numel >= RANKED and all(part.indices is None for part in one.parameters.values()):
        named["spearman"] = [_spearman(one, other) for other in others]
    return named


def _spearman(one: Direction, other: Direction) -> float:
    """Spearman's correlation of two dense vectors, on some coordinates."""
    step = max(1, one.numel // RANKED)
    values = [torch.cat([p.values[::step].clone() for p in d.parameters.values()]) for d in (one, other)]
    ranks = torch.stack([v.argsort().argsort().double() for v in values])
    return float(torch.corrcoef(ranks)[0, 1])
