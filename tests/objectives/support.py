"""Rows, and what they should become according to the tokenizer itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gradiend_hub.data import TextRow
from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective, Objective, Sample
from tests.models import VOCABULARY


@dataclass(frozen=True)
class Filled:
    """The text with its filler as the tokenizer encodes it, and which token the filler is, read from offsets."""

    ids: list[int]
    position: int

    @property
    def label(self) -> int:
        return self.ids[self.position]


def filled(tokenizer: PreTrainedTokenizerBase, masked: str, filler: str, *, after: bool = True) -> Filled:
    start = masked.index("[MASK]")
    text = masked[:start] + filler + (masked[start + len("[MASK]") :] if after else "")
    encoded = tokenizer(text, return_offsets_mapping=True)
    covering = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < start + len(filler) and b > start]
    assert len(covering) == 1, (text, covering)
    return Filled(encoded.input_ids, covering[0])


@dataclass(frozen=True)
class Pieces:
    """The filled text as the tokenizer encodes it, and which tokens are the filler's, read from offsets."""

    ids: list[int]
    positions: list[int]


def pieces(tokenizer: PreTrainedTokenizerBase, masked: str, word: str) -> Pieces:
    start = masked.index("[MASK]")
    encoded = tokenizer(masked.replace("[MASK]", word), return_offsets_mapping=True)
    covering = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < start + len(word) and b > start]
    return Pieces(encoded.input_ids, covering)


def objective(architecture: str) -> Objective:
    """An objective for a model of `tests.models`, whose samples are made of ids by `samples`."""
    causal = architecture in ("gpt2", "gpt_neox", "opt", "llama", "llama_tied", "qwen3", "gemma2", "gemma3", "mistral")
    tokenizer = _Ids()
    return CausalLMObjective(tokenizer) if causal else MaskedLMObjective(tokenizer)


class _Ids:
    """As much of a tokenizer as an objective reads when it is given token ids."""

    model_max_length, pad_token_id, eos_token_id, mask_token_id, unk_token_id = 40, 0, 2, 4, 3

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        return SimpleNamespace(input_ids=[1, *map(ord, text)] if add_special_tokens else [*map(ord, text)])

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, ids))


def sample_of(ids: Sequence[int], positions: Sequence[int], labels: Sequence[int]) -> Sample:
    """A sample of these token ids."""
    return Sample({"input_ids": tuple(ids)}, tuple(positions), tuple(labels), len(ids))


def ids_of(sample: Sample) -> tuple[int, ...]:
    """The token ids of a sample."""
    ids: tuple[int, ...] = sample.inputs["input_ids"]
    return ids


def text_row(masked: str, factual: str, alternative: str) -> TextRow:
    """A row of two classes."""
    return TextRow(masked, factual, alternative, "A", "B")


def samples(lengths: tuple[int, ...] = (7, 4, 12), slots: tuple[int, ...] = (1, 1, 1), seed: int = 3) -> list[Sample]:
    """Random inputs with random slots and labels."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length, count in zip(lengths, slots, strict=True):
        ids = torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()
        positions = sorted(torch.randperm(length, generator=generator)[:count].tolist())
        labels = torch.randint(5, VOCABULARY, (count,), generator=generator).tolist()
        made.append(sample_of(ids, positions, labels))
    return made


def plain_logits(model: nn.Module, sample: Sample) -> torch.Tensor:
    """Logits [S, V] of one unpadded row, from the model's ordinary forward pass."""
    logits: torch.Tensor = model(input_ids=torch.tensor([sample.inputs["input_ids"]])).logits
    return logits[0, list(sample.positions)]
