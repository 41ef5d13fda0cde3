"""Directions on quantised linear layers: beside the weight, never into it.

Dequantising, adding Δ and quantising again would lose most of Δ: nf4 leaves an error of 0.8 ‖Δ‖ at ‖Δ‖ = 0.1 ‖W‖. So
the edit of such a layer is added to its output, `y + x·Δᵀ`, and merging it is refused.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import EditError

from .arithmetic import Changes
from .layer import GradiendLayer
from .sites import Site
from .slot import ForwardHooks

logger = logging.getLogger(__name__)


class QuantizedGradiendLayer(GradiendLayer):
    """The side-car of a quantised linear layer: it adds `x·Δᵀ`, or the bias's Δ, to the output (fp32); nothing is merged."""

    _handle: RemovableHandle | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape `[out, in]` of the weight that the layer stands for, or `[out]` of its bias."""
        assert self.site.quantized is not None
        return self.site.quantized

    @property
    def device(self) -> torch.device:
        """Device of the layer's packed numbers."""
        owner = self.site.owner
        return next(
            tensor.device for tensor in (*owner._parameters.values(), *owner._buffers.values()) if tensor is not None
        )

    @property
    def dtype(self) -> torch.dtype:
        """fp32: the sum is rounded in the layer's output, not in its weight."""
        return torch.float32

    def merge_exactly(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Do nothing: there is nothing to merge or to undo. Whoever wants a merged model asks `refuse_quantized` first."""

    def has_effect(self) -> bool:
        """Tell whether the current edit is not zero."""
        return not self._disable_adapters and bool(self.dense_delta(self.active_adapters).any())

    def changes(self) -> Changes:
        """Entries of the edit; the weight itself is not at hand, so it does not count in relative norms."""
        if self._disable_adapters:
            return Changes(0, 0, 0.0, 0.0)
        return Changes(int(self.dense_delta(self.active_adapters).count_nonzero()), 0, 0.0, 0.0)

    def _start_showing(self) -> None:
        if self._handle is None:
            self._handle = self.site.owner.register_forward_hook(self._add, with_kwargs=True)

    def _stop_showing(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        parts = [] if self._disable_adapters else self.parts(self.active_adapters)
        if not parts:
            return output
        x = next(iter((*args, *kwargs.values()))).to(self.dtype)
        if self.site.leaf == "bias":
            extra = self.dense_delta(self.active_adapters)
        elif all(part.form is not None for part in parts):  # no Δ is formed
            delta = Factors.joined([part.factors(self.dtype) for part in parts])
            extra = linear(linear(x, delta.a), delta.b)
        else:
            extra = linear(x, self.dense_delta(self.active_adapters))
        return (output.to(extra.dtype) + extra).to(output.dtype)


def quantized_layers(model: nn.Module) -> list[QuantizedGradiendLayer]:
    """The side-cars of quantised layers in a model."""
    return [module for module in model.modules() if isinstance(module, QuantizedGradiendLayer)]


def refuse_quantized(model: nn.Module) -> None:
    """Refuse to merge into a model with edited quantised layers, before anything is merged.

    Raises:
        EditError: Naming the first such layer.
    """
    for layer in quantized_layers(model):
        raise EditError(
            f"{layer.site.name} is quantised ({type(layer.site.owner).__name__}): merging would round most of the "
            "direction away. Keep it beside the weights, as it is now, or merge before quantising."
        )


def make_layer(site: Site, hooks: ForwardHooks) -> GradiendLayer:
    """The side-car that fits the owner of a parameter."""
    if site.quantized is None:
        return GradiendLayer(site, hooks)
    logger.info("%s is quantised (%s): its edit runs beside it.", site.name, type(site.owner).__name__)
    return QuantizedGradiendLayer(site, hooks)
