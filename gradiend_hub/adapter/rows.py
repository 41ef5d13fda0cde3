"""Another strength for every row of a batch, by a side path.

Modules whose output is linear in their parameters (linear, embedding and convolution layers, norms) need no weights of
their own for each row: `f(x_i; W + Δ(s_i)) = f(x_i; W) + c_w(s_i)·f(x_i; w_d) + c_b(s_i)·f(x_i; b_d)`. The base model
runs once for the whole batch, and the two right terms are added in fp32. It is exact, up to rounding.

That holds only if nobody else computes with a touched parameter, and if the module sees the rows of the batch. Both are
watched while the model runs, and an error is raised where they fail.

The base model's values and the watch are put into the shared modules for the time of the call. Calls with strengths by row
wait for each other, in any number of threads; an ordinary call of the same model in another thread must wait for them, too,
or it meets the base model's values or the watch's error. Give such a thread a copy of the model.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradiend_hub.errors import ConfigError, EditError

from .layer import GradiendLayer

__all__ = ["row_strengths"]

LINEAR_IN_PARAMETERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)
METADATA = {
    "dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta", "layout", "is_leaf", "grad_fn", "size",
    "dim", "numel", "element_size", "is_floating_point", "is_complex", "stride", "is_contiguous",
}  # fmt: skip
"""What anybody may ask of a watched parameter; none of it depends on its values."""

_ROWS_LOCK = threading.RLock()
_running = threading.local()


class WatchedParameter(torch.Tensor):
    """A touched parameter of the base model; whoever but its own module computes with it gets an error."""

    parameter_name: str
    reader: nn.Module

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        for argument in () if name in METADATA else (*args, *(kwargs or {}).values()):
            if isinstance(argument, WatchedParameter) and argument.reader is not getattr(_running, "module", None):
                raise EditError(
                    f"{argument.parameter_name} is read by another module than its own, so it cannot differ between "
                    "the rows of a batch. Run the rows of each strength by themselves with `set_strength`."
                )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@contextmanager
def row_strengths(
    model: nn.Module, layers: list[GradiendLayer], strengths: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """While the context is open, the model's forward applies `strengths[i]` to row i.

    Args:
        model: The base model.
        layers: Its side-cars.
        strengths: As the argument `strengths` of `GradiendModel.forward`.
        args: Positional arguments of the forward.
        kwargs: Keyword arguments of the forward.

    Raises:
        ConfigError: If the strengths are no finite numbers, or not one for every row.
        EditError: If a touched parameter has no exact side path in this model.
    """
    inputs = {name: value for name, value in kwargs.items() if name != "strengths"}
    if callable(strengths):
        strengths = strengths(*args, **inputs)
    # position_ids, for one, may come first and be of one row
    first = [inputs[name] for name in ("input_ids", "inputs_embeds", "pixel_values") if name in inputs]
    batch = next((x.shape[0] for x in (*first, *args, *inputs.values()) if isinstance(x, torch.Tensor)), None)
    by_adapter = _by_adapter(layers, strengths, batch)
    paths = _side_paths(layers, by_adapter)
    with _ROWS_LOCK, _base_values(layers), _watched(paths):
        handles = []
        for path in paths:
            handles.append(path.module.register_forward_pre_hook(path.enter, prepend=True))
            handles.append(path.module.register_forward_hook(path.leave, with_kwargs=True))
        try:
            yield
        finally:
            _running.module = None
            for handle in handles:
                handle.remove()


def _by_adapter(layers: list[GradiendLayer], strengths: Any, batch: int | None) -> dict[str, torch.Tensor]:
    """Strengths by adapter, fp32 `[batch]`."""
    loaded = {name for layer in layers for name in layer.strength}
    active = list(layers[0].active_adapters) if layers else []
    if not isinstance(strengths, Mapping):
        if len(active) != 1:
            raise ConfigError(f"strengths: {len(active)} directions are active; give a dictionary by name of {active}.")
        strengths = {active[0]: strengths}
    found = {}
    for name, values in strengths.items():
        if name not in loaded:
            raise ConfigError(f"strengths: there is no direction {name!r}; loaded are {sorted(loaded)}.")
        try:
            vector = torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"strengths of {name!r}: expected numbers, found {str(values)[:80]}.") from error
        if vector.shape != (batch,) or not bool(torch.isfinite(vector).all()):
            raise ConfigError(
                f"strengths of {name!r}: expected a finite number for each of {batch} rows, found {str(values)[:80]}."
            )
        found[name] = vector
    for name in active:  # those that are not named stay as they are
        if name not in found and batch is not None:
            current = next(layer.strength[name] for layer in layers if name in layer.strength)
            found[name] = torch.full((batch,), current)
    return found


@dataclass
class _SidePath:
    """The side path of one module: all its touched parameters."""

    module: nn.Module
    strengths: dict[str, torch.Tensor]
    layers: list[GradiendLayer] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)

    def enter(self, module: nn.Module, args: Any) -> None:
        _running.module = module

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> torch.Tensor:
        _running.module = None
        rows = len(next(iter(self.strengths.values())))
        self._check_rows(args, output, rows)
        args = tuple(_wide(value) for value in args)
        kwargs = {name: _wide(value) for name, value in kwargs.items()}
        total: torch.Tensor = output.float()
        for name, strengths in self.strengths.items():
            for values, coefficients in self._terms(name, strengths):
                extra = self._run(values, args, kwargs)
                total = total + coefficients.to(extra.device).view(-1, *[1] * (extra.ndim - 1)) * extra
        return total.to(output.dtype)

    def _terms(self, adapter: str, strengths: torch.Tensor) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """`(w_d by leaf, c_w [rows])` and `(b_d by leaf, c_b [rows])`."""
        touched = [
            (leaf, layer) for leaf, layer in zip(self.leaves, self.layers, strict=True) if adapter in layer.strength
        ]
        if not touched or not bool(strengths.any()):
            return
        layer = touched[0][1]
        config, factor = layer.configs[adapter], layer.feature_factor[adapter]
        coefficients = [config.coefficients(strength, factor) for strength in strengths.tolist()]
        c_w, c_b = (torch.tensor(column) for column in zip(*coefficients, strict=True))
        yield {leaf: layer.dense(adapter, "gradiend_weight") for leaf, layer in touched}, c_w
        biases = {
            leaf: layer.dense(adapter, "gradiend_bias") for leaf, layer in touched if adapter in layer.gradiend_bias
        }
        if biases:
            yield biases, c_b

    def _run(self, values: dict[str, torch.Tensor], args: Any, kwargs: Any) -> torch.Tensor:
        """The module's output with these parameters and zeros for the others, less what zeros alone give."""
        zeros = {
            name: None if parameter is None else torch.zeros(parameter.shape, device=parameter.device)
            for name, parameter in self.module._parameters.items()
        }
        output = _forward_with(self.module, {**zeros, **values}, args, kwargs)
        if _is_norm(self.module):  # Gemma's computes (1 + W)·x
            output = output - _forward_with(self.module, zeros, args, kwargs)
        return output

    def _check_rows(self, args: Any, output: Any, rows: int) -> None:
        name, ids = self.layers[0].site.name, args[0] if args else None
        found = output.shape[0] if isinstance(output, torch.Tensor) and output.ndim else None
        if isinstance(self.module, nn.Embedding):
            square = isinstance(ids, torch.Tensor) and ids.ndim == 2 and ids.shape[0] == ids.shape[1] > 1
            fits = found in (1, rows) and not (square and "relative" in name)
        else:
            fits = found == rows
        if not fits:
            raise EditError(
                f"{name} is applied to a tensor of {found} rows, not to the {rows} rows of the batch, so it cannot "
                "differ between them. Run the rows of each strength by themselves with `set_strength`."
            )


def _is_norm(module: nn.Module) -> bool:
    """Whether the module is one of transformers' own norms; all of them are affine in their weight."""
    return type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _has_side_path(module: nn.Module) -> bool:
    return isinstance(module, LINEAR_IN_PARAMETERS) or _is_norm(module)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _forward_with(module: nn.Module, parameters: dict[str, Any], args: Any, kwargs: Any) -> torch.Tensor:
    """The module's own forward with other parameters, without its hooks."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = parameters
    result: torch.Tensor = type(module).forward(twin, *args, **kwargs)
    return result


def _side_paths(layers: list[GradiendLayer], strengths: dict[str, torch.Tensor]) -> list[_SidePath]:
    """One path for every module that holds a touched parameter (all of them, if it is tied)."""
    paths: dict[int, _SidePath] = {}
    for layer in layers:
        if not any(name in layer.strength for name in strengths):
            continue
        slots = [slot for slot in layer.site.slots if _has_side_path(slot[0]) and not layer.site.quantized]
        if not slots:
            raise EditError(
                f"{layer.site.name} belongs to a {type(layer.site.owner).__name__}, which has no exact side path for "
                "strengths by row. Run the rows of each strength by themselves with `set_strength`."
            )
        for module, leaf in slots:
            path = paths.setdefault(id(module), _SidePath(module, strengths))
            path.layers.append(layer)
            path.leaves.append(leaf)
    return list(paths.values())


@contextmanager
def _base_values(layers: list[GradiendLayer]) -> Iterator[None]:
    """The base model's own values, whether the directions are merged or not."""
    disabled = [layer for layer in layers if not layer.disable_adapters]
    try:
        for layer in disabled:
            layer._disable_adapters = True
            layer.refresh()
        yield
    finally:
        for layer in disabled:
            layer._disable_adapters = False
            layer.refresh()


@contextmanager
def _watched(paths: list[_SidePath]) -> Iterator[None]:
    """Replace the touched parameters by watched ones, each with its own module."""
    replaced: list[tuple[nn.Module, str, Any]] = []
    try:
        for site in {id(layer.site): layer.site for path in paths for layer in path.layers}.values():
            for module, leaf in site.slots:
                parameter: Any = module._parameters[leaf]
                watched: Any = parameter.detach().as_subclass(WatchedParameter)
                watched.parameter_name, watched.reader = site.name, module
                replaced.append((module, leaf, parameter))
                module._parameters[leaf] = watched
        yield
    finally:
        for module, leaf, parameter in replaced:
            module._parameters[leaf] = parameter
