"""The null and the ceiling of a similarity or an effect, from what directions carry of their training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradiend_hub.artifact.direction import Direction

from .members import Member
from .similarity import Sides, similarity
from .vectors import Array, Frame, Vectors, products

QUANTILE = 0.95
"""Share of the coin directions' values that stay below the null."""


@dataclass(frozen=True)
class Judged:
    """Null and ceiling, [rows, columns] each with NaN for what is not known, and what to note."""

    null: Array | None
    ceiling: Array | None
    notes: tuple[str, ...] = ()


def controls_of(members: Sequence[Member]) -> tuple[list[Direction], list[int]]:
    """Coin directions of all members, and the number of the member that each belongs to."""
    found = [(c, i) for i, m in enumerate(members) if m.references is not None for c in m.references.controls]
    return [control for control, _ in found], [owner for _, owner in found]


def judged_similarity(
    members: Sequence[Member],
    vectors: Vectors,
    measure: str,
    top_k: int | float,
    names: Sequence[str] | None = None,
) -> Judged:
    """Judge similarities of decoders.

    The null of a pair is what coin directions of the other members reach with either: directions learned from the rows of
    another feature of the same base with labels of no meaning. The ceiling is the geometric mean of the two directions'
    similarities to themselves, learned from two halves of the rows; halves have half the rows, so that it is a low estimate.
    """
    notes = [_without(members)] if any(m.references is None for m in members) else []
    key = f"{measure} {top_k}" if measure.endswith("overlap") else measure
    own = np.array([m.split_half.get(key, np.nan) for m in members])
    ceiling = np.sqrt(np.outer(own.clip(min=0), own.clip(min=0))) if names is None else np.full((len(own),) * 2, np.nan)
    if measure == "spearman":
        measured = [None if m.report is None else m.report.references for m in members]
        values = [[abs(v) for v in m.control.get(key, [])] if m is not None else [] for m in measured]
        return Judged(_pooled(values), ceiling, tuple(notes))
    controls, owners = controls_of(members)
    if not controls or measure == "fisher_cosine":
        return Judged(np.full(ceiling.shape, np.nan), ceiling, tuple(notes))
    found = np.abs(similarity(Sides(vectors, Vectors(vectors.frame, controls)), measure, top_k, names))
    return Judged(_pooled(_of_others(found, owners)), ceiling, tuple(notes))


def judged_effects(
    members: Sequence[Member], frame: Frame, edits: Vectors, gradients: Vectors, known: Sequence[int], effects: Array
) -> Judged:
    """Judge predicted effects, [edits, gradients].

    The null is the effect of coin directions of the edit's norm; the ceiling that of the feature's own direction at the
    edit's norm, times its cosine with itself from two halves of the rows.

    Args:
        known: numbers of the members that the gradients are of.
        effects: the predicted effects.
    """
    notes = [_without(members)] if any(m.references is None for m in members) else []
    norms = np.sqrt(
        [sum(p.inner(p) for n in frame.shapes if (p := edits.part(i, n)) is not None) for i in range(len(edits))]
    )
    null = np.full(effects.shape, np.nan)
    controls, owners = controls_of(members)
    if controls:
        coins = Vectors(frame, controls, [1 / (c.norm() or 1.0) for c in controls])
        reached = np.abs(products(gradients, coins))  # of a unit edit, [gradients, coins]
        of_feature = _of_others(reached, owners, known)
        null = norms[:, None] * np.array([_quantile(values) for values in of_feature])[None, :]
    halves = [m.split_half.get("cosine", np.nan) for m in members]
    own = np.array([effects[i, j] / norms[i] * halves[i] if norms[i] else np.nan for j, i in enumerate(known)])
    return Judged(null, norms[:, None] * own[None, :], tuple(notes))


def _of_others(found: Array, owners: Sequence[int], rows: Sequence[int] | None = None) -> list[list[float]]:
    """Values [rows, controls] by row, without the controls of the row's own member, unless there are no others."""
    numbers = range(len(found)) if rows is None else rows
    of_others = [
        [v for v, owner in zip(row, owners, strict=True) if owner != i] for i, row in zip(numbers, found, strict=True)
    ]
    kept = [values or list(row) for values, row in zip(of_others, found, strict=True)]
    return [[float(v) for v in values if np.isfinite(v)] for values in kept]


def _pooled(values: Sequence[Sequence[float]]) -> Array:
    """The null of each pair from what either reaches, [members, members]."""
    return np.array([[_quantile([*mine, *theirs]) for theirs in values] for mine in values])


def _quantile(values: Sequence[float]) -> float:
    return float(np.quantile(values, QUANTILE, method="higher")) if values else float("nan")


def _without(members: Sequence[Member]) -> str:
    missing = [member.name for member in members if member.references is None]
    return (
        f"{len(missing)} of {len(members)} directions carry no references (older artifacts, or comparable=False): "
        f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. Their null and ceiling are unknown; "
        "DirectionSet.measure_references measures them, with the base model and rows."
    )
