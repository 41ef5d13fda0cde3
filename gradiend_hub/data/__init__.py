"""Rows, their checks, how they are ordered into batches, and how data sets of them are built from text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradiend_hub.artifact.config import require_classes

from .row import Row, TextRow
from .rows import (
    class_fillers,
    read_neutral,
    read_rows,
    read_texts,
    require_distinct,
    rows_digest,
)

if TYPE_CHECKING:
    from .builder.build import FeatureDatasetBuilder
    from .builder.feature_data import FeatureData
    from .builder.neutral import other_words
    from .builder.spec import ClassSpec, FeatureDataConfig, NeutralSpec, TextFilters
    from .readers import read_feature_data
    from .splits import divided_anew, find_leaks, row_groups, without_leaks

__all__ = [
    "ClassSpec",
    "FeatureData",
    "FeatureDataConfig",
    "FeatureDatasetBuilder",
    "NeutralSpec",
    "Row",
    "TextFilters",
    "TextRow",
    "class_fillers",
    "divided_anew",
    "find_leaks",
    "other_words",
    "read_feature_data",
    "read_neutral",
    "read_rows",
    "read_texts",
    "require_classes",
    "require_distinct",
    "row_groups",
    "rows_digest",
    "without_leaks",
]

_LAZY = {
    "ClassSpec": "builder.spec",
    "FeatureData": "builder.feature_data",
    "FeatureDataConfig": "builder.spec",
    "FeatureDatasetBuilder": "builder.build",
    "NeutralSpec": "builder.spec",
    "TextFilters": "builder.spec",
    "divided_anew": "splits",
    "find_leaks": "splits",
    "other_words": "builder.neutral",
    "read_feature_data": "readers",
    "row_groups": "splits",
    "without_leaks": "splits",
}


def __getattr__(name: str) -> Any:
    """Building needs `datasets` and a matcher; training and evaluation need neither."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
