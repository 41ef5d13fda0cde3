"""Encodings without gradients: ⟨w, ∇L_i(θ)⟩ is the derivative of L_i at θ in the direction w.

Forward-mode differentiation gives it for every row of a batch in one pass, exactly, with no backward pass and no gradient
vector: two or three times the work of a forward pass. Where a kernel has no forward-mode formula (mixtures of experts), it
is one backward pass per row, which the log says once per model.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradiend_hub.errors import first_line
from gradiend_hub.objectives import Batch, Objective, Sample, batched, evaluating
from gradiend_hub.progress import progress, tell
from gradiend_hub.scope import actual_names

logger = logging.getLogger(__name__)

_without_formula: WeakSet[nn.Module] = WeakSet()
"""Models that forward-mode differentiation has failed on."""


def directional_derivatives(
    model: nn.Module,
    objective: Objective,
    samples: Sequence[Sample],
    tangents: Mapping[str, Tensor],
    *,
    batch_size: int = 32,
) -> Tensor:
    """d/dε L_i(θ + ε·w) at ε = 0 for every sample i: [N], fp32, on the CPU.

    Args:
        model: the base model; left as it was.
        samples: inputs with labelled slots; L_i is the summed cross entropy of the slots of sample i.
        tangents: w by parameter name, in the parameters' shapes; parameters without one are constants.
        batch_size: samples per forward pass. Results do not depend on it beyond fp32 rounding.
    """
    _load_formulas()
    device = next(model.parameters()).device
    out = torch.empty(len(samples))
    batches = batched([sample.cost for sample in samples], batch_size, stretch=1.25)
    with evaluating(model):
        for rows in progress(batches, "encoding", len(batches)):
            chosen = [samples[i] for i in rows]
            if model not in _without_formula:
                try:
                    out[rows] = _derivatives(model, objective, objective.collate(chosen).to(device), tangents)
                    continue
                except NotImplementedError as error:  # what torch itself raises for an operation without a formula
                    _without_formula.add(model)
                    tell(
                        logger,
                        "%s has an operation without a forward-mode formula, so its rows are encoded one at a time by a "
                        "backward pass each, which is several times slower. (%s)",
                        type(model).__name__,
                        first_line(error),
                    )
            slots = [objective.collate([sample]).to(device) for sample in chosen]
            out[rows] = torch.stack([_by_backward(model, objective, row, tangents) for row in slots])
    return out


def _derivatives(model: nn.Module, objective: Objective, slots: Batch, tangents: Mapping[str, Tensor]) -> Tensor:
    parameters = {name: model.get_parameter(name).detach() for name in tangents}
    scale = 1.0
    if any(p.dtype == torch.float16 for p in parameters.values()):  # its numbers end at 65504; a power of two is exact
        largest = max((float(tangent.abs().max()) for tangent in tangents.values()), default=0.0)
        scale = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
        tangents = {name: tangent / scale for name, tangent in tangents.items()}
    # the fused attention kernels have no forward-mode formula; the math one is exact and slot batches are short
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        dual = {n: forward_ad.make_dual(p, tangents[n].to(p.device, p.dtype)) for n, p in parameters.items()}
        losses = functional_call(_SlotLoss(model, objective), _in_place(model, dual), (slots,))
        derivative = forward_ad.unpack_dual(losses).tangent
    return torch.zeros(len(slots.labels)) if derivative is None else scale * derivative.float().cpu()


def _by_backward(model: nn.Module, objective: Objective, row: Batch, tangents: Mapping[str, Tensor]) -> Tensor:
    """The same number for one row, from its gradient."""
    parameters = {name: model.get_parameter(name).detach().requires_grad_() for name in tangents}
    with torch.enable_grad():
        (loss,) = functional_call(_SlotLoss(model, objective), _in_place(model, parameters), (row,))
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    wide = torch.promote_types(gradients[0].dtype, torch.float32)  # the products of a bf16 model are summed in fp32
    pairs = zip(gradients, tangents.values(), strict=True)
    products = [(g.to(wide).flatten() @ t.to(g.device, wide).flatten()).cpu() for g, t in pairs]
    return torch.stack(products).sum().float()


def _in_place(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under the names that they have within `_SlotLoss`, where a LoRA may have wrapped their modules."""
    names = actual_names(model)
    return {f"model.{names[name]}": parameter for name, parameter in parameters.items()}


def _load_formulas() -> None:
    """Some forward-mode formulas are registered when first needed, by means that torch itself calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401


class _SlotLoss(nn.Module):
    """The base model and its loss as one module, so that `functional_call` can replace parameters for both."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, slots: Batch) -> Tensor:
        return self.objective.nll(self.objective.log_probs(self.model, slots), slots.labels)
