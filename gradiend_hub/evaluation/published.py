"""Figures of a report that are measured again on the rows that it holds, and those that nobody can measure without more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from gradiend_hub.artifact.files import ENCODER_FILE
from gradiend_hub.data import Row, read_rows, require_classes
from gradiend_hub.data.casing import Casing
from gradiend_hub.errors import DataError, EditError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective
from gradiend_hub.printable import dose, printable

from .encoder import encoder_report
from .plausibility import count_figures
from .probe import StrengthProbe
from .records import EncoderReport, Encoding, Estimate, OutputReport
from .report import Report, SplitReport

_SLACK: Final = 0.02
"""Difference of a mean over some rows from that over all, on top of their own error."""
_WIDTHS: Final = 2.5
"""Half-widths of a 95 % interval beyond which a mean over some rows contradicts that over all."""


@dataclass(frozen=True)
class Check:
    """One line of a verification: what was claimed, what was found, and whether that is the same.

    Attributes:
        figures: number of figures that the line stands for.
    """

    name: str
    claimed: str
    found: str
    passed: bool
    figures: int = 1


def compared(name: str, claimed: float, found: float | None, tolerance: float) -> Check:
    """Compare a figure with the one that was found; `None` or NaN if none was."""
    missing = found is None or found != found
    shown = "none" if missing else f"{found:+.4f}"
    return Check(name, f"{claimed:+.4f}", shown, not missing and abs(claimed - (found or 0.0)) <= tolerance)


def measured_on_rows(model: GradiendModel, objective: Objective, report: Report, tolerance: float) -> Iterator[Check]:
    """Measure what a report claims of the rows that it holds: feature values, figures of the encoder, probabilities.

    Args:
        model: the base model with the direction.
        objective: of the base model.
        report: the claims.
        tolerance: largest difference of a value that passes.
    """
    classes = require_classes(model.active_peft_config.feature_classes)
    for name, split in report.splits.items():
        encoder = split.encoder
        held = [e for e in encoder.encodings if e.row is not None and e.kind in classes] if encoder else []
        if encoder is None or not held or encoder.reads != "input":
            continue
        try:
            rows = read_rows([e.row or {} for e in held], classes, read=objective.read, what=name, need_both=False)
            yield from _of_values(model, objective, name, held, rows, tolerance)
            if _whole(encoder):
                yield from _of_encoder(model, name, encoder, held, rows)
            yield from _of_curve(model, objective, name, split, rows, tolerance)
        except DataError as error:
            yield Check(f"rows of {name}", "rows", printable(error, 500), False)


def _whole(encoder: EncoderReport) -> bool:
    """Tell whether a report holds all rows that its encoder's figures are of."""
    held = Counter(e.kind for e in encoder.encodings if e.row is not None)
    return all(held[name] == count for name, count in encoder.rows.items())


def _of_values(
    model: GradiendModel,
    objective: Objective,
    split: str,
    held: Sequence[Encoding],
    rows: Sequence[Row],
    tolerance: float,
) -> Iterator[Check]:
    """Encode the rows again. One line for each class, with the value that is furthest off."""
    for row, e in zip(rows, held, strict=True):
        if row.factual_class != e.kind:
            yield Check(f"class of {printable(objective.show(row), 80)}", e.kind, row.factual_class, False)
            return
    if not model.direction.has_encoder:
        yield Check(f"h of {len(held)} rows of {split}", "values", f"no {ENCODER_FILE}", False, len(held))
        return
    records = [objective.record(row) for row in rows]
    found = model.encode(records, processing_class=objective.processor).tolist()
    for kind in dict.fromkeys(e.kind for e in held):
        own = [(abs(e.h - h), e, h) for e, h in zip(held, found, strict=True) if e.kind == kind]
        off, worst, h = max(own, key=lambda one: one[0])
        claimed, said = "as published", "the same"
        if off > tolerance:
            claimed = f"{worst.h:+.4f}"
            said = f"{h:+.4f} at {printable(worst.text, 80)} [{printable(worst.output, 40)}]"
        yield Check(f"h of {len(own)} rows of {kind}, {split}", claimed, said, off <= tolerance, len(own))


def _of_encoder(
    model: GradiendModel, split: str, claimed: EncoderReport, held: Sequence[Encoding], rows: Sequence[Row]
) -> Iterator[Check]:
    """Compute the figures of all rows from their published values, which were measured one by one."""
    config = model.active_peft_config
    classes = require_classes(config.feature_classes)
    found = encoder_report(
        torch.tensor([e.h for e in held], dtype=torch.float32),
        torch.tensor([row.label(classes, "factual") for row in rows]),
        classes,
        words=[str(row.factual) for row in rows] if config.fillers else None,
        casing=Casing(config.fillers),
    )
    exact = 1e-5
    for name in ("correlation", "accuracy", "auc", "spearman"):
        if (value := getattr(claimed, name)) is not None:
            yield compared(f"{name} of h, {split}", value, getattr(found, name), exact)
    for name, values in (("class_means", claimed.class_means), ("class_stds", claimed.class_stds)):
        what = "mean" if name == "class_means" else "standard deviation"
        for kind, value in values.items():
            yield compared(f"{what} of h of {kind}, {split}", value, getattr(found, name).get(kind), exact)
    for word, said in claimed.outputs.items():
        of_word = found.outputs.get(word)
        passed = of_word is not None and _alike(said, of_word)
        mine = "no such row" if of_word is None else f"{of_word.mean:+.4f} on {of_word.rows} rows"
        yield Check(f"h of {word}, {split}", f"{said.mean:+.4f} on {said.rows} rows", mine, passed, 4)


def _alike(first: OutputReport, second: OutputReport) -> bool:
    same = (first.feature_class, first.rows) == (second.feature_class, second.rows)
    return same and all(abs(getattr(first, n) - getattr(second, n)) <= 1e-5 for n in ("mean", "std", "accuracy"))


def _of_curve(
    model: GradiendModel, objective: Objective, split: str, report: SplitReport, rows: Sequence[Row], tolerance: float
) -> Iterator[Check]:
    """Measure the probabilities of the classes at every strength of the curve.

    Where the report holds some of the rows only, their mean may differ from that of all as such means do.
    """
    encoder = report.encoder
    assert encoder is not None
    points = [p for p in report.curve if p.probability]
    if not points:
        return
    probe = StrengthProbe(model, objective, rows, exhaustive=True)
    whole = _whole(encoder)
    held = Counter(row.factual_class for row in rows)
    for point in points:
        place = dose(point.strength)
        try:
            found = probe.measure(point.strength)
        except EditError as error:
            yield Check(f"probabilities at {place}, {split}", "finite", printable(error, 500), False)
            continue
        for of, by_class in point.probability.items():
            if not held[of]:
                continue
            some = "" if whole else f", {held[of]} of {encoder.rows.get(of, 0)} rows"
            for name, value in by_class.items():
                claimed, mine = point.reading(name, of), found.reading(name, of)
                check = compared(f"P({name}) on {of} rows at {place}, {split}{some}", value, mine.value, tolerance)
                yield replace(check, passed=_may_be(claimed, mine, tolerance, whole=whole))


def _may_be(claimed: Estimate, found: Estimate, tolerance: float, *, whole: bool) -> bool:
    """Tell whether a claimed probability can be what was found on the rows, all of them or some."""
    value, mine = claimed.value, found.value
    if value is None or mine is None:
        return False
    if whole:  # the author may have read a part of them, and estimated the rest
        low, high = claimed.interval or [value, value]
        return abs(value - mine) <= tolerance or low - tolerance <= mine <= high + tolerance
    low, high = found.interval or [mine, mine]
    return abs(value - mine) <= _SLACK + _WIDTHS * max(mine - low, high - mine)


def unmeasured(report: Report) -> list[str]:
    """Say which figures of a report no reader can measure without more than it holds, how many they are, and why."""
    parts = [pair for split in report.splits.values() for pair in _unmeasured_of(split)]
    parts += [
        ("benchmarks: on their own data; gradiend-hub evaluate --bench measures them", report.side_effects),
        ("time and energy: of the author's machine", [report.seconds, report.energy_kwh]),
        (
            "the training's log, and of runs that were compared: of the author's training",
            [report.history, report.seeds],
        ),
        ("what similarities to other directions are judged by: of the author's training rows", report.references),
    ]
    found: Counter[str] = Counter()
    for reason, part in parts:
        found[reason] += count_figures(part)
    return [f"{count:,} figures of {reason}." for reason, count in found.items() if count]


def _unmeasured_of(split: SplitReport) -> Iterator[tuple[str, Any]]:
    encoder = split.encoder
    if encoder is not None:
        classes = {*encoder.rows}
        lost = [e for e in encoder.encodings if e.kind in classes and e.row is None]
        yield "rows that the report does not hold (of an earlier version, or too large)", lost
        others = [replace(e, row=None) for e in encoder.encodings if e.kind not in classes]
        quiet = [encoder.neutral_abs_mean, encoder.other_abs_mean]
        with_quiet = [encoder.correlation_with_neutral, encoder.ternary_accuracy]
        yield "tokens within texts, of which only the author knows how they were cut", [others, quiet, with_quiet]
        yield "words that no training row had, which only the author knows", encoder.held_out
        if not _whole(encoder):
            figures = [encoder.correlation, encoder.accuracy, encoder.auc, encoder.spearman]
            rest = [encoder.class_means, encoder.class_stds, encoder.outputs]
            yield "the encoder on all rows, of which the report holds a part", [figures, rest]
        yield "intervals, which follow from all rows and their groups", [encoder.intervals, encoder.null_correlation]
    texts = "damage to texts that the report does not hold; gradiend-hub evaluate --neutral measures it on yours"
    for point in split.curve:
        yield texts, [point.nll, point.accuracy, point.quality, point.quality_low, point.kl, point.damage, point.slot]
        yield "intervals, which follow from all rows and their groups", point.intervals
        yield "other readings of the rows at the strengths of the curve", point.readings
    yield "the search for the unit, and random directions", [split.search, split.control, split.control_norms]
    yield "decisions on inputs that the report does not hold", split.decisions
    if split.generation is not None:
        yield "continuations that the report does not hold", split.generation.points
    if split.lora is not None:
        yield "the LoRA's effect and quality, on rows and texts of the author", [split.lora.effect, split.lora.quality]
