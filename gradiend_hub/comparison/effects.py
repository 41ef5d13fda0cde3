"""Effects of one direction's edit on another feature: predicted from the artifacts, and measured on rows.

The plain class-mean gradient g_j of a direction is that of the mean log-odds of its first class over the second, so that to
first order an edit Δ changes them by ⟨Δ, g_j⟩. How well that predicts the measured change, and how much worse the overlap of
the largest entries does, is what `python -m tests.benchmarks comparison` measures.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from gradiend_hub.data import Row
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation.intervals import correlation_interval
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Example, Objective, batched, evaluating
from gradiend_hub.progress import progress

from .members import Member
from .tables import Matrix
from .vectors import Array

_BATCH = 64
"""Rows of a forward pass."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of one table with another, over the pairs of different directions.

    Attributes:
        pearson, spearman: correlations.
        interval: 95 % interval of Pearson's r; whole rows (the edits of one direction) are drawn anew.
        pairs: number of pairs.
        slope: of the measured on the predicted values, through 0.
    """

    pearson: float
    spearman: float
    interval: tuple[float, float]
    pairs: int
    slope: float


def agreement(predicted: Matrix, measured: Matrix) -> Agreement:
    """Compare two tables of the same directions, outside of the diagonal.

    Raises:
        ConfigError: Other directions, or fewer than three pairs that both know.
    """
    columns = [name for name in predicted.columns if name in measured.columns]
    if predicted.rows != measured.rows or not columns:
        raise ConfigError("agreement: expected two tables of the same directions, with features that both know.")
    rows = range(len(predicted.rows))
    predicted = predicted.reordered(rows, [predicted.columns.index(name) for name in columns])
    measured = measured.reordered(rows, [measured.columns.index(name) for name in columns])
    known = np.isfinite(predicted.values) & np.isfinite(measured.values)
    known &= np.array([[row != column for column in measured.columns] for row in measured.rows])
    groups, _ = np.nonzero(known)
    x, y = predicted.values[known], measured.values[known]
    if len(x) < 3:
        raise ConfigError(f"agreement: expected at least three pairs that both tables know, found {len(x)}.")
    low, high = correlation_interval(x, y, groups)
    return Agreement(
        float(pearsonr(x, y).statistic), float(spearmanr(x, y).statistic), (low, high), len(x), float(x @ y / (x @ x))
    )


def log_odds(base: nn.Module, objective: Objective, examples: Sequence[Example], signs: Sequence[float]) -> Array:
    """Log-odds of the first class's word over the second's at each row, [N].

    Args:
        base: the base model, edited or not.
        signs: +1 for a row whose factual word is of the first class, else −1.
    """
    found = np.empty(len(examples))
    device = next(base.parameters()).device
    with evaluating(base), torch.inference_mode():
        for rows in batched([e.factual.cost for e in examples], _BATCH):
            batch = objective.collate_pairs([examples[i] for i in rows]).to(device)
            factual, alternative = objective.losses(base, batch)
            found[rows] = (alternative - factual).double().cpu().numpy() * np.asarray([signs[i] for i in rows])
    return found


def measure_effects(
    base: nn.Module,
    objective: Objective,
    members: Sequence[Member],
    rows: Mapping[str, tuple[Sequence[Row], Sequence[Example]]],
    strength: float,
) -> tuple[Array, Array]:
    """Mean change of each feature's log-odds when each direction is applied.

    Args:
        rows: of each feature, by the name of its direction, and their examples.

    Returns:
        The changes [directions, features], and the standard errors of these means.
    """
    every = [e for _, examples in rows.values() for e in examples]
    first = {member.name: member.classes[0] for member in members}
    signs = [1.0 if row.factual_class == first[name] else -1.0 for name, (found, _) in rows.items() for row in found]
    ends = np.cumsum([0, *(len(examples) for _, examples in rows.values())])
    before = log_odds(base, objective, every, signs)
    means, errors = np.empty((2, len(members), len(rows)))
    for i, member in enumerate(progress(members, "applying", len(members))):
        config = copy.deepcopy(member.config)
        model = GradiendModel.from_direction(base, member.direction, config, processing_class=objective.processor)
        try:
            model.set_strength(strength)
            change = log_odds(base, objective, every, signs) - before
        finally:
            model.unload()
        for j, (start, end) in enumerate(pairwise(ends)):
            of = change[start:end]
            means[i, j] = of.mean()
            errors[i, j] = of.std(ddof=1) / np.sqrt(len(of)) if len(of) > 1 else np.nan
    return means, errors
