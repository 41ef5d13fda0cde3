"""⟨w, ∇L_i⟩ of every row of a batch from one pass of input gradients: Σ_t δ_t·(w x_t) over the tokens of row i.

With w = b·a of rank r that is (δ b)·(a x), and of a sparse w it is as much work as w has entries. Of norms and other small
layers it is ⟨δ, dy⟩, with dy their derivative along w. An expert's tokens are those that were picked for it. What no hook
sees has a gradient of its own, which serves one row at a time. Only attention kernels' backward formulas are needed, so any
of them will do.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.artifact.storage import SIDECAR
from gradiend_hub.objectives import Batch, Objective
from gradiend_hub.scope import parameters_of

from .factor_reader import UnseenReads
from .factors import Outer, catching, factors_of, has_factors
from .frozen import frozen
from .products import Picked, Reads, catching_products, read_by_itself


@dataclass(frozen=True, eq=False)
class Entries:
    """A sparse vector over a parameter: values [k] at sorted flat positions [k], of a shape."""

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """Return a dense tensor in the parameter's shape, zero elsewhere."""
        flat = torch.zeros(self.shape, dtype=self.values.dtype).flatten()
        return flat.index_copy_(0, self.indices.long().cpu(), self.values.cpu()).view(self.shape)

    def matrix(self, device: torch.device) -> Tensor:
        """As a sparse matrix, with the parameter's first axis as rows."""
        columns = max(1, Tensor.numel(torch.empty(self.shape, device="meta")) // self.shape[0])
        at = self.indices.long().to(device)
        places = torch.stack([at // columns, at % columns])
        size = (self.shape[0], columns)
        return torch.sparse_coo_tensor(
            places, self.values.float().to(device), size, is_coalesced=True, check_invariants=False
        )


Tangent = Tensor | Factors | Entries
"""A vector over one parameter: in its shape, by factors, or sparse."""


@cache
def load_formulas() -> None:
    """Register the formulas of forward-mode derivatives, which torch does when the first one is needed, by means that it
    calls deprecated itself (from Python 3.14 on also unsupported, though they work)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401


def dense_tangent(tangent: Tangent, shape: torch.Size) -> Tensor:
    """Return a tangent as a dense tensor in the parameter's shape."""
    return tangent if isinstance(tangent, Tensor) else tangent.dense().view(shape)


def one_of_stack(tangent: Tangent, number: int, shape: torch.Size) -> Tangent:
    """The part of a tangent over a stack of matrices [E, rows, columns] that is over one of them."""
    if isinstance(tangent, Tensor):
        return tangent[number]
    if isinstance(tangent, Entries):
        size = shape[1] * shape[2]
        ends = torch.tensor([number * size, (number + 1) * size], device=tangent.indices.device)
        some = slice(*torch.searchsorted(tangent.indices.long(), ends).tolist())
        return Entries(tangent.indices[some].long() - number * size, tangent.values[some], tuple(shape[1:]))
    if tangent.b.ndim == 3:
        return Factors(tangent.b[number], tangent.a[number])
    return (tangent.b[number] @ tangent.a).view(shape[1:])  # of the stack as a matrix of E rows


class NotByRowError(Exception):
    """A batch cannot be read row by row. `names` are the parameters that have to have gradients of their own."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__(*names)
        self.names = names


class RowReader:
    """Reads ⟨w, ∇L_i⟩ of the rows of batches. A context manager; inside, the model is as `frozen` makes it.

    Args:
        tangents: w by parameter name; parameters without one are constants.
        own: names of parameters that are known to need gradients of their own.
    """

    def __init__(self, model: nn.Module, tangents: Mapping[str, Tangent], own: frozenset[str] = frozenset()) -> None:
        self.model, self.tangents = model, tangents
        self._parameters = parameters_of(model, tangents)
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._layers: dict[nn.Module, dict[str, str]] = {}  # attribute → name of the parameters of each layer
        self._products: dict[nn.Module, dict[str, nn.Parameter]] = {}
        self._reads = Reads()
        for module in model.modules():
            attributes = {
                attribute: names[id(parameter)]
                for attribute, parameter in read_by_itself(module).items()
                if id(parameter) in names and names[id(parameter)] not in own
            }
            if attributes and (has_factors(module) or self._is_small(module, attributes)):
                self._layers[module] = attributes
            elif attributes:
                self._products[module] = {name: self._parameters[name] for name in attributes.values()}
        known = {name for attributes in self._layers.values() for name in attributes.values()}
        known.update(name for own in self._products.values() for name in own)
        self.own = tuple(name for name in tangents if name not in known)
        self._z = torch.empty(0)
        self._prepared: dict[tuple[str, int | None], Any] = {}
        self._watched = False

    @staticmethod
    def _is_small(module: nn.Module, attributes: Mapping[str, str]) -> bool:
        """Return whether a layer has vectors only, so that it can run once more along with them; side-cars are no layers."""
        alone = all(name.startswith(SIDECAR) for name, _ in module.named_children())
        return alone and all(parameter.ndim < 2 for parameter in module.parameters(recurse=False))

    def __enter__(self) -> RowReader:
        self._stack = ExitStack()
        self._stack.enter_context(frozen(self.model))
        for module in self._layers:
            if not has_factors(module):
                self._stack.callback(module.register_forward_pre_hook(self._refuse_more, with_kwargs=True).remove)
        self._stack.enter_context(catching(self._layers, self._caught))
        self._stack.enter_context(catching_products(self._products, self._product_caught, self._reads))
        for name in self.own:
            self._parameters[name].requires_grad_(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _refuse_more(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) + len(kwargs) != 1:
            raise NotByRowError(tuple(self._layers[module].values()))

    def read(self, objective: Objective, batch: Batch, *, check: bool = False) -> Tensor:
        """⟨w, ∇L_i⟩ of the rows of a batch: [B], fp32, on the CPU.

        Args:
            check: first see whether the loss of the first row is all that its own tokens feel.

        Raises:
            NotByRowError: some parameters need gradients of their own, and there are several rows; or a layer mixes rows.
        """
        if self.own and len(batch) > 1:
            raise NotByRowError(self.own)
        self._z = torch.zeros(len(batch), dtype=torch.float64)
        losses = self._losses(objective, batch)
        if check and losses.requires_grad:
            losses[0].backward(retain_graph=True)
            if bool(self._z[1:].any()):
                raise NotByRowError
            self._z.zero_()
        if losses.requires_grad:
            losses.sum().backward()
        for name in self.own:
            grad, self._parameters[name].grad = self._parameters[name].grad, None
            if grad is not None:
                tangent = dense_tangent(self.tangents[name], grad.shape)
                self._z += float(grad.flatten().float() @ tangent.to(grad.device).flatten().float())
        return self._z.float()

    def _losses(self, objective: Objective, batch: Batch) -> Tensor:
        if self._watched:
            return objective.row_losses(self.model, batch)
        owned = [
            (module, self._parameters[name])
            for module, attributes in self._layers.items()
            for name in attributes.values()
        ]
        owned += [(module, parameter) for module, own in self._products.items() for parameter in own.values()]
        unseen = UnseenReads(
            {parameter: name for name, parameter in self._parameters.items() if name not in self.own}, owned
        )
        with unseen.watching():
            losses = objective.row_losses(self.model, batch)
        never = {n for own in self._products.values() for n in own} - self._reads.known
        never -= {n for attributes in self._layers.values() for n in attributes.values()}
        if found := {*unseen.found} | self._reads.other | never:
            raise NotByRowError(tuple(name for name in self.tangents if name in found))
        self._watched = True
        return losses

    def _caught(self, module: nn.Module, x: Tensor, delta: Tensor) -> None:
        attributes = self._layers[module]
        if not has_factors(module):
            self._add(self._small(module, attributes, x, delta))
            return
        if "bias" in attributes:
            by_token = delta.flatten(2).mT if isinstance(module, (nn.Conv1d, nn.Conv2d)) else delta
            bias = self._vector(attributes["bias"], delta)
            self._add(by_token.float() @ bias)
        if "weight" in attributes:
            self._add(self._product(attributes["weight"], factors_of(module, x, delta)))

    def _product_caught(self, name: str, part: Outer | Tensor, picked: Picked | None) -> None:
        if isinstance(part, Tensor):
            self._add(part.float() @ self._vector(name, part), picked)
        else:
            self._add(self._product(name, part), picked)

    def _add(self, values: Tensor, picked: Picked | None = None) -> None:
        """Add what tokens contribute, [N, …], to their rows; of some tokens [n], those that were picked."""
        rows = len(self._z)
        if picked is not None and rows > 1:
            if len(picked.tokens) != values.numel() or picked.of % rows:
                raise NotByRowError
            at = picked.tokens // (picked.of // rows)
            self._z += torch.zeros_like(self._z, device=at.device).index_add_(0, at, values.flatten().double()).cpu()
            return
        if values.shape[0] % rows:
            raise NotByRowError
        self._z += values.reshape(rows, -1).sum(1, dtype=torch.float64).cpu()

    def _vector(self, name: str, like: Tensor) -> Tensor:
        if (name, None) not in self._prepared:
            self._prepared[name, None] = dense_tangent(self.tangents[name], self._parameters[name].shape).float()
        vector: Tensor = self._prepared[name, None].to(like.device)
        return vector

    def _small(self, module: nn.Module, attributes: Mapping[str, str], x: Tensor, delta: Tensor) -> Tensor:
        parameters = {attribute: self._parameters[name].detach().float() for attribute, name in attributes.items()}
        tangents = {attribute: self._vector(name, delta) for attribute, name in attributes.items()}
        load_formulas()
        inputs = (x.float(),)
        change: Tensor = jvp(lambda given: functional_call(module, given, inputs), (parameters,), (tangents,))[1]
        if change.shape != delta.shape:
            raise NotByRowError(tuple(attributes.values()))
        return change * delta

    def _product(self, name: str, part: Outer) -> Tensor:
        """Σ left·(w right) by token, [N, T]."""
        right, device = part.right.float(), part.right.device
        left = part.left if part.is_lookup else part.left.float()
        if (name, part.number) not in self._prepared:
            tangent = self.tangents[name]
            if part.number is not None:
                tangent = one_of_stack(tangent, part.number, self._parameters[name].shape)
            matrix = tangent.matrix(device) if isinstance(tangent, Entries) else tangent.to(device)
            self._prepared[name, part.number] = matrix.float() if isinstance(matrix, Tensor) else matrix
        found = self._prepared[name, part.number]
        if isinstance(found, Factors):
            of_left = found.b[left] if part.is_lookup else left @ found.b
            return (of_left * (right @ found.a.T)).sum(-1)
        w: Tensor = found
        if w.is_sparse and part.is_lookup:
            rows = w.index_select(0, left.flatten()).coalesce()
            token, column = rows.indices()
            products = rows.values() * right.flatten(0, 1)[token, column]
            return products.new_zeros(left.numel()).index_add_(0, token, products).view(left.shape)
        if part.is_lookup:
            return (w.view(part.rows, -1)[left] * right).sum(-1)
        flat = right.flatten(0, 1)
        seen = torch.sparse.mm(w, flat.T).T if w.is_sparse else flat @ w.view(part.rows, -1).T
        return (left.flatten(0, 1) * seen).sum(-1).view(left.shape[:2])
