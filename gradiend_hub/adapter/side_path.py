"""Another strength for every row of a batch in one pass, for low-rank directions: `y + σ_b·(x·aᵀ)·bᵀ`, and no Δ is formed.

The base model's weights stay as they are, so that every row gets its own strength, and none at strength 0 to the bit.
What comes out is not to the bit what merged weights give: there `W + σΔ` is rounded to the type of the weights, here the
sum is rounded in the layer's output, and added up in another order. In fp32 probabilities differ by about 1e-6; in 16 bits
this is the more exact one, as small edits are not lost to the spacing of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.artifact.parameter import ParameterDirection

from .layer import GradiendLayer
from .sites import is_linear
from .tuner import GradiendTuner


class NoRowsError(Exception):
    """A layer got an input that has no part for each row of the batch; never shown to a user."""


class SidePath:
    """Hooks that add the edit of every row to the output of the touched layers, for as long as the block runs.

    Args:
        tuner: The tuner, whose own edit is off (strength 0) meanwhile.
        strengths: Strength of every row, by adapter.
    """

    def __init__(self, tuner: GradiendTuner, strengths: Mapping[str, Sequence[float]]) -> None:
        self._owners: dict[nn.Module, list[GradiendLayer]] = {}
        for layer in tuner.layers:
            if any(name in layer.adapters for name in strengths):
                self._owners.setdefault(layer.site.owner, []).append(layer)
        self._tuner = tuner
        self._coefficients: dict[str, Tensor] = {}
        self.set_strengths(strengths)
        self._stack = ExitStack()
        self._asked: nn.Module | None = None  # a norm that is asked for the output of its edit

    def set_strengths(self, strengths: Mapping[str, Sequence[float]]) -> None:
        """Let other strengths of the rows hold from now on, by adapters that were named from the start."""
        for name, values in strengths.items():
            attached = self._tuner.attached[name]
            rows = [attached.config.coefficients(value, attached.feature_factor) for value in values]
            self._coefficients[name] = torch.tensor(rows, dtype=torch.float32).T

    @staticmethod
    def fits(tuner: GradiendTuner, adapter_names: Sequence[str]) -> bool:
        """Tell whether every layer of these adapters has a side path, and at least one of them is low-rank."""
        layers = [layer for layer in tuner.layers if any(name in layer.adapters for name in adapter_names)]
        low_rank = any(layer.forms.get(name) is not None for layer in layers for name in adapter_names)
        return low_rank and all(_has_side_path(layer, adapter_names) for layer in layers)

    def __enter__(self) -> SidePath:
        for owner in self._owners:
            self._stack.callback(owner.register_forward_hook(self._add, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if module is self._asked:
            return output
        x = next(iter((*args, *kwargs.values())))
        extra: Tensor | None = None
        for name, (of_weight, of_bias) in self._coefficients.items():
            layers = [layer for layer in self._owners[module] if name in layer.adapters]
            for kind, coefficients in enumerate((of_weight, of_bias)):
                vectors = {
                    layer.site.leaf: _vector(layer, name, found)
                    for layer in layers
                    if (found := layer.values(name)[kind]) is not None
                }
                if vectors:
                    self._asked = module
                    try:
                        unit = _unit(module, x, vectors)
                    finally:
                        self._asked = None
                    rows = coefficients.to(x.device)
                    if unit.shape[0] % len(rows) or (unit.ndim == 2 and unit.shape[0] != len(rows)):
                        raise NoRowsError
                    rows = rows.repeat_interleave(unit.shape[0] // len(rows))  # beams of one row are neighbours
                    share = unit * rows.view(-1, *[1] * (unit.ndim - 1))
                    extra = share if extra is None else extra + share
        return output if extra is None else (output.to(extra.dtype) + extra).to(output.dtype)


def _vector(layer: GradiendLayer, name: str, values: Tensor) -> ParameterDirection:
    """One vector of an adapter on one parameter, as a decoder."""
    form = layer.forms[name]
    decoder = values if form is None else form.factors(values)
    return ParameterDirection(tuple(layer.shape), decoder, indices=layer.values(name)[2])


def _unit(module: nn.Module, x: Tensor, vectors: dict[str, ParameterDirection]) -> Tensor:
    """Addition of the edit of strength 1 to the output of a layer, fp32."""
    x = x.float()
    if not is_linear(module):  # a norm: its output is linear in weight and bias, but for a constant
        edit = {leaf: vector.dense(vector.decoder) for leaf, vector in vectors.items()}
        edit = {
            leaf: edit.get(leaf, torch.zeros_like(p, dtype=x.dtype))
            for leaf, p in module.named_parameters(recurse=False)
        }
        zeros = {leaf: torch.zeros_like(value) for leaf, value in edit.items()}
        changed: Tensor = functional_call(module, edit, (x,)) - functional_call(module, zeros, (x,))
        return changed
    bias = vectors["bias"].dense(vectors["bias"].decoder) if "bias" in vectors else None
    if "weight" not in vectors:
        assert bias is not None
        return bias.expand(*x.shape[:-1], -1)
    factors = vectors["weight"].decoder
    assert isinstance(factors, Factors)
    if isinstance(module, Conv1D):
        return linear(linear(x, factors.b.T), factors.a.T, bias)
    return linear(linear(x, factors.a), factors.b, bias)


def _has_side_path(layer: GradiendLayer, adapter_names: Sequence[str]) -> bool:
    site, owner = layer.site, layer.site.owner
    if len(site.slots) > 1 or site.host is not owner or "expert" in site.name:
        return False
    if is_linear(owner):
        low_rank = all(layer.forms[name] is not None for name in adapter_names if name in layer.forms)
        return site.leaf == "bias" or (site.leaf == "weight" and low_rank)
    is_norm = type(owner).__name__.endswith("Norm") and not hasattr(owner, "running_mean")
    return is_norm and site.leaf in ("weight", "bias") and len(layer.shape) == 1
