"""Factual and alternative gradients of the frozen base model, read as flat vectors.

With L_f and L_a the cross entropies of the factual and the alternative filling of the same slots,
g_f = ∇L_f, g_a = ∇L_a and ∇(L_f − L_a) = g_f − g_a (arXiv 2502.01406, section 3). Whenever only the label differs, one
forward pass serves both backward passes, and the head sees the slots only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from gradiend_hub.errors import TrainingError
from gradiend_hub.objectives import Objective, PairBatch

from .scope import Scope


class GradientReader:
    """Reads ∇L at the scope's coordinates into one flat fp32 vector.

    A context manager. Inside, the model is in eval mode and only the scope's parameters require gradients; each
    gradient is gathered and freed as it arrives, so the model's own `.grad` never holds more than one tensor. On exit the
    model is as it was.
    """

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self.model = model
        self.scope = scope
        self._vector: Tensor | None = None

    def __enter__(self) -> GradientReader:
        self._modes = {module: module.training for module in self.model.modules()}
        self._required = {p: p.requires_grad for p in self.model.parameters()}
        self._gradients = {p: p.grad for p in self._required}
        self.model.eval()
        for parameter in self._required:
            parameter.requires_grad_(False)
            parameter.grad = None  # what a user had accumulated there is neither read nor lost
        self._handles = []
        for name, where in self.scope.slices().items():
            scoped = self.scope.parameters[name]
            scoped.requires_grad_(True)
            self._handles.append(scoped.register_post_accumulate_grad_hook(self._gatherer(name, where)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)
            parameter.grad = self._gradients[parameter]
        for module, mode in self._modes.items():
            module.training = mode

    def _gatherer(self, name: str, where: slice) -> Callable[[Tensor], None]:
        kept = self.scope.kept.get(name)

        def gather(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None and self._vector is not None
            values = grad.flatten()
            if kept is not None:
                values = values[kept.to(values.device)]
            # += and not =: gradient checkpointing and shared modules deliver a parameter's gradient in parts
            self._vector[where] += values.to(self._vector.device, torch.float32)

        return gather

    def read(self, loss: Tensor, *, retain_graph: bool = False) -> Tensor:
        """∇loss as a flat vector [n], fp32, on the CPU or the model's own device."""
        device = next(iter(self.scope.parameters.values())).device
        self._vector = torch.zeros(self.scope.size, device=device)
        try:
            torch.autograd.backward(loss, retain_graph=retain_graph)
            return self._vector
        finally:
            self._vector = None


def read_pair(
    reader: GradientReader, objective: Objective, batch: PairBatch, *, source: str = "alternative", target: str = "diff"
) -> tuple[Tensor, Tensor]:
    """Source and target gradient (s, t) of the mean loss over the rows of one batch; each [n], fp32.

    `source` and `target` are "factual" (g_f), "alternative" (g_a) or "diff" (g_f − g_a).

    Raises:
        TrainingError: a loss or gradient that is not finite, or a gradient that is zero everywhere.
    """
    factual, alternative = objective.losses(reader.model, batch)
    if not bool((factual + alternative).isfinite().all()):
        bad = (~(factual + alternative).isfinite()).nonzero().flatten().tolist()
        raise TrainingError(f"The base model's loss is not finite for rows {bad} of the batch; check these texts.")
    losses = {"factual": factual.mean(), "alternative": alternative.mean()}
    losses["diff"] = losses["factual"] - losses["alternative"]
    s = reader.read(losses[source], retain_graph=source != target)
    t = s if source == target else reader.read(losses[target])
    for name, vector in ((source, s), (target, t)):
        norm = float(vector.norm())
        if norm == 0.0 or not math.isfinite(norm):
            raise TrainingError(
                f"The {name} gradient is {'zero' if norm == 0.0 else 'not finite'} on all coordinates in scope "
                f"({reader.scope.summary()}). Is the scope used by the loss, and do factual and alternative differ?"
            )
    return s, t
