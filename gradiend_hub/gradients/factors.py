"""Gradients by their factors: of y = x·Wᵀ it is Σ_t δ_t ⊗ x_t over tokens, with x the input and δ = ∂L/∂y.

Hooks catch x and δ of every layer whose weight is in scope, so the backward pass computes input gradients only, and a matrix
of the weight's size need never exist. Vectors (biases, norms) are small and keep their own gradient. So does a weight that
is read by code that no hook sees; it is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from gradiend_hub.errors import BaseModelError, ConfigError
from gradiend_hub.objectives import Batch, Objective, PairBatch
from gradiend_hub.scope import PackedParameter, Scope, names_of, own_parameters, packed_parameters

from .frozen import frozen
from .pairs import require_finite

__all__ = ["FactorReader", "Outer", "UnseenReads", "catching", "factors_of", "has_factors", "read_factors"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Outer:
    """Σ_t left_t ⊗ right_t [rows, columns]: a gradient with the parameter's first axis as rows, the others as columns.

    Attributes:
        left: [N, T, rows]; or whole numbers [N, T], each the one row that is not zero (of an embedding).
        right: [N, T, columns]. N is the length of the layer's first axis.
        rows: number of rows.
    """

    left: Tensor
    right: Tensor
    rows: int

    @property
    def is_lookup(self) -> bool:
        """Return whether the left factors are row numbers."""
        return not self.left.is_floating_point()

    def flat(self) -> tuple[Tensor, Tensor]:
        """Both factors in fp32 or wider, one token after another: [N·T, rows] (or [N·T]) and [N·T, columns]."""
        right = _wide(self.right.flatten(0, 1))
        return (self.left.flatten() if self.is_lookup else _wide(self.left.flatten(0, 1))), right

    def sketched(self, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """`times` a matrix [columns, k], and `timed` a matrix [l, rows], of the tokens alone that add something.

        Padding has no gradient, nor has any token but the slot's where it comes after the last attention.
        """
        part = self
        if not self.is_lookup and self.left.device.type == "cpu":  # elsewhere, asking costs more than it saves
            used = self.left.any(-1)
            if int(used.sum()) < 0.8 * used.numel():
                part = Outer(self.left[used][None], self.right[used][None], self.rows)
        return part.times(right), part.timed(left)

    def times(self, matrix: Tensor) -> Tensor:
        """The product with a matrix [columns, k] on the right: [rows, k]."""
        left, right = self.flat()
        product = right @ matrix.to(right)
        if self.is_lookup:
            return product.new_zeros(self.rows, product.shape[1]).index_add_(0, left, product)
        return left.T @ product

    def timed(self, matrix: Tensor) -> Tensor:
        """The product with a matrix [l, rows] on the left: [l, columns]."""
        left, right = self.flat()
        matrix = matrix.to(right)
        return (matrix[:, left] if self.is_lookup else matrix @ left.T) @ right

    def dense(self) -> Tensor:
        """The matrix itself: [rows, columns], fp32 or wider."""
        left, right = self.flat()
        if self.is_lookup:
            return right.new_zeros(self.rows, right.shape[1]).index_add_(0, left, right)
        return left.T @ right


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ------------------------------------------------------------------------------------------- layers whose factors are known


def factors_of(module: nn.Module, x: Tensor, delta: Tensor) -> Outer:
    """The gradient of a layer's weight, from its input and the gradient of its output. See `has_factors`."""
    if packed := packed_parameters(module):
        return Outer(_by_token(delta), _by_token(x), packed["weight"].shape[0])
    if isinstance(module, nn.Embedding):
        if module.padding_idx is not None:  # it has no gradient
            delta = delta.masked_fill((x == module.padding_idx).unsqueeze(-1), 0)
        return Outer(_by_token(x.unsqueeze(-1)).squeeze(-1), _by_token(delta), module.num_embeddings)
    if isinstance(module, Conv1D):
        return Outer(_by_token(x), _by_token(delta), module.weight.shape[0])
    if isinstance(module, nn.Linear):
        return Outer(_by_token(delta), _by_token(x), module.weight.shape[0])
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    if isinstance(module, nn.Conv1d):
        x, delta = x.unsqueeze(-2), delta.unsqueeze(-2)
    options = [getattr(module, name) for name in ("kernel_size", "dilation", "padding", "stride")]
    flat = isinstance(module, nn.Conv1d)
    kernel, dilation, padding, stride = (
        (neutral, *v) if flat else v for neutral, v in zip((1, 1, 0, 1), options, strict=True)
    )
    patches = unfold(x, kernel, dilation, padding, stride)  # [N, columns, places]
    return Outer(delta.flatten(2).mT, patches.mT, module.weight.shape[0])


def _by_token(tensor: Tensor) -> Tensor:
    """[N, …, F] → [N, T, F]; a single vector is one token."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1, tensor.shape[-1])


def has_factors(module: nn.Module) -> bool:
    """Return whether the layer computes what its class says, so that `factors_of` is right for its weight.

    Of a quantised layer the weight is what it computes with, as far as `y = x·Wᵀ` holds: 8-bit layers round x, too.
    """
    if packed_parameters(module):
        return True
    forward = type(module).forward
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and forward in (nn.Conv1d.forward, nn.Conv2d.forward)
    if isinstance(module, nn.Embedding):
        return forward is nn.Embedding.forward and module.max_norm is None and not module.scale_grad_by_freq
    return forward in (nn.Linear.forward, Conv1D.forward)


# ----------------------------------------------------------------------------------------------------------- what is caught


class _Caught(torch.autograd.Function):
    """The identity, that hands on the gradient of a layer's output with the layer's input.

    The input is saved as autograd saves any: with gradient checkpointing it is computed anew.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, deliver: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.deliver = deliver
        # not a view for autograd, which would refuse in-place operations on it
        return output.data

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.deliver(x, deltas[0])
        return deltas[0] if ctx.needs_input_grad[0] else None, None, None, None


@contextmanager
def catching(modules: Iterable[nn.Module], deliver: Callable[[nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, backward passes hand on (module, x, δ) of every call of these modules that they reach.

    The graph begins at the first of them, whether or not any parameter requires a gradient.

    Raises:
        BaseModelError: in a forward pass, when one of them has no gradient of its input, as kernels for inference alone.
    """
    anchors: dict[torch.device, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        x = args[0] if args else next(iter(kwargs.values()))
        if x.requires_grad and not output.requires_grad:
            raise BaseModelError(
                f"A {type(module).__name__} computes no gradient of its input here, so nothing can be learned from the "
                "layers before it. Load the base model with kernels that are made for training (of GPTQ and AWQ: the "
                "backend torch), or without quantisation."
            )
        anchor = anchors.setdefault(output.device, torch.zeros((), device=output.device, requires_grad=True))
        return _Caught.apply(output, x.detach().to(output.device), anchor, partial(deliver, module))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


class UnseenReads(TorchFunctionMode):
    """Finds parameters that are read while none of their own layers runs."""

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
        known = {*self._layers.values(), *self._biases.values()}
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

    def __enter__(self) -> FactorReader:
        if offloaded := [
            n for n, p in self.scope.parameters.items() if p.is_meta and not isinstance(p, PackedParameter)
        ]:
            raise ConfigError(
                f"{len(offloaded)} parameters in scope are offloaded to disk or CPU and have no gradient here "
                f"({names_of(offloaded)}). Choose a scope or a device_map that keeps them on a device."
            )
        self._stack = ExitStack()
        self._stack.enter_context(frozen(self.model))
        self._stack.enter_context(catching({**self._layers, **self._biases}, self._caught))
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
            self._hand_on(name, _wide(grad))

        self._stack.callback(parameter.register_post_accumulate_grad_hook(gather).remove)

    def _caught(self, module: nn.Module, x: Tensor, delta: Tensor) -> None:
        if (name := self._layers.get(module)) is not None:
            self._hand_on(name, factors_of(module, x, delta))
        if (name := self._biases.get(module)) is not None:
            self._hand_on(name, _wide(delta.flatten(0, -2)).sum(0))

    def _hand_on(self, name: str, part: Outer | Tensor) -> None:
        if self._sink is None:  # a pass of somebody else, such as the encodings of an evaluation between two steps
            return
        self.silent.pop(name, None)
        self._sink(name, part)

    def forward(self, compute: Callable[[], T]) -> T:
        """Run a forward pass of the model. The first one is watched for parameters that are read past their layers."""
        if self._watched:
            return compute()
        self._watched = True
        owners = [(module, self.scope.parameters[name]) for module, name in self._layers.items()]
        unseen = UnseenReads({self.scope.parameters[n]: n for n in self._layers.values()}, owners)
        with unseen.watching():
            result = compute()
        if unseen.found:
            self._layers = {module: name for module, name in self._layers.items() if name not in unseen.found}
            self.own |= unseen.found
            for name in unseen.found:
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
            rows = reader.forward(partial(_losses, reader, objective, slots))
            require_finite(rows)
            for number, (scale, sink) in enumerate(wanted):
                reader.read(scale * rows.sum(), sink, retain_graph=number + 1 < len(wanted))


def _losses(reader: FactorReader, objective: Objective, slots: Batch) -> Tensor:
    return objective.nll(objective.log_probs(reader.model, slots), slots.labels)
