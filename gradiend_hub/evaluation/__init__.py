"""Measurements of a direction: what its encoder reads, and what each strength changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradiend_hub.lazy import attach

if TYPE_CHECKING:
    from .calibration import Search, calibrate, equalising_strength
    from .completions import complete
    from .continuations import Continuation, GenerationFigures, GenerationPoint, GenerationReport
    from .control import above_control, control_curves, random_direction
    from .curve import CURVE, QUALITY_FLOOR, break_point, measure_curve, safe_band
    from .edit import edit_account
    from .encoder import encoder_report, measure_encoder
    from .generation import GenerationProbe, beginnings, measure_generation
    from .measure import EvaluationSettings, Goal, evaluate_direction
    from .part import NotFiniteError
    from .probe import StrengthProbe
    from .records import (
        BREAK_QUALITY,
        Completion,
        Decisions,
        EncoderReport,
        Encoding,
        OutputReport,
        StrengthPoint,
        flat_encoder,
    )
    from .reevaluation import reevaluate
    from .report import BenchmarkResult, LayerShare, Report, SplitReport

__all__ = [
    "BREAK_QUALITY",
    "CURVE",
    "QUALITY_FLOOR",
    "BenchmarkResult",
    "Completion",
    "Continuation",
    "Decisions",
    "EncoderReport",
    "Encoding",
    "EvaluationSettings",
    "GenerationFigures",
    "GenerationPoint",
    "GenerationProbe",
    "GenerationReport",
    "Goal",
    "LayerShare",
    "NotFiniteError",
    "OutputReport",
    "Report",
    "Search",
    "SplitReport",
    "StrengthPoint",
    "StrengthProbe",
    "above_control",
    "beginnings",
    "break_point",
    "calibrate",
    "complete",
    "control_curves",
    "edit_account",
    "encoder_report",
    "equalising_strength",
    "evaluate_direction",
    "flat_encoder",
    "measure_curve",
    "measure_encoder",
    "measure_generation",
    "random_direction",
    "reevaluate",
    "safe_band",
]

# a report is read without torch and scipy
__getattr__, __dir__ = attach(__name__, __file__)
