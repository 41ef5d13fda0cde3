"""Products with a layer's own parameters wherever its code makes them: of experts, routers, and layers of a class unknown.

While such a layer runs, the functions of torch that it calls are watched. `linear`, `@`, `bmm`, `grouped_mm` and `embedding`
with one of its parameters, or with one matrix of a stack `[E, …]`, are those whose factors are known. Every other read of
a parameter is noted, and its gradient is not of factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradiend_hub.scope import own_parameters

from .factors import Outer, by_token, caught


class Picked(NamedTuple):
    """Tokens of a layer's input that a product is of: numbers [n] among so many; empty where they are not known."""

    tokens: Tensor
    of: int


Deliver = Callable[[str, Outer | Tensor, Picked | None], None]
"""Takes a part of a parameter's gradient: name; factors, or of a vector δ by token; tokens (`None`: all, in their order)."""


@dataclass
class Reads:
    """Names of parameters by how they were read: in products that are known, or otherwise."""

    known: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _View:
    """A parameter in a form that a tensor has: whole or one matrix of a stack, maybe transposed; a vector on an axis."""

    name: str
    number: int | None = None
    turned: bool = False
    axis: int | None = None


_SAME = {"to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous"}
_T, _MT = Tensor.T.__get__, Tensor.mT.__get__  # type: ignore[attr-defined]
_PICKING = {"__getitem__", "index_select"}
_MATMUL = {"matmul", "__matmul__", "mm", "bmm"}
_GROUPED = {"grouped_mm", "_grouped_mm", "grouped_mm_fallback"}
"""Functions of torch by name; the last are x @ w by segments of tokens, one for each matrix of a stack."""


class _Products(TorchFunctionMode):
    """Watches one run of a layer."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], tokens: int, deliver: Deliver, reads: Reads) -> None:
        super().__init__()
        self._views: dict[int, tuple[Tensor, _View]] = {id(p): (p, _View(name)) for name, p in parameters.items()}
        self._tokens, self._deliver, self._reads = tokens, deliver, reads
        self._picked: Tensor | None = None
        """Numbers of the tokens that were picked last; empty where they are not known."""
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # tensors of picked tokens, with the numbers of these

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._views.clear()  # what was cast to another type
        self._gathered.clear()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [found for leaf in tree_leaves((args, kwargs)) if (found := self._view(leaf)) is not None]
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "").partition(".")[0]
        if not read:
            if name in _PICKING:
                self._note(function, result, *args, **kwargs)
            return result
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # its shape or type
            return result
        on_axis = any(view.axis is not None for view in read)
        first = args[0] if args else None
        understood = _called(self._linear, result, args, kwargs) if name == "linear" and not on_axis else None
        if len(read) == 1 and on_axis:
            understood = self._expanded(result, read[0]) if name == "expand" else None
        elif len(read) == 1:
            if name in _SAME and self._view(first):
                understood = self._remember(result, read[0])
            elif (
                name == "t"
                or function == _MT
                or (function == _T and isinstance(first, Tensor) and first.ndim == 2)  # of three axes it turns all
                or (name == "transpose" and _swaps_last(*args, **kwargs))
            ):
                understood = self._remember(result, replace(read[0], turned=not read[0].turned))
            elif name == "__getitem__" and self._view(first):
                understood = self._item(result, read[0], *args)
            elif name in ("reshape", "view") and isinstance(first, Tensor):
                understood = self._on_axis(result, read[0], first)
            elif name == "embedding":
                understood = _called(self._embedding, result, args, kwargs)
            elif name in _MATMUL:
                understood = _called(self._matmul, result, args, kwargs)
            elif name in _GROUPED:
                understood = _called(self._grouped, result, args, kwargs)
        if understood is None:
            self._reads.other.update(view.name for view in read)
            return result
        return understood

    def _view(self, leaf: Any) -> _View | None:
        found = self._views.get(id(leaf))
        return None if found is None else found[1]

    def _remember(self, tensor: Tensor, view: _View) -> Tensor:
        self._views[id(tensor)] = tensor, view
        return tensor

    def _note(self, function: Any, result: Any, source: Any = None, *args: Any, **kwargs: Any) -> None:
        """Remember which tokens are picked, by picking from their numbers likewise."""
        if not (isinstance(source, Tensor) and isinstance(result, Tensor) and source.is_floating_point()):
            return
        shape = source.shape[:-1]
        known, count = self._gathered.get(id(source)), shape.numel()
        whole = count == self._tokens and not self._is_shuffled
        if known is None and not whole and (self._picked is None or self._picked.numel() != count):
            return
        numbers = torch.arange(count, device=source.device).view(shape) if known is None else known[1]
        try:
            picked = function(numbers, *args, **kwargs)
        except (IndexError, RuntimeError, TypeError):  # it picks features, too
            return
        if result.shape != (*picked.shape, source.shape[-1]):
            return
        if known is not None or whole:
            self._picked = picked
            self._gathered[id(result)] = result, picked
        elif not torch.equal(picked, numbers):  # maybe of those that were picked last, after other operations
            self._picked = picked.new_empty(0)

    @property
    def _is_shuffled(self) -> bool:
        """Return whether all tokens were picked last, in another order: what follows may be of either order."""
        picked = self._picked
        if picked is None or picked.numel() != self._tokens:
            return False
        return not torch.equal(picked.flatten(), torch.arange(self._tokens, device=picked.device))

    def _tokens_of(self, x: Tensor) -> Picked | None:
        """Find the tokens that an input of a product is of; `None`: all of the layer's, in their order."""
        if (known := self._gathered.get(id(x))) is not None:
            return self._some(known[1])
        shape = x.shape[:-1] if x.is_floating_point() else x.shape
        count = shape.numel()
        if not self._tokens or (count == self._tokens and not self._is_shuffled):
            return None
        if count != self._tokens and self._picked is not None and self._picked.numel() == count:
            return self._some(self._picked)
        if count != self._tokens and len(shape) > 1:  # other tokens, row by row as before: what is pooled, or heads
            return None
        return self._some(x.new_empty(0))

    def _some(self, numbers: Tensor) -> Picked:
        return Picked(numbers.flatten(), self._tokens)

    def _catch(self, output: Tensor, x: Tensor, view: _View, part: Callable[[Tensor, Tensor], Outer]) -> Tensor:
        picked = self._tokens_of(x)
        self._reads.known.add(view.name)
        return caught(output, x, lambda x, delta: self._deliver(view.name, part(x, delta), picked))

    def _linear(self, y: Tensor, x: Any, weight: Any, bias: Any = None) -> Tensor | None:
        of_weight, of_bias = self._view(weight), self._view(bias)
        if self._view(x) is not None or (of_bias is not None and bias.ndim != 1):
            return None
        picked = self._tokens_of(x)
        if of_bias is not None:
            name = of_bias.name
            self._reads.known.add(name)
            y = caught(y, x, lambda _, delta: self._deliver(name, delta, picked))
        return y if of_weight is None else self._catch(y, x, of_weight, partial(_outer, of_weight, True))

    def _matmul(self, y: Tensor, x: Any, weight: Any) -> Tensor | None:
        view = self._view(weight)
        if view is None:
            return None
        if weight.ndim == 2:
            return self._catch(y, x, view, partial(_outer, view, False))
        if x.ndim != 3 or weight.ndim != 3 or len(x) != len(weight):  # one of them is repeated
            return None
        self._reads.known.add(view.name)

        def deliver(x: Tensor, delta: Tensor) -> None:
            for number in range(len(delta)):
                part = _outer(replace(view, number=number), False, x[number][None], delta[number][None])
                self._deliver(view.name, part, None)

        return caught(y, x, deliver)

    def _grouped(self, y: Tensor, x: Any, weight: Any, offs: Any = None, bias: Any = None, **_: Any) -> Tensor | None:
        view = self._view(weight)
        if view is None or offs is None or bias is not None or weight.ndim != 3 or x.ndim != 2:
            return None
        self._reads.known.add(view.name)
        # tokens lie by expert, so those that were picked last are meant, even where they are as many as all
        picked = self._some(
            offs.new_empty(0) if self._picked is None or self._picked.numel() != len(x) else self._picked
        )

        def deliver(x: Tensor, delta: Tensor) -> None:
            for number, (start, stop) in enumerate(pairwise([0, *offs.tolist()])):
                if stop > start:
                    part = _outer(replace(view, number=number), False, x[start:stop], delta[start:stop])
                    self._deliver(view.name, part, Picked(picked.tokens[start:stop], picked.of))

        return caught(y, x, deliver)

    def _item(self, result: Tensor, view: _View, whole: Tensor, index: Any) -> Tensor | None:
        """A matrix of a stack; or rows of a matrix, such as the biases of experts."""
        is_one = isinstance(index, int) or _is_numbers(index, 0)
        if whole.ndim == 3 and is_one:
            return self._remember(result, replace(view, number=int(index) % len(whole)))
        if whole.ndim != 2 or view.number is not None or view.turned or not (is_one or _is_numbers(index, 1)):
            return None
        rows = torch.as_tensor(index, device=whole.device).view(-1) % len(whole)
        return self._catch(result, rows, view, partial(_lookup, len(whole), None))

    def _on_axis(self, result: Tensor, view: _View, vector: Tensor) -> Tensor | None:
        """A vector as a tensor of one axis that is not 1 long."""
        axes = [axis for axis, length in enumerate(result.shape) if length == len(vector)]
        if vector.ndim != 1 or len(axes) != 1:
            return None
        return self._remember(result, replace(view, axis=axes[0] - result.ndim))  # `expand` adds axes on the left

    def _expanded(self, result: Tensor, view: _View) -> Tensor:
        """A vector that is repeated for each row, such as the sinks of an attention."""
        self._reads.known.add(view.name)
        name, axis = view.name, view.axis or -1
        return caught(result, result.new_empty(0), lambda _, delta: self._deliver(name, delta.movedim(axis, -1), None))

    def _embedding(
        self, result: Tensor, x: Any, weight: Any, padding_idx: int | None = None, max_norm: Any = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Tensor | None:  # fmt: skip
        view = self._view(weight)
        if view is None or weight.ndim != 2 or view.turned or max_norm is not None or scale_grad_by_freq:
            return None
        padding = None if padding_idx is None else padding_idx % len(weight)
        return self._catch(result, x, view, partial(_lookup, len(weight), padding))


def _outer(view: _View, is_linear: bool, x: Tensor, delta: Tensor) -> Outer:
    """The gradient of what is stored, from x and δ of y = x·wᵀ (linear) or x·w."""
    left, right = (delta, x) if is_linear != view.turned else (x, delta)
    return Outer(by_token(left), by_token(right), left.shape[-1], view.number)


def _lookup(rows: int, padding: int | None, ids: Tensor, delta: Tensor) -> Outer:
    """The gradient of a matrix [rows, d], from row numbers and δ of these rows."""
    ids = ids.flatten(1) if ids.ndim > 1 else ids.reshape(-1, 1)
    delta = delta.reshape(*ids.shape, delta.shape[-1])
    if padding is not None:  # it has no gradient
        delta = delta.masked_fill((ids == padding).unsqueeze(-1), 0)
    return Outer(ids, delta, rows)


def _is_numbers(index: Any, ndim: int) -> bool:
    """Return whether an index is a tensor of whole numbers of so many dimensions."""
    whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    return whole and index.ndim == ndim


def _swaps_last(tensor: Tensor | None = None, dim0: int = 0, dim1: int = 0, **_: Any) -> bool:
    return tensor is not None and {dim0 % tensor.ndim, dim1 % tensor.ndim} == {tensor.ndim - 2, tensor.ndim - 1}


_KEYWORDS = {"input": "x", "self": "x", "other": "weight", "mat2": "weight", "mat_a": "x", "mat_b": "weight"}
"""Parameters of torch's functions, by what they are called here."""


def _called(
    method: Callable[..., Tensor | None], result: Tensor, args: Any, kwargs: Mapping[str, Any]
) -> Tensor | None:
    """Call with what a function of torch was called with; `None` where that is called in a way that is not known."""
    try:
        bound = signature(method).bind(result, *args, **{_KEYWORDS.get(name, name): of for name, of in kwargs.items()})
    except TypeError:
        return None
    return method(*bound.args, **bound.kwargs)


def read_by_itself(module: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's own parameters, without those that it shares with a layer inside it, which would be caught twice.

    BERT's head has the bias of its decoder, for example.
    """
    inside = {p for child in module.modules() if child is not module for p in own_parameters(child).values()}
    return {leaf: p for leaf, p in own_parameters(module).items() if p not in inside}


@contextmanager
def catching_products(
    layers: Mapping[nn.Module, Mapping[str, nn.Parameter]], deliver: Deliver, reads: Reads
) -> Iterator[None]:
    """Inside, backward passes hand on the factors of every product of these layers with these parameters of their own.

    The graph begins at the first of them, as in `catching`.

    Args:
        layers: parameters by name, by layer; who takes some out has them left alone from then on.
        reads: takes down which parameters were read, and how.
    """
    running: list[tuple[nn.Module, _Products]] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not layers[module]:
            return
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        tokens = given[0].numel() // max(given[0].shape[-1], 1) if given and given[0].ndim else 0
        mode = _Products(layers[module], tokens, deliver, reads)
        mode.__enter__()  # type: ignore[no-untyped-call]
        running.append((module, mode))

    def end(module: nn.Module, _args: Any, _output: Any) -> None:
        if running and running[-1][0] is module:
            running.pop()[1].__exit__(None, None, None)

    with ExitStack() as stack:
        for module in layers:
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end, always_call=True).remove)
        try:
            yield
        finally:  # no hook runs for what is no `Exception`, such as an interrupt
            while running:
                running.pop()[1].__exit__(None, None, None)
