"""Causal language modelling: the slot is what comes next after the text on its left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.errors import BaseModelError, DataError

from .base import Answer, Sample
from .checks import Behaviour
from .slots import Encoded, Filled, TextObjective

__all__ = ["CausalLMObjective"]


class CausalLMObjective(TextObjective):
    """The slot is predicted from the text before it; what follows the slot is not read.

    The filler's first token is the one that continues the prefix, so " he", "▁he" and "he" are each right for their
    tokenizer; each further token is predicted from the ones before it. A prefix that is too long loses its beginning,
    never the slot.
    """

    name = "causal_lm"
    task = "text-generation"
    auto_class = AutoModelForCausalLM
    reads_right_context = False

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a class has a head that predicts the next token; models of images and text have one, too."""
        if getattr(config, "is_encoder_decoder", False):
            return False
        known = architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return known or architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))

    @classmethod
    def require(cls, behaviour: Behaviour, model: str) -> None:
        """Refuse a model whose output at a token depends on later ones: it would see the word that it has to predict."""
        if behaviour.looks_ahead:
            raise BaseModelError(
                f"{model} reads the text behind a token, too, so it would see what it has to predict. If it is an encoder, "
                "load it as a decoder (is_decoder=True in its config), or use AutoModelForMaskedLM and "
                "objective='masked_lm'."
            )

    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Keep the text before the word, and all but the last of the word's tokens."""
        start = filled.encoded.ids[: filled.encoded.start]
        before = filled.encoded.ids[len(start) : filled.start]
        if not start and not before:
            raise DataError(
                f"The slot is the first word, and the tokenizer of {self.name_or_path} has no start token that it could "
                f"be predicted from. Leave such rows out or give them left context: {masked[:80]!r}."
            )
        room = self.max_length - len(start) - longest + 1  # the last token is never read
        prefix = (*start, *before[max(0, len(before) - room) :])
        last = len(prefix) - 1
        return (*prefix, *filled.word[:-1]), tuple(range(last, last + len(filled.word)))

    def readable(self, encoded: Encoded) -> list[int]:
        """Leave the very first token out: there is nothing before it that it could be predicted from."""
        return [place for place in self.content(encoded) if place > 0]

    def token_sample(self, encoded: Encoded, places: Sequence[int]) -> Sample:
        """Read the tokens at some places from the ones before them."""
        ids = encoded.ids[: max(places)]
        return Sample(
            {"input_ids": ids}, tuple(place - 1 for place in places), tuple(encoded.ids[i] for i in places), len(ids)
        )

    def together(self, places: Sequence[int]) -> list[Sequence[int]]:
        """Return all places: every token sees just what is before it."""
        return [places] if places else []

    def quality_samples(self, item: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        """Read all tokens of a text at once."""
        encoded = self.cut(self.encode(item))
        return [self.token_sample(encoded, places) for places in self.together(self.readable(encoded))]

    def prompt(self, row: TextRow) -> str:
        """Return the text before the slot."""
        return row.input.partition(SLOT)[0].rstrip(" ")

    def complete(
        self, model: nn.Module, inputs: Sequence[str], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return the likeliest next tokens at the slot of each text, and the greedy continuation of what stands before it.

        A text without a slot is continued as a whole.

        Raises:
            DataError: There is nothing to continue.
        """
        prompts: dict[int, list[int]] = {}
        asked: dict[int, Sample] = {}
        for number, text in enumerate(inputs):
            before, slot, _ = text.partition(SLOT)
            if slot:
                sample = asked[number] = self.asked(text, hints)
                ids = list(sample.inputs["input_ids"][: sample.positions[0] + 1])
            else:
                encoded = self.encode(text.rstrip(" "))
                ids = list(encoded.ids[: encoded.end])
            if before.strip():
                prompts[number] = ids
            elif not slot:
                raise DataError("There is nothing to complete: give a text with words or with [MASK].")
        likeliest = dict(zip(asked, self.likeliest(model, list(asked.values()), top), strict=True)) if asked else {}
        written = dict(zip(prompts, self._continued(model, list(prompts.values()), tokens), strict=True))
        return [Answer(likeliest.get(i, []), written.get(i)) for i in range(len(inputs))]

    def _continued(self, model: Any, prompts: Sequence[list[int]], tokens: int) -> list[str]:
        """Generate greedily, all prompts together, with padding on the left."""
        if not prompts or tokens < 1:
            return [""] * len(prompts)
        longest, device = max(map(len, prompts)), next(model.parameters()).device
        ids = torch.tensor([[self.pad_token_id] * (longest - len(p)) + p for p in prompts], device=device)
        attended = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        written = model.generate(
            input_ids=ids,
            attention_mask=attended,
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_token_id,
        )
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in written.tolist()]
