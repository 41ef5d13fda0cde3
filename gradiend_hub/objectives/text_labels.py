"""Classifiers of texts: sentiment, topic, entailment and the like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from gradiend_hub.errors import BaseModelError, DataError

from .batching import padded_tokens
from .checks import most_tokens
from .labels import ConceptMixin, LabelObjective
from .logits import evaluating
from .samples import Batch
from .tokenized import TokenizedObjective

MOST_SHOWN = 160
"""Most characters of a text that card and report show with its decisions."""

TOLERANCE = 1e-4
"""Largest difference of two logits, relative to the largest one, that is put down to rounding."""


class TextClassificationObjective(TokenizedObjective, LabelObjective):
    """A label direction of a classifier of texts: the same text, another label.

    Texts longer than the model reads are cut at their end, as its tokenizer does it.

    Args:
        labels: Names of the model's labels, in their order; the other arguments are those of `TokenizedObjective`.
    """

    name = "text_classification"
    task = "text-classification"
    asks = "TEXT"
    auto_class = AutoModelForSequenceClassification
    heads = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    column = "text"

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the labels, the longest input that tokenizer and model can both read, and whether padding matters.

        Raises:
            BaseModelError: The head gives no one label of several, or the model cannot read rows of different lengths.
        """
        return super().traits(model, processor, max_length) | {
            "max_length": most_tokens(model, processor, max_length),
            "padding_matters": _padding_matters(model, processor),
        }

    def read_input(self, value: Any) -> str:
        """Check that it is a text."""
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"expected a non-empty text, found {value!r:.80}.")
        return value

    def input_record(self, value: str) -> str:
        """Return the text."""
        return value

    def prepared(self, value: str) -> tuple[dict[str, Any], int]:
        """Return the token ids."""
        ids = tuple(self.processor(value, truncation=True, max_length=self.max_length, verbose=False).input_ids)
        return {"input_ids": ids}, len(ids)

    def collate_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad to the longest row, to the right."""
        return padded_tokens([row["input_ids"] for row in inputs], self.pad_token_id)

    def log_probs_together(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the labels: [B, 1, V], fp32 or wider."""
        return LabelObjective.log_probs(self, model, batch)

    def named(self, inputs: Mapping[str, Any]) -> str:
        """Return the text as the model reads it."""
        return str(self.processor.decode(list(inputs["input_ids"]), skip_special_tokens=True))

    def shown(self, value: Any) -> bool:
        """Return whether the text is short."""
        return len(str(value)) <= MOST_SHOWN


class TextConceptObjective(ConceptMixin, TextClassificationObjective):
    """A concept direction of a classifier of texts: a counterfactual text, the same label."""

    name = "text_concept"
    columns = ("text", "counterfactual", "label")


def _padding_matters(model: nn.Module, tokenizer: Any) -> bool:
    """Try whether a row's logits depend on the padding that a longer row beside it brings.

    Raises:
        BaseModelError: The model cannot run two rows at once.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return False
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    size = min(len(tokenizer), getattr(embeddings, "num_embeddings", len(tokenizer)))
    long = [size // 3 + i for i in range(9)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    device = next(model.parameters()).device

    def logits(*rows: list[int]) -> Tensor:
        found: Tensor = model(**{name: value.to(device) for name, value in padded_tokens(rows, pad).items()}).logits
        return found.float()

    with evaluating(model), torch.no_grad():
        try:
            alone = logits(long[:5])[0]
            beside = logits(long, long[:5])[1][
                : len(alone)
            ]  # of a head that labels every token, those of the row's own
        except (TypeError, ValueError) as error:
            raise BaseModelError(
                f"{type(model).__name__} cannot label two texts of different lengths at once: {error} If it does not know "
                "its padding token, set model.config.pad_token_id = tokenizer.pad_token_id, in its config.json, too."
            ) from error
    return float((beside - alone).abs().max()) > TOLERANCE * max(float(alone.abs().max()), 1.0)
