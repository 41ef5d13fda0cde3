"""One call that measures a direction on one set of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradiend_hub.data import Row, neutral_examples, require_classes, tokenize_rows
from gradiend_hub.objectives import Example, Objective

from .encoder import encoder_report, encoder_tensors, neutral_source, preactivations
from .report import SplitReport
from .strength import CURVE, LM_SCORE_FLOOR, StrengthProbe, calibrate, safe_band

if TYPE_CHECKING:
    from gradiend_hub.model import GradiendModel


def evaluate_direction(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    *,
    choose_unit: bool = False,
    floor: float = LM_SCORE_FLOOR,
    strengths: Sequence[float] = CURVE,
    batch_size: int = 64,
    seed: int = 0,
) -> SplitReport:
    """Measure the active direction of `model` on `rows` and neutral `texts`; the model is left as it was.

    Args:
        choose_unit: first search the dose that becomes strength 1 (do this on validation rows only).
        floor: lowest relative language-modelling score that counts as safe.
        strengths: grid of the curve.
        seed: decides which neutral tokens are masked or encoded.
    """
    config = model.active_peft_config
    classes = require_classes(config.feature_classes)
    base = model.get_base_model()
    encoder, bias = encoder_tensors(model)

    def encode(examples: Sequence[Example], source: str) -> Tensor:
        z = preactivations(base, objective, examples, encoder, bias, source=source, batch_size=batch_size)
        return torch.tanh(z)

    with model.strength_at(0.0):
        h = encode(tokenize_rows(objective, rows), config.source)
        quiet = neutral_examples(objective, texts, seed=seed)
        neutral = encode(quiet, neutral_source(config.source)) if quiet else None
    labels = torch.tensor([row.label(classes, config.source) for row in rows])
    probe = StrengthProbe(model, objective, rows, texts, batch_size=batch_size, seed=seed)
    search = calibrate(probe, floor=floor) if choose_unit else []
    curve = [probe.measure(strength) for strength in strengths]
    if choose_unit:
        config.safe_band = safe_band(curve, floor=floor)
    return SplitReport(encoder_report(h, labels, classes, neutral), curve, search, probe.scored_tokens)
