"""Classifiers of texts: sentiment, topic, entailment and the like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from gradiend_hub.errors import BaseModelError, DataError

from .base import Batch
from .checks import longest_input
from .labels import ConceptMixin, LabelObjective, label_names, log_softmax
from .logits import evaluating

__all__ = ["TextClassificationObjective", "TextConceptObjective"]

MOST_SHOWN = 160
"""Most characters of a text that card and report show with its decisions."""

TOLERANCE = 1e-4
"""Largest difference of two logits, relative to the largest one, that is put down to rounding."""


class TextClassificationObjective(LabelObjective):
    """A label direction of a classifier of texts: the same text, another label.

    Texts longer than the model reads are cut at their end, as its tokenizer does it.

    Args:
        processor: The base model's tokenizer.
        labels: Names of the model's labels, in their order.
        max_length: Longest input in tokens.
        padding_matters: Whether the model's output for a row depends on the padding beside it; rows of different lengths
            are then run apart.
        name_or_path: How messages call the base model.
    """

    name = "text_classification"
    task = "text-classification"
    asks = "TEXT"
    auto_class = AutoModelForSequenceClassification
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    column = "text"

    def __init__(
        self,
        processor: Any,
        *,
        labels: Sequence[str],
        max_length: int | None = None,
        padding_matters: bool = False,
        name_or_path: str = "the base model",
    ) -> None:
        super().__init__(processor, labels=labels, name_or_path=name_or_path)
        self.max_length = max_length or min(int(processor.model_max_length), 1_000_000)
        self.padding_matters = padding_matters
        pad = processor.pad_token_id
        self.pad_token_id = pad if pad is not None else processor.eos_token_id or 0

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a class has a head that labels whole texts."""
        known = architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
        return known or architecture.endswith("ForSequenceClassification")

    @classmethod
    def of_model(
        cls, model: nn.Module, processor: Any, *, max_length: int | None = None
    ) -> TextClassificationObjective:
        """Make the objective of a model; inputs never exceed what tokenizer and model can read.

        Raises:
            BaseModelError: The head gives no one label of several, or the model cannot read rows of different lengths.
        """
        config: Any = getattr(model, "config", None)
        labels = label_names(config, type(model).__name__)
        limits = [int(processor.model_max_length), longest_input(model), max_length]
        return cls(
            processor,
            labels=labels,
            max_length=min(limit for limit in limits if limit),
            padding_matters=_padding_matters(model, processor),
            name_or_path=getattr(config, "name_or_path", "") or type(model).__name__,
        )

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        """Load the tokenizer."""
        return AutoTokenizer.from_pretrained(name_or_path, **hub)

    @property
    def key(self) -> str:
        """Name and longest input."""
        return f"{self.name}, at most {self.max_length} tokens"

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
        return _padded([row["input_ids"] for row in inputs], self.pad_token_id)

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the labels: [B, 1, V], fp32 or wider."""
        if not self.padding_matters:
            return super().log_probs(model, batch)
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        rows = {length: [i for i, other in enumerate(lengths) if other == length] for length in lengths}
        parts = [
            model(**{name: value[chosen, :length] for name, value in batch.inputs.items()}).logits
            for length, chosen in rows.items()
        ]
        order = torch.tensor([i for chosen in rows.values() for i in chosen], device=parts[0].device)
        return log_softmax(torch.cat(parts)[order.argsort()]).unsqueeze(1)

    def named(self, inputs: Mapping[str, Any]) -> str:
        """Return the text as the model reads it."""
        return str(self.processor.decode(list(inputs["input_ids"]), skip_special_tokens=True))

    def shown(self, value: str) -> bool:
        """Return whether the text is short."""
        return len(value) <= MOST_SHOWN


class TextConceptObjective(ConceptMixin, TextClassificationObjective):
    """A concept direction of a classifier of texts: a counterfactual text, the same label."""

    name = "text_concept"
    columns = ("text", "counterfactual", "label")


def _padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


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
        found: Tensor = model(**{name: value.to(device) for name, value in _padded(rows, pad).items()}).logits
        return found.float()

    with evaluating(model), torch.no_grad():
        try:
            beside, alone = logits(long, long[:5])[1], logits(long[:5])[0]
        except (TypeError, ValueError) as error:
            raise BaseModelError(
                f"{type(model).__name__} cannot label two texts of different lengths at once: {error} If it does not know "
                "its padding token, set model.config.pad_token_id = tokenizer.pad_token_id, in its config.json, too."
            ) from error
    return float((beside - alone).abs().max()) > TOLERANCE * max(float(alone.abs().max()), 1.0)
