"""Decisions of a classifier at some strengths: how often they are right, changed, and another for a counterfactual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gradiend_hub.data import Row
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, Sample, batched, evaluating

from .intervals import Numbers, groups_of, share_interval
from .records import Decisions


def decide(
    model: GradiendModel, objective: Objective, rows: Sequence[Row], strengths: Sequence[float], *, batch_size: int = 64
) -> list[Decisions]:
    """Read what the model decides on the rows' inputs at some strengths; the strength in force is kept.

    There is nothing for models that are no classifiers.

    Args:
        model: The base model with the direction.
        objective: Of the base model.
        rows: The rows.
        strengths: In units of the recommended dose.
        batch_size: Inputs per forward pass.
    """
    inputs = [(number, name, s) for number, row in enumerate(rows) for name, s in objective.decisions(row).items()]
    if not inputs:
        return []
    samples, classes = [sample for _, _, sample in inputs], dict.fromkeys(name for _, name, _ in inputs)
    labels = np.array([sample.labels[0] for sample in samples])
    groups, base = groups_of(rows), _decided(model, objective, samples, 0.0, batch_size)
    found = []
    for strength in sorted(strengths):
        decided = base if strength == 0 else _decided(model, objective, samples, strength, batch_size)
        shares = {"changed": (decided != base, groups[[number for number, _, _ in inputs]])}
        for wanted in classes:
            own = np.array([name == wanted for _, name, _ in inputs])
            shares[f"accuracy {wanted}"] = ((decided == labels)[own], shares["changed"][1][own])
        pairs: dict[int, list[int]] = {}
        for (number, _, _), label in zip(inputs, decided.tolist(), strict=True):
            pairs.setdefault(number, []).append(label)
        if any(len(both) > 1 for both in pairs.values()):
            shares["flipped"] = (np.array([len({*both}) > 1 for both in pairs.values()]), groups[list(pairs)])
        means = {name: float(hits.mean()) for name, (hits, _) in shares.items()}
        found.append(
            Decisions(
                strength,
                {name: means[f"accuracy {name}"] for name in classes},
                means["changed"],
                means.get("flipped"),
                {name: share_interval(hits.astype(np.float64), of) for name, (hits, of) in shares.items()},
            )
        )
    return found


def _decided(
    model: GradiendModel, objective: Objective, samples: Sequence[Sample], strength: float, batch_size: int
) -> Numbers:
    """Return the number of the likeliest label of each sample, [N]."""
    base, decided = model.get_base_model(), np.empty(len(samples), np.int64)
    device = next(base.parameters()).device
    with model.strength_at(strength), evaluating(base), torch.inference_mode():
        for chosen in batched([sample.cost for sample in samples], batch_size, stretch=1.25):
            batch = objective.collate([samples[i] for i in chosen]).to(device)
            decided[chosen] = objective.log_probs(base, batch)[:, 0].argmax(-1).cpu().numpy()
    return decided
