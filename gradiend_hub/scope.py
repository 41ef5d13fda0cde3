"""Scopes: the parameters, and their coordinates, that a direction lives on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradiend_hub.artifact.storage import index_dtype
from gradiend_hub.errors import ConfigError
from gradiend_hub.printable import aligned

_LAST_BLOCK = 9999
BLOCK = re.compile(r"(?:^|\.)(\d+)\.")

PACKED = ("qweight", "W_q", "codes", "weight_packed")
"""Names under which layers keep packed numbers in place of a weight: GPTQ and AWQ, HQQ, AQLM, compressed-tensors."""
PACKED_TENSORS = ("torchao.", "optimum.quanto.")
"""Packages whose own kinds of tensors hold packed numbers under the name of the weight."""
FEATURES = (("out_features", "in_features"), ("outfeatures", "infeatures"))


class PackedParameter(nn.Parameter):
    """Stands for a parameter of a quantised linear layer that is none there: a shape on the meta device, without values.

    It is the weight `[out, in]`, or a bias `[out]` that the layer keeps as a buffer.
    """


_packed_parameters: WeakKeyDictionary[nn.Module, dict[str, PackedParameter]] = WeakKeyDictionary()


def packed_parameters(module: nn.Module) -> dict[str, PackedParameter]:
    """Return stand-ins for the parameters of a quantised linear layer, the same at each call; empty for every other module.

    bitsandbytes and 8-bit floats keep a weight of one byte, GPTQ, AWQ and HQQ none under that name.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        if not any(name in module._parameters or name in module._buffers for name in PACKED):
            return {}
    elif weight.itemsize > 1 and not type(weight).__module__.startswith(PACKED_TENSORS):
        return {}
    sizes = [(module.__dict__.get(out), module.__dict__.get(into)) for out, into in FEATURES]
    shape = next((pair for pair in sizes if all(isinstance(size, int) for size in pair)), None)
    if shape is None:
        return {}
    shapes = {"weight": shape} | ({"bias": shape[:1]} if module._buffers.get("bias") is not None else {})
    known = _packed_parameters.get(module, {})
    if {leaf: tuple(stand_in.shape) for leaf, stand_in in known.items()} != shapes:
        known = {
            leaf: PackedParameter(torch.empty(size, device="meta"), requires_grad=False)  # type: ignore[arg-type]
            for leaf, size in shapes.items()
        }
        _packed_parameters[module] = known
    return known


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself, without those of its children; of a quantised linear layer weight and bias."""
    own: dict[str, nn.Parameter | None] = module._parameters
    if packed := packed_parameters(module):  # scales and the like are part of the weight
        own = {"weight": None, "bias": own.get("bias"), **packed}
    return {leaf: parameter for leaf, parameter in own.items() if parameter is not None}


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model by its own names, in its own order, tied ones once; adapters are not left out."""
    found: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in own_parameters(module).items():
            found.setdefault(parameter, f"{prefix}.{leaf}" if prefix else leaf)
    return {name: parameter for parameter, name in found.items()}


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters by their plain names; of tied ones, any of their names will do.

    Raises:
        KeyError: there is none of that name.
    """
    every = {
        plain_name(f"{prefix}.{leaf}" if prefix else leaf): parameter
        for prefix, module in model.named_modules(remove_duplicate=False)
        for leaf, parameter in own_parameters(module).items()
    }
    return {name: every[name] for name in names}


def select_parameters(
    model: nn.Module,
    *,
    scope: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    layers: str | None = None,
) -> dict[str, nn.Parameter]:
    """The model's parameters that a direction may touch, by name, in the model's own order; tied ones once.

    Args:
        model: any module; adapters that sit on it are ignored, and names are those without them.
        scope: wildcard patterns of parameter names (`"*.attention.*"`), or `"type:LayerNorm"` for the parameters of
            every module of that class. Default: the repeated layers of the backbone, which leaves out embeddings, the
            final norm, pooler and head.
        exclude: patterns of the same kind to leave out.
        layers: block numbers such as `"8-11"` or `"0,2,5-7"`, counted as in the parameter names.

    Raises:
        ConfigError: a pattern or a layer that matches nothing, or nothing left.
    """
    refuse_peft_model(model)
    owners = {plain_name(name): type(module).__name__ for name, module in model.named_modules()}
    adapters = adapter_prefixes(model)
    every = {
        plain_name(name): parameter
        for name, parameter in base_parameters(model).items()
        if parameter.is_floating_point() and not name.startswith(adapters)
    }
    names = list(every)
    if scope is None:
        prefix = _backbone(model)
        backbone = [n for n in names if n.startswith(f"{prefix}.")] if prefix else []
        backbone = backbone or names
        names = [n for n in backbone if BLOCK.search(n)] or backbone
    else:
        names = _matching(names, scope, owners, "scope")
    if layers is not None:
        wanted = _layer_numbers(layers)
        found = {int(m[1]) for n in names if (m := BLOCK.search(n))}
        if missing := sorted(wanted - found):
            raise ConfigError(f"layers={layers!r}: no block {missing} in scope; found blocks {sorted(found)}.")
        names = [n for n in names if (m := BLOCK.search(n)) and int(m[1]) in wanted]
    if exclude is not None:
        left_out = set(_matching(names, exclude, owners, "exclude"))
        names = [n for n in names if n not in left_out]
    if not names:
        raise ConfigError(f"No parameter is left in scope (scope={scope!r}, exclude={exclude!r}, layers={layers!r}).")
    return {name: every[name] for name in names}


def _backbone(model: nn.Module) -> str:
    """Return the name of the module that reads the text: of a model of images and text, its text part alone."""
    config: Any = getattr(model, "config", None)
    if isinstance(model, PreTrainedModel) and not config.is_encoder_decoder and config.get_text_config() is not config:
        decoder = model.get_decoder()
        name = next((name for name, module in model.named_modules() if module is decoder), "")
        if name:
            return name
    return getattr(model, "base_model_prefix", "") or ""


def refuse_peft_model(model: nn.Module) -> None:
    """Refuse a model around a base with adapters, before anything is done with it.

    Raises:
        ConfigError: If it is one.
    """
    from peft import PeftModel  # PEFT registers the adapter when it is imported, which needs this module

    if isinstance(model, PeftModel):
        raise ConfigError(
            f"The model is a {type(model).__name__}, whose parameters have other names. Pass its base, "
            "`model.get_base_model()`: the adapter stays on it and is active, and the direction fits the plain base, too."
        )


def actual_names(model: nn.Module) -> dict[str, str]:
    """Plain name of every parameter → its name in the model, where PEFT methods may have wrapped modules."""
    return {plain_name(name): name for name, _ in model.named_parameters(remove_duplicate=False)}


def plain_name(name: str) -> str:
    """A name of the base model, without the trace of PEFT methods that have wrapped the module."""
    return name.replace(".base_layer", "")


def adapter_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that adapters of PEFT have added to a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # here for the same reason as above

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return tuple(f"{name}.{kind}." for name, module in layers for kind in module.adapter_layer_names)


def _matching(names: list[str], wanted: str | Sequence[str], owners: Mapping[str, str], option: str) -> list[str]:
    """Names that match a pattern, or any of several, in order. One that matches nothing is a mistake, not a wish."""
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)

    def hit(name: str, pattern: str) -> bool:
        if pattern.startswith("type:"):
            return owners[name.rpartition(".")[0]] == pattern.removeprefix("type:")
        return fnmatchcase(name, pattern)

    for pattern in patterns:
        if not any(hit(name, pattern) for name in names):
            raise ConfigError(f"{option}: {pattern!r} matches no parameter. Names look like {names[:3]}.")
    return [name for name in names if any(hit(name, pattern) for pattern in patterns)]


def _layer_numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?", part)
        if bounds is None or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise ConfigError(f"layers={text!r}: expected numbers and ranges such as '8-11' or '0,2,5-7'.")
        if int(bounds[2] or bounds[1]) > _LAST_BLOCK:  # a stranger's range might never end
            raise ConfigError(f"layers={text!r}: no model has a block {bounds[2] or bounds[1]}.")
        numbers.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    return numbers


@dataclass(frozen=True)
class Scope:
    """A named, ordered set of parameter coordinates: the axes of one flat gradient vector.

    `kept[name]` holds sorted flat indices into that parameter; a name without an entry keeps every coordinate.
    """

    parameters: Mapping[str, nn.Parameter]
    kept: Mapping[str, Tensor]

    @classmethod
    def dense(cls, parameters: Mapping[str, nn.Parameter]) -> Scope:
        return cls(parameters, {})

    @property
    def sizes(self) -> dict[str, int]:
        return {n: len(self.kept[n]) if n in self.kept else p.numel() for n, p in self.parameters.items()}

    @property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes.values())

    @property
    def density(self) -> float:
        """Share of the parameters' coordinates that are kept."""
        return self.size / max(sum(p.numel() for p in self.parameters.values()), 1)

    def slices(self) -> dict[str, slice]:
        """Return the place of each parameter's coordinates in the flat vector."""
        ends = list(accumulate(self.sizes.values()))
        return {n: slice(end - size, end) for (n, size), end in zip(self.sizes.items(), ends, strict=True)}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector [n] by parameter."""
        return {name: flat[where] for name, where in self.slices().items()}

    def dense_tensors(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector [n] as full tensors in the parameters' shapes and dtypes, zero where nothing is kept."""
        tensors: dict[str, Tensor] = {}
        for name, values in self.split(flat).items():
            parameter = self.parameters[name]
            values = values.to(parameter.device, parameter.dtype)
            if name in self.kept:
                full = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
                values = full.index_copy_(0, self.kept[name].to(parameter.device).long(), values)
            tensors[name] = values.view(parameter.shape)
        return tensors

    def keep(self, chosen: Mapping[str, Tensor]) -> Scope:
        """The same scope with only the coordinates `chosen`; parameters without any are dropped.

        Args:
            chosen: sorted places by parameter, among those of its coordinates that are kept.
        """
        kept = {}
        for name, places in chosen.items():
            if len(places):
                flat = self.kept[name].to(places.device)[places] if name in self.kept else places
                kept[name] = flat.to("cpu", index_dtype(self.parameters[name].numel()))
        return Scope({n: self.parameters[n] for n in self.parameters if n in kept}, kept)

    def summary(self) -> str:
        """One line: tensors, coordinates and their share of the tensors they are in."""
        total = sum(p.numel() for p in self.parameters.values())
        return f"{len(self.parameters)} tensors, {self.size:,} of {total:,} weights ({self.density:.2%})"

    def table(self, model: nn.Module) -> str:
        """Return the scope as a table: tensors, kept entries, and their share of the model's parameters.

        One line for each range of blocks that have as many tensors and entries, one for what is in no block, and a total.
        """
        whole = sum(p.numel() for p in base_parameters(model).values())
        counts: dict[int | None, tuple[int, int]] = {}
        for name, size in self.sizes.items():
            block = int(match[1]) if (match := BLOCK.search(name)) else None
            tensors, entries = counts.get(block, (0, 0))
            counts[block] = (tensors + 1, entries + size)
        outside = counts.pop(None, None)
        lines = [("scope", "tensors", "entries", "of model")]

        def add(label: str, tensors: int, entries: int) -> None:
            lines.append((label, f"{tensors:,}", f"{entries:,}", f"{entries / max(whole, 1):.2%}"))

        blocks: list[int] = []
        for block in sorted(b for b in counts if b is not None):
            blocks.append(block)
            if counts.get(block + 1) != counts[block]:  # the range ends here
                label = f"blocks {blocks[0]}-{block}" if len(blocks) > 1 else f"block {block}"
                add(label, sum(counts[b][0] for b in blocks), sum(counts[b][1] for b in blocks))
                blocks.clear()
        if outside:
            add("other", *outside)
        add("total", len(self.parameters), self.size)
        return aligned(lines)


def names_of(parameters: Iterable[str], limit: int = 3) -> str:
    """A few names for a message."""
    names = list(parameters)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
