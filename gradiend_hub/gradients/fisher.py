"""Diagonal of the base model's Fisher information: what neutral text, and the rows' own, need of each coordinate."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from gradiend_hub.data import Row
from gradiend_hub.errors import DataError, TrainingError
from gradiend_hub.objectives import IGNORED, Batch, Objective, Sample, batched
from gradiend_hub.progress import progress

from .factor_reader import FactorReader
from .pairs import GradientReader

logger = logging.getLogger(__name__)


def diagonal_fisher(
    reader: GradientReader,
    objective: Objective,
    texts: Sequence[str],
    rows: Sequence[Row] = (),
    replies: Sequence[Sample] = (),
    *,
    batch_size: int = 8,
    seed: int = 0,
    draws: int = 4,
) -> Tensor:
    """Diagonal of the base model's Fisher information per token of text, at the scope's coordinates: [n], fp32.

    Labels are sampled from the model, so that the gradients of different tokens have mean zero and add up like
    independent numbers: the square of a batch's summed gradient is, on average, the sum of the squares.

    Args:
        reader: entered, of the scope that the decoder lives on.
        texts: neutral sentences; others than those on which damage is measured later.
        rows: feature rows, whose own texts are read beside them: where the feature lives, damage would hide otherwise.
        replies: further samples that are read beside them, e.g. a model's own replies to prompts in its chat format.
        batch_size: texts per gradient. A smaller one costs more and gives less noise.
        seed: decides which tokens are masked and which labels are drawn.
        draws: how often each text is read.

    Raises:
        DataError: no text has a token that is scored.
    """
    total, tokens = torch.zeros(reader.scope.size, device=reader.device), 0
    for loss, scored in sampled_losses(
        reader, objective, texts, rows, replies, batch_size=batch_size, seed=seed, draws=draws
    ):
        total.addcmul_(*(2 * [reader.read(loss)]))
        tokens += scored
    return total / tokens


def sampled_losses(
    reader: GradientReader | FactorReader,
    objective: Objective,
    texts: Sequence[str],
    rows: Sequence[Row],
    replies: Sequence[Sample],
    *,
    batch_size: int,
    seed: int,
    draws: int,
) -> Iterator[tuple[Tensor, int]]:
    """Losses of batches of texts at labels that the model itself drew, each with its number of tokens.

    Arguments and errors are those of `diagonal_fisher`.
    """
    device = reader.device
    generator = torch.Generator(device).manual_seed(seed)
    rng = random.Random(seed)
    samples = [sample for _ in range(draws) for text in texts for sample in objective.quality_samples(text, rng)]
    samples += [sample for _ in range(draws) for row in rows for sample in objective.own_samples(row, rng)]
    samples += replies
    if not samples:
        raise DataError(
            f"None of the {len(texts)} neutral texts has a token to score, so there is no Fisher information."
        )
    unusable: set[str] = set()
    batches = batched([sample.cost for sample in samples], batch_size)
    for numbers in progress(batches, "Fisher information", len(batches)):
        chosen = [samples[i] for i in numbers]
        while chosen:
            slots = objective.collate(chosen).to(device)
            loss = reader.forward(partial(_sampled_loss, reader, objective, slots, generator))
            if not isinstance(loss, list):
                yield loss, int((slots.labels != IGNORED).sum())
                break
            for i in loss:
                text = " with ".join(map(repr, objective.describe(chosen[i])))
                _leave_out(text, unusable, len(texts) + len(rows) + len(replies))
            chosen = [sample for i, sample in enumerate(chosen) if i not in loss]


def _leave_out(text: str, unusable: set[str], total: int) -> None:
    if text not in unusable:
        logger.warning("Text left out, its probabilities are not finite: %s", text)
        unusable.add(text)
    if len(unusable) > max(1, total // 100):
        raise TrainingError(
            f"{len(unusable)} of {total} texts have no finite probabilities, the last one is {text}. Check them, "
            "or load the base model in float32."
        )


def _sampled_loss(
    reader: GradientReader | FactorReader, objective: Objective, slots: Batch, generator: torch.Generator
) -> Tensor | list[int]:
    """Sum over the slots of −log p of a label that the model itself drew; or the rows whose probabilities are NaN."""
    log_probs = objective.log_probs(reader.model, slots)  # [B, K, V]
    if bool((bad := (log_probs.isnan().any(-1) & (slots.labels != IGNORED)).any(-1)).any()):
        return [int(i) for i in bad.nonzero().flatten()]
    log_probs = log_probs[slots.labels != IGNORED]  # [tokens, V]
    labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
    return -log_probs.gather(1, labels).sum()
