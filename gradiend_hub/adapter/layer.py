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

import math
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.utils.hooks import RemovableHandle

from gradiend_hub.config import GradiendConfig
from gradiend_hub.direction import check_indices, combine, index_dtype, peak, sum_sparse
from gradiend_hub.errors import ArtifactError, EditError

from .sites import Site

__all__ = ["GradiendLayer", "Originals"]

BLOCK = 1 << 17
"""Elements that are summed at a time when a dense direction is written; small enough for the cache."""

_SWAP_LOCK = threading.RLock()


class Part(NamedTuple):
    """One adapter's share of a sum: `Δ = c_w·weight + c_b·bias` at flat `indices` (everywhere if `None`)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    indices: torch.Tensor | None
    c_w: float
    c_b: float

    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        """Δ of the stored entries, `[k]`."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return combine(self.weight.to(dtype), bias, self.c_w, self.c_b)


class Changes(NamedTuple):
    """What an edit does to one parameter: counts and squared norms."""

    entries: int
    swallowed: int
    delta_square: float
    weight_square: float


@dataclass
class Originals:
    """Values of the base model under a merged edit: at sorted flat `indices` `[k]`, or all of them (`None`)."""

    indices: torch.Tensor | None
    values: torch.Tensor


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which an edit of a parameter of this type is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_delta(parts: list[Part], numel: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Σ Δ_i as `(flat indices, values)`, or `(None, values [numel])` as soon as one part is dense."""
    if len(parts) == 1:
        return parts[0].indices, parts[0].delta(dtype)
    if all(part.indices is not None for part in parts):
        return sum_sparse((part.indices, part.delta(dtype)) for part in parts if part.indices is not None)
    total: torch.Tensor | None = None
    for part in parts:
        delta = part.delta(dtype)
        if part.indices is not None:
            delta = torch.zeros(numel, dtype=dtype, device=delta.device).index_copy(0, part.indices.long(), delta)
        total = delta if total is None else total + delta
    assert total is not None
    return None, total


def entry(store: Any, name: str) -> torch.Tensor | None:
    """An entry of a ParameterDict or BufferDict (which has no `get`)."""
    return store[name] if name in store else None  # noqa: SIM401


def read_entries(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """A copy of the entries at flat indices, `[k]`; of all entries, flat, if `indices` is `None`."""
    if indices is None:
        return tensor.detach().clone().reshape(-1)
    if tensor.is_contiguous():
        return tensor.detach().view(-1).index_select(0, indices)
    return tensor.detach()[torch.unravel_index(indices.long(), tensor.shape)]


def write_entries(tensor: torch.Tensor, indices: torch.Tensor | None, values: torch.Tensor) -> None:
    """Write `[k]` values to flat indices, in place; all entries if `indices` is `None`."""
    data = tensor.detach()
    if indices is None:
        data.copy_(values.view(data.shape))
    elif data.is_contiguous():
        data.view(-1).index_copy_(0, indices.long(), values)
    else:
        data.index_put_(torch.unravel_index(indices.long(), data.shape), values)


def write_dense(tensor: torch.Tensor, originals: torch.Tensor, part: Part) -> None:
    """`tensor = round(originals + Δ)` for one dense part, block by block: one pass over memory, no temporary tensor."""
    flat, dtype = tensor.detach().view(-1), sum_dtype(tensor.dtype)
    room = torch.empty(2, min(BLOCK, flat.numel()), dtype=dtype, device=flat.device)
    for start in range(0, flat.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        target = flat[block]
        delta, scaled_bias = room[:, : len(target)]
        torch.mul(part.weight[block].to(dtype), part.c_w, out=delta)
        if part.bias is not None:
            delta.add_(torch.mul(part.bias[block].to(dtype), part.c_b, out=scaled_bias))
        torch.add(originals[block].to(dtype), delta, out=delta if target.dtype != dtype else target)
        if target.dtype != dtype:
            target.copy_(delta)


class GradiendLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
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

    adapter_layer_names = ("gradiend_weight", "gradiend_bias")
    other_param_names = ("gradiend_indices", "configs", "strength", "feature_factor", "_peaks")

    def __init__(self, site: Site) -> None:
        super().__init__()
        # In a tuple, so that torch does not register the base model's modules as children of the side-car.
        self._site = (site,)
        self.gradiend_weight = nn.ParameterDict({})
        self.gradiend_bias = nn.ParameterDict({})
        self.gradiend_indices = BufferDict({}, persistent=True)
        self.configs: dict[str, GradiendConfig] = {}
        self.strength: dict[str, float] = {}
        self.feature_factor: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._originals: Originals | None = None
        self._peaks: dict[str, tuple[float, float]] = {}  # largest |w_d| and |b_d| of the adapters that were checked
        self._disable_adapters = False
        self._depth = 0
        self._stash: torch.Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._watch(True)

    def __repr__(self) -> str:
        return f"gradiend.GradiendLayer({self.site.name!r}, adapters={list(self.gradiend_weight)})"

    # -------------------------------------------------------------------------------------------- the base parameter

    @property
    def site(self) -> Site:
        """Where the parameter lives."""
        return self._site[0]

    @property
    def base_parameter(self) -> torch.Tensor:
        """The parameter itself, also while hooks show another tensor in its place."""
        if self._stash is not None:
            return self._stash
        owner, leaf = self.site.owner, self.site.leaf
        # FSDP (use_orig_params) keeps plain tensors in __dict__ while a module is unsharded.
        return owner.__dict__[leaf] if leaf in owner.__dict__ else owner._parameters[leaf]  # type: ignore[return-value]

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

    def add(self, adapter_name: str, config: GradiendConfig, entries: int | None) -> None:
        """Make room for an adapter: zero values, and the first `entries` positions (all if `None`)."""
        size = self.shape.numel() if entries is None else entries
        dtype, device = getattr(torch, config.dtype), self.device
        self.gradiend_weight[adapter_name] = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        if config.has_bias:
            self.gradiend_bias[adapter_name] = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        if entries is not None:
            positions = torch.arange(size, dtype=index_dtype(self.shape.numel()), device=device)
            self.gradiend_indices[adapter_name] = positions
        self.configs[adapter_name] = config
        self.strength[adapter_name] = config.strength
        self.feature_factor[adapter_name] = config.feature_factor

    def fill(
        self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor | None, indices: torch.Tensor | None
    ) -> None:
        """Take over the checked values of a `Direction`, without a copy where they are on the right device."""
        device = self.device
        self.gradiend_weight[adapter_name] = nn.Parameter(weight.to(device), requires_grad=False)
        if bias is not None:
            self.gradiend_bias[adapter_name] = nn.Parameter(bias.to(device), requires_grad=False)
        if indices is not None:
            self.gradiend_indices[adapter_name] = indices.to(device)
        self._peaks[adapter_name] = (peak(weight), 0.0 if bias is None else peak(bias))

    def check(
        self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor | None, indices: torch.Tensor | None
    ) -> None:
        """Check a stranger's values for an adapter, and note how large they are.

        Raises:
            ArtifactError: If a value is NaN or infinite, or the indices are not sorted, unique and in range.
        """
        peaks = (peak(weight), 0.0 if bias is None else peak(bias))
        if not all(map(math.isfinite, peaks)):
            raise ArtifactError(f"The direction of {self.site.name} holds NaN or infinite values; it is unusable.")
        if indices is not None:
            check_indices(self.site.name, indices, self.shape.numel())
        self._peaks[adapter_name] = peaks

    def _check_range(self, adapter_name: str, largest: float) -> None:
        if not largest <= torch.finfo(self.dtype).max / 2:
            raise EditError(
                f"At strength {self.strength[adapter_name]} the direction {adapter_name!r} would change "
                f"{self.site.name} by up to {largest:.3g}, beyond the numbers of its type. Use a smaller strength."
            )

    def _parts(self, adapter_names: Iterable[str]) -> list[Part]:
        """The shares of some adapters in the sum, in the order in which they were added; zero strength adds nothing."""
        wanted = set(adapter_names)
        parts = []
        for name in self.gradiend_weight:
            if name not in wanted:
                continue
            c_w, c_b = self.configs[name].coefficients(self.strength[name], self.feature_factor[name])
            bias = entry(self.gradiend_bias, name)
            if c_w == 0 and (c_b == 0 or bias is None):
                continue
            weight, indices = self.gradiend_weight[name], entry(self.gradiend_indices, name)
            if not torch.compiler.is_compiling():  # Dynamo cannot branch on values
                if name not in self._peaks:  # transformers' loader writes values without telling us
                    self.check(name, weight, bias, indices)
                self._check_range(name, abs(c_w) * self._peaks[name][0] + abs(c_b) * self._peaks[name][1])
            parts.append(Part(weight, bias, indices, c_w, c_b))
        return parts

    def rewritten(self, base: torch.Tensor, adapter_names: Iterable[str]) -> torch.Tensor:
        """`round(base + Σ Δ_i)` as a new tensor; differentiable with respect to the adapters' values."""
        parts = self._parts(adapter_names)
        if not parts:
            return base
        dtype = sum_dtype(base.dtype)
        indices, delta = total_delta(parts, base.numel(), dtype)
        if indices is None:
            return (base.to(dtype) + delta.view(base.shape)).to(base.dtype)
        flat, indices = base.reshape(-1), indices.long()
        return flat.index_copy(0, indices, (flat[indices].to(dtype) + delta).to(base.dtype)).view(base.shape)

    def dense(self, adapter_name: str, kind: str) -> torch.Tensor:
        """One of an adapter's vectors ("gradiend_weight" or "gradiend_bias") in the parameter's shape, fp32."""
        values: torch.Tensor = getattr(self, kind)[adapter_name].float()
        indices = entry(self.gradiend_indices, adapter_name)
        shape = self.shape
        if indices is not None:
            zeros = torch.zeros(shape.numel(), device=values.device)
            values = zeros.index_copy(0, indices.long(), values)
        return values.view(shape)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Δ of one adapter at its current strength, dense, in the type of the sum."""
        return self.dense_delta([adapter_name])

    def dense_delta(self, adapter_names: Iterable[str]) -> torch.Tensor:
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
        if adapter_name not in self.strength:
            return
        self.strength[adapter_name] = float(strength)
        if feature_factor is not None:
            self.feature_factor[adapter_name] = float(feature_factor)
        if adapter_name in self.merged_adapters:
            self.refresh()

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
        if self._originals is not None:
            write_entries(self.base_parameter, self._originals.indices, self._originals.values)
        self.merged_adapters, self._originals = [], None
        if adapter_names:
            support = _union([entry(self.gradiend_indices, name) for name in adapter_names])
            self._originals = Originals(support, read_entries(self.base_parameter, support))
            self.merged_adapters = list(adapter_names)
            self.refresh()
        self._watch(not self.merged_adapters)

    def refresh(self) -> None:
        """Write the parameter again: the originals plus the merged adapters, unless adapters are disabled."""
        if self._originals is None:
            return
        parameter, originals = self.base_parameter, self._originals
        with torch.no_grad():
            parts = [] if self._disable_adapters else self._parts(self.merged_adapters)
            if len(parts) == 1 and parts[0].indices is None and originals.indices is None and parameter.is_contiguous():
                write_dense(parameter, originals.values, parts[0])
            else:
                write_entries(parameter, originals.indices, self._summed(originals, parts, parameter))

    def _summed(self, originals: Originals, parts: list[Part], parameter: torch.Tensor) -> torch.Tensor:
        """`round(originals + Σ Δ_i)` over the entries of `originals`."""
        if not parts:
            return originals.values
        dtype = sum_dtype(parameter.dtype)
        indices, delta = total_delta(parts, parameter.numel(), dtype)
        if len(delta) == len(originals.values):
            return (originals.values.to(dtype) + delta).to(parameter.dtype)
        assert indices is not None
        # Some merged adapter has strength zero; its entries keep their bits (-0.0 + 0.0 would not).
        where = (
            indices.long()
            if originals.indices is None
            else torch.searchsorted(originals.indices.long(), indices.long())
        )
        return originals.values.index_copy(0, where, (originals.values[where].to(dtype) + delta).to(parameter.dtype))

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

    # --------------------------------------------------------------------------------------------- unmerged: the swap

    def _watch(self, on: bool) -> None:
        """Hang the hooks on the readers, or take them off."""
        if on and not self._handles:
            for reader in self.site.readers:
                self._handles.append(reader.register_forward_pre_hook(self._enter))
                self._handles.append(reader.register_forward_hook(self._leave, always_call=True))
        elif not on:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    # The counter goes up before anything can raise: hooks with always_call also run when a pre-hook raised (the early
    # stop of torch.utils.checkpoint does that). Concurrent forwards share one swap; Dynamo cannot trace the lock.
    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            self._show()
        else:
            with _SWAP_LOCK:
                self._show()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._hide()
        else:
            with _SWAP_LOCK:
                self._hide()

    def _show(self) -> None:
        self._depth += 1
        if self._depth > 1 or self._disable_adapters:
            return
        base = self.base_parameter
        shown = self.rewritten(base, self.active_adapters)
        if shown is not base:
            self._stash = base
            self._assign(shown)

    def _hide(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._stash is not None:
            base, self._stash = self._stash, None
            self._assign(base)

    def _assign(self, tensor: torch.Tensor) -> None:
        for module, leaf in self.site.slots:
            store: dict[str, Any] = module.__dict__ if leaf in module.__dict__ else module._parameters
            store[leaf] = tensor
            if isinstance(module, nn.RNNBase):  # keeps a list of its own
                module._flat_weights[module._flat_weights_names.index(leaf)] = tensor

    # -------------------------------------------------------------------------------------------------------- plumbing

    def detach(self) -> None:
        """Take the side-car and its hooks off the model; the parameter keeps its current values for good."""
        self._watch(False)
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


def _union(supports: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Sorted union of index vectors; `None` (everything) if one of them is."""
    vectors = [support for support in supports if support is not None]
    if len(vectors) < len(supports):
        return None
    return vectors[0] if len(vectors) == 1 else torch.unique(torch.cat(vectors))
