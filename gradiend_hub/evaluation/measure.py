"""One call that measures a direction on one set of rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.data import Row, require_classes
from gradiend_hub.errors import DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective
from gradiend_hub.progress import counted

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
from .completions import STRENGTHS, complete
from .control import above_control, control_curves
from .encoder import measure_encoder
from .probe import StrengthProbe
from .report import SplitReport, StrengthPoint

logger = logging.getLogger(__name__)

Goal = Literal["strengthen", "debias"]

_NO_ENCODER = (
    "The direction was published without its encoder (gradiend_encoder.safetensors), so no encoding is measured."
)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a direction is measured.

    Attributes:
        floor: lowest relative language-modelling score that counts as safe.
        strengths: grid of the curve, which has the config's recommended strength, too; by default `CURVE`, the config's safe
            band and break point, or, where the config names no break point, strengths that are chosen around them as they
            are found.
        controls: random directions to compare with.
        batch_size: rows per forward pass; the figures do not depend on it beyond fp32 rounding.
        seed: decides which neutral tokens are masked or encoded, the random directions and the bootstrap.
    """

    floor: float = QUALITY_FLOOR
    strengths: Sequence[float] | None = None
    controls: int = 3
    batch_size: int = 64
    seed: int = 0


def evaluate_direction(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    settings: EvaluationSettings | None = None,
    *,
    choose_unit_for: Goal | None = None,
    trained_words: Collection[str] | None = None,
) -> SplitReport:
    """Measure the active direction of `model` on `rows` and neutral `texts`; the model is left as it was.

    What cannot be measured is left out and named in the report's `missing`.

    Args:
        choose_unit_for: first search the dose that becomes strength 1, and write the safe band and the break point into the
            config (do this on validation rows only). With "debias" the config's recommended `strength` becomes the one
            within the safe band that makes both classes equally likely, instead of 1.
        trained_words: words that training rows had; the other words' rows make up `encoder.held_out`.

    Raises:
        DataError: no rows, or feature values that are not finite.
        NotFiniteError: the base model, or the edited one within strengths ±1, computes NaN.
        EditError: even the smallest dose damages the model.
    """
    settings = settings or EvaluationSettings()
    if not rows:
        raise DataError("There are no rows to measure the direction on. Give at least one row of each class.")
    with counted("measuring strengths"):
        return _evaluated(model, objective, rows, texts, settings, choose_unit_for, trained_words)


def _evaluated(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str],
    settings: EvaluationSettings,
    choose_unit_for: Goal | None,
    trained_words: Collection[str] | None,
) -> SplitReport:
    config, sizes = model.active_peft_config, {"batch_size": settings.batch_size, "seed": settings.seed}
    classes, encoder = require_classes(config.feature_classes), None
    if model.direction.has_encoder:
        encoder = measure_encoder(model, objective, rows, texts, trained_words=trained_words, **sizes)
    probe = StrengthProbe(model, objective, rows, texts, **sizes)
    search = Search([], [])
    if choose_unit_for:
        search = calibrate(probe, floor=settings.floor, controls=settings.controls, seed=settings.seed)
    adaptive = settings.strengths is None and (choose_unit_for is not None or config.break_point is None)
    grid = _grid(config, refined=not adaptive) if settings.strengths is None else settings.strengths
    grid = sorted({*grid, config.strength} if config.strength != 1 else {*grid})
    measured = measure_curve(probe, grid, search.points, floor=settings.floor if adaptive else None)
    curve, broken = measured.points, break_point(measured.points, measured.not_finite)
    if choose_unit_for:
        _record(config, curve, broken, settings.floor)
    if choose_unit_for == "debias":
        curve = _debias(probe, config, curve)
    grid = [p.strength for p in curve]
    control = control_curves(probe, grid, search.control, draws=settings.controls, seed=settings.seed)
    if above_control(curve, control) is False:
        logger.warning("At strength ±1 the direction's effect is not above that of random directions of equal norm.")
    return SplitReport(
        encoder, curve, search.points, probe.scored, control=control, break_point=broken,
        completions=complete(model, objective, rows, sorted({*STRENGTHS, config.strength})),
        missing=[
            *([] if encoder else [_NO_ENCODER]), *_missing(rows, classes, texts, broken, choose_unit_for),
            *_not_finite(measured.not_finite),
        ],
    )  # fmt: skip


def compared_strengths(config: GradiendConfig) -> list[float]:
    """Strengths at which a model is shown before and after: 0, ±1, and the recommended one."""
    return sorted({-1.0, 0.0, 1.0, config.strength})


def _grid(config: GradiendConfig, *, refined: bool) -> list[float]:
    known = [*(config.safe_band or []), *(config.break_point or [])] if refined else []
    return sorted({*CURVE, *known})


def _record(
    config: GradiendConfig, curve: Sequence[StrengthPoint], broken: list[float | None] | None, floor: float
) -> None:
    """Write what the curve shows into the config. A break point is only recorded if both sides have one."""
    config.safe_band = safe_band(curve, floor=floor)
    ends = [strength for strength in broken or [] if strength is not None]
    config.break_point = ends if len(ends) == 2 else None


def _debias(probe: StrengthProbe, config: GradiendConfig, curve: list[StrengthPoint]) -> list[StrengthPoint]:
    """Recommend the strength that makes both classes equally likely; its point joins the curve."""
    config.strength = equalising_strength(probe, config.safe_band or (-1.0, 1.0))
    return measure_curve(probe, [config.strength], curve).points


def _not_finite(strengths: Sequence[float]) -> list[str]:
    """That the curve lacks these strengths."""
    named = ", ".join(f"{strength:+g}" for strength in strengths)
    return [f"No figures at strength {named}: the model computes NaN or infinity there."] if strengths else []


def _missing(
    rows: Sequence[Row],
    classes: tuple[str, str],
    texts: Sequence[str],
    broken: list[float | None] | None,
    choose_unit_for: Goal | None,
) -> list[str]:
    """What the report lacks because the data lacks it."""
    missing = []
    counts = Counter(row.factual_class for row in rows)
    for name in classes:
        if not counts[name]:
            missing.append(f"No rows of {name}: correlation, AUC and the effect on {name} rows are not measured.")
    if not texts:
        missing.append(
            "No neutral text: the language-modelling score, the safe band, the break point and neutral encodings are not "
            "measured" + ("; the strength unit has the best effect, whatever it costs." if choose_unit_for else ".")
        )
    for side, end in zip(("negative", "positive"), broken or (), strict=False):
        if end is None:
            missing.append(f"No break point: no measured {side} strength has an LM score under {BREAK_QUALITY:.0%}.")
    return missing
