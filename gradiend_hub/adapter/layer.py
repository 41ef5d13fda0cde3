"""`GradiendLayer`: the side-car that carries one parameter's direction, and the arithmetic of editing it.

The side-car is a child of the module that owns the parameter; nothing is wrapped or renamed.

* Unmerged, the parameter keeps the base model's values, and hooks show `W' = round(W + Σ Δ_i)` to the modules that read
  it, while they run.
* Merged, the parameter's memory holds W', and the touched original values are kept; no hook is in the way. A change of
  strength writes W' again from the originals.

The sum is taken in fp32 (fp64 for an fp64 model), in the order in which the adapters were added, and rounded once. Both
ways give the same bits, and undoing gives the base model's bits.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from gradiend_hub.config import GradiendConfig
from gradiend_hub.direction import ParameterDirection, check_indices, index_dtype, peak
from gradiend_hub.errors import ArtifactError, EditError

from .arithmetic import (
    Changes,
    Edit,
    Originals,
    Part,
    read_entries,
    sum_dtype,
    total_delta,
    union,
    write_edits,
    write_entries,
)
from .shown import ShownParameter
from .sites import Site

__all__ = ["GradiendLayer"]

VALUE_NAMES = ("gradiend_weight", "gradiend_bias", "gradiend_indices")


class GradiendLayer(ShownParameter, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """Directions of one parameter, by adapter name. See the module's docstring for what it does when.

    Attributes:
        gradiend_weight: Decoder weights by adapter, `[k]` (k = all elements if dense).
        gradiend_bias: Decoder biases by adapter, `[k]`.
        gradiend_indices: Sorted flat positions by adapter, `[k]`; absent if dense.
        configs: Configuration by adapter.
        strength: Current strength by adapter, in units of the artifact.
        feature_factor: Current feature factor by adapter.
    """

    active_adapters: list[str]
    merged: bool
    set_requires_grad: Callable[..., None]
    _active_adapter: list[str]
    gradiend_weight: nn.ParameterDict
    gradiend_bias: nn.ParameterDict
    gradiend_indices: BufferDict
    configs: dict[str, GradiendConfig]
    strength: dict[str, float]
    feature_factor: dict[str, float]
    merged_adapters: list[str]
    _originals: Originals | None
    _peaks: dict[str, tuple[float, float]]
    _disable_adapters: bool

    adapter_layer_names = ("gradiend_weight", "gradiend_bias")
    other_param_names = ("gradiend_indices", "configs", "strength", "feature_factor", "_peaks")

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._modules["gradiend_weight"] = nn.ParameterDict()
        self._modules["gradiend_bias"] = nn.ParameterDict()
        self._modules["gradiend_indices"] = BufferDict(persistent=True)
        # Past nn.Module's assignment, which looks at every value three times: a direction has hundreds of side-cars.
        self.__dict__ |= {
            "_site": (site,),  # in a tuple, so that torch does not take the base model's modules for children
            "configs": {},
            "strength": {},
            "feature_factor": {},
            "merged_adapters": [],
            "_originals": None,
            "_peaks": {},  # bounds of |w_d| and |b_d| of the adapters that were checked
            "_disable_adapters": False,
            "_depth": 0,
            "_stash": None,
            "_handles": [],
        }

    def __repr__(self) -> str:
        return f"gradiend.GradiendLayer({self.site.name!r}, adapters={list(self.gradiend_weight)})"

    # -------------------------------------------------------------------------------------------- the base parameter

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

    def get_base_layer(self) -> nn.Module:
        """The module that owns the parameter."""
        return self.site.owner

    def original(self) -> torch.Tensor:
        """The base model's values, whether an edit is merged or not; a copy if it is."""
        parameter = self.base_parameter.detach()
        if self._originals is None:
            return parameter
        copy = parameter.clone()
        write_entries(copy, self._originals.indices, self._originals.values)
        return copy

    # ------------------------------------------------------------------------------------------------------ adapters

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
        self.gradiend_weight[adapter_name] = nn.Parameter(values.decoder.to(device), requires_grad=False)
        if bias is None and self.configs[adapter_name].has_bias:
            bias = torch.zeros_like(values.decoder)
        if bias is not None:
            self.gradiend_bias[adapter_name] = nn.Parameter(bias.to(device), requires_grad=False)
        if values.indices is not None:
            self.gradiend_indices[adapter_name] = values.indices.to(device)
        self._peaks[adapter_name] = peaks

    def values(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Weight, bias and indices of an adapter."""
        stores: dict[str, Any] = self._modules
        weight, bias, indices = (_entry(stores[kind], adapter_name) for kind in VALUE_NAMES)
        assert weight is not None
        return weight, bias, indices

    def check(
        self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor | None, indices: torch.Tensor | None
    ) -> None:
        """Check a stranger's values for an adapter, and note how large they are.

        Raises:
            ArtifactError: If a value is NaN or infinite, or the indices are not sorted, unique and in range.
        """
        peaks = (peak([weight]), 0.0 if bias is None else peak([bias]))
        if not all(map(math.isfinite, peaks)):
            raise ArtifactError(f"The direction of {self.site.name} holds NaN or infinite values; it is unusable.")
        if indices is not None:
            check_indices({self.site.name: (indices, self.shape.numel())})
        self._peaks[adapter_name] = peaks

    def _check_range(self, part: Part, adapter_name: str) -> None:
        limit, (weight, bias) = largest_edit(self.dtype), self._peaks[adapter_name]
        if abs(part.c_w) * weight + abs(part.c_b) * bias <= limit:
            return
        largest = abs(part.c_w) * peak([part.weight]) + (
            0.0 if part.bias is None else abs(part.c_b) * peak([part.bias])
        )
        if not largest <= limit:
            raise EditError(
                f"At strength {self.strength[adapter_name]} the direction {adapter_name!r} would change "
                f"{self.site.name} by up to {largest:.3g}, beyond the numbers of its type. Use a smaller strength."
            )

    def _parts(self, adapter_names: Collection[str]) -> list[Part]:
        """The shares of some adapters in the sum, in the order in which they were added; zero strength adds nothing."""
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
                    self.check(name, weight, bias, indices)
                self._check_range(part, name)
            parts.append(part)
        return parts

    def rewritten(self, base: torch.Tensor, adapter_names: Collection[str]) -> torch.Tensor:
        """`round(base + Σ Δ_i)` as a new tensor; differentiable with respect to the adapters' values."""
        parts = self._parts(adapter_names)
        if not parts:
            return base
        dtype = sum_dtype(base.dtype)
        indices, delta = total_delta(parts, base.numel(), dtype)
        if indices is None:
            return (base.to(dtype) + delta.view(base.shape)).to(base.dtype)
        if base.is_contiguous():
            flat, indices = base.view(-1), indices.long()
            return flat.index_copy(0, indices, (flat[indices].to(dtype) + delta).to(base.dtype)).view(base.shape)
        places = torch.unravel_index(indices.long(), base.shape)  # keeps the layout, and with it the order of sums
        return base.index_put(places, (base[places].to(dtype) + delta).to(base.dtype))

    def dense(self, adapter_name: str, kind: str) -> torch.Tensor:
        """One of an adapter's vectors ("gradiend_weight" or "gradiend_bias") in the parameter's shape, fp32."""
        values: torch.Tensor = getattr(self, kind)[adapter_name].float()
        indices = self.values(adapter_name)[2]
        shape = self.shape
        if indices is not None:
            zeros = torch.zeros(shape.numel(), device=values.device)
            values = zeros.index_copy(0, indices.long(), values)
        return values.view(shape)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Δ of one adapter at its current strength, dense, in the type of the sum."""
        return self.dense_delta([adapter_name])

    def dense_delta(self, adapter_names: Collection[str]) -> torch.Tensor:
        """Σ Δ_i at the current strengths, in the parameter's shape and the type of the sum."""
        shape, dtype, parts = self.shape, sum_dtype(self.dtype), self._parts(adapter_names)
        if not parts:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        indices, delta = total_delta(parts, shape.numel(), dtype)
        if indices is not None:
            zeros = torch.zeros(shape.numel(), dtype=dtype, device=delta.device)
            delta = zeros.index_copy(0, indices.long(), delta)
        return delta.view(shape)

    # ------------------------------------------------------------------------------------------------------- strength

    def set_strength(self, adapter_name: str, strength: float, feature_factor: float | None = None) -> None:
        """Set the strength of one adapter (and the feature factor, if given), also while it is merged."""
        if self.note_strength(adapter_name, strength, feature_factor):
            self.refresh()

    def note_strength(self, adapter_name: str, strength: float, feature_factor: float | None = None) -> bool:
        """Set the strength of one adapter, and write nothing; whether the merged parameter has to be written now."""
        if adapter_name in self.strength:
            self.strength[adapter_name] = float(strength)
            if feature_factor is not None:
                self.feature_factor[adapter_name] = float(feature_factor)
        return adapter_name in self.merged_adapters

    def set_scale(self, adapter: str, scale: float) -> None:
        """PEFT's way to scale: relative to the strength that the artifact recommends."""
        if adapter in self.strength:
            self.set_strength(adapter, scale * self.configs[adapter].strength)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters."""
        for name in self.active_adapters:
            if name in self.strength:
                self.set_strength(name, self.strength[name] * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of the active adapters, or return to the recommended one."""
        for name in self.active_adapters:
            if name in self.strength:
                self.set_strength(name, self.configs[name].strength if scale is None else self.strength[name] / scale)

    # ------------------------------------------------------------------------------------------------- merged editing

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the edit into the parameter, and keep what is needed to undo it exactly.

        Raises:
            EditError: With `safe_merge`, if the edit would make a weight NaN or infinite; nothing is written then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.gradiend_weight]
        if names:
            self.merge_exactly([*self.merged_adapters, *names], safe_merge)

    @torch.no_grad()
    def check_merge(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Raise what merging these adapters would raise, and write nothing.

        Raises:
            ArtifactError: If an adapter holds unusable values.
            EditError: If the edit overflows; with `safe_merge`, if a weight would be NaN or infinite in any other way.
        """
        self._parts(adapter_names)
        if safe_merge and not bool(torch.isfinite(self.rewritten(self.original(), adapter_names)).all()):
            raise EditError(f"Merging {adapter_names} would make weights of {self.site.name} NaN or infinite.")

    @torch.no_grad()
    def merge_exactly(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Make these the merged adapters, and no others."""
        if adapter_names == self.merged_adapters:
            return
        self.check_merge(adapter_names, safe_merge)
        self.keep(adapter_names)
        self.refresh()
        self.watch()

    @torch.no_grad()
    def keep(self, adapter_names: list[str]) -> None:
        """Give the parameter its original bits back, and keep those that the merged adapters will touch."""
        if self._originals is not None:
            write_entries(self.base_parameter, self._originals.indices, self._originals.values)
        self.merged_adapters, self._originals = list(adapter_names), None
        if adapter_names:
            support = union([self.values(name)[2] for name in adapter_names])
            self._originals = Originals(support, read_entries(self.base_parameter, support))

    def edit(self) -> Edit | None:
        """What the parameter has to hold: the originals plus the merged adapters, unless adapters are disabled."""
        if self._originals is None:
            return None
        parts = [] if self._disable_adapters else self._parts(self.merged_adapters)
        return Edit(self.base_parameter, self._originals, parts)

    def refresh(self) -> None:
        """Write the merged parameter again, after a change of strength."""
        write_edits(edit for edit in [self.edit()] if edit is not None)

    def unmerge(self) -> None:
        """Give the parameter its original bits back."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merge_exactly([])

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; merged ones are taken out and put back, to the bit."""
        super().enable_adapters(enabled)
        if enabled:  # PEFT's version makes frozen adapters trainable here
            frozen = [name for name, config in self.configs.items() if config.inference_mode]
            self.set_requires_grad(frozen, requires_grad=False)
        self.refresh()

    @torch.no_grad()
    def _edit(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Δ, base values and edited values of the touched entries, `[k]` each; `None` if nothing is applied."""
        names = self.merged_adapters or self.active_adapters
        parts = [] if self._disable_adapters else self._parts(names)
        if not parts:
            return None
        parameter = self.base_parameter
        indices, delta = total_delta(parts, parameter.numel(), sum_dtype(parameter.dtype))
        originals = self._originals
        if originals is not None and len(originals.values) == len(delta):
            before = originals.values
        else:
            before = read_entries(self.original(), indices)
        return delta, before, (before.to(delta.dtype) + delta).to(parameter.dtype)

    def has_effect(self) -> bool:
        """Whether the current edit changes any value of this parameter."""
        if self._originals is not None:
            indices, values = self._originals.indices, self._originals.values
            flat = self.base_parameter.detach().reshape(-1)
            starts = range(0, len(values), 1024)  # the first few values settle it, unless the type swallows the edit
            blocks = (slice(start, start + 1024) for start in starts)
            return any(not torch.equal(flat[b] if indices is None else flat[indices[b]], values[b]) for b in blocks)
        edit = self._edit()
        return edit is not None and not torch.equal(edit[1], edit[2])

    def changes(self) -> Changes:
        """Compare the current edit with the base model's values."""
        weight_square = float(self.original().double().square().sum())
        edit = self._edit()
        if edit is None:
            return Changes(0, 0, 0.0, weight_square)
        delta, before, after = edit
        touched = delta != 0
        swallowed = int((touched & (after == before)).sum())
        return Changes(int(touched.sum()), swallowed, float(delta.double().square().sum()), weight_square)

    # ------------------------------------------------------------------------------------------------------- unmerged

    def watch(self) -> None:
        """Hang the hooks on the readers, or take them off if the edit is merged."""
        if self.merged_adapters:
            self._unwatch()
        elif not self._handles:
            self._hang_hooks()

    def shown(self, base: torch.Tensor) -> torch.Tensor:
        """What the readers see while they run."""
        return base if self._disable_adapters else self.rewritten(base, self.active_adapters)

    # -------------------------------------------------------------------------------------------------------- plumbing

    def detach(self) -> None:
        """Take the side-car and its hooks off the model; the parameter keeps its current values for good."""
        self._unwatch()
        self._originals, self.merged_adapters = None, []
        for name, child in list(self.site.host._modules.items()):
            if child is self:
                del self.site.host._modules[name]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter; PEFT's version would round its values to the type of the base model."""
        device = device or self.device
        for store in (self.gradiend_weight, self.gradiend_bias, self.gradiend_indices):
            if adapter_name in store and store[adapter_name].device.type != "meta":
                store[adapter_name] = store[adapter_name].to(device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GradiendLayer:
        """Follow the model to another device, and keep the adapters' own type: `model.half()` must not round them."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device)).device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        if self._originals is not None:
            indices = self._originals.indices
            self._originals = Originals(None if indices is None else move(indices), fn(self._originals.values))
        return self

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """`False`: PEFT's conversion derives LoRA's keys from the path of this module, which is a side-car's."""
        return False


@functools.cache
def largest_edit(dtype: torch.dtype) -> float:
    """What a value of this type may be changed by, so that sums stay within its numbers."""
    return torch.finfo(dtype).max / 2


def _entry(store: nn.Module, name: str) -> torch.Tensor | None:
    """An entry of a ParameterDict or BufferDict, past their slow look-up."""
    parts = store.__dict__
    found: torch.Tensor | None = parts["_parameters"].get(name)
    return parts["_buffers"].get(name) if found is None else found
