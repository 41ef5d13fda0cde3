"""Caveats of a card: sentences that follow from the report, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from gradiend_hub.evaluation import EncoderReport, Report, SplitReport
from gradiend_hub.evaluation.damage import set_label
from gradiend_hub.evaluation.shift import SMALL_CHANGE, shifts
from gradiend_hub.plots.text import number, percent, signed

from .markdown import cell

WIDE_INTERVAL = 0.05
TOLD_APART = 0.9
"""Accuracy from which the encoder counts as telling the classes (and neutral text) apart."""
NOT_TOLD_APART = 0.5
"""Correlation below which it does not."""
LOUD_ON_NEUTRAL = 0.2
HELD_OUT_DROP = 0.05
LARGE_DTYPE_LOSS = 0.1
FEW_TOKENS = 2000
SMALL_MODEL = 50_000_000
NEAR_BREAK = 2.0


def caveats(report: Report, name: str, split: SplitReport, output: str = "word") -> list[str]:
    """Caveats as Markdown sentences, the gravest first.

    Args:
        name: of the split that the card shows.
        split: its measurements.
        output: the objective's `output_name`.
    """
    return [
        *_of_effect(report, name, split),
        *(_of_encoder(split.encoder, output) if split.encoder else ()),
        *_of_measurement(report, name, split),
    ]


def _of_effect(report: Report, name: str, split: SplitReport) -> Iterator[str]:
    points, floor = {p.strength: p for p in split.curve}, report.settings.get("quality_floor")
    for shift in shifts(split, report.feature_classes):
        dose = f"strength {signed(shift.strength, 0)}"
        if shift.outcome == "opposite":
            yield f"**The opposite was measured at {dose}:** {cell(shift.figures)}."
        elif shift.outcome == "weak" and shift.chance is not None and shift.chance >= (shift.low or 0):
            yield f"**The effect may be chance.** At {dose} {cell(shift.figures)}."
        if shift.outcome == "weak" and shift.change < SMALL_CHANGE:
            yield f"**Little effect at {dose}:** {cell(shift.figures)}."
        worst = points[shift.strength].worst(bound=False) if shift.strength in points else None
        if worst is not None and isinstance(floor, float) and worst[1] < floor:
            where = "" if name == "eval" else " on other data"
            yield (
                f"At {dose} the quality on {cell(set_label(worst[0]))} is {percent(worst[1])}, below the "
                f"{percent(floor, 1)} at which the strength unit was chosen{where}."
            )
        for written in split.generation.at(shift.strength) if split.generation else ():
            if not written.sound:
                yield (
                    f"**At {dose} the model's own text is not sound** ({cell(written.kind)} prompts): "
                    f"{cell('; '.join(written.faults))}."
                )
    for side in split.break_point or []:
        if side is not None and abs(side) <= NEAR_BREAK:
            yield f"The model breaks near: already at strength {signed(side)}."
    if _without_text(split):
        chosen_on = report.splits.get("eval")
        unit = ", and the strength unit was chosen without it" if chosen_on and _without_text(chosen_on) else ""
        yield f"There was no text to read damage on, so nothing is known about it{unit}."
    elif "damage_sets" not in report.settings and "eval" in report.splits:
        yield (
            "The strength unit was chosen by neutral text alone: damage where the feature lives, and in what the model goes "
            "on with, was not measured."
        )


def _without_text(split: SplitReport) -> bool:
    return bool(split.curve) and all(p.worst() is None for p in split.curve)


def _of_encoder(encoder: EncoderReport, output: str) -> Iterator[str]:
    low = encoder.intervals.get("accuracy", [encoder.accuracy])[0]
    if low <= 0.5 or (encoder.correlation is not None and encoder.correlation < NOT_TOLD_APART):
        yield (
            f"**The encoder does not tell the classes apart:** correlation {number(encoder.correlation)}, accuracy "
            f"{number(encoder.accuracy)} (at least {number(low)})."
        )
    for figure in ("correlation", "accuracy"):
        bounds = encoder.intervals.get(figure)
        if bounds and bounds[1] - bounds[0] > WIDE_INTERVAL:
            yield (f"Few rows: the 95 % interval of the {figure} goes from {number(bounds[0])} to {number(bounds[1])}.")
    if encoder.ternary_accuracy is not None and encoder.ternary_accuracy < TOLD_APART <= encoder.accuracy:
        yield (
            "The encoder tells the classes apart better than either from neutral text: by their sign "
            f"{percent(encoder.accuracy, 1)} of the rows land right; with neutral text, sorted by the thresholds ±0.5, "
            f"{percent(encoder.ternary_accuracy, 1)} do."
        )
    quiet = {"neutral text": encoder.neutral_abs_mean, "other tokens of the rows": encoder.other_abs_mean}
    for where, value in quiet.items():
        if value is not None and value > LOUD_ON_NEUTRAL:
            yield f"The encoder is not silent where the feature is absent: mean |h| is {number(value)} on {where}."
    held_out = encoder.held_out
    if held_out is None:
        if output != "label":  # a model has no labels but its own
            yield f"{output.capitalize()}s that training did not have were not measured."
    elif held_out.accuracy < encoder.accuracy - HELD_OUT_DROP:
        yield (
            f"On {output}s that training did not have, accuracy is {number(held_out.accuracy)} instead of "
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
