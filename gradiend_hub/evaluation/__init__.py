"""Measurements of a direction: what its encoder reads, and what each strength changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradiend_hub.lazy import attach

if TYPE_CHECKING:
    from .calibration import (
        BREAK_QUALITY,
        CURVE,
        QUALITY_FLOOR,
        Search,
        break_point,
        calibrate,
        equalising_strength,
        measure_curve,
        safe_band,
    )
    from .completions import complete
    from .continuations import Continuation, GenerationFigures, GenerationPoint, GenerationReport
    from .control import above_control, control_curves, random_direction
    from .edit import edit_account
    from .encoder import encoder_report, measure_encoder
    from .generation import GenerationProbe, beginnings, measure_generation
    from .measure import EvaluationSettings, Goal, evaluate_direction
    from .part import NotFiniteError
    from .probe import StrengthProbe
    from .reevaluation import reevaluate
    from .report import (
        BenchmarkResult,
        Completion,
        Decisions,
        EncoderReport,
        Encoding,
        LayerShare,
        OutputReport,
        Report,
        SplitReport,
        StrengthPoint,
        flat_encoder,
    )

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
__getattr__, __dir__ = attach(
    __name__,
    {
        "calibration": [
            "BREAK_QUALITY",
            "CURVE",
            "QUALITY_FLOOR",
            "Search",
            "break_point",
            "calibrate",
            "equalising_strength",
            "measure_curve",
            "safe_band",
        ],
        "completions": ["complete"],
        "continuations": ["Continuation", "GenerationFigures", "GenerationPoint", "GenerationReport"],
        "control": ["above_control", "control_curves", "random_direction"],
        "edit": ["edit_account"],
        "encoder": ["encoder_report", "measure_encoder"],
        "generation": ["GenerationProbe", "beginnings", "measure_generation"],
        "measure": ["EvaluationSettings", "Goal", "evaluate_direction"],
        "part": ["NotFiniteError"],
        "probe": ["StrengthProbe"],
        "reevaluation": ["reevaluate"],
        "report": [
            "BenchmarkResult",
            "Completion",
            "Decisions",
            "EncoderReport",
            "Encoding",
            "LayerShare",
            "OutputReport",
            "Report",
            "SplitReport",
            "StrengthPoint",
            "flat_encoder",
        ],
    },
)
