"""What the adapters of one parameter say: their vectors, their strengths, and their shares of the edit."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from gradiend_hub.artifact.config import GradiendConfig, check_strength
from gradiend_hub.artifact.direction import ParameterDirection
from gradiend_hub.artifact.storage import check_indices, index_dtype, peak
from gradiend_hub.errors import ArtifactError, EditError

from .arithmetic import Part, sum_dtype, total_delta
from .sites import Site
from .slot import ShownParameter

__all__ = ["VALUE_NAMES", "AdapterValues"]

VALUE_NAMES = ("gradiend_weight", "gradiend_bias", "gradiend_indices")

M = TypeVar("M", bound=nn.Module)


class _Mould:
    """Makes modules like an empty one, in a fraction of the time that their own `__init__` takes."""

    def __init__(self, empty: nn.Module) -> None:
        self._type, self._state = type(empty), dict(empty.__dict__)
        self._containers = [(key, value) for key, value in self._state.items() if isinstance(value, (dict, set))]

    def state(self) -> dict[str, Any]:
        """A new `__dict__` for such a module."""
        return {**self._state, **{key: value.copy() for key, value in self._containers}}

    def __call__(self) -> nn.Module:
        module = self._type.__new__(self._type)
        module.__dict__.update(self.state())
        return module


_MODULE, _VECTORS, _INDICES = (
    _Mould(empty) for empty in (nn.Module(), nn.ParameterDict(), BufferDict(persistent=True))
)


class AdapterValues(ShownParameter, nn.Module):
    """Directions of one parameter, by adapter name.

    A direction has hundreds of side-cars, so vectors go in and out past the slow ways of nn.Module's containers.

    Attributes:
        gradiend_weight: Decoder weights by adapter, `[k]` (k = all elements if dense).
        gradiend_bias: Decoder biases by adapter, `[k]`.
        gradiend_indices: Sorted flat positions by adapter, `[k]`; absent if dense.
        configs: Configuration by adapter.
        strength: Current strength by adapter, in units of the artifact.
        feature_factor: Current feature factor by adapter.
    """

    gradiend_weight: nn.ParameterDict
    gradiend_bias: nn.ParameterDict
    gradiend_indices: BufferDict
    configs: dict[str, GradiendConfig]
    strength: dict[str, float]
    feature_factor: dict[str, float]
    _peaks: dict[str, tuple[float, float]]

    def __init__(self, site: Site) -> None:
        state = self.__dict__  # past nn.Module's assignment, too
        state.update(_MODULE.state())
        state["_modules"].update(
            gradiend_weight=_VECTORS(),
            gradiend_bias=_VECTORS(),
            gradiend_indices=_INDICES(),
        )
        state.update(
            _site=(site,),  # in a tuple, so that torch does not take the base model's modules for children
            configs={},
            strength={},
            feature_factor={},
            _peaks={},  # bounds of |w_d| and |b_d| of the adapters that were checked
            _depth=0,
            _stash=(),
            _handles=[],
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.base_parameter.shape

    @property
    def device(self) -> torch.device:
        """Device of the parameter."""
        return self.base_parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the edited values live."""
        return self.base_parameter.dtype

    def train(self: M, mode: bool = True) -> M:
        """Nothing here behaves differently in training."""
        self.__dict__["training"] = mode
        return self

    # --------------------------------------------------------------------------------------------------------- vectors

    def attach(self, adapter_name: str, config: GradiendConfig) -> None:
        """Take note of an adapter; its values come by `add` or `fill`."""
        self.configs[adapter_name] = config
        self.strength[adapter_name] = config.strength
        self.feature_factor[adapter_name] = config.feature_factor

    def add(self, adapter_name: str, entries: int | None) -> None:
        """Make room for an adapter: zero values, and the first `entries` positions (all if `None`)."""
        size = self.shape.numel() if entries is None else entries
        dtype, device = getattr(torch, self.configs[adapter_name].dtype), self.device
        self.gradiend_weight[adapter_name] = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        if self.configs[adapter_name].has_bias:
            self.gradiend_bias[adapter_name] = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        if entries is not None:
            positions = torch.arange(size, dtype=index_dtype(self.shape.numel()), device=device)
            self.gradiend_indices[adapter_name] = positions

    def fill(self, adapter_name: str, values: ParameterDirection, peaks: tuple[float, float]) -> None:
        """Take over the checked values of a `Direction`, without a copy where they are on the right device.

        Args:
            adapter_name: An attached adapter.
            values: Its values.
            peaks: Bounds of the values' size, for weight and bias.
        """
        device, bias = self.device, values.decoder_bias
        if bias is None and self.configs[adapter_name].has_bias:
            bias = torch.zeros_like(values.decoder)
        for kind, tensor in (("gradiend_weight", values.decoder), ("gradiend_bias", bias)):
            if tensor is not None:
                store: Any = self._modules[kind]
                store._keys[adapter_name] = None
                store._parameters[adapter_name] = nn.Parameter(tensor.to(device), requires_grad=False)
        if values.indices is not None:
            buffers: Any = self._modules["gradiend_indices"]
            buffers._buffers[adapter_name] = values.indices.to(device)
        self._peaks[adapter_name] = peaks

    def values(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Weight, bias and indices of an adapter."""
        stores: dict[str, Any] = self._modules
        return (
            stores["gradiend_weight"]._parameters[adapter_name],
            stores["gradiend_bias"]._parameters.get(adapter_name),
            stores["gradiend_indices"]._buffers.get(adapter_name),
        )

    def checked(
        self, weight: torch.Tensor, bias: torch.Tensor | None, indices: torch.Tensor | None
    ) -> tuple[float, float]:
        """Check a stranger's values, and measure how large weight and bias are.

        Raises:
            ArtifactError: If a value is NaN or infinite, or the indices are not sorted, unique and in range.
        """
        peaks = (peak([weight]), 0.0 if bias is None else peak([bias]))
        if not all(map(math.isfinite, peaks)):
            raise ArtifactError(f"The direction of {self.site.name} holds NaN or infinite values; it is unusable.")
        if indices is not None:
            check_indices({self.site.name: (indices, self.shape.numel())})
        return peaks

    # ----------------------------------------------------------------------------------------------------- their shares

    def note_strength(self, adapter_name: str, strength: float, feature_factor: float | None = None) -> None:
        """Set the strength of one adapter (and the feature factor, if given), and write nothing.

        Raises:
            ConfigError: If one of them is no finite number.
        """
        for value in (strength, 0.0 if feature_factor is None else feature_factor):
            check_strength(value)
        if adapter_name in self.strength:
            self.strength[adapter_name] = float(strength)
            if feature_factor is not None:
                self.feature_factor[adapter_name] = float(feature_factor)

    def parts(self, adapter_names: Collection[str]) -> list[Part]:
        """The shares of some adapters in the sum, in the order in which they were added; zero strength adds nothing.

        Raises:
            ArtifactError: If an adapter holds unusable values.
            EditError: If a share is beyond the numbers of the parameter's type.
        """
        parts = []
        for name, config in self.configs.items():
            if name not in adapter_names:
                continue
            c_w, c_b = config.coefficients(self.strength[name], self.feature_factor[name])
            weight, bias, indices = self.values(name)
            if c_w == 0 and (c_b == 0 or bias is None):
                continue
            part = Part(weight, bias, indices, c_w, c_b)
            learning = weight.requires_grad and torch.is_grad_enabled()
            if not (learning or torch.compiler.is_compiling()):  # Dynamo cannot branch on values
                # transformers' loader and optimizers write values without telling us.
                if name not in self._peaks or weight.requires_grad:
                    self._peaks[name] = self.checked(weight, bias, indices)
                largest_weight, largest_bias = self._peaks[name]
                if not abs(c_w) * largest_weight + abs(c_b) * largest_bias <= largest_edit(self.dtype):
                    self._check_range(part, name)
            parts.append(part)
        return parts

    def _check_range(self, part: Part, adapter_name: str) -> None:
        """The same bound as before, with the values of this parameter alone."""
        largest = abs(part.c_w) * peak([part.weight])
        if part.bias is not None:
            largest += abs(part.c_b) * peak([part.bias])
        if not largest <= largest_edit(self.dtype):
            raise EditError(
                f"At strength {self.strength[adapter_name]} the direction {adapter_name!r} would change "
                f"{self.site.name} by up to {largest:.3g}, beyond the numbers of its type. Use a smaller strength."
            )

    def dense(self, adapter_name: str, kind: str) -> torch.Tensor:
        """One of an adapter's vectors ("gradiend_weight" or "gradiend_bias") in the parameter's shape, fp32."""
        values: torch.Tensor = getattr(self, kind)[adapter_name].float()
        return self._spread(self.values(adapter_name)[2], values)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Δ of one adapter at its current strength, dense, in the type of the sum."""
        return self.dense_delta([adapter_name])

    def dense_delta(self, adapter_names: Collection[str]) -> torch.Tensor:
        """Σ Δ_i at the current strengths, in the parameter's shape and the type of the sum."""
        dtype, parts = sum_dtype(self.dtype), self.parts(adapter_names)
        if not parts:
            return torch.zeros(self.shape, dtype=dtype, device=self.device)
        return self._spread(*total_delta(parts, self.shape.numel(), dtype))

    def _spread(self, indices: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
        """Values `[k]` in the parameter's shape, zero elsewhere."""
        if indices is not None:
            zeros = torch.zeros(self.shape.numel(), dtype=values.dtype, device=values.device)
            values = zeros.index_copy(0, indices.long(), values)
        return values.view(self.shape)


@functools.cache
def largest_edit(dtype: torch.dtype) -> float:
    """What a value of this type may be changed by, so that sums stay within its numbers."""
    return torch.finfo(dtype).max / 2
