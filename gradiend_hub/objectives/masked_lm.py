"""Masked language modelling: the slot is as many mask tokens as its filler has tokens, read with both contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from gradiend_hub.errors import BaseModelError

from .checks import Behaviour
from .filling import Encoded, Filled
from .samples import Sample
from .slots import TextObjective


class MaskedLMObjective(TextObjective):
    """The slot holds one mask token for each token of its filler.

    Factual and alternative fillers of equally many tokens differ in their labels only and share one forward pass.
    """

    name = "masked_lm"
    task = "fill-mask"
    answers_name = "Likeliest words at [MASK] with their probabilities."
    auto_class = AutoModelForMaskedLM
    reads_right_context = True

    def __init__(self, processor: Any, **options: Any) -> None:
        super().__init__(processor, **options)
        if processor.mask_token_id is None:
            raise BaseModelError(
                f"The tokenizer of {self.name_or_path} has no mask token, which the objective 'masked_lm' needs. "
                "Use objective='causal_lm' for a causal language model, or a masked language model as the base."
            )

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a class has a head that fills masks; those "for pre-training" have two heads."""
        if getattr(config, "is_encoder_decoder", False):
            return False
        known = architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
        return known or architecture.endswith(("ForMaskedLM", "ForPreTraining"))

    @classmethod
    def require(cls, behaviour: Behaviour, model: str) -> None:
        """Refuse a model that reads the text before a token only: it cannot fill a mask from both sides."""
        if behaviour.reads_left_only:
            raise BaseModelError(
                f"{model} predicts each token from the text before it, so it fills no masks. Use objective='causal_lm', or "
                "load the base with AutoModelForMaskedLM."
            )

    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
        """Put a mask in the place of each token of the word."""
        ids, positions = filled.encoded.ids, tuple(range(filled.start, filled.stop))
        self.require_room(masked, filled, len(ids) - len(positions) + longest)
        mask = self.tokenizer.mask_token_id
        return {"input_ids": tuple(mask if i in positions else token for i, token in enumerate(ids))}, positions

    def token_sample(self, encoded: Encoded, places: Sequence[int]) -> Sample:
        """Mask the tokens at some places."""
        chosen, mask = set(places), self.tokenizer.mask_token_id
        ids = tuple(mask if i in chosen else token for i, token in enumerate(encoded.ids))
        return Sample({"input_ids": ids}, tuple(places), tuple(encoded.ids[i] for i in places), len(ids))
