"""The place of a parameter in a model, and the modules that may read it.

A direction names parameters. Between a name and an edit stand tied weights, modules with several names, names with or
without the base model's prefix, and layers that another PEFT method has wrapped. All of that is settled here, once, when
an adapter is attached.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from gradiend_hub.artifact.storage import SIDECAR
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, EditError
from gradiend_hub.scope import adapter_prefixes, packed_parameters, plain_name


@dataclass(frozen=True)
class Site:
    """One parameter of a model.

    Attributes:
        name: The parameter's name, without the traces of other adapters.
        host: Module that gets the side-car as a child.
        owner: Module that holds the parameter; it is `host`, or what another adapter has wrapped in `host`.
        slots: Every `(module, attribute)` that is this very parameter; more than one if it is tied.
        readers: Modules that may read it while they run: its owners, and all modules around them.
        quantized: Its shape if its owner is a quantised linear layer, which keeps packed numbers, or a buffer, instead.
    """

    name: str
    host: nn.Module
    owner: nn.Module
    slots: tuple[tuple[nn.Module, str], ...]
    readers: tuple[nn.Module, ...]
    quantized: torch.Size | None = None

    @functools.cached_property
    def leaf(self) -> str:
        """Name of the parameter in its owner."""
        return self.name.rpartition(".")[2]


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer, quantised or not, or one that keeps its weight transposed (`Conv1D`)."""
    return isinstance(module, (nn.Linear, Conv1D)) or bool(packed_parameters(module))


def resolve_names(
    model: nn.Module, names: Iterable[str], named: Mapping[str, torch.Tensor] | None = None
) -> dict[str, str]:
    """Map a direction's parameter names to those of a model, with or without the prefix of its backbone.

    A tied parameter has one name, whichever of its names a direction uses: the first one in the model.

    Args:
        model: The model.
        names: Names to map.
        named: The `parameters` of the model's `SiteMap`, if they are at hand.

    Raises:
        BaseModelMismatchError: If a parameter is missing, or two names mean the same (tied) parameter.
    """
    named = SiteMap(model).parameters if named is None else named
    prefix = getattr(model, "base_model_prefix", "") or ""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first.setdefault(id(parameter), name)
    resolved: dict[str, str] = {}
    missing = []
    for name in names:
        candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        found = next((candidate for candidate in candidates if candidate in named), None)
        if found is None:
            missing.append(name)
        else:
            resolved[name] = first[id(named[found])]
    if missing:
        _refuse_unknown_form(model, missing[0], prefix)
        raise BaseModelMismatchError(
            f"{len(missing)} of the {len(missing) + len(resolved)} parameters of this direction do not exist in "
            f"{type(model).__name__}, e.g. {missing[0][:120]!r}. Load the base model, and the model class, that the "
            "direction was learned on."
        )
    sources: dict[str, str] = {}
    for name, found in resolved.items():
        if (other := sources.setdefault(found, name)) != name:
            raise BaseModelMismatchError(
                f"{other} and {name} are one parameter of {type(model).__name__} (tied, or with and without its prefix), "
                "but the direction lists both. Load the base model that it was learned on."
            )
    return resolved


def _refuse_unknown_form(model: nn.Module, name: str, prefix: str) -> None:
    """Say so where a model has the layer of a parameter, but packs the weight in a way that is not known here.

    Raises:
        BaseModelMismatchError: If it does.
    """
    layer, _, leaf = name.rpartition(".")
    modules = dict(model.named_modules())
    owner = next(
        (modules[n] for n in (layer, f"{prefix}.{layer}", layer.removeprefix(f"{prefix}.")) if n in modules), None
    )
    if owner is not None and leaf == "weight" and "weight" not in owner._parameters and not any(owner.children()):
        raise BaseModelMismatchError(f"{name[:120]} has no values of its own in {type(owner).__name__}. {INSTEAD}")


INSTEAD = (
    "A direction has a place beside linear layers that are quantised by bitsandbytes, GPTQ, AWQ, HQQ or to 8-bit floats. "
    "Load the base model so, or without quantisation; or merge the direction before quantising (gradiend-hub merge)."
)
"""What to do with a base model in another quantised form."""


def refuse_offloaded(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse parameters that have no values in memory.

    Raises:
        BaseModelError: Naming the first one, if there is any.
    """
    if names := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise BaseModelError(
            f"{names[0]} (and {len(names) - 1} more) has no values in memory: it is offloaded, and cannot be edited there. "
            "Load the base model without offloading, or edit a copy of it and offload the merged model."
        )


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes (FSDP, tensor parallelism): what is in memory is a part of
    them, or a copy for the time of a forward.

    Raises:
        EditError: If it is one.
    """
    for name, module in model.named_modules():
        tensors = module._parameters.values()
        if isinstance(module, (FSDPModule, FullyShardedDataParallel)) or any(isinstance(t, DTensor) for t in tensors):
            raise EditError(
                f"{name or type(model).__name__} is sharded over processes, and cannot be edited there. Apply the "
                "direction before sharding; `merge_and_unload()` gives a plain model that can be sharded."
            )


class SiteMap:
    """The sites of a model's parameters; built in one walk over its modules, then asked by name.

    Attributes:
        parameters: All parameters of the base model by name, tied ones under every name, adapters left out; what is packed
            in quantised linear layers is stood in for by a `PackedParameter`.
        quantized: Quantised linear layers by the names that their weights, and biases that are buffers, would have.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.quantized: dict[str, nn.Module] = {}
        self._modules: dict[str, nn.Module] = {}
        self._parents: dict[int, list[nn.Module]] = defaultdict(list)
        self._slots: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        self._raw_names: dict[str, str] = {}
        seen: set[int] = set()
        adapters = adapter_prefixes(model)
        for name, module in model.named_modules(remove_duplicate=False):
            if SIDECAR in name or f"{name}.".startswith(adapters):
                continue
            first = id(module) not in seen
            self._modules[name] = module
            seen.add(id(module))
            for child in module.children() if first else ():
                self._parents[id(child)].append(module)
            for leaf, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if first:
                    self._slots[id(parameter)].append((module, leaf))
                raw = f"{name}.{leaf}" if name else leaf
                plain = plain_name(raw)
                if plain not in self.parameters:
                    self.parameters[plain], self._raw_names[plain] = parameter, raw
            for leaf, packed in packed_parameters(module).items() if first else ():
                plain = plain_name(f"{name}.{leaf}")
                self.quantized[plain], self.parameters[plain] = module, packed

    def _around(self, modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
        """Modules, and all that contain them, by whichever name."""
        found, queue = {id(module): module for module in modules}, list(modules)
        while queue:
            for parent in self._parents[id(queue.pop())]:
                if id(parent) not in found:
                    found[id(parent)] = parent
                    queue.append(parent)
        return tuple(found.values())

    def __getitem__(self, name: str) -> Site:
        """The site of a parameter, by one of its names (as `resolve_names` returns them)."""
        host = self._modules[name.rpartition(".")[0]]
        if name in self.quantized:
            owner, leaf = self.quantized[name], name.rpartition(".")[2]
            return Site(name, host, owner, ((owner, leaf),), (owner,), self.parameters[name].shape)
        owner_name, _, leaf = self._raw_names[name].rpartition(".")
        owner = self._modules[owner_name]
        slots = tuple(self._slots[id(owner._parameters[leaf])])
        return Site(name, host, owner, slots, self._around([module for module, _ in slots]))


def check_shapes(model: nn.Module, named: Mapping[str, torch.Tensor], parameters: dict[str, dict[str, Any]]) -> None:
    """Compare the shapes that a direction names with those of the model's parameters.

    Raises:
        BaseModelMismatchError: With the first parameters that differ.
    """
    wrong = {n: s for n, s in parameters.items() if tuple(named[n].shape) != tuple(s["shape"])}
    if wrong:
        name, spec = next(iter(wrong.items()))
        if not named[name].is_floating_point():
            kind = str(named[name].dtype).removeprefix("torch.")
            raise BaseModelMismatchError(f"{name} is packed in {kind} numbers {list(named[name].shape)}. {INSTEAD}")
        raise BaseModelMismatchError(
            f"{len(wrong)} parameters of {type(model).__name__} have another shape than the direction, e.g. {name}: "
            f"expected {spec['shape']}, found {list(named[name].shape)}. Load the base model it was learned on."
        )
