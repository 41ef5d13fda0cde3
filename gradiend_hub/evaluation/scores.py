"""Formulas that the evaluation, the benchmarks and the `evaluate` metrics share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CROWS_PAIRS = """@inproceedings{nangia2020crows,
  title = {CrowS-Pairs: A Challenge Dataset for Measuring Social Biases in Masked Language Models},
  author = {Nangia, Nikita and Vania, Clara and Bhalerao, Rasika and Bowman, Samuel R.},
  booktitle = {EMNLP}, year = {2020}}"""

LEAST_NLL = 1.0
"""Nats that a rise of the NLL is related to at least. A classifier that is nearly always sure has an NLL near 0, of which
any rise is a multiple; for language models, whose NLL is larger, this changes nothing."""


def relative_quality(edited: float, base: float) -> float:
    """The base model's mean NLL of neutral text divided by the edited model's; 1 is undamaged.

    Where the base model's is less than `LEAST_NLL`, the same rise from there.
    """
    scale = max(base, LEAST_NLL)
    return scale / max(scale + edited - base, 1e-12)


def preferred(first: Sequence[float], second: Sequence[float]) -> tuple[int, int]:
    """Count the pairs whose first sentence is the likelier one, and those of unequal likelihood (Nangia et al. 2020)."""
    a, b = np.asarray(first), np.asarray(second)
    return int((a > b).sum()), int((a != b).sum())
