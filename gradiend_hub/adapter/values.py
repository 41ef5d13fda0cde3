"""Values of the adapters of one parameter: made room for, filled, checked, and what they add up to."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from gradiend_hub.artifact.fields import stored_size
from gradiend_hub.artifact.low_rank import Form
from gradiend_hub.artifact.parameter import ParameterDirection
from gradiend_hub.artifact.storage import check_indices, index_dtype, peak
from gradiend_hub.errors import ArtifactError, EditError

from .arithmetic import Part, sum_dtype, total_delta
from .attached import AttachedDirection
from .sites import Site


class AdapterValues(ABC):
    """The part of a side-car that keeps the adapters' values. `GradiendLayer` describes the attributes."""

    gradiend_weight: nn.ParameterDict
    gradiend_bias: nn.ParameterDict
    gradiend_indices: BufferDict
    adapters: dict[str, AttachedDirection]
    scaling: dict[str, float]
    forms: dict[str, Form | None]
    _peaks: dict[str, tuple[float, float]]
    _modules: dict[str, Any]

    @property
    @abstractmethod
    def site(self) -> Site:
        """Place of the parameter in the model."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of the parameter."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the parameter."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type in which the edited values live."""

    @property
    def strength(self) -> dict[str, float]:
        """Strength of every adapter in this layer."""
        return {name: attached.strength * self.scaling[name] for name, attached in self.adapters.items()}

    def attach(self, adapter_name: str, attached: AttachedDirection, spec: Mapping[str, Any]) -> None:
        """Take note of an adapter and of its stored form; its values come by `make_room` or `fill`."""
        self.adapters[adapter_name] = attached
        self.scaling[adapter_name], self.forms[adapter_name] = 1.0, Form.of(spec)

    def make_room(self, adapter_name: str, spec: Mapping[str, Any], device: torch.device) -> None:
        """Make room for an adapter: zeros in fp32, and the first positions if it is sparse.

        Of factors, b is zero and a random, as a LoRA's: both zero could not learn.
        """
        size, form = stored_size(spec), self.forms[adapter_name]
        stores = [self.gradiend_weight]
        if self.adapters[adapter_name].config.has_bias:
            stores.append(self.gradiend_bias)
        for store in stores:
            # Memory that is not touched yet: with PEFT's low_cpu_mem_usage it is swapped for the meta device right here.
            store[adapter_name] = nn.Parameter(torch.empty(size, device=device))
            values = store[adapter_name].detach().zero_()
            if form is not None and not values.is_meta:
                nn.init.kaiming_uniform_(form.factors(values).a, a=math.sqrt(5))
        if spec["entries"] is not None:
            positions = torch.arange(size, dtype=index_dtype(self.shape.numel()), device=device)
            self.gradiend_indices[adapter_name] = positions

    def fill(self, adapter_name: str, values: ParameterDirection, peaks: tuple[float, float]) -> None:
        """Take over the checked values of a direction, without a copy where they are on the right device.

        Args:
            adapter_name: An attached adapter.
            values: Its values.
            peaks: Largest absolute value of weight and bias.
        """
        weight, bias, _ = values.flat()
        if bias is None and self.adapters[adapter_name].config.has_bias:
            bias = torch.zeros_like(weight)
        for store, tensor in ((self.gradiend_weight, weight), (self.gradiend_bias, bias)):
            if tensor is not None:
                store[adapter_name] = nn.Parameter(tensor.to(self.device), requires_grad=False)
        if values.indices is not None:
            self.gradiend_indices[adapter_name] = values.indices.to(self.device)
        self._peaks[adapter_name] = peaks

    def cast(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Round an adapter's values to another type."""
        for store in (self.gradiend_weight, self.gradiend_bias):
            if adapter_name in store and store[adapter_name].dtype != dtype:
                former = store[adapter_name]
                store[adapter_name] = nn.Parameter(former.detach().to(dtype), requires_grad=former.requires_grad)
                self._peaks.pop(adapter_name, None)

    def values(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Weight, bias and indices of an adapter."""
        stores: dict[str, Any] = self._modules  # asked by every forward, and torch's own way is slow
        return (
            stores["gradiend_weight"]._parameters[adapter_name],
            stores["gradiend_bias"]._parameters.get(adapter_name),
            stores["gradiend_indices"]._buffers.get(adapter_name),
        )

    def direction_of(self, adapter_name: str) -> ParameterDirection:
        """The decoder of one adapter, fp32 on the CPU."""
        weight, bias, indices = (None if x is None else x.detach().cpu() for x in self.values(adapter_name))
        assert weight is not None
        bias, form, shape = None if bias is None else bias.float(), self.forms[adapter_name], tuple(self.shape)
        if form is None:
            return ParameterDirection(shape, weight.float(), bias, indices=indices)
        return ParameterDirection(shape, form.factors(weight.float()), None if bias is None else form.factors(bias))

    def checked(
        self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor | None, indices: torch.Tensor | None
    ) -> tuple[float, float]:
        """Check a stranger's values, and measure how large weight and bias are (of factors: the most they can be).

        Raises:
            ArtifactError: If a value is NaN or infinite, or the indices are not sorted, unique and in range.
        """
        form = self.forms[adapter_name]

        def largest(values: torch.Tensor) -> float:
            return peak(values) if form is None else form.factors(values.detach().float()).bound()

        peaks = (largest(weight), 0.0 if bias is None else largest(bias))
        if not all(map(math.isfinite, peaks)):
            raise ArtifactError(f"The direction of {self.site.name} holds NaN or infinite values; it is unusable.")
        if indices is not None:
            check_indices(self.site.name, indices, self.shape.numel())
        return peaks

    def parts(self, adapter_names: Collection[str]) -> list[Part]:
        """The shares of some adapters in the sum, in the order in which they were added; zero strength adds nothing.

        Raises:
            ArtifactError: If an adapter holds unusable values.
            EditError: If a share is beyond the numbers of the parameter's type.
        """
        parts = []
        for name, attached in self.adapters.items():
            if name not in adapter_names:
                continue
            c_w, c_b = attached.coefficients(self.scaling[name])
            weight, bias, indices = self.values(name)
            if c_w == 0 and (c_b == 0 or bias is None):
                continue
            learning = weight.requires_grad and torch.is_grad_enabled()
            if not (learning or torch.compiler.is_compiling()):  # Dynamo cannot branch on values
                # transformers' loader and optimizers write values without telling us.
                if name not in self._peaks or weight.requires_grad:
                    self._peaks[name] = self.checked(name, weight, bias, indices)
                largest = abs(c_w) * self._peaks[name][0] + abs(c_b) * self._peaks[name][1]
                if not largest <= _largest_edit(self.dtype):
                    raise EditError(
                        f"At strength {self.strength[name]} the direction {name!r} would change {self.site.name} by up "
                        f"to {largest:.3g}, beyond the numbers of its type. Use a smaller strength."
                    )
            parts.append(Part(weight, bias, indices, c_w, c_b, self.forms[name]))
        return parts

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Δ of one adapter at its current strength, dense, in the type of the sum."""
        return self.dense_delta([adapter_name])

    def dense_delta(self, adapter_names: Collection[str]) -> torch.Tensor:
        """Σ Δ_i at the current strengths, in the parameter's shape and the type of the sum."""
        dtype, parts = sum_dtype(self.dtype), self.parts(adapter_names)
        if not parts:
            return torch.zeros(self.shape, dtype=dtype, device=self.device)
        indices, delta = total_delta(parts, self.shape.numel(), dtype)
        if indices is not None:
            zeros = torch.zeros(self.shape.numel(), dtype=dtype, device=delta.device)
            delta = zeros.index_copy(0, indices.long(), delta)
        return delta.view(self.shape)


@functools.cache
def _largest_edit(dtype: torch.dtype) -> float:
    """Return the most that a value of this type may be changed by: sums stay within its numbers."""
    return torch.finfo(dtype).max / 2
