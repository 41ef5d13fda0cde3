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

import warnings
from collections.abc import Callable, Collection, Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from gradiend_hub.artifact.storage import sidecar_name
from gradiend_hub.errors import EditError

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
from .sites import Site
from .values import AdapterValues

__all__ = ["GradiendLayer", "gradiend_layers"]


class GradiendLayer(AdapterValues, BaseTunerLayer):  # type: ignore[misc]
    """The side-car of one parameter. See the module's docstring for what it does when."""

    active_adapters: list[str]
    merged: bool
    set_requires_grad: Callable[..., None]
    _active_adapter: list[str]
    merged_adapters: list[str]
    _originals: Originals | None
    _disable_adapters: bool

    adapter_layer_names = ("gradiend_weight", "gradiend_bias")
    other_param_names = ("gradiend_indices", "configs", "strength", "feature_factor", "_peaks")

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.__dict__.update(merged_adapters=[], _originals=None, _disable_adapters=False)

    def __repr__(self) -> str:
        return f"gradiend.GradiendLayer({self.site.name!r}, adapters={list(self.gradiend_weight)})"

    def get_base_layer(self) -> nn.Module:
        """The module that owns the parameter."""
        return self.site.owner

    def check_in_place(self) -> torch.Tensor:
        """The parameter, if it still is the one that the edit was merged into.

        Raises:
            EditError: If the model has another tensor there now.
        """
        parameter = self.base_parameter
        if self._originals is not None and parameter is not self._originals.parameter:
            raise EditError(
                f"{self.site.name} is another tensor than the one that was edited: the model was sharded, offloaded or "
                "loaded anew since. Do that to the plain model that `merge_and_unload()` gives."
            )
        return parameter

    def check_unchanged(self) -> torch.Tensor:
        """The parameter, if it still holds what the edit wrote, so that it may be written again from the originals.

        Raises:
            EditError: If it was replaced, or changed in place.
        """
        parameter = self.check_in_place()
        if self._originals is not None and self._originals.are_overwritten():
            raise EditError(
                f"{self.site.name} was changed in place since the direction was merged into it (load_state_dict, training), "
                "and that would be undone. `merge_and_unload()` keeps it as it is now; to change the base model, `unload()` "
                "the direction first."
            )
        return parameter

    def original(self) -> torch.Tensor:
        """The base model's values, whether an edit is merged or not; a copy if it is."""
        if self._originals is None:
            return self.base_parameter.detach()
        copy = self.check_in_place().detach().clone()
        write_entries(copy, self._originals.indices, self._originals.values)
        return copy

    def rewritten(self, base: torch.Tensor, adapter_names: Collection[str]) -> torch.Tensor:
        """`round(base + Σ Δ_i)` as a new tensor; differentiable with respect to the adapters' values."""
        parts = self.parts(adapter_names)
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

    # ------------------------------------------------------------------------------------------------------- strength

    def set_strength(self, adapter_name: str, strength: float, feature_factor: float | None = None) -> None:
        """Set the strength of one adapter (and the feature factor, if given), also while it is merged.

        Raises:
            ConfigError: If one of them is no finite number.
            EditError: If the edit is beyond the numbers of the parameter's type; the former strength is kept then.
        """
        if adapter_name in self.strength:
            before = self.strength[adapter_name], self.feature_factor[adapter_name]
            self.note_strength(adapter_name, strength, feature_factor)
            try:
                edits = self.edits_of(adapter_name)
            except BaseException:
                self.note_strength(adapter_name, *before)
                raise
            write_edits(edits)

    def edits_of(self, adapter_name: str) -> list[Edit]:
        """What is to be written after a change of an adapter's strength; raises what a later forward would raise."""
        if self._depth:
            self.recover()
        if self._disable_adapters or adapter_name not in self.merged_adapters:
            self.parts([adapter_name])
            return []
        return self.edit()

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
    def check_merge(self, adapter_names: list[str], safe_merge: bool = False) -> list[Part]:
        """The shares of these adapters; raises what merging them would raise, and writes nothing.

        Raises:
            ArtifactError: If an adapter holds unusable values.
            EditError: If the edit overflows, or the parameter was replaced since it was merged; with `safe_merge`, if a
                weight would be NaN or infinite in any other way.
        """
        if self._depth:
            self.recover()
        parts = self.parts(adapter_names)
        self.check_unchanged()
        if safe_merge and not bool(torch.isfinite(self.rewritten(self.original(), adapter_names)).all()):
            raise EditError(f"Merging {adapter_names} would make weights of {self.site.name} NaN or infinite.")
        return parts

    @torch.no_grad()
    def merge_exactly(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Make these the merged adapters, and no others."""
        if adapter_names == self.merged_adapters:
            return
        parts = self.check_merge(adapter_names, safe_merge)
        write_edits(self.keep(adapter_names, parts))
        self.watch()

    @torch.no_grad()
    def keep(self, adapter_names: list[str], parts: list[Part]) -> list[Edit]:
        """Give the parameter its original bits back, and keep those that the merged adapters will touch.

        Returns:
            The edit that is to be written now, if there is one.
        """
        parameter = self.check_unchanged()
        if self._originals is not None:
            write_entries(parameter, self._originals.indices, self._originals.values)
        self.merged_adapters, self._originals = list(adapter_names), None
        if not adapter_names:
            return []
        support = union([self.values(name)[2] for name in adapter_names])
        self._originals = Originals(parameter, support, read_entries(parameter, support))
        return [Edit(parameter, self._originals, [] if self._disable_adapters else parts)]

    def edit(self) -> list[Edit]:
        """What the parameter has to hold, if it is merged: originals plus merged adapters, unless these are disabled."""
        if self._originals is None:
            return []
        parts = [] if self._disable_adapters else self.parts(self.merged_adapters)
        return [Edit(self.check_unchanged(), self._originals, parts)]

    def refresh(self) -> None:
        """Write the merged parameter again, after a change of strength."""
        write_edits(self.edit())

    def unmerge(self) -> None:
        """Give the parameter its original bits back."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merge_exactly([])

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; merged ones are taken out and put back, to the bit."""
        if self._depth:
            self.recover()
        super().enable_adapters(enabled)
        if enabled:  # PEFT's version makes frozen adapters trainable here
            frozen = [name for name, config in self.configs.items() if config.inference_mode]
            self.set_requires_grad(frozen, requires_grad=False)
        self.refresh()

    @torch.no_grad()
    def _edit(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Δ, base values and edited values of the touched entries, `[k]` each; `None` if nothing is applied."""
        names = self.merged_adapters or self.active_adapters
        parts = [] if self._disable_adapters else self.parts(names)
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
        if self._depth:
            self.recover()
        self._originals, self.merged_adapters = None, []
        self._take_off()

    def _take_off(self) -> None:
        for name, child in list(self.site.host._modules.items()):
            if child is self:
                del self.site.host._modules[name]

    def hang(self, site: Site) -> None:
        """Become a child of the site's host: for the first time, or because another PEFT method has wrapped the owner."""
        if self.site.host is not site.host:
            self._take_off()
            self.__dict__["_site"] = (site,)
        site.host.add_module(sidecar_name(site.leaf), self)

    def drop(self, adapter_name: str) -> None:
        """Forget an adapter; the parameter gets its share back if it was merged."""
        if adapter_name in self.merged_adapters:
            self.merge_exactly([name for name in self.merged_adapters if name != adapter_name])
        for name in (*self.adapter_layer_names, *self.other_param_names):
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]

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
            values = fn(self._originals.values)
            self._originals = Originals(self.base_parameter, None if indices is None else move(indices), values)
        return self

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """`False`: PEFT's conversion derives LoRA's keys from the path of this module, which is a side-car's."""
        return False


def gradiend_layers(model: nn.Module) -> Iterator[GradiendLayer]:
    """All side-cars of a model."""
    return (module for module in model.modules() if isinstance(module, GradiendLayer))
