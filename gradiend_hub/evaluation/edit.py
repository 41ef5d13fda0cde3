"""Share of each layer in the edit at strength 1, and the share that a base model in a coarser type would lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gradiend_hub.adapter.arithmetic import rounded
from gradiend_hub.adapter.receipt import layer_of
from gradiend_hub.model import GradiendModel
from gradiend_hub.scope import PackedParameter, parameters_of

from .report import LayerShare


@dataclass
class _Sums:
    tensors: int = 0
    entries: int = 0
    delta: float = 0.0
    of_known: float = 0.0  # share of delta at weights whose values are at hand
    weight: float = 0.0


def edit_account(model: GradiendModel) -> tuple[list[LayerShare], dict[str, float]]:
    """Share of each layer in ‖Δ‖² at strength 1, and the share of ‖Δ‖² that each coarser type of the base would lose.

    An entry of Δ that is lost counts in full: with W̃ the base in the type, the loss is ‖(round(W̃ + Δ) − W̃) − Δ‖² / ‖Δ‖²,
    from 0 (nothing is lost) to 1 (no weight changes). "int8" rounds matrices to 255 levels, scaled by the largest absolute
    value of each row, and keeps vectors as they are. The values of quantised weights are not at hand, so these count in the
    shares alone.
    """
    config, direction = model.active_peft_config, model.direction
    weights = parameters_of(model.get_base_model(), direction.parameters)
    c_w, c_b = config.coefficients(1.0)
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    lost = dict.fromkeys(_ROUNDINGS, 0.0)
    with model.strength_at(0.0), torch.inference_mode():
        for name, part in direction.parameters.items():
            delta = part.dense(part.delta(c_w, c_b)).cpu()
            layer = sums[layer_of(name)]
            changed = int(delta.count_nonzero())
            layer.tensors += changed > 0
            layer.entries += changed
            square = float(delta.double().square().sum())
            layer.delta += square
            if not isinstance(weights[name], PackedParameter):
                weight = weights[name].detach().float().cpu()
                layer.of_known += square
                layer.weight += float(weight.double().square().sum())
                for kind, rounding in _ROUNDINGS.items():
                    lost[kind] += float((rounding(weight, delta) - delta).double().square().sum())
    total, known = (sum(getattr(layer, kind) for layer in sums.values()) for kind in ("delta", "of_known"))
    layers = []
    for name, s in sums.items():
        ratio = float((s.of_known / s.weight) ** 0.5) if s.weight else 0.0  # a ratio to nothing says nothing
        layers.append(LayerShare(name, s.tensors, s.entries, s.delta / total if total else 0.0, ratio))
    return layers, {kind: min(1.0, square / known) if known else 0.0 for kind, square in lost.items()}


def _stored_in(dtype: torch.dtype, weight: Tensor, delta: Tensor) -> Tensor:
    stored = weight.to(dtype)
    return rounded(stored, delta).float() - stored.float()


def _int8(weight: Tensor, delta: Tensor) -> Tensor:
    if weight.ndim < 2:
        return delta
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    stored = (weight / scale).round()
    return ((stored + delta / scale).round().clamp(-127, 127) - stored) * scale


_ROUNDINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "float16": partial(_stored_in, torch.float16),
    "bfloat16": partial(_stored_in, torch.bfloat16),
    "int8": _int8,
}
