"""What a direction does, measured: what its encoder reads, and what each strength changes."""

from __future__ import annotations

from .encoder import EncoderReport, encode_rows, encoder_report, neutral_source, preactivations
from .report import Report, SplitReport, evaluate_direction, flat_encoder
from .strength import StrengthPoint, StrengthProbe, calibrate, safe_band

__all__ = [
    "EncoderReport",
    "Report",
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
