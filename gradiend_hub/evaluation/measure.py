"""One call that measures a direction on one set of rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.data import Row, require_classes
from gradiend_hub.errors import DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective
from gradiend_hub.progress import counted

from .calibration import Search, calibrate, equalising_strength
from .completions import STRENGTHS, complete
from .control import CONTROL_STRENGTHS, Control, above_control, control_curves
from .curve import CURVE, QUALITY_FLOOR, Curve, band_ends, break_point, measure_curve, safe_band
from .damage import GENERATION, NEUTRAL, OWN
from .decisions import decide
from .encoder import measure_encoder
from .generation import GenerationProbe
from .lora import measure_lora
from .probe import OWN_TOKENS, SCORED_TOKENS, StrengthProbe
from .records import BREAK_QUALITY, EncoderReport, Interval
from .report import SplitReport
from .sets import continued, damage_items

logger = logging.getLogger(__name__)

Goal = Literal["strengthen", "debias"]

_NO_ENCODER = (
    "The direction was published without its encoder (gradiend_encoder.safetensors), so no encoding is measured."
)


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of a measurement.

    Attributes:
        floor: lowest quality, relative to the base model's, that counts as safe on every damage set.
        strengths: grid of the curve, which has the config's recommended strength, too; by default `CURVE`, the config's safe
            band and break point, or, where the config names no break point, strengths that are chosen around them as they
            are found.
        controls: random directions to compare with.
        batch_size: rows per forward pass; the figures do not depend on it beyond fp32 rounding.
        seed: decides which neutral tokens are masked or encoded, the random directions and the bootstrap.
        exhaustive: read every strength on all rows and texts, instead of as many as its figures need.
        tokens: tokens of neutral text on which damage is read, at least, if there are so many.
        own_tokens: tokens of the rows' own texts on which collateral damage is read, about; 0 leaves it out.
        generation: read what a generating model goes on with.
    """

    floor: float = QUALITY_FLOOR
    strengths: Sequence[float] | None = None
    controls: int = 3
    batch_size: int = 64
    seed: int = 0
    exhaustive: bool = False
    tokens: int = SCORED_TOKENS
    own_tokens: int = OWN_TOKENS
    generation: bool = True


def evaluate_direction(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    settings: EvaluationSettings | None = None,
    *,
    damage_sets: Mapping[str, Sequence[Any]] | None = None,
    choose_unit_for: Goal | None = None,
    trained_words: Collection[str] | None = None,
    encoded: Tensor | None = None,
    control_norms: Sequence[Interval] = (),
) -> SplitReport:
    """Measure the active direction of `model` on `rows` and neutral `texts`; the model is left as it was.

    What cannot be measured is left out and named in the report's `missing`.

    Args:
        damage_sets: further sets that damage is read on, by name: items as `Objective.read_damage` makes them. A model with
            a chat template gets one of prompts, "chat", if none is given.
        choose_unit_for: first search the dose that becomes strength 1, and write the safe band and the break point into the
            config (do this on validation rows only). With "debias" the config's recommended `strength` becomes the one
            within the safe band that makes both classes equally likely, instead of 1.
        trained_words: words that training rows had; the other words' rows make up `encoder.held_out`.
        encoded: feature values of the rows, [N], as `GradiendModel.encode` returns them, if they are known.
        control_norms: those of the random directions where the unit was chosen, `SplitReport.control_norms`, as a unit is
            chosen once; by default they are set anew, so that damage is equal on these rows and texts.

    Raises:
        DataError: no rows, or feature values that are not finite.
        NotFiniteError: the base model, or the edited one within strengths ±1, computes NaN.
        EditError: even the smallest dose damages the model.
    """
    settings = settings or EvaluationSettings()
    if not rows:
        raise DataError("There are no rows to measure the direction on. Give at least one row of each class.")
    config, sets = model.active_peft_config, damage_sets or {}
    sizes = {"batch_size": settings.batch_size, "seed": settings.seed}
    encoder = None
    if model.direction.has_encoder:
        encoder = measure_encoder(model, objective, rows, texts, trained_words=trained_words, encoded=encoded, **sizes)
        _tell_chance(encoder)
    others = damage_items(model, objective, sets, seed=settings.seed)
    tokens = {"tokens": settings.tokens, "own": settings.own_tokens}
    probe = StrengthProbe(
        model, objective, rows, texts, others=others, exhaustive=settings.exhaustive, **tokens, **sizes
    )
    writing = continued(model, objective, rows, texts, sets) if settings.generation else None
    search = Search([], [])
    if choose_unit_for:
        sound = writing.is_sound if writing else None
        with counted("searching the strength unit"):
            search = calibrate(probe, floor=settings.floor, controls=settings.controls, seed=settings.seed, sound=sound)
    measured = _curve(probe, settings, search, choose_unit_for)
    limits = _limited(probe, settings, search, measured, writing, choose_unit_for)
    broken = break_point(measured.points, measured.not_finite)
    control = _controlled(probe, settings, search, measured, control_norms)
    compared = compared_strengths(config)
    return SplitReport(
        encoder,
        measured.points,
        [p for p in measured.points if p.strength in {q.strength for q in search.points}],
        probe.scored.get(NEUTRAL, 0),
        control=[drawn.points for drawn in control],
        control_norms=[drawn.norms for drawn in control],
        break_point=broken,
        completions=complete(model, objective, rows, sorted({*STRENGTHS, config.strength})),
        decisions=decide(model, objective, rows, compared, batch_size=settings.batch_size),
        missing=_missing(model, rows, probe, measured, broken, choose_unit_for),
        unit_limit=search.limited_by,
        band_limits=limits,
        generation=writing.report(sorted({*compared, *(config.safe_band or ())})) if writing else None,
        lora=measure_lora(probe) if choose_unit_for else None,
    )


def _controlled(
    probe: StrengthProbe, settings: EvaluationSettings, search: Search, measured: Curve, norms: Sequence[Interval]
) -> list[Control]:
    """Measure random directions, and log that the direction does no more than they, if that is so."""
    wanted = [p.strength for p in measured.points if p.strength in CONTROL_STRENGTHS]
    with counted("measuring random directions", settings.controls * max(len(wanted) - 1, 0)):
        control = control_curves(
            probe, wanted, search.control, draws=settings.controls, seed=settings.seed, norms=norms
        )
    if above_control(measured.points, [drawn.points for drawn in control]) is False:
        logger.warning("At strength ±1 the direction's effect is not above that of random directions of equal damage.")
    return control


def _limited(
    probe: StrengthProbe,
    settings: EvaluationSettings,
    search: Search,
    measured: Curve,
    writing: GenerationProbe | None,
    goal: Goal | None,
) -> list[str | None] | None:
    """Return what is not safe beyond each end of the safe band; with a goal, draw the ends in to where continuations are
    sound."""
    ends = band_ends(measured.points, floor=settings.floor)
    if ends is None or goal is None:
        return None if ends is None else [name for _, name in ends]
    config = probe.model.active_peft_config
    limits, band = [name for _, name in ends], [end for end, _ in ends]
    for side, end in enumerate(band):
        inner = sorted((p.strength for p in measured.points if 0 < p.strength / (end or 1) <= 1), key=abs)
        while writing and inner and not writing.is_sound(inner[-1]):
            inner.pop()
            limits[side] = GENERATION
        band[side] = inner[-1] if inner else 0.0
        if limits[side] is None and abs(band[side]) == 1:
            limits[side] = search.limited_by
    config.safe_band = band
    return limits


def _tell_chance(encoder: EncoderReport) -> None:
    """Log that an encoder reads nothing from rows, if it reads no more than one without meaning."""
    r, chance = encoder.correlation, encoder.null_correlation
    if r is not None and chance is not None and r <= chance[1]:
        logger.warning(
            "Not learned: the encoder's correlation with the classes is %.2f, and labels that are dealt out at random give "
            "%.2f to %.2f on the same rows.",
            r,
            *chance,
        )


def _curve(probe: StrengthProbe, settings: EvaluationSettings, search: Search, goal: Goal | None) -> Curve:
    """Measure the strength curve; with a goal, write what it shows into the config."""
    config = probe.model.active_peft_config
    adaptive = settings.strengths is None and (goal is not None or config.break_point is None)
    grid = {*(CURVE if settings.strengths is None else settings.strengths), *(p.strength for p in search.points)}
    if settings.strengths is None and not adaptive:
        grid |= {s for s in (*(config.safe_band or ()), *(config.break_point or ())) if s is not None}
    exact = {-1.0, 0.0, 1.0, config.strength}
    if config.strength != 1:
        grid.add(config.strength)
    with counted("measuring strengths", len(grid)):
        curve = measure_curve(probe, sorted(grid), exact=exact, floor=settings.floor if adaptive else None)
        if goal:
            config.safe_band = safe_band(curve.points, floor=settings.floor)  # of damage alone; see `_limited`
            ends = break_point(curve.points, curve.not_finite)
            config.break_point = ends if ends and any(end is not None for end in ends) else None
        if goal == "debias":
            config.strength = equalising_strength(probe, config.safe_band or (-1.0, 1.0))
            exact.add(config.strength)
            curve = measure_curve(
                probe, [*(p.strength for p in curve.points), *curve.not_finite, config.strength], exact=exact
            )
    return curve


def compared_strengths(config: GradiendConfig) -> list[float]:
    """Strengths at which a model is shown before and after: 0, ±1, and the recommended one."""
    return sorted({-1.0, 0.0, 1.0, config.strength})


def _missing(
    model: GradiendModel,
    rows: Sequence[Row],
    probe: StrengthProbe,
    curve: Curve,
    broken: list[float | None] | None,
    goal: Goal | None,
) -> list[str]:
    """Say what the report lacks because the direction or the data lacks it."""
    missing = [] if model.direction.has_encoder else [_NO_ENCODER]
    counts = Counter(row.factual_class for row in rows)
    for name in require_classes(model.active_peft_config.feature_classes):
        if not counts[name]:
            missing.append(f"No rows of {name}: correlation, AUC and the effect on {name} rows are not measured.")
    if NEUTRAL not in probe.scored:
        missing.append("No neutral text: damage on it, and neutral encodings, are not measured.")
    if not probe.scored:
        missing.append(
            "No text to read damage on: the safe band and the break point are not measured"
            + ("; the strength unit has the best effect, whatever it costs." if goal else ".")
        )
    elif OWN not in probe.scored:
        missing.append("No own text of the rows: collateral damage where the feature lives is not measured.")
    for side, end in zip(("negative", "positive"), broken or (), strict=False):
        if end is None:
            missing.append(f"No break point: no measured {side} strength has a quality under {BREAK_QUALITY:.0%}.")
    if curve.not_finite:
        named = ", ".join(f"{strength:+g}" for strength in curve.not_finite)
        missing.append(f"No figures at strength {named}: the model computes NaN or infinity there.")
    return missing
