"""Cloze: a causal language model reads both sides of a slot, by how well what follows goes on from each filling."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.errors import ConfigError

from .batching import batched
from .causal_lm import CausalLMObjective
from .filling import Encoded, Filled
from .samples import Answer, Example, Sample, output_nll

ALL = "all"
RIGHT = 2
BATCH_SIZE = 32


class ClozeObjective(CausalLMObjective):
    """−log P(filler, next R tokens | prefix) in a causal language model: the chain rule over what the slot is followed by.

    By Bayes' rule, the share of one filling among all candidates is its probability given both sides, P(filler | prefix,
    right). So the model reads the right context with the head that it has, and nothing is trained for it. The probability of
    a class at a row is this share.

    Options:
        right_context: Tokens R that are read behind the filler, or "all". Half of what the model reads is kept for the left.
            A long right context adds gradients that the filler hardly changes, so that the encoder reads less clearly. On
            the bundled pronouns, AUC is 1.000 with 0 or 2 tokens and 0.995 with all (`python -m tests.benchmarks.objectives
            --quick`).
    """

    name = "cloze"
    relative = True
    probability_note = (
        "The probability of a class at a row is the share of its words among those of both classes, given the text on both "
        "sides of the slot (as far as right_context in objective_options says)."
    )

    def __init__(self, processor: Any, **options: Any) -> None:
        super().__init__(processor, **options)
        self.right_context: int | str = RIGHT

    def configure(self, *, right_context: int | str = RIGHT, **unknown: Any) -> None:
        """Set the options."""
        super().configure(**unknown)
        number = isinstance(right_context, int) and not isinstance(right_context, bool) and right_context >= 0
        if not number and right_context != ALL:
            raise ConfigError(
                f"objective_options['right_context'] must be a number of tokens ≥ 0 or 'all', found {right_context!r}."
            )
        self.right_context = right_context

    @property
    def options(self) -> dict[str, Any]:
        """Return the options."""
        return {"right_context": self.right_context}

    @property
    def key(self) -> str:
        """Name, longest input and right context."""
        return f"{super().key}, right context {self.right_context}"

    @classmethod
    def reads_columns(cls, columns: Collection[str]) -> bool:
        """Return false: the same rows are read from the left by default; this objective is asked for by its name."""
        return False

    # -- samples --------------------------------------------------------------------------------------------------------

    def read_part(self, filled: Filled) -> Filled:
        """Return a word with the tokens behind it that are read; what is read before is as long for all words of a row."""
        behind = filled.encoded.end - filled.stop
        most = min(behind, max(self.max_length // 2 - len(filled.word), 0))
        right = most if self.right_context == ALL else min(int(self.right_context), most)
        return Filled(filled.encoded, filled.start, filled.stop + right)

    def one_token(self, encoded: Encoded, place: int) -> Sample:
        """Return a sample that reads one token of a text with what follows it."""
        return self.token_sample(encoded, range(place, self.read_part(Filled(encoded, place, place + 1)).stop))

    def other_example(self, row: TextRow, rng: random.Random, avoid: Sequence[str] = ()) -> Example | None:
        """Return a random token of a row's filled text that is no word of the classes, with what follows it."""
        words = {word.casefold() for word in (*avoid, row.factual, row.alternative)}
        encoded = self.cut(self.encode(row.text))
        decode = self.tokenizer.decode
        places = [i for i in self.readable(encoded) if decode([encoded.ids[i]]).strip().casefold() not in words]
        if not places:
            return None
        sample = self.one_token(encoded, rng.choice(places))
        return Example(sample, sample)

    # -- for people -----------------------------------------------------------------------------------------------------

    def complete(
        self, model: nn.Module, inputs: Sequence[str], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return the hints at the slot of each text by their share, given both sides; a text without a slot is continued."""
        told = {number: text for number, text in enumerate(inputs) if SLOT in text and hints}
        answers = super().complete(model, inputs, top=top, tokens=tokens, hints=hints)
        ranked = {number: self._ranked(model, text, hints, top) for number, text in told.items()}
        return [Answer(ranked.get(i, answer.outputs), answer.continuation) for i, answer in enumerate(answers)]

    def _ranked(self, model: nn.Module, text: str, hints: Sequence[str], top: int) -> list[tuple[str, float]]:
        words, device = list(dict.fromkeys(hints)), next(model.parameters()).device
        samples = self.samples(TextRow(text, "", "", "", ""), words)
        nll = torch.zeros(len(words))
        for chosen in batched([sample.cost for sample in samples], BATCH_SIZE):
            batch = self.collate([samples[i] for i in chosen]).to(device)
            nll[chosen] = output_nll(self.log_probs(model, batch), batch.labels).float().cpu()
        shares = (-nll).softmax(0).tolist()
        return sorted(zip(words, shares, strict=True), key=lambda found: -found[1])[:top]
