"""Rows, their checks, how they are ordered into batches, and how data sets of them are built from text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradiend_hub.artifact.fields import require_classes
from gradiend_hub.lazy import attach

from .row import CounterfactualRow, LabelRow, Row, TextRow
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
    from .pictures import Picture
    from .readers import read_feature_data
    from .splits import divided_anew, find_leaks, row_groups, without_leaks

__all__ = [
    "ClassSpec",
    "CounterfactualRow",
    "FeatureData",
    "FeatureDataConfig",
    "FeatureDatasetBuilder",
    "LabelRow",
    "NeutralSpec",
    "Picture",
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

# building needs `datasets` and a matcher; training and evaluation need neither
__getattr__, __dir__ = attach(__name__, __file__)
