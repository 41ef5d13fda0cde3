"""What every objective shares: an example is an input with slots, a slot has a label, a label has a loss.

An objective knows how text becomes token ids and where the slot is; it knows nothing of encoders, decoders or solvers.
Positions are explicit, so padding side and sequence length never decide which logits are read.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError

IGNORED = -100
"""Label of a position that is not a slot."""


@dataclass(frozen=True)
class Sample:
    """One input and its slots: the label `labels[i]` is predicted from the logits at `positions[i]`."""

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """The factual and the alternative filling of one slot. Equal inputs share one forward pass."""

    factual: Sample
    alternative: Sample

    @property
    def length(self) -> int:
        return max(len(self.factual.input_ids), len(self.alternative.input_ids))


@dataclass(frozen=True)
class Batch:
    """A padded batch: `inputs` [B, T], `positions` [B, S] and `labels` [B, S] (`IGNORED` where a row has fewer slots)."""

    inputs: dict[str, Tensor]
    positions: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            {k: v.to(device) for k, v in self.inputs.items()}, self.positions.to(device), self.labels.to(device)
        )


@dataclass(frozen=True)
class PairBatch:
    """Factual and alternative slots of the same rows; `shared` when both read the same logits."""

    factual: Batch
    alternative: Batch

    @property
    def shared(self) -> bool:
        return self.factual.inputs is self.alternative.inputs

    def to(self, device: torch.device) -> PairBatch:
        factual = self.factual.to(device)
        if not self.shared:
            return PairBatch(factual, self.alternative.to(device))
        return PairBatch(factual, Batch(factual.inputs, factual.positions, self.alternative.labels.to(device)))


class Objective(ABC):
    """How a row of text becomes a slot with two losses.

    Args:
        tokenizer: the base model's tokenizer.
        max_length: longest input in tokens; defaults to what tokenizer and model allow.
        name_or_path: how messages call the base model.
    """

    name: str

    def __init__(self, tokenizer: Any, *, max_length: int | None = None, name_or_path: str = "the base model") -> None:
        self.tokenizer = tokenizer
        self.name_or_path = name_or_path
        self.max_length = max_length or min(int(tokenizer.model_max_length), 1_000_000)
        self.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        )

    # -- what an objective must say ---------------------------------------------------------------------------------

    @abstractmethod
    def slots(self, masked: str, fillers: Sequence[Sequence[int]]) -> list[Sample]:
        """The slot of `masked`, filled with each of some words' token ids: one input per word, one slot per token.

        Words of equally many tokens share a masked model's input; words of one token share a causal model's, too.
        Raises `DataError` when the row has no usable slot.
        """

    @abstractmethod
    def neutral_example(self, text: str, rng: random.Random) -> Example | None:
        """One random real token of `text` as a slot whose factual and alternative filler are that token itself."""

    @abstractmethod
    def scored_text(self, text: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        """The tokens of `text` on which the language-modelling score is read; special tokens are never among them.

        Up to `draws` inputs that share no scored token: a causal model scores all tokens in the first one.
        """

    # -- what follows from it ---------------------------------------------------------------------------------------

    def tokenize(self, masked: str, factual: str, alternative: str) -> Example:
        """Tokenise one row. Raises `DataError` when the row has no usable slot or a filler is unknown."""
        fillers = [self.filler_tokens(masked, filler) for filler in (factual, alternative)]
        return Example(*self.slots(masked, fillers))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad to the longest sample (to the right; positions are explicit)."""
        tokens, slots = max(len(s.input_ids) for s in samples), max(len(s.positions) for s in samples)

        def pad(values: tuple[int, ...], size: int, fill: int) -> list[int]:
            return [*values, *[fill] * (size - len(values))]

        return Batch(
            inputs={
                "input_ids": torch.tensor([pad(s.input_ids, tokens, self.pad_token_id) for s in samples]),
                "attention_mask": torch.tensor([pad((1,) * len(s.input_ids), tokens, 0) for s in samples]),
            },
            positions=torch.tensor([pad(s.positions, slots, 0) for s in samples]),
            labels=torch.tensor([pad(s.labels, slots, IGNORED) for s in samples]),
        )

    def collate_pairs(self, examples: Sequence[Example]) -> PairBatch:
        factual = self.collate([e.factual for e in examples])
        if any(
            e.factual.input_ids != e.alternative.input_ids or e.factual.positions != e.alternative.positions
            for e in examples
        ):
            return PairBatch(factual, self.collate([e.alternative for e in examples]))
        labels = self.collate([e.alternative for e in examples]).labels
        return PairBatch(factual, Batch(factual.inputs, factual.positions, labels))

    def log_probs(self, model: nn.Module, slots: Batch) -> Tensor:
        """Log-probabilities of the whole vocabulary at the slots only: [B, S, V], fp32 or wider."""
        return slot_logits(model, slots).log_softmax(-1)

    def losses(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """−log P of the factual and of the alternative filling, each [B]; one forward when inputs are equal."""
        factual = self.log_probs(model, batch.factual)
        alternative = factual if batch.shared else self.log_probs(model, batch.alternative)
        return slot_nll(factual, batch.factual.labels), slot_nll(alternative, batch.alternative.labels)

    # -- shared by the text objectives ------------------------------------------------------------------------------

    def split_at_slot(self, masked: str) -> tuple[str, str]:
        before, found, after = masked.partition(SLOT)
        if not found or SLOT in after:
            raise DataError(
                f"{'No' if not found else 'More than one'} slot: expected exactly one {SLOT} in {masked!r}."
            )
        return before, after

    def filler_tokens(self, masked: str, filler: str) -> tuple[int, ...]:
        """Ids of `filler` at the slot of `masked`: the tokens that it adds to the text on the left.

        Only the tokenizer knows whether that is " he", "▁he", "he" or "##he", and how many tokens it takes.

        Raises:
            DataError: the text on the left and the filler share a token, or the tokenizer does not know the filler.
        """
        before, _ = self.split_at_slot(masked)
        prefix = before.rstrip()
        ids = self.text_ids(prefix)
        full = self.text_ids(prefix + (" " if before[len(prefix) :] else "") + filler)
        if full[: len(ids)] != ids:
            raise DataError(
                f"The tokenizer of {self.name_or_path} merges the end of the prefix with {filler!r}, so the filler has "
                f"no token of its own here. Put a space before the slot: {masked[:80]!r}."
            )
        found = tuple(full[len(ids) :])
        unknown = self.tokenizer.unk_token_id
        if not found or (unknown is not None and unknown in found):
            raise DataError(
                f"The filler {filler!r} is unknown to the tokenizer of {self.name_or_path}. Choose another filler or a "
                "base model whose vocabulary can write it."
            )
        return found

    def text_ids(self, text: str) -> list[int]:
        """Token ids without special tokens, however long the text is."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text else []
        return ids


def slot_nll(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each row's word: the sum over its slots. log_probs: [B, S, V], labels: [B, S] → [B].

    The sum, not the mean: it is −log P(word), so that a class's gradient is that of its words' log-likelihood and does
    not depend on how finely a tokenizer happens to cut them.
    """
    nll = -log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (nll * (labels != IGNORED)).sum(-1)


def slot_logits(model: nn.Module, slots: Batch) -> Tensor:
    """Logits at the slots: [B, S, V] in fp32. The vocabulary head sees the slots only, never the whole sequence."""
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    if not isinstance(backbone, nn.Module) or backbone is model:
        return _widen(_at(_logits(model(**slots.inputs)), slots.positions))
    with _only_slots_leave(backbone, slots.positions) as calls:
        logits = _logits(model(**slots.inputs))
    # OPT reads the decoder within its backbone, past the backbone itself: its logits are those of every position
    return _widen(logits if calls else _at(logits, slots.positions))


def _logits(output: Any) -> Tensor:
    """Vocabulary logits; models "for pre-training" have a second head and call them otherwise."""
    logits: Tensor = output.logits if "logits" in output else output.prediction_logits
    return logits


def _widen(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _at(sequence: Tensor, positions: Tensor) -> Tensor:
    """Rows of [B, T, H] at [B, S] → [B, S, H]."""
    return sequence.gather(1, positions.to(sequence.device).unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


@contextmanager
def _only_slots_leave(backbone: nn.Module, positions: Tensor) -> Iterator[list[nn.Module]]:
    """Inside, the backbone's last hidden state holds the slots only, so whatever head follows does no other work.

    Yields the list of calls that this happened in.
    """
    calls: list[nn.Module] = []

    def keep_slots(module: nn.Module, _args: Any, output: Any) -> Any:
        calls.append(module)
        hidden = _at(output[0], positions)
        if isinstance(output, Mapping):  # transformers' ModelOutput; written to a copy, callers may keep the original
            return type(output)(**{**output, "last_hidden_state": hidden})
        return (hidden, *output[1:])

    handle = backbone.register_forward_hook(keep_slots)
    try:
        yield calls
    finally:
        handle.remove()
