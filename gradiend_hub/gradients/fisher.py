"""What neutral text needs of each coordinate: the diagonal of the base model's Fisher information."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from gradiend_hub.errors import DataError
from gradiend_hub.objectives import Objective, Slots
from gradiend_hub.objectives.base import IGNORED

from .pairs import GradientReader


def diagonal_fisher(
    reader: GradientReader,
    objective: Objective,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    seed: int = 0,
    draws: int = 4,
) -> Tensor:
    """Diagonal of the base model's Fisher information per token of neutral text, at the scope's coordinates: [n], fp32.

    Labels are sampled from the model, so that the gradients of different tokens have mean zero and add up like
    independent numbers: the square of a batch's summed gradient is, on average, the sum of the squares.

    Args:
        reader: entered, of the scope that the decoder lives on.
        texts: neutral sentences; others than those on which damage is measured later.
        batch_size: texts per gradient. A smaller one costs more and gives less noise.
        seed: decides which tokens are masked and which labels are drawn.
        draws: how often each text is read.

    Raises:
        DataError: no text has a token that is scored.
    """
    rng = random.Random(seed)
    device = next(iter(reader.scope.parameters.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    samples = [sample for _ in range(draws) for text in texts for sample in objective.scored_text(text, rng)]
    if not samples:
        raise DataError(
            f"None of the {len(texts)} neutral texts has a token to score, so there is no Fisher information."
        )
    samples.sort(key=lambda sample: len(sample.input_ids))
    total, tokens = torch.zeros(reader.scope.size, device=device), 0
    for start in range(0, len(samples), batch_size):
        slots = objective.collate(samples[start : start + batch_size]).to(device)
        total.addcmul_(*(2 * [reader.read(_sampled_loss(reader, objective, slots, generator))]))
        tokens += int((slots.labels != IGNORED).sum())
    return total / tokens


def _sampled_loss(reader: GradientReader, objective: Objective, slots: Slots, generator: torch.Generator) -> Tensor:
    """Sum over the slots of −log p of a label that the model itself drew."""
    log_probs = objective.log_probs(reader.model, slots)[slots.labels != IGNORED]  # [tokens, V]
    labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
    return -log_probs.gather(1, labels).sum()
