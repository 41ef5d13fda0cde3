"""Gradients by their factors: of y = x·Wᵀ it is Σ_t δ_t ⊗ x_t over tokens, with x the input and δ = ∂L/∂y.

Hooks catch x and δ of every layer whose weight is in scope, so the backward pass computes input gradients only, and a matrix
of the weight's size need never exist. Vectors (biases, norms) are small and keep their own gradient. So does a weight that
is read by code that no hook sees (`products` sees most of it); it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from transformers.pytorch_utils import Conv1D

from gradiend_hub.errors import BaseModelError
from gradiend_hub.scope import packed_parameters


@dataclass(frozen=True)
class Outer:
    """Σ_t left_t ⊗ right_t [rows, columns]: a gradient with the parameter's first axis as rows, the others as columns.

    Attributes:
        left: [N, T, rows]; or whole numbers [N, T], each the one row that is not zero (of an embedding).
        right: [N, T, columns]. N is the length of the layer's first axis.
        rows: number of rows.
        number: of a stack of matrices: which of them this is the gradient of.
    """

    left: Tensor
    right: Tensor
    rows: int
    number: int | None = None

    @property
    def is_lookup(self) -> bool:
        """Return whether the left factors are row numbers."""
        return not self.left.is_floating_point()

    def flat(self) -> tuple[Tensor, Tensor]:
        """Both factors in fp32 or wider, one token after another: [N·T, rows] (or [N·T]) and [N·T, columns]."""
        right = wide(self.right.flatten(0, 1))
        return (self.left.flatten() if self.is_lookup else wide(self.left.flatten(0, 1))), right

    def sketched(self, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """`times` a matrix [columns, k], and `timed` a matrix [l, rows], of the tokens alone that add something.

        Padding has no gradient, nor has any token but the slot's where it comes after the last attention.
        """
        part = self
        if not self.is_lookup and self.left.device.type == "cpu":  # elsewhere, asking costs more than it saves
            delta, x = self.flat()
            # a norm takes a sixth of the time of `any`; it is zero below 1e-22, too, which no fp32 sum would show
            used = delta.norm(dim=-1).nonzero().view(-1)
            if len(used) < 0.8 * len(delta):
                part = replace(self, left=delta.index_select(0, used)[None], right=x.index_select(0, used)[None])
        return part.times(right), part.timed(left)

    def times(self, matrix: Tensor) -> Tensor:
        """The product with a matrix [columns, k] on the right: [rows, k]."""
        left, right = self.flat()
        product = right @ matrix.to(right)
        if self.is_lookup:
            return product.new_zeros(self.rows, product.shape[1]).index_add_(0, left, product)
        return (product.T @ left).T  # in this order of the same sums, half of the time

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


def wide(tensor: Tensor) -> Tensor:
    """Convert to fp32; what is wider stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ------------------------------------------------------------------------------------------- layers whose factors are known


def factors_of(module: nn.Module, x: Tensor, delta: Tensor) -> Outer:
    """The gradient of a layer's weight, from its input and the gradient of its output. See `has_factors`."""
    if packed := packed_parameters(module):
        return Outer(by_token(delta), by_token(x), packed["weight"].shape[0])
    if isinstance(module, nn.Embedding):
        if module.padding_idx is not None:  # it has no gradient
            delta = delta.masked_fill((x == module.padding_idx).unsqueeze(-1), 0)
        return Outer(by_token(x.unsqueeze(-1)).squeeze(-1), by_token(delta), module.num_embeddings)
    if isinstance(module, Conv1D):
        return Outer(by_token(x), by_token(delta), module.weight.shape[0])
    if isinstance(module, nn.Linear):
        return Outer(by_token(delta), by_token(x), module.weight.shape[0])
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


def by_token(tensor: Tensor) -> Tensor:
    """Give a tensor an axis of tokens: [N, …, F] → [N, T, F]; a single vector is one token."""
    # not -1, which cannot be told where there are no tokens, as of an expert that no token was picked for
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, tensor.shape[1:-1].numel(), tensor.shape[-1])


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


def caught(output: Tensor, x: Tensor, deliver: Callable[[Tensor, Tensor], None]) -> Tensor:
    """An output that hands on (x, δ) in each backward pass that reaches it. The graph begins here at the latest."""
    if not torch.is_grad_enabled():
        return output
    anchor = torch.empty((), device=output.device, requires_grad=True)
    found: Tensor = _Caught.apply(output, x.detach().to(output.device), anchor, deliver)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def catching(modules: Iterable[nn.Module], deliver: Callable[[nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, backward passes hand on (module, x, δ) of every call of these modules that they reach.

    The graph begins at the first of them, whether or not any parameter requires a gradient.

    Raises:
        BaseModelError: in a forward pass, when one of them has no gradient of its input, as kernels for inference alone.
    """

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
        return caught(output, x, partial(deliver, module))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield
