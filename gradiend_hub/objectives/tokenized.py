"""Objectives whose inputs are texts, which a tokenizer prepares."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer

from .base import Objective
from .batching import by_length
from .samples import Batch


class TokenizedObjective(Objective):
    """An objective of texts.

    Args:
        processor: The base model's tokenizer.
        max_length: Longest input in tokens; by default what the tokenizer allows.
        padding_matters: Whether the model's output for a row depends on the padding beside it; rows of different lengths
            are then run apart.
        **options: Of other objectives, e.g. `name_or_path`.
    """

    def __init__(
        self, processor: Any, *, max_length: int | None = None, padding_matters: bool = False, **options: Any
    ) -> None:
        super().__init__(processor, **options)
        self.tokenizer = processor
        self.padding_matters = padding_matters
        self.max_length = max_length or min(int(processor.model_max_length), 1_000_000)
        pad = processor.pad_token_id
        self.pad_token_id: int = pad if pad is not None else processor.eos_token_id or 0

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        """Load the tokenizer."""
        return AutoTokenizer.from_pretrained(name_or_path, **hub)

    @property
    def key(self) -> str:
        """Name and longest input."""
        return f"{self.name}, at most {self.max_length} tokens"

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of all outputs: [B, S, V]; where padding matters, each length is read by itself."""
        read = partial(self.log_probs_together, model)
        return by_length(batch, read) if self.padding_matters else read(batch)

    @abstractmethod
    def log_probs_together(self, model: nn.Module, batch: Batch) -> Tensor:
        """`log_probs` of rows that may be padded."""
