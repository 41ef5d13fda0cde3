"""What a reader of a card should know before trusting it: sentences that follow from the report, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from gradiend_hub.evaluation import EncoderReport, Report, SplitReport, StrengthPoint

from .markdown import cell, number, percent, signed

__all__ = ["caveats"]

WIDE_INTERVAL = 0.05
LOW_TERNARY_ACCURACY = 0.9
LOUD_ON_NEUTRAL = 0.2
SMALL_EFFECT = 0.05
HELD_OUT_DROP = 0.05
QUALITY_FLOOR = 0.99
LARGE_DTYPE_LOSS = 0.1
FEW_TOKENS = 2000
SMALL_MODEL = 50_000_000
NEAR_BREAK = 2.0


def caveats(report: Report, name: str, split: SplitReport) -> list[str]:
    """Caveats as Markdown sentences, the gravest first.

    Args:
        name: of the split that the card shows.
        split: its measurements.
    """
    return [
        *_of_effect(report, split),
        *(_of_encoder(report, split.encoder) if split.encoder else ()),
        *_of_measurement(report, name, split),
    ]


def _of_effect(report: Report, split: SplitReport) -> Iterator[str]:
    first, second = report.feature_classes
    zero = next((p for p in split.curve if p.strength == 0), None)
    for strength, wanted, other in ((1.0, first, second), (-1.0, second, first)):
        point = next((p for p in split.curve if p.strength == strength), None)
        if point is None or point.effect is None:
            continue
        name, dose = f"P({cell(wanted)}) on {cell(other)} rows", f"strength {signed(strength, 0)}"
        control = [
            p.effect for curve in split.control for p in curve if p.strength == strength and p.effect is not None
        ]
        low = point.effect_interval[0] if point.effect_interval else point.effect
        if control and low <= max(control):
            yield (
                f"**The effect may be chance.** At {dose} {name} is {number(point.effect)} (at least {number(low)}), and "
                f"random directions of the same size reach {number(max(control))}."
            )
        before = zero.probability.get(other, {}).get(wanted) if zero else None
        if before is not None and point.effect - before < SMALL_EFFECT:
            yield f"**Little effect at {dose}:** {name} goes from {number(before)} to {number(point.effect)}."
        if point.quality is not None and point.quality < QUALITY_FLOOR:
            yield (
                f"At {dose} the LM score is {percent(point.quality)}, below the {QUALITY_FLOOR:.0%} at which the "
                "strength unit was chosen on other data."
            )
    for side in split.break_point or []:
        if side is not None and abs(side) <= NEAR_BREAK:
            yield f"The language model breaks near: already at strength {signed(side)}."
    if _without_text(split):
        chosen_on = report.splits.get("eval")
        unit = ", and the strength unit was chosen without it" if chosen_on and _without_text(chosen_on) else ""
        yield f"There was no neutral text, so nothing is known about damage{unit}."


def _without_text(split: SplitReport) -> bool:
    return bool(split.curve) and all(p.quality is None for p in split.curve)


def _of_encoder(report: Report, encoder: EncoderReport) -> Iterator[str]:
    for figure in ("correlation", "accuracy"):
        bounds = encoder.intervals.get(figure)
        if bounds and bounds[1] - bounds[0] > WIDE_INTERVAL:
            yield (f"Few rows: the 95 % interval of the {figure} goes from {number(bounds[0])} to {number(bounds[1])}.")
    if encoder.ternary_accuracy is not None and encoder.ternary_accuracy < LOW_TERNARY_ACCURACY:
        yield (
            "The encoder tells the classes apart better than either from neutral text: sorted by the thresholds ±0.5, "
            f"{percent(encoder.ternary_accuracy, 1)} land right."
        )
    quiet = {"neutral text": encoder.neutral_abs_mean, "other tokens of the rows": encoder.other_abs_mean}
    for where, value in quiet.items():
        if value is not None and value > LOUD_ON_NEUTRAL:
            yield f"The encoder is not silent where the feature is absent: mean |h| is {number(value)} on {where}."
    held_out = encoder.held_out
    if held_out is None:
        yield "Words that training did not have were not measured."
    elif held_out.accuracy < encoder.accuracy - HELD_OUT_DROP:
        yield (
            f"On words that training did not have, accuracy is {number(held_out.accuracy)} instead of "
            f"{number(encoder.accuracy)}."
        )


def _of_measurement(report: Report, name: str, split: SplitReport) -> Iterator[str]:
    if name == "eval":
        yield "The figures come from the rows on which the strength unit was chosen, so they are optimistic."
    if split.curve and not split.control:
        yield "Random directions were not measured, so nothing tells how much of the effect any edit of this size has."
    if 0 < split.scored < FEW_TOKENS:
        yield f"Damage was read from few tokens of neutral text: {split.scored:,}."
    for dtype, loss in report.dtype_loss.items():
        if loss > LARGE_DTYPE_LOSS:
            yield f"With the base model in {cell(dtype)}, {percent(loss, 1)} of the edit is lost to rounding."
    if len(report.seeds) < 2:
        yield "One training run was measured; how much others differ is not known."
    size = report.training.get("base_parameters")
    if isinstance(size, int) and size < SMALL_MODEL:
        yield f"The base model is small ({size:,} parameters): larger ones may act otherwise."
    for gap in split.missing:
        yield f"{cell(gap.rstrip('.'))}."


def control_range(split: SplitReport, point: StrengthPoint) -> tuple[float, float] | None:
    """Lowest and highest effect of the random directions at the strength of `point`."""
    found = [
        p.effect for curve in split.control for p in curve if p.strength == point.strength and p.effect is not None
    ]
    return (min(found), max(found)) if found else None
