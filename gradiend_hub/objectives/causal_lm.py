"""Causal language modelling: the slot is what comes next after the text on its left."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.errors import BaseModelError, DataError

from .checks import Behaviour
from .filling import Encoded, Filled
from .greedy import continuation, greedy
from .prompts import CHAT_PROMPTS, FITTED_PROMPTS, Prompt, read_prompt
from .samples import IGNORED, Answer, Sample
from .slots import TextObjective


class CausalLMObjective(TextObjective):
    """The slot is predicted from the text before it; what follows the slot is not read.

    The filler's first token is the one that continues the prefix, so " he", "▁he" and "he" are each right for their
    tokenizer; each further token is predicted from the ones before it. A prefix that is too long loses its beginning,
    never the slot.
    """

    name = "causal_lm"
    task = "text-generation"
    answers_name = "Greedy continuations."
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

    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
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
        return {"input_ids": (*prefix, *filled.word[:-1])}, tuple(range(last, last + len(filled.word)))

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

    def drawn(self, encoded: Encoded, places: Sequence[int], rng: random.Random, draws: int = 1) -> list[Sample]:
        """Read the tokens at all places at once."""
        return [self.token_sample(encoded, group) for group in self.together(places)]

    def joined(self, first: Sample, second: Sample) -> Sample | None:
        """Read both in the longer text, if it begins with the shorter one: no token sees what is behind it."""
        short, long = sorted((first, second), key=lambda sample: len(sample.inputs["input_ids"]))
        if long.inputs["input_ids"][: len(short.inputs["input_ids"])] != short.inputs["input_ids"]:
            return None
        labels = (*[IGNORED] * len(first.labels), *second.labels)
        return Sample(long.inputs, (*first.positions, *second.positions), labels, long.cost)

    def read_damage(self, record: Mapping[str, Any]) -> str | Prompt:
        """Make a text or a prompt of a record, in the model's chat template if there is one."""
        return read_prompt(record, self.tokenizer) or self.read_neutral(record)

    def chat_prompts(self, *, fitted: bool = False) -> list[Prompt]:
        """Return `CHAT_PROMPTS`, or `FITTED_PROMPTS`, in the model's chat template; none for a model without one."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return []
        found = (read_prompt({"prompt": text}, self.tokenizer) for text in (FITTED_PROMPTS if fitted else CHAT_PROMPTS))
        return [prompt for prompt in found if prompt]

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
        written = dict(zip(prompts, self._greedy(model, list(prompts.values()), tokens), strict=True))
        texts = {i: self.tokenizer.decode(ids, skip_special_tokens=True).strip() for i, ids in written.items()}
        return [Answer(likeliest.get(i, []), texts.get(i)) for i in range(len(inputs))]

    def generate(self, model: nn.Module, inputs: Sequence[Any], *, tokens: int, batch_size: int = 32) -> list[Sample]:
        """Continue the text before the slot of each input, or all of it, greedily.

        Raises:
            DataError: There is nothing to continue, or the model generates no text.
        """
        prompts = [self.prompt_ids(text, tokens) for text in inputs]
        found = self._greedy(model, prompts, tokens, batch_size)
        return [continuation(prompt, ids) for prompt, ids in zip(prompts, found, strict=True)]

    def prompt_ids(self, text: str, tokens: int) -> list[int]:
        """Return the token ids before which `tokens` others are to follow: the last ones that leave room for them."""
        text = str(text)
        encoded = self.encode(text.partition(SLOT)[0].rstrip(" "))
        if encoded.end == encoded.start:
            raise DataError(f"There is nothing to continue in {text[:80]!r}: give a text with words.")
        room = max(self.max_length - tokens - encoded.start, 1)
        return [*encoded.ids[: encoded.start], *encoded.ids[encoded.start : encoded.end][-room:]]

    def _greedy(self, model: Any, prompts: Sequence[list[int]], tokens: int, batch_size: int = 32) -> list[list[int]]:
        if not hasattr(model, "generate"):
            raise DataError(f"{type(model).__name__} generates no text: it has no method `generate`.")
        pad, apart = self.pad_token_id, self.padding_matters
        return greedy(model, prompts, tokens=tokens, pad=pad, batch_size=batch_size, apart=apart)
