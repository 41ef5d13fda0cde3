"""What a direction does, measured: what its encoder reads, and what each strength changes."""

from __future__ import annotations

from .encoder import encode_rows, encoder_report, neutral_source, preactivations
from .measure import evaluate_direction
from .report import (
    BenchmarkResult,
    Completion,
    EncoderReport,
    FillerReport,
    LayerShare,
    Report,
    Sample,
    SplitReport,
    StrengthPoint,
    flat_encoder,
)
from .strength import StrengthProbe, calibrate, safe_band

__all__ = [
    "BenchmarkResult",
    "Completion",
    "EncoderReport",
    "FillerReport",
    "LayerShare",
    "Report",
    "Sample",
    "SplitReport",
    "StrengthPoint",
    "StrengthProbe",
    "calibrate",
    "encode_rows",
    "encoder_report",
    "evaluate_direction",
    "flat_encoder",
    "neutral_source",
    "preactivations",
    "safe_band",
]
