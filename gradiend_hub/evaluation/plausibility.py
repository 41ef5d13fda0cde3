"""Claims of a stranger's report and configuration, held against each other: no model is loaded, nothing is measured.

A digest that the author wrote proves nothing, since whoever changes a report can renew it. What is impossible, or does not
fit the rest of the artifact, shows all the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

from gradiend_hub.artifact.fields import DirectionFields
from gradiend_hub.artifact.files import REPORT_FILE
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.errors import ArtifactError

from .records import BREAK_QUALITY, EncoderReport, StrengthPoint
from .report import Report, SplitReport

if TYPE_CHECKING:  # it needs torch, and `info` does not
    from gradiend_hub.artifact.config import GradiendConfig

_WIDEST_BAND = 64.0
"""Strengths beyond this are on no curve that was ever measured."""

_SLACK = 1e-6
"""Of figures that were rounded on their way."""


def require_supported_strength(config: GradiendConfig) -> None:
    """Refuse to apply a direction at its author's strength where what was measured does not support it.

    Strengths up to 1, the unit that every calibration makes safe, need no more than to lie in the safe band. Further ones
    need a measured curve that reaches them without the model breaking on the way.

    Args:
        config: Of the direction, with its origin: the report beside it is read if it is needed.

    Raises:
        ArtifactError: It is not supported. It can still be applied by naming the strength.
    """
    strength = config.strength
    # what PEFT has trained has no unit: its strength is a factor like any other
    unmeasured = 1.0 if config.feature_classes else _WIDEST_BAND
    low, high = config.safe_band or (-unmeasured, unmeasured)
    reason = None
    if not low <= strength <= high:
        known = "the safe band" if config.safe_band else "what is applied where no safe band was measured"
        reason = f"is outside of {known}, {low:g} … {high:g}"
    elif abs(config.feature_factor) > 1:
        reason = f"comes with the feature factor {config.feature_factor:g}, which is outside of −1 … 1"
    elif abs(strength) > unmeasured and not _is_supported(config):
        reason = "is not supported by a measured curve that reaches it with the model intact"
    if reason:
        raise ArtifactError(
            f"The direction asks to be applied at strength {strength:g}, which {reason}. It is not applied unasked. Name a "
            "strength yourself: GradiendModel.from_pretrained(…, strength=1.0) (gradiend-hub: --strength or --strengths)."
        )


def _is_supported(config: GradiendConfig) -> bool:
    """Tell whether a curve in the report beside the configuration supports its strength."""
    path = None if config.origin is None else config.origin.file(REPORT_FILE)
    if path is None:
        return False
    try:
        splits = Report.load(path).splits
    except ArtifactError:
        return False
    return any(supports(split.curve, config.strength) for split in splits.values())


def supports(curve: Sequence[StrengthPoint], strength: float) -> bool:
    """Tell whether a curve reaches a strength, and the model is intact at all points up to there."""
    side = [p for p in curve if p.strength * strength > 0]
    passed = [p for p in side if abs(p.strength) <= abs(strength) + _SLACK]
    reaches = any(abs(p.strength) >= abs(strength) - _SLACK for p in side)
    return reaches and all(p.quality is not None and p.quality >= BREAK_QUALITY for p in passed)


def implausible(config: DirectionFields, report: Report | None) -> list[str]:
    """Return what in an artifact's claims is impossible or contradicts the rest of it, a sentence each."""
    return [*_of_config(config), *(_of_report(config, report) if report is not None else ())]


def count_figures(value: object) -> int:
    """Count the figures of a report, or a part of it: numbers that are claimed to be measured. Settings are none."""
    if isinstance(value, Report):
        parts = [value.splits, value.layers, value.dtype_loss, value.side_effects, value.seconds, value.energy_kwh]
        return sum(map(count_figures, parts))
    if isinstance(value, bool) or (not value and value != 0):
        return 0
    if isinstance(value, (int, float)):
        return 1
    if is_dataclass(value) and not isinstance(value, type):
        measured = (field.name for field in fields(value) if field.name not in ("strength", "row"))
        return sum(count_figures(getattr(value, name)) for name in measured)
    if isinstance(value, Mapping):
        return sum(map(count_figures, value.values()))
    return sum(map(count_figures, value)) if isinstance(value, (list, tuple)) else 0


def _of_config(config: DirectionFields) -> Iterator[str]:
    band, ends = config.safe_band, config.break_point
    if band is not None:
        if not band[0] <= 0 <= band[1]:
            yield f"The safe band {band[0]:g} … {band[1]:g} does not hold strength 0, which is the base model."
        if max(map(abs, band)) > _WIDEST_BAND:
            yield f"The safe band {band[0]:g} … {band[1]:g} is wider than any that is ever measured (±{_WIDEST_BAND:g})."
    if ends is not None:
        low, high = ends
        if (low is not None and low >= 0) or (high is not None and high <= 0):
            yield f"The break points {low} and {high} are not a negative and a positive strength."
        elif band and ((low is not None and band[0] < low) or (high is not None and band[1] > high)):
            yield f"The safe band {band[0]:g} … {band[1]:g} reaches beyond the strengths {low} and {high}, where it breaks."


def _of_report(config: DirectionFields, report: Report) -> Iterator[str]:
    classes = list(config.feature_classes or [])
    if list(report.feature_classes) != classes:
        yield f"The report is of the classes {report.feature_classes}, the configuration of {classes}."
    base, measured = (_public(name) for name in (getattr(config, "base_model_name_or_path", None), report.base_model))
    revision = getattr(config, "revision", None)
    if base and measured and base != measured:  # an author's folder may have been published under any name
        yield f"The report is of the base model {measured!r}, the configuration of {base!r}."
    elif base and measured and report.base_revision and revision and report.base_revision != revision:
        yield f"The report is of commit {report.base_revision!r} of the base model, the configuration of {revision!r}."
    for name, split in report.splits.items():
        yield from (f"{name}: {problem}" for problem in _of_split(split, classes))
    shares = sum(layer.share for layer in report.layers)
    if report.layers and not 0.98 <= shares <= 1.02:
        yield f"The layers' shares of ‖Δ‖² add up to {shares:.3g} instead of 1."
    for dtype, loss in report.dtype_loss.items():
        if not 0 <= loss <= 1:
            yield f"{loss:g} of the edit is lost in {dtype}, which is no share."
    for result in report.side_effects:
        if result.rows <= 0 or not result.source:
            yield f"{result.name}: a benchmark without rows or a source."
        for score, value in result.scores.items():
            if not -100 <= value <= 100:
                yield f"{result.name}, {score}: {value:g} is no score."
    for phase, seconds in report.seconds.items():
        if seconds < 0:
            yield f"The phase {phase!r} took {seconds:g} seconds."
    yield from _of_band(config, report)


def _public(name: str | None) -> str | None:
    """A name that can only be a repository's; the last part of an author's path looks like one without a namespace."""
    return hub_id(name) if name is not None and "/" in name else None


def _of_band(config: DirectionFields, report: Report) -> Iterator[str]:
    """Compare the safe band with the curves."""
    curves = [[*split.curve, *split.search] for split in report.splits.values()]
    if all(p.quality is None for curve in curves for p in curve):
        return  # without neutral items nothing contradicts the band
    for end in config.safe_band or ():
        if end and abs(end) <= _WIDEST_BAND and curves and not any(supports(curve, end) for curve in curves):
            reach = max((abs(p.strength) for curve in curves for p in curve if p.strength * end > 0), default=0.0)
            yield (
                f"The safe band reaches to {end:g}, but no measured curve supports that: on this side curves reach to "
                f"{reach:g}, or the quality falls below {BREAK_QUALITY:g} before."
            )
            return


def _of_split(split: SplitReport, classes: Sequence[str]) -> Iterator[str]:
    if split.encoder is not None:
        yield from _of_encoder(split.encoder, classes)
        yield from _of_encodings(split.encoder, classes)
        if split.encoder.held_out is not None:
            yield from (f"held-out words, {problem}" for problem in _of_encoder(split.encoder.held_out, classes))
    strengths = [p.strength for p in split.curve]
    if strengths != sorted(set(strengths)):
        yield "the strengths of the curve are not in order, or one is there twice."
    # on counterfactual pairs, the classes' probabilities are of two inputs
    of_one = all(decided.flipped is None for decided in split.decisions)
    for point in [*split.curve, *split.search, *(p for drawn in split.control for p in drawn)]:
        yield from (f"at strength {point.strength:g}, {problem}" for problem in _of_point(point, classes, of_one))
    for decided in split.decisions:
        shares: dict[str, float | None] = {f"accuracy on {name}": share for name, share in decided.accuracy.items()}
        shares |= {"changed decisions": decided.changed, "flipped decisions": decided.flipped}
        yield from (f"at strength {decided.strength:g}, {problem}" for problem in _outside(shares, 0, 1))
    if split.curve and any(p.quality is not None for p in split.curve) and split.scored <= 0:
        yield "a quality is claimed, but no token was scored."
    base = next((p for p in split.curve if p.strength == 0), None)
    if base is not None and base.quality is not None and abs(base.quality - 1) > 1e-3:
        yield f"at strength 0, which is the base model, the quality is {base.quality:g} instead of 1."


def _of_encoder(encoder: EncoderReport, classes: Sequence[str]) -> Iterator[str]:
    signed = {"correlation": encoder.correlation, "Spearman's": encoder.spearman}
    signed |= {"correlation with neutral text": encoder.correlation_with_neutral}
    signed |= {f"mean of {name}": mean for name, mean in encoder.class_means.items()}
    shares = {"accuracy": encoder.accuracy, "AUC": encoder.auc, "three-way accuracy": encoder.ternary_accuracy}
    shares |= {"|h| on neutral text": encoder.neutral_abs_mean, "|h| on other tokens": encoder.other_abs_mean}
    yield from _outside(signed, -1, 1)
    yield from _outside(shares, 0, 1)
    if set(encoder.rows) - {*classes} or set(encoder.class_means) - {*classes}:
        yield f"the encoder has figures of other classes than {classes}."
    if any(count < 0 for count in [*encoder.rows.values(), encoder.neutral_rows, encoder.other_rows]):
        yield "a number of rows is negative."
    elif sum(encoder.rows.values()) < 2:
        yield "the encoder's figures come from fewer than two rows."
    spread = max((encoder.class_stds.get(name, 0.0) for name in classes), default=0.0)
    if encoder.correlation is not None and encoder.correlation > 1 - _SLACK and spread > 1e-3:
        yield "a correlation of 1 needs equal values within each class, but their standard deviation is not 0."
    means = [mean for name in classes if (mean := encoder.class_means.get(name)) is not None]
    if len(means) == 2 and encoder.correlation is not None and (means[0] - means[1]) * encoder.correlation < -_SLACK:
        yield "the sign of the correlation is not that of the difference of the classes' means."


def _of_encodings(encoder: EncoderReport, classes: Sequence[str]) -> Iterator[str]:
    """Compare the figures with the published points that they are from, or at least a part of them."""
    if any(abs(e.h) > 1 for e in encoder.encodings):
        yield "a feature value is outside of −1 … 1."
    for name in classes:
        values = [e.h for e in encoder.encodings if e.kind == name]
        mean, std = encoder.class_means.get(name), encoder.class_stds.get(name, 0.0)
        if len(values) < 5 or mean is None:
            continue
        found = sum(values) / len(values)
        every = len(values) == encoder.rows.get(name)  # and otherwise they were drawn from all
        if abs(found - mean) > (
            1e-3 if every else 0.02 + 5 * max(std, statistics.stdev(values)) / math.sqrt(len(values))
        ):
            yield f"the mean of {name} is {mean:.3f}, but that of its {len(values)} published points {found:.3f}."


def _of_point(point: StrengthPoint, classes: Sequence[str], of_one_input: bool) -> Iterator[str]:
    for of, by_class in point.probability.items():
        if of not in classes or set(by_class) - {*classes}:
            yield f"there are probabilities of other classes than {list(classes)}."
        yield from _outside({f"P({name}) on {of} rows": p for name, p in by_class.items()}, 0, 1)
        if of_one_input and sum(by_class.values()) > 1 + 1e-3:
            yield f"the classes' probabilities on {of} rows add up to more than 1."
    yield from _outside({"accuracy": point.accuracy}, 0, 1)
    yield from _outside({"quality": point.quality, "NLL": point.nll, "KL": point.kl}, -_SLACK, math.inf)
    for name, interval in point.intervals.items():
        if interval[0] > interval[1]:
            yield f"the interval of {name} is upside down."


def _outside(figures: Mapping[str, float | None], low: float, high: float) -> Iterator[str]:
    for name, value in figures.items():
        if value is not None and not low - _SLACK <= value <= high + _SLACK:
            yield f"{name} is {value:g}, which is impossible."
