"""Formulas that the evaluation, the benchmarks and the `evaluate` metrics share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["preferred", "relative_quality"]


def relative_quality(edited: float, base: float) -> float:
    """The base model's mean NLL per token of neutral text divided by the edited model's; 1 is undamaged."""
    return base / edited


def preferred(first: Sequence[float], second: Sequence[float]) -> tuple[int, int]:
    """How many of the pairs have the first sentence likelier, and how many are not equally likely (Nangia et al. 2020)."""
    a, b = np.asarray(first), np.asarray(second)
    return int((a > b).sum()), int((a != b).sum())
