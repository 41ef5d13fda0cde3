"""Reports as notebooks show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradiend_hub.notebook import lines, number, table
from gradiend_hub.printable import dose

from .damage import set_label

LEARNED = {True: "learned", False: "not learned", None: "not known whether it was learned"}


def report_html(report: Any) -> str:
    """Return what a `Report` says, as HTML: the verdict, and each split's encoder and strength curve."""
    first, second = report.feature_classes
    learned = LEARNED[report.converged]
    head = [f"{first} (strength > 0) and {second} (strength < 0) of {report.base_model}: {learned}", report.verdict]
    parts = [split_html(split, report.feature_classes, name) for name, split in report.splits.items()]
    return lines(text for text in head if text) + "".join(parts or [lines(["Nothing was measured."])])


def split_html(split: Any, classes: Sequence[str] | None = None, name: str = "") -> str:
    """Return a `SplitReport` as HTML: its encoder's figures, and what each strength changes."""
    encoder = split.encoder
    said = "no encoder"
    if encoder is not None:
        said = f"encoder: correlation {number(encoder.correlation) or 'not measured'}, accuracy {encoder.accuracy:.3f}"
    first, second = classes or next((list(p.probability) for p in split.curve if len(p.probability) == 2), ("", ""))
    head = ["strength", f"P({first}) on {second} rows", f"P({second}) on {first} rows", "quality", "lowest on"]
    rows = []
    for point in split.curve:
        worst = point.worst(bound=False)
        values = (point.reading(first, second).value, point.reading(second, first).value, worst and worst[1])
        cells = [*map(number, values), set_label(worst[0]) if worst else ""]
        rows.append((dose(point.strength), cells))
    return table(f"{name} split: {said}" if name else said, head, rows) + lines(split.missing)
