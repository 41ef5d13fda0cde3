"""Encodings without gradients: ⟨w, ∇L_i(θ)⟩ is the derivative of L_i at θ in the direction w.

A low-rank or sparse w is read from one pass of input gradients (see `rowwise`), a dense one by forward-mode differentiation,
in two or three times the work of a forward pass; both exactly, for every row of a batch at once, with no gradient vector.
Where a kernel has no forward-mode formula, input gradients serve a dense w, too. Where a layer mixes rows, or copies
its experts for each token, rows are read one at a time, which the log says once per model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import first_line
from gradiend_hub.objectives import Batch, Objective, Sample, batched, evaluating
from gradiend_hub.progress import progress, tell
from gradiend_hub.scope import PackedParameter, actual_names, parameters_of

from .rowwise import NotByRowError, RowReader, Tangent, dense_tangent, load_formulas

logger = logging.getLogger(__name__)

_without_formula: WeakSet[nn.Module] = WeakSet()
"""Models that forward-mode differentiation has failed on."""

_own: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""Parameters by model of which only gradients of their own are known, so that its rows are read one at a time."""

_by_row: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Parameters by model in whose layers the rows of a batch were found to stay apart."""

_mixing: WeakSet[nn.Module] = WeakSet()
"""Models whose rows did not."""

_COMPACT = 0.5
"""Largest share of the parameters' coordinates that a w may store to be read from input gradients."""


def directional_derivatives(
    model: nn.Module,
    objective: Objective,
    samples: Sequence[Sample],
    tangents: Mapping[str, Tangent],
    *,
    batch_size: int = 32,
) -> Tensor:
    """d/dε L_i(θ + ε·w) at ε = 0 for every sample i: [N], fp32, on the CPU.

    Args:
        model: the base model; left as it was.
        samples: inputs with labelled slots; L_i is the summed cross entropy of the slots of sample i.
        tangents: w by parameter name, in the parameters' shapes, by factors or as `Entries`; parameters without one are
            constants.
        batch_size: samples per forward pass. Results do not depend on it beyond fp32 rounding.
    """
    device = next(model.parameters()).device
    out = torch.empty(len(samples))
    batches = batched([sample.cost for sample in samples], batch_size, stretch=1.25)
    forward_mode = not _is_for_input_gradients(model, tangents) and model not in _without_formula
    for rows in progress(batches, "encoding", len(batches)):
        chosen = [samples[i] for i in rows]
        if forward_mode:
            try:
                out[rows] = _derivatives(model, objective, objective.collate(chosen).to(device), tangents)
                continue
            except NotImplementedError as error:  # what torch itself raises for an operation without a formula
                _without_formula.add(model)
                forward_mode = False
                logger.info(
                    "%s has no forward-mode formula for an operation. (%s)", type(model).__name__, first_line(error)
                )
        out[rows] = _by_input_gradients(model, objective, chosen, tangents)
    return out


def _is_for_input_gradients(model: nn.Module, tangents: Mapping[str, Tangent]) -> bool:
    """Return whether w stores few numbers, or is of quantised weights, which have no values to differentiate by."""
    parameters = parameters_of(model, tangents).values()
    stored = sum(t.values.numel() if not isinstance(t, (Tensor, Factors)) else t.numel() for t in tangents.values())
    packed = any(isinstance(parameter, PackedParameter) for parameter in parameters)
    return packed or stored <= _COMPACT * sum(parameter.numel() for parameter in parameters)


def _by_input_gradients(
    model: nn.Module, objective: Objective, samples: Sequence[Sample], tangents: Mapping[str, Tangent]
) -> Tensor:
    """The same numbers from input gradients: of all samples at once, or one by one where they cannot be told apart."""
    device = next(model.parameters()).device
    while True:
        own = _own.get(model, frozenset())
        together = not own.intersection(tangents) and model not in _mixing
        try:
            with RowReader(model, tangents, own) as reader:
                if not together:
                    parts = [reader.read(objective, objective.collate([s]).to(device)) for s in samples]
                    return torch.cat(parts) if parts else torch.empty(0)
                known = _by_row.setdefault(model, set())
                unknown = len(samples) > 1 and not known.issuperset(tangents)
                z = reader.read(objective, objective.collate(samples).to(device), check=unknown)
                if unknown:
                    known.update(tangents)
                return z
        except NotByRowError as error:
            first = model not in _own and model not in _mixing
            if error.names:
                _own[model] = own | frozenset(error.names)
            else:
                _mixing.add(model)
            if first:
                tell(
                    logger,
                    "The rows of a batch cannot be told apart within %s, so they are encoded one at a time, which is "
                    "several times slower.%s",
                    type(model).__name__,
                    f" ({error.names[0]})" if error.names else "",
                )


def _derivatives(model: nn.Module, objective: Objective, slots: Batch, given: Mapping[str, Tangent]) -> Tensor:
    load_formulas()
    parameters = {name: model.get_parameter(name).detach() for name in given}
    tangents = {name: dense_tangent(tangent, parameters[name].shape) for name, tangent in given.items()}
    scale = 1.0
    if any(p.dtype == torch.float16 for p in parameters.values()):  # its numbers end at 65504; a power of two is exact
        largest = max((float(tangent.abs().max()) for tangent in tangents.values()), default=0.0)
        scale = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
        tangents = {name: tangent / scale for name, tangent in tangents.items()}
    # the fused attention kernels have no forward-mode formula; the math one is exact and slot batches are short
    with evaluating(model), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        names = actual_names(model)  # a LoRA may have wrapped modules
        dual = {
            f"model.{names[n]}": forward_ad.make_dual(p, tangents[n].to(p.device, p.dtype))
            for n, p in parameters.items()
        }
        losses = functional_call(_SlotLoss(model, objective), dual, (slots,))
        derivative = forward_ad.unpack_dual(losses).tangent
    return torch.zeros(len(slots.labels)) if derivative is None else scale * derivative.float().cpu()


class _SlotLoss(nn.Module):
    """The base model and its loss as one module, so that `functional_call` can replace parameters for both."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, slots: Batch) -> Tensor:
        return self.objective.row_losses(self.model, slots)
