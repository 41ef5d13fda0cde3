"""Formulas that the evaluation, the benchmarks and the `evaluate` metrics share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["preferred", "relative_quality"]


def relative_quality(edited: float, base: float) -> float:
    """The base model's mean NLL per token of neutral text divided by the edited model's; 1 is undamaged."""
    return base / edited


def preferred(first: Sequence[float], second: Sequence[float]) -> tuple[int, int]:
    """Count the pairs whose first sentence is the likelier one, and those of unequal likelihood (Nangia et al. 2020)."""
    a, b = np.asarray(first), np.asarray(second)
    return int((a > b).sum()), int((a != b).sum())
