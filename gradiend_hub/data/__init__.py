"""Rows, their checks, and how they are ordered into batches."""

from __future__ import annotations

from .batches import TransitionBatchSampler, TransitionDataset
from .rows import Row, class_fillers, neutral_examples, read_rows, read_texts, require_classes, tokenize_rows

__all__ = [
    "Row",
    "TransitionBatchSampler",
    "TransitionDataset",
    "class_fillers",
    "neutral_examples",
    "read_rows",
    "read_texts",
    "require_classes",
    "tokenize_rows",
]
