"""Likeliest outputs or continuations of text at some strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradiend_hub.data import Row
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Answer, Objective, evaluating

from .records import Completion

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
OUTPUTS = 5
"""Likeliest outputs that are kept."""
NEW_TOKENS = 16
"""Length of a continuation."""


def complete(
    model: GradiendModel, objective: Objective, rows: Sequence[Row], strengths: Sequence[float] = STRENGTHS
) -> list[Completion]:
    """Return what the model says to a few inputs of each class at some strengths; the strength in force is kept.

    There may be none: inputs that are too long to be shown are left out.
    """
    prompts = objective.prompts(rows)
    if not prompts:
        return []
    said = {str(float(strength)): ask(model, objective, prompts, strength) for strength in strengths}
    return [
        Completion(str(prompt), {s: kept(answers[i]) for s, answers in said.items()}, objective.picture(prompt))
        for i, prompt in enumerate(prompts)
    ]


def ask(
    model: GradiendModel,
    objective: Objective,
    prompts: Sequence[Any],
    strength: float,
    *,
    top: int = OUTPUTS,
    tokens: int = NEW_TOKENS,
) -> list[Answer]:
    """Return what the model says to some inputs at a strength: likeliest outputs, or continuations of so many tokens."""
    base = model.get_base_model()
    hints = [word for words in (model.active_peft_config.fillers or {}).values() for word in words]
    with model.strength_at(strength), evaluating(base), torch.inference_mode():
        return objective.complete(base, prompts, top=top, tokens=tokens, hints=hints)


def kept(answer: Answer) -> list[list[str | float]] | str:
    """Return what a model says as a report has it."""
    if answer.continuation is not None:
        return answer.continuation
    return [[name, round(chance, 4)] for name, chance in answer.outputs]
