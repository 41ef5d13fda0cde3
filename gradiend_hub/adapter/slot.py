"""The place of a parameter in a model, and the hooks that show another tensor there while modules run.

An edit that is not merged has to be seen by whoever computes with the parameter: the module that owns it, a parent that
reads `self.child.weight`, a method of the owner that is called from elsewhere, a head that reads the embedding matrix.
So it is shown for as long as the owner *or any module around it* runs: for the whole call of the model, and for calls
of a part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle
from transformers.modeling_layers import GradientCheckpointingLayer

from gradiend_hub.errors import EditError

from .sites import Site

_LOCK = threading.RLock()
CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute in which transformers keeps the checkpointing function of a layer."""
CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called."""


class Slot:
    """The place of one parameter, in which another tensor can be shown; concurrent forwards share one change.

    Args:
        site: Where the parameter lives.
        edited: Gives the tensor to show for the base model's; the base model's own if there is nothing to show.
    """

    def __init__(self, site: Site, edited: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.site = site
        self.runs = 0
        self._edited = edited
        self._base: torch.Tensor | None = None

    @property
    def parameter(self) -> torch.Tensor:
        """The parameter itself, also while another tensor is shown in its place."""
        if self._base is not None:
            return self._base
        site = self.site
        owner, leaf = site.owner, site.leaf
        # FSDP (use_orig_params) keeps plain tensors in __dict__ while a module is unsharded.
        found = owner.__dict__[leaf] if leaf in owner.__dict__ else owner._parameters.get(leaf)
        if found is None:
            raise EditError(
                f"{site.name} is no plain parameter any more: another adapter (LoRA's `target_parameters`) has put a "
                "computed one in its place. Merge the direction first, with `merge_and_unload()`."
            )
        return found

    def show(self) -> None:
        """Begin a run; the first one puts the edited tensor in."""
        self.runs += 1  # before anything can raise: the hook that ends the run is always called
        if self.runs == 1:
            base = self.parameter
            shown = self._edited(base)
            if shown is not base:
                self._base = base
                self._assign(shown)

    def hide(self) -> None:
        """End a run; the last one puts the parameter back."""
        self.runs = max(self.runs - 1, 0)
        if self.runs == 0:
            self._put_back()

    def recover(self) -> None:
        """Put the parameter back that an interrupted forward has left replaced: torch runs no hooks after a Ctrl-C."""
        if self.runs:
            with _LOCK:
                self.runs = 0
                self._put_back()

    def _put_back(self) -> None:
        if self._base is not None:
            base, self._base = self._base, None
            self._assign(base)
            for module, leaf in self.site.slots:
                module._buffers.pop(leaf, None)  # to which LoRA's `target_parameters` return what was shown

    def _assign(self, tensor: torch.Tensor) -> None:
        for module, leaf in self.site.slots:
            store: dict[str, Any] = module.__dict__ if leaf in module.__dict__ else module._parameters
            store[leaf] = tensor
            if isinstance(module, nn.RNNBase):  # keeps a list of its own
                module._flat_weights[module._flat_weights_names.index(leaf)] = tensor


class ForwardHooks:
    """Hooks on the modules of one model, each of which shows the slots within it while the module runs."""

    def __init__(self) -> None:
        self._slots: dict[nn.Module, dict[Slot, None]] = {}
        self._handles: dict[nn.Module, tuple[RemovableHandle, RemovableHandle]] = {}

    def add(self, slot: Slot) -> None:
        """Show a slot from now on; a second call does nothing."""
        for module in slot.site.readers:
            self._slots.setdefault(module, {})[slot] = None
            if module not in self._handles and not isinstance(module, CONTAINERS):
                self._handles[module] = (
                    module.register_forward_pre_hook(self._enter, prepend=True),
                    module.register_forward_hook(self._leave, always_call=True),
                )

    def remove(self, slot: Slot) -> None:
        """Show a slot no longer."""
        for module in slot.site.readers:
            slots = self._slots.get(module, {})
            slots.pop(slot, None)
            if not slots:
                for handle in self._handles.pop(module, ()):
                    handle.remove()
                self._slots.pop(module, None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        checkpointing = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
        if checkpointing and module.training and not torch.compiler.is_compiling():
            # Newer transformers checkpoint what is within the hooks: the backward pass runs the layer without them.
            state = module.__dict__
            state[CHECKPOINT] = partial(self._checkpointed, module, state[CHECKPOINT])
        self._show(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._hide(module)
        function = module.__dict__.get(CHECKPOINT)
        if isinstance(function, partial) and function.func == self._checkpointed:
            module.__dict__[CHECKPOINT] = function.args[1]

    def _checkpointed(self, module: nn.Module, checkpoint: Any, forward: Any, *args: Any) -> Any:
        def run(*args: Any) -> Any:
            self._show(module)
            try:
                return forward(*args)
            finally:
                self._hide(module)

        return checkpoint(run, *args)

    # Dynamo cannot trace the lock, nor hooks on saved tensors.
    def _show(self, module: nn.Module) -> None:
        slots = self._slots.get(module, {})
        if torch.compiler.is_compiling():
            for slot in slots:
                slot.show()
            return
        # What the sum saves for its own backward pass does not count where a checkpoint counts what is saved.
        with _LOCK, saved_tensors_hooks(_itself, _itself):
            for slot in slots:
                slot.show()

    def _hide(self, module: nn.Module) -> None:
        slots = self._slots.get(module, {})
        if torch.compiler.is_compiling():
            for slot in slots:
                slot.hide()
            return
        with _LOCK:
            for slot in slots:
                slot.hide()


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
