"""Factual and alternative gradients of the frozen base model, read as flat vectors.

With L_f and L_a the cross entropies of the factual and the alternative filling of the same slots,
g_f = ∇L_f, g_a = ∇L_a and ∇(L_f − L_a) = g_f − g_a (arXiv 2502.01406, section 3). Whenever only the label differs, one
forward pass serves both backward passes, and the head sees the slots only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.objectives import Objective, PairBatch
from gradiend_hub.scope import PackedParameter, Scope, names_of

from .frozen import frozen

T = TypeVar("T")


class HasScope(Protocol):
    """A reader of a scope."""

    scope: Scope
    silent: dict[str, None]


class GradientReader:
    """Reads ∇L at the scope's coordinates into one flat fp32 vector.

    A context manager. Inside, no dropout is active, nothing is cached for generation, and only the scope's parameters
    require gradients. Dense fp32 gradients are accumulated in the vector itself; any other is gathered and freed as it
    arrives, so the model's own `.grad` never holds more than one tensor. Layers with gradient checkpointing enabled are
    recomputed as in training. On exit the model is as it was.

    Args:
        reuse: vectors that `read` returns are written over by the second read that follows, so a pair is two vectors of
            memory in all. (Fresh memory of this size costs as much as 8 % of a step on a CPU.)

    Attributes:
        silent: names of parameters whose coordinates in scope had no gradient but zero so far.

    Raises:
        ConfigError: when a parameter in scope is quantised; on entry, when one is offloaded: neither has values here that
            could be differentiated.
    """

    def __init__(self, model: nn.Module, scope: Scope, *, reuse: bool = False) -> None:
        refuse_packed(scope)
        self.model = model
        self.scope = scope
        self.reuse = reuse
        self.silent = dict.fromkeys(scope.parameters)
        self._slices = scope.slices()
        self._vector: Tensor | None = None
        self._direct: dict[str, Tensor] = {}
        self._used: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Device of inputs and vectors: that of the model's first parameter."""
        return next(self.model.parameters()).device

    def zeros(self) -> Tensor:
        """A vector [n], fp32, to read into."""
        return torch.zeros(self.scope.size, device=self.device)

    def __enter__(self) -> GradientReader:
        refuse_offloaded(self.scope)
        self._stack, self._direct = ExitStack(), {}
        self._stack.enter_context(frozen(self.model))
        for name, where in self._slices.items():
            scoped = self.scope.parameters[name]
            scoped.requires_grad_(True)
            if name not in self.scope.kept and (scoped.dtype, scoped.device) == (torch.float32, self.device):
                self._direct[name] = scoped
            else:
                hook = scoped.register_post_accumulate_grad_hook(self._gatherer(name, where))
                self._stack.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._used.clear()

    def _gatherer(self, name: str, where: slice) -> Callable[[Tensor], None]:
        kept = self.scope.kept.get(name)
        if kept is not None:
            kept = kept.to(self.scope.parameters[name].device)

        def gather(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None and self._vector is not None
            values = grad.flatten()
            if kept is not None:
                values = values.index_select(0, kept)  # several times as fast as indexing
            self._vector[where] += values.to(self._vector.device)

        return gather

    def forward(self, compute: Callable[[], T]) -> T:
        """Run a forward pass of the model."""
        return compute()

    def read(self, loss: Tensor, *, retain_graph: bool = False, into: Tensor | None = None) -> Tensor:
        """∇loss as a flat vector [n], fp32, on the reader's device; added to the vector `into` if one is given."""
        vector = self._vector = self._empty().zero_() if into is None else into
        for name, parameter in self._direct.items():
            parameter.grad = vector[self._slices[name]].view_as(parameter)  # where autograd adds to
        try:
            if loss.requires_grad:  # else nothing in scope is used
                torch.autograd.backward(loss, retain_graph=retain_graph)
        finally:
            self._vector = None
            for parameter in self._direct.values():
                parameter.grad = None
        self.silent = {name: None for name in self.silent if not bool(vector[self._slices[name]].any())}
        return vector

    def _empty(self) -> Tensor:
        if len(self._used) == 2:
            self._used.append(self._used.pop(0))
            return self._used[-1]
        vector = torch.empty(self.scope.size, device=self.device)
        if self.reuse:
            self._used.append(vector)
        return vector


def refuse_offloaded(scope: Scope) -> None:
    """Refuse a scope with offloaded parameters, which have no gradient here.

    Raises:
        ConfigError: naming some of them.
    """
    parameters = scope.parameters.items()
    if offloaded := [name for name, p in parameters if p.is_meta and not isinstance(p, PackedParameter)]:
        raise ConfigError(
            f"{len(offloaded)} parameters in scope are offloaded to disk or CPU and have no gradient here "
            f"({names_of(offloaded)}). Choose a scope or a device_map that keeps them on a device."
        )


def refuse_packed(scope: Scope) -> None:
    """Refuse a scope with quantised weights, whose gradients are known by their factors alone.

    Raises:
        ConfigError: naming some of them.
    """
    if packed := [name for name, parameter in scope.parameters.items() if isinstance(parameter, PackedParameter)]:
        raise ConfigError(
            f"{len(packed)} weights in scope are quantised ({names_of(packed)}), and gradients of such are read by their "
            'factors alone. Learn at a rank, solver="closed_form" and rank=8, choose a scope without these weights, or load '
            "the base model without quantisation."
        )


def slot_losses(model: nn.Module, objective: Objective, batch: PairBatch, gradient: str) -> Tensor:
    """Loss of each row, [B]: L_f ("factual"), L_a ("alternative") or L_f − L_a ("diff")."""
    if gradient == "diff":
        factual, alternative = objective.losses(model, batch)
        return factual - alternative
    return objective.row_losses(model, batch.factual if gradient == "factual" else batch.alternative)


def read_pair(
    reader: GradientReader, objective: Objective, batch: PairBatch, *, source: str = "alternative", target: str = "diff"
) -> tuple[Tensor, Tensor]:
    """Source and target gradient (s, t) of the mean loss over the rows of one batch; each [n], fp32.

    `source` and `target` are "factual" (g_f), "alternative" (g_a) or "diff" (g_f − g_a). If they are the same, s and t are
    one tensor.

    One backward pass per gradient is run, and `diff` is read as one. Only when the inputs of the two fillings differ,
    g_f and g_a are read one after the other, each with a forward pass of its own, so that one graph is held at a time.

    Raises:
        TrainingError: a loss or gradient that is not finite, or a gradient that is zero everywhere. `SkippedRows` leaves
            out single rows instead.
    """
    gradients = (_read_shared if batch.shared else _read_apart)(reader, objective, batch, {source, target})
    for name, vector in gradients.items():
        # half the time of a norm, and small gradients do not vanish in it as their squares do
        total = float(vector.sum())
        if not math.isfinite(total):
            raise NotFiniteError(not_finite_message(reader, name))
        if total == 0.0 and not bool(vector.any()):
            raise TrainingError(zero_message(reader, name))
    return gradients[source], gradients[target]


class NotFiniteError(TrainingError):
    """A loss or gradient is not finite. `rows` are the rows of the batch that it comes from, if they are known."""

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


def require_finite(losses: Tensor) -> None:
    finite = losses.detach().isfinite()
    if not bool(finite.all()):
        bad = tuple((~finite).nonzero().flatten().tolist())
        raise NotFiniteError(
            f"The base model's loss is not finite for rows {list(bad)} of the batch; check these rows.", bad
        )


def _read_shared(reader: GradientReader, objective: Objective, batch: PairBatch, wanted: set[str]) -> dict[str, Tensor]:
    factual, alternative = objective.losses(reader.model, batch)
    require_finite(factual + alternative)
    losses = {"factual": factual.mean(), "alternative": alternative.mean()}
    losses["diff"] = losses["factual"] - losses["alternative"]
    last = max(wanted)
    return {name: reader.read(losses[name], retain_graph=name != last) for name in sorted(wanted)}


def _read_apart(reader: GradientReader, objective: Objective, batch: PairBatch, wanted: set[str]) -> dict[str, Tensor]:
    sides = {"factual": batch.factual, "alternative": batch.alternative}
    gradients: dict[str, Tensor] = {}
    for name, slots in sides.items():
        if name in wanted or "diff" in wanted:
            losses = objective.row_losses(reader.model, slots)
            require_finite(losses)
            gradients[name] = reader.read(losses.mean())
    if "diff" in wanted:
        subtract = torch.sub if "factual" in wanted else Tensor.sub_  # in place where it is not wanted itself
        gradients["diff"] = subtract(gradients["factual"], gradients["alternative"])
    return {name: gradients[name] for name in sorted(wanted)}


def not_finite_message(reader: HasScope, name: str) -> str:
    """Say that a gradient is not finite, and what to do."""
    return (
        f"The {name} gradient is not finite on all coordinates in scope ({reader.scope.summary()}). Load the base model in "
        "float32 or bfloat16, or look for the row with a smaller batch."
    )


def zero_message(reader: HasScope, name: str) -> str:
    return (
        f"The {name} gradient is zero on all coordinates in scope ({reader.scope.summary()}). Is the scope used by the "
        f"loss, and do factual and alternative differ? {silence(reader)}"
    )


def silence(reader: HasScope) -> str:
    """Name the parameters in scope that have never had a gradient, in one sentence; empty if all had one."""
    if not reader.silent:
        return ""
    return (
        f"{len(reader.silent)} of {len(reader.scope.parameters)} parameters in scope never had a gradient other than zero: "
        f"{names_of(reader.silent)}."
    )
