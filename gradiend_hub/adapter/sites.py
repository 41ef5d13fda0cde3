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

from gradiend_hub.artifact.storage import SIDECAR
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, EditError
from gradiend_hub.scope import adapter_prefixes, plain_name

__all__ = ["Site", "SiteMap", "check_shapes", "refuse_offloaded", "refuse_sharded", "resolve_names"]

PACKED = ("qweight", "W_q", "codes")
FEATURES = (("out_features", "in_features"), ("outfeatures", "infeatures"))


@dataclass(frozen=True)
class Site:
    """One parameter of a model.

    Attributes:
        name: The parameter's name, without the traces of other adapters.
        host: Module that gets the side-car as a child.
        owner: Module that holds the parameter; it is `host`, or what another adapter has wrapped in `host`.
        slots: Every `(module, attribute)` that is this very parameter; more than one if it is tied.
        readers: Modules that may read it while they run: its owners, and all modules around them.
        quantized: Shape of the weight if its owner is a quantised linear layer, which keeps packed numbers instead.
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


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of the base model by name, tied ones under every name, adapters left out.

    The weight of a quantised linear layer is stood in for by an empty parameter of its shape, on the meta device.
    """
    return SiteMap(model).parameters


def quantized_shape(module: nn.Module) -> torch.Size | None:
    """Shape `[out, in]` of the weight that a quantised linear layer stands for; `None` for every other module.

    bitsandbytes and 8-bit floats keep a weight of one byte; GPTQ, AWQ and HQQ keep none under that name.
    """
    weight = module._parameters.get("weight")
    packed = any(name in module._parameters or name in module._buffers for name in PACKED)
    if not packed and (weight is None or weight.itemsize > 1):
        return None
    sizes = [(module.__dict__.get(out), module.__dict__.get(into)) for out, into in FEATURES]
    return next((torch.Size(pair) for pair in sizes if all(isinstance(size, int) for size in pair)), None)  # type: ignore[arg-type]


def resolve_names(
    model: nn.Module, names: Iterable[str], named: Mapping[str, torch.Tensor] | None = None
) -> dict[str, str]:
    """Map a direction's parameter names to those of a model, with or without the prefix of its backbone.

    A tied parameter has one name, whichever of its names a direction uses: the first one in the model.

    Args:
        model: The model.
        names: Names to map.
        named: The model's `base_parameters`, if they are at hand.

    Raises:
        BaseModelMismatchError: If a parameter is missing, or two names mean the same (tied) parameter.
    """
    named = base_parameters(model) if named is None else named
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
        parameters: As `base_parameters` returns them.
        quantized: Quantised linear layers by the name that their weight would have.
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
            if first and (shape := quantized_shape(module)) is not None:
                weight = plain_name(f"{name}.weight")
                self.quantized[weight] = module
                self.parameters[weight] = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

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
            owner = self.quantized[name]
            return Site(name, host, owner, ((owner, "weight"),), (owner,), quantized_shape(owner))
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
        raise BaseModelMismatchError(
            f"{len(wrong)} parameters of {type(model).__name__} have another shape than the direction, e.g. {name}: "
            f"expected {spec['shape']}, found {list(named[name].shape)}. Load the base model it was learned on."
        )
