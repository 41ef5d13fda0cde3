"""Showing another tensor in a parameter's place to the modules that read it, while they run."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gradiend_hub.errors import EditError

from .sites import Site

__all__ = ["ShownParameter"]

_SWAP_LOCK = threading.RLock()


class ShownParameter:
    """A parameter of a model, and the hooks on its readers; concurrent forwards share one swap."""

    _site: tuple[Site]
    _depth: int
    _stash: tuple[torch.Tensor, ...]  # in a tuple, so that torch does not take it for a parameter of this module
    _handles: list[RemovableHandle]

    @abstractmethod
    def shown(self, base: torch.Tensor) -> torch.Tensor:
        """What the readers see; `base` itself if there is nothing to show."""

    @property
    def site(self) -> Site:
        """Where the parameter lives."""
        return self._site[0]

    @property
    def base_parameter(self) -> torch.Tensor:
        """The parameter itself, also while hooks show another tensor in its place."""
        if self._stash:
            return self._stash[0]
        site = self._site[0]
        owner, leaf = site.owner, site.leaf
        # FSDP (use_orig_params) keeps plain tensors in __dict__ while a module is unsharded.
        found = owner.__dict__[leaf] if leaf in owner.__dict__ else owner._parameters.get(leaf)
        if found is None:
            raise EditError(
                f"{site.name} is no plain parameter any more: another adapter (LoRA's `target_parameters`) has put a "
                "computed one in its place. Merge the direction first, with `merge_and_unload()`."
            )
        return found

    def _hang_hooks(self) -> None:
        for reader in self.site.readers:
            self._handles.append(reader.register_forward_pre_hook(self._enter))
            self._handles.append(reader.register_forward_hook(self._leave, always_call=True))

    def _unwatch(self) -> None:
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
        if self._depth > 1:
            return
        base = self.base_parameter
        shown = self.shown(base)
        if shown is not base:
            self._stash = (base,)
            self._assign(shown)

    def _hide(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._put_back()

    def _put_back(self) -> None:
        if self._stash:
            (base,), self._stash = self._stash, ()
            self._assign(base)

    def recover(self) -> None:
        """Put the parameter back that an interrupted forward has left replaced: torch runs no hooks after a Ctrl-C."""
        with _SWAP_LOCK:
            self._depth = 0
            self._put_back()

    def _assign(self, tensor: torch.Tensor) -> None:
        for module, leaf in self.site.slots:
            store: dict[str, Any] = module.__dict__ if leaf in module.__dict__ else module._parameters
            store[leaf] = tensor
            if isinstance(module, nn.RNNBase):  # keeps a list of its own
                module._flat_weights[module._flat_weights_names.index(leaf)] = tensor
