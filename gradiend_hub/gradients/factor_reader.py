"""Reads gradients by their factors, and hands them on part by part. See `factors`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradiend_hub.errors import BaseModelError, ConfigError
from gradiend_hub.objectives import Objective, PairBatch
from gradiend_hub.scope import Scope, names_of, own_parameters, packed_parameters

from .factors import Outer, catching, factors_of, has_factors, wide
from .frozen import frozen
from .pairs import refuse_offloaded, require_finite
from .products import Reads, catching_products, read_by_itself

logger = logging.getLogger(__name__)

T = TypeVar("T")


class UnseenReads(TorchFunctionMode):
    """Finds parameters that are read while none of their own layers runs; what these do with them is for others to see."""

    def __init__(self, names: Mapping[nn.Parameter, str], owners: Iterable[tuple[nn.Module, nn.Parameter]]) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._names, self._owners, self._running = names, list(owners), list[nn.Parameter]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter) and leaf in self._names and not any(leaf is p for p in self._running):
                    self.found[self._names[leaf]] = None
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, reads are watched."""
        with ExitStack() as stack:
            for module, parameter in self._owners:
                stack.callback(module.register_forward_pre_hook(partial(self._begin, parameter)).remove)
                stack.callback(module.register_forward_hook(self._end, always_call=True).remove)
            with self:
                yield

    def _begin(self, parameter: nn.Parameter, _module: nn.Module, _args: Any) -> None:
        self._running.append(parameter)

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._running.pop()


def stacks(model: nn.Module, scope: Scope) -> frozenset[str]:
    """Names of the parameters [E, …] that are stacks of matrices, such as experts', and no kernels of convolutions."""
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))}
    return frozenset(name for name, p in scope.parameters.items() if p.ndim == 3 and id(p) not in kernels)


class FactorReader:
    """Reads ∇L of the scope's parameters by factors, and hands each part on as soon as it is known.

    A context manager, as `GradientReader` is; inside, only the parameters in `own` require gradients.

    Args:
        scope: whole parameters; a scope that keeps some of their coordinates is for `GradientReader`.

    Attributes:
        own: names of the parameters that are differentiated themselves: vectors, and matrices of which no factors are known.
        silent: names of parameters that had no gradient so far.

    Raises:
        ConfigError: on entry, when a parameter in scope is offloaded.
    """

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        if scope.kept:
            raise ConfigError("Gradients by factors are of whole parameters; use a density of 1.")
        self.model, self.scope = model, scope
        self.silent = dict.fromkeys(scope.parameters)
        names = {parameter: name for name, parameter in scope.parameters.items()}
        layers = [module for module in model.modules() if has_factors(module)]
        weights = {module: own_parameters(module).get("weight") for module in layers}
        self._layers = {module: names[weight] for module, weight in weights.items() if weight in names}
        biases = {module: packed_parameters(module).get("bias") for module in layers}
        self._biases = {module: names[bias] for module, bias in biases.items() if bias in names}
        self._sink: Callable[[str, Outer | Tensor], None] | None = None
        self._products = {
            module: own
            for module in model.modules()
            if not has_factors(module)
            and (own := {names[p]: p for p in read_by_itself(module).values() if p in names and p.ndim > 1})
        }
        self._reads = Reads()
        known = {*self._layers.values(), *self._biases.values(), *self._in_products}
        self.own = {name: None for name in scope.parameters if name not in known}
        self._watched = False

    @property
    def device(self) -> torch.device:
        """Device of inputs: that of the model's first parameter."""
        return next(self.model.parameters()).device

    @property
    def matrices_of_their_own(self) -> list[str]:
        """Names of the parameters that are not vectors, and of which no factors are known."""
        return [name for name in self.own if self.scope.parameters[name].ndim > 1]

    @property
    def _in_products(self) -> set[str]:
        return {name for own in self._products.values() for name in own}

    def __enter__(self) -> FactorReader:
        refuse_offloaded(self.scope)
        self._stack = ExitStack()
        self._stack.enter_context(frozen(self.model))
        self._stack.enter_context(catching({**self._layers, **self._biases}, self._caught))
        self._stack.enter_context(
            catching_products(self._products, lambda name, part, _: self._hand_on(name, part), self._reads)
        )
        for name in self.own:
            self._differentiate(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _differentiate(self, name: str) -> None:
        parameter = self.scope.parameters[name]
        parameter.requires_grad_(True)

        def gather(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None
            self._hand_on(name, wide(grad))

        self._stack.callback(parameter.register_post_accumulate_grad_hook(gather).remove)

    def _caught(self, module: nn.Module, x: Tensor, delta: Tensor) -> None:
        if (name := self._layers.get(module)) is not None:
            self._hand_on(name, factors_of(module, x, delta))
        if (name := self._biases.get(module)) is not None:
            self._hand_on(name, wide(delta.flatten(0, -2)).sum(0))

    def _hand_on(self, name: str, part: Outer | Tensor) -> None:
        if self._sink is None:  # a pass of somebody else, such as the encodings of an evaluation between two steps
            return
        self.silent.pop(name, None)
        self._sink(name, part)

    def forward(self, compute: Callable[[], T]) -> T:
        """Run a forward pass of the model. The first one is watched for parameters that are read past their layers.

        Raises:
            BaseModelError: a later one reads a parameter in another way.
        """
        if self._watched:
            result = compute()
            if new := self._reads.other - self.own.keys():
                raise BaseModelError(
                    f"{names_of(sorted(new))} of {type(self.model).__name__}: read in another way than in the first batch, "
                    "so their gradients would be incomplete. Leave them out of the scope (`exclude`), and report the model."
                )
            return result
        self._watched = True
        owners = [(module, self.scope.parameters[name]) for module, name in self._layers.items()]
        owners += [(module, parameter) for module, own in self._products.items() for parameter in own.values()]
        unseen = UnseenReads(
            {self.scope.parameters[n]: n for n in (*self._layers.values(), *self._in_products)}, owners
        )
        with unseen.watching():
            result = compute()
        never = self._in_products - self._reads.known - {*self._layers.values()}
        if fallen := {*unseen.found} | self._reads.other | never:
            self._layers = {module: name for module, name in self._layers.items() if name not in fallen}
            for own in self._products.values():
                for name in fallen.intersection(own):
                    del own[name]
            for name in (name for name in self.scope.parameters if name in fallen):
                self.own[name] = None
                self._differentiate(name)
            result = compute()
        if named := self.matrices_of_their_own:
            logger.info(
                "%d matrices have gradients of their own, as no factors of them are known: %s",
                len(named),
                names_of(named),
            )
        return result

    def read(self, loss: Tensor, sink: Callable[[str, Outer | Tensor], None], *, retain_graph: bool = False) -> None:
        """Hand ∇loss on in parts: an `Outer`, or the gradient itself in the parameter's shape, fp32 or wider.

        The gradient of a parameter is the sum of its parts; there are several where its layer runs more than once.
        """
        self._sink = sink
        try:
            if loss.requires_grad:
                torch.autograd.backward(loss, retain_graph=retain_graph)
        finally:
            self._sink = None
            for name in self.own:
                self.scope.parameters[name].grad = None


def read_factors(
    reader: FactorReader,
    objective: Objective,
    batch: PairBatch,
    sinks: Mapping[str, Callable[[str, Outer | Tensor], None]],
) -> None:
    """Hand on gradients of the *summed* loss over the rows of a batch, each to its sink.

    Args:
        sinks: by gradient: "factual" (g_f), "alternative" (g_a) or "diff" (g_f − g_a).

    Raises:
        NotFiniteError: a loss is not finite. Whether the gradients are is for who sums them to see.
    """
    if batch.shared:
        factual, alternative = reader.forward(lambda: objective.losses(reader.model, batch))
        require_finite(factual + alternative)
        losses = {"factual": factual.sum(), "alternative": alternative.sum()}
        losses["diff"] = losses["factual"] - losses["alternative"]
        for name in sinks:
            reader.read(losses[name], sinks[name], retain_graph=name != list(sinks)[-1])
        return
    for side, slots, sign in (("factual", batch.factual, 1.0), ("alternative", batch.alternative, -1.0)):
        wanted = [(scale, sinks[name]) for name, scale in ((side, 1.0), ("diff", sign)) if name in sinks]
        if wanted:
            rows = reader.forward(partial(objective.row_losses, reader.model, slots))
            require_finite(rows)
            for number, (scale, sink) in enumerate(wanted):
                reader.read(scale * rows.sum(), sink, retain_graph=number + 1 < len(wanted))
