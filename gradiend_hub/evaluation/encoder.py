"""What the encoder reads from rows that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from gradiend_hub.data import read_rows, require_classes, tokenize_rows
from gradiend_hub.errors import ArtifactError, DataError
from gradiend_hub.gradients import directional_derivatives
from gradiend_hub.objectives import Example, Objective, make_objective

from .report import EncoderReport

if TYPE_CHECKING:
    from gradiend_hub.model import GradiendModel


def encoder_report(
    h: Tensor, labels: Tensor, feature_classes: Sequence[str], neutral: Tensor | None = None
) -> EncoderReport:
    """Summarise feature values `h` [N] with labels ±1 [N] and those of neutral slots [M]."""
    if not bool(h.isfinite().all()):
        raise DataError(f"Feature values are not finite for rows {(~h.isfinite()).nonzero().flatten().tolist()[:5]}.")
    positive = labels > 0
    groups = {feature_classes[0]: h[positive], feature_classes[1]: h[~positive]}
    varies = bool(h.min() < h.max())  # a constant encoder has no correlation, which is worth 0 and not NaN
    return EncoderReport(
        correlation=float(pearsonr(h.double().numpy(), labels.double().numpy()).statistic) if varies else 0.0,
        accuracy=float(((h > 0) == positive).double().mean()),
        auc=float(roc_auc_score(positive.numpy(), h.numpy())),
        class_means={c: float(values.mean()) for c, values in groups.items()},
        class_stds={c: float(values.std()) if len(values) > 1 else 0.0 for c, values in groups.items()},
        neutral_abs_mean=None if neutral is None else float(neutral.abs().mean()),
        rows={c: len(values) for c, values in groups.items()},
        neutral_rows=0 if neutral is None else len(neutral),
    )


def preactivations(
    model: nn.Module,
    objective: Objective,
    examples: Sequence[Example],
    encoder: Mapping[str, Tensor],
    bias: float,
    *,
    source: str,
    batch_size: int = 64,
) -> Tensor:
    """z_i = ⟨w_e, s_i⟩ + b_e of every example: [N], fp32; tanh(z) is its feature value. No gradient is ever formed.

    Args:
        model: the base model, unedited.
        encoder: w_e by parameter name, in the parameters' shapes.
        source: which gradient s_i is, as in `GradiendConfig`.
    """

    def derivatives(which: str) -> Tensor:
        samples = [e.factual if which == "factual" else e.alternative for e in examples]
        return directional_derivatives(model, objective, samples, encoder, batch_size=batch_size)

    return bias + (derivatives("factual") - derivatives("alternative") if source == "diff" else derivatives(source))


def neutral_source(source: str) -> str:
    """Neutral slots are filled with their own token on both sides, so "diff" would be zero: its factual part is read."""
    return "factual" if source == "diff" else source


def encoder_tensors(model: GradiendModel) -> tuple[dict[str, Tensor], float]:
    """Encoder vectors of the active direction in the parameters' shapes, and the encoder bias.

    Raises:
        ArtifactError: the direction was published without its encoder.
    """
    direction = model.direction
    if not direction.has_encoder:
        raise ArtifactError("This direction has no encoder (gradiend_encoder.safetensors), so it cannot encode.")
    parts = direction.parameters.items()
    return {n: p.dense(p.encoder) for n, p in parts if p.encoder is not None}, direction.encoder_bias


def encode_rows(model: GradiendModel, rows: Iterable[dict[str, Any]], *, batch_size: int = 64) -> Tensor:
    """Feature values h in (−1, 1) of rows, read from the base model's gradients: [N], fp32.

    Raises:
        ArtifactError: the direction was published without its encoder.
        DataError: a row is unusable.
    """
    config, base = model.active_peft_config, model.get_base_model()
    objective = make_objective(base, model.tokenizer, name=config.objective)
    checked = read_rows(rows, require_classes(config.feature_classes), what="rows", need_both=False)
    examples = tokenize_rows(objective, checked, what="rows")
    encoder, bias = encoder_tensors(model)
    with model.strength_at(0.0):
        z = preactivations(base, objective, examples, encoder, bias, source=config.source, batch_size=batch_size)
    return torch.tanh(z)
