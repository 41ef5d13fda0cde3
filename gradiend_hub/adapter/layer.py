"""`GradiendLayer`: the side-car that carries the directions of one parameter, and edits it.

The side-car is a child of the module that owns the parameter; nothing is wrapped or renamed.

* Unmerged, the parameter keeps the base model's values, and hooks show `W' = round(W + Σ Δ_i)` in its place while the
  model runs.
* Merged, the parameter's memory holds W', and the touched original values are kept; no hook is in the way. A change of
  strength writes W' again from the originals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from gradiend_hub.artifact.low_rank import Form
from gradiend_hub.artifact.storage import sidecar_name
from gradiend_hub.errors import EditError

from .arithmetic import Changes, Originals, Part, changes, edited, union
from .attached import AttachedDirection
from .kept import KeptEdit
from .sites import Site
from .slot import ForwardHooks, Slot
from .values import AdapterValues

VALUE_NAMES = ("gradiend_weight", "gradiend_bias", "gradiend_indices")
WIDTHS = (
    ("in_features", "out_features"),
    ("infeatures", "outfeatures"),
    ("in_channels", "out_channels"),
    ("num_embeddings", "embedding_dim"),
    ("nx", "nf"),
)
"""Names under which layers keep the sizes of their input and output."""


class GradiendLayer(AdapterValues, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """The side-car of one parameter. See the module's docstring for what it does when.

    Args:
        site: Where the parameter lives.
        hooks: Those of the model, shared by its side-cars.

    Attributes:
        gradiend_weight: Decoder weights by adapter, `[k]` (k = all elements if dense, those of both factors if low-rank).
        gradiend_bias: Decoder biases by adapter, `[k]`.
        gradiend_indices: Sorted flat positions by adapter, `[k]`; absent if not sparse.
        forms: Form of the factors by adapter; `None` if not low-rank.
        adapters: What the side-cars of an adapter share, by adapter, in the order in which they were added.
        scaling: Factor of an adapter's strength in this layer, by adapter: PEFT's scale.
        in_features, out_features: Sizes of the owner's input and output; `None` if it is not like a linear layer.
    """

    active_adapters: list[str]
    merged: bool
    set_requires_grad: Callable[..., None]
    merged_adapters: list[str]

    adapter_layer_names = ("gradiend_weight", "gradiend_bias")
    other_param_names = ("gradiend_indices", "forms", "adapters", "scaling", "_peaks")

    def __init__(self, site: Site, hooks: ForwardHooks) -> None:
        super().__init__()
        self.gradiend_weight, self.gradiend_bias = nn.ParameterDict(), nn.ParameterDict()
        self.gradiend_indices = BufferDict(persistent=True)
        self.adapters: dict[str, AttachedDirection] = {}
        self.scaling: dict[str, float] = {}
        self.forms: dict[str, Form | None] = {}
        self._peaks: dict[str, tuple[float, float]] = {}  # largest |w_d| and |b_d| of the adapters that were checked
        self.merged_adapters = []
        self._active_adapter: list[str] = []
        self._disable_adapters = False
        self._originals: Originals | None = None
        self._kept = KeptEdit()
        self.slot, self.hooks = Slot(site, self.shown), hooks
        widths = [(site.owner.__dict__.get(into), site.owner.__dict__.get(out)) for into, out in WIDTHS]
        self.in_features, self.out_features = next((pair for pair in widths if None not in pair), (None, None))

    def __repr__(self) -> str:
        return f"gradiend.GradiendLayer({self.site.name!r}, adapters={list(self.adapters)})"

    # -------------------------------------------------------------------------------------------------- the parameter

    @property
    def site(self) -> Site:
        """Place of the parameter in the model."""
        return self.slot.site

    @property
    def base_parameter(self) -> torch.Tensor:
        """The parameter itself, also while another tensor is shown in its place."""
        return self.slot.parameter

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
        self._originals.restore(copy)
        return copy

    # ------------------------------------------------------------------------------------------------------- strength

    def set_scale(self, adapter: str, scale: float) -> None:
        """PEFT's way to scale an adapter in this layer alone: `scale` times its strength."""
        if adapter in self.scaling:
            former, self.scaling[adapter] = self.scaling[adapter], float(scale)
            try:
                self.parts([adapter])
                self.refresh()
            except EditError:
                self.scaling[adapter] = former
                raise

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.set_scale(name, self.scaling[name] * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters, or return to 1."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.set_scale(name, 1.0 if scale is None else self.scaling[name] / scale)

    # ------------------------------------------------------------------------------------------------- merged editing

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the edit into the parameter, and keep what is needed to undo it exactly.

        Raises:
            EditError: With `safe_merge`, if the edit would make a weight NaN or infinite; nothing is written then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.adapters]
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
        self.slot.recover()
        parts = self.parts(adapter_names)
        self.check_unchanged()
        if safe_merge and not bool(torch.isfinite(edited(self.original(), parts)).all()):
            raise EditError(f"Merging {adapter_names} would make weights of {self.site.name} NaN or infinite.")
        return parts

    def merge_exactly(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Make these the merged adapters, and no others."""
        if adapter_names != self.merged_adapters:
            self.write_merged(adapter_names, self.check_merge(adapter_names, safe_merge))
            self.watch()

    @torch.no_grad()
    def write_merged(self, adapter_names: list[str], parts: list[Part]) -> None:
        """Give the parameter its original bits back, keep those that the merged adapters touch, and write their edit."""
        parameter = self.check_unchanged()
        if self._originals is not None:
            self._originals.restore(parameter)
        self.merged_adapters, self._originals = list(adapter_names), None
        self._kept.forget()
        if adapter_names:
            self._originals = Originals.of(parameter, union([self.values(name)[2] for name in adapter_names]))
            self._originals.write([] if self._disable_adapters else parts)

    def merged_parts(self) -> list[Part]:
        """The shares that the parameter has to hold if it is merged; raises what writing them would raise."""
        self.slot.recover()
        if self._originals is None:
            return []
        self.check_unchanged()
        return [] if self._disable_adapters else self.parts(self.merged_adapters)

    def rewrite(self, parts: list[Part]) -> None:
        """Write a merged parameter again: originals plus these shares."""
        if self._originals is not None:
            self._originals.write(parts)

    def refresh(self) -> None:
        """Write a merged parameter again: originals plus merged adapters, unless these are disabled."""
        self.rewrite(self.merged_parts())

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
            frozen = [name for name, attached in self.adapters.items() if attached.config.inference_mode]
            self.set_requires_grad(frozen, requires_grad=False)
        self.refresh()

    # -------------------------------------------------------------------------------------------------------- account

    def _applied(self) -> list[Part]:
        """The shares of what is applied now, merged or not."""
        return [] if self._disable_adapters else self.parts(self.merged_adapters or self.active_adapters)

    @torch.no_grad()
    def has_effect(self) -> bool:
        """Tell whether the current edit changes any value of this parameter."""
        if self._originals is not None:
            return self._originals.differ()
        base = self.original()
        return not torch.equal(edited(base, self._applied()), base)

    @torch.no_grad()
    def changes(self) -> Changes:
        """Compare the current edit with the base model's values."""
        return changes(self.original(), self._applied())

    # ------------------------------------------------------------------------------------------------------- unmerged

    def shown(self, base: torch.Tensor) -> torch.Tensor:
        """Return the tensor that is in the parameter's place while the model runs."""
        parts = [] if self._disable_adapters else self.parts(self.active_adapters)
        if not parts:
            return base
        # Other PEFT methods merge through `.data`, and torch does not count that as a change.
        if self._is_wrapped() or torch.compiler.is_compiling():
            return edited(base, parts)
        return self._kept.get(base, parts)

    def _is_wrapped(self) -> bool:
        """Tell whether another PEFT method has wrapped the owner, before this one was attached or since."""
        owner = self.site.owner
        is_child = any(owner in module._modules.values() for module in self.site.readers)
        return self.site.host is not owner or not is_child

    def watch(self) -> None:
        """Show the edit while the model runs, or stop that if it is merged."""
        if self.merged_adapters:
            self._stop_showing()
        else:
            self._start_showing()

    def _start_showing(self) -> None:
        self.hooks.add(self.slot)

    def _stop_showing(self) -> None:
        self.hooks.remove(self.slot)

    # -------------------------------------------------------------------------------------------------------- plumbing

    def detach(self) -> None:
        """Take the side-car and its hooks off the model; the parameter keeps its current values for good."""
        self._stop_showing()
        self.slot.recover()
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
            self.slot.site = site
            self._kept.forget()
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
        self._kept.forget()
        if self._originals is not None:
            indices = self._originals.indices
            values = fn(self._originals.values)
            self._originals = Originals(self.base_parameter, None if indices is None else move(indices), values)
        return self

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """`False`: PEFT's conversion derives LoRA's keys from the path of this module, which is a side-car's.

        `GradiendModel.to_lora` writes a LoRA.
        """
        return False


def gradiend_layers(model: nn.Module) -> Iterator[GradiendLayer]:
    """All side-cars of a model."""
    return (module for module in model.modules() if isinstance(module, GradiendLayer))
