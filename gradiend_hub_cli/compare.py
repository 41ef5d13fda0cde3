"""`compare` and `combine`: directions of one base model beside each other, and their sum as a new one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradiend_hub.comparison import DirectionSet
from gradiend_hub.errors import ConfigError
from gradiend_hub.folders import written_beside
from gradiend_hub.plots.comparison_page import render_comparison, sections_of
from gradiend_hub.plots.save import can_draw

from .console import Story
from .looking import CompareOptions
from .options import require_out
from .quiet import quiet
from .sharing import CombineOptions

PAGE, TABLES = "comparison.html", "comparison.json"


def compare_directions(directions: Sequence[str], options: CompareOptions, story: Story) -> dict[str, Any]:
    """Print similarities and effects of directions; with `out`, write them and a page.

    Raises:
        GradiendError: a direction is missing or unusable, or they are not of one base model.
    """
    if options.out is not None:
        require_out(options.out, options.overwrite)
    with quiet(story):
        with story.step("Read") as step:
            ds = DirectionSet.from_pretrained(directions, options.base, allow_related=options.allow_related)
            step.outcome = f"{len(ds)} directions, {ds.frame.numel:,} weights in their parameters"
        with story.step("Compare") as step:
            tables: dict[str, Any] = {
                "cosine": ds.similarity("cosine"),
                f"overlap_{options.top}": ds.similarity("overlap", top_k=options.top),
                "predicted_effects": ds.predicted_effects(),
            }
            step.outcome = "from the artifacts alone"
        if options.measure:
            with story.step("Measure") as step:
                encodings = ds.cross_encodings()
                tables |= {"measured_effects": ds.measured_effects(), "encodings": encodings.means()}
                tables |= {"auc": encodings.auc(), "anchors": encodings.anchors()}
                step.outcome = "on the probes that travel with the directions"
        found = {name: table.to_dict() for name, table in tables.items()}
        if options.checkpoint:
            with story.step("Drift") as step:
                found["drift"] = ds.compare_checkpoint(options.checkpoint).to_dict()
                step.outcome = f"{found['drift']['explained']:.1%} of the change lies along the directions"
        if options.out is not None:
            with story.step("Write") as step:
                _write(options.out, ds, found, options.measure)
                step.outcome = str(options.out)
    for table in tables.values():
        if table.columns:
            story.show(f"\n{table}")
    if options.checkpoint:
        story.show(f"\ndrift of {options.checkpoint}\n" + _drift(found["drift"]))
    return {
        "directions": {m.name: {"source": m.source, "commit": m.commit} for m in ds.members},
        **found,
        "out": options.out,
    }


def _drift(found: dict[str, Any]) -> str:
    lines = [f"moved by {found['relative_norm']:.2%} of the weights' norm"]
    lines += [
        f"{name}: cosine {cosine:+.3f}, strength {found['coefficients'][name]:+.3f}"
        for name, cosine in found["cosine"].items()
    ]
    if found["null"] is not None:
        lines.append(f"directions of coin labels reach a cosine of {found['null']:.3f}")
    return "\n".join(lines)


def _write(out: Path, ds: DirectionSet, found: dict[str, Any], measured: bool) -> None:
    page = None
    if can_draw():
        lead = f"Directions: {', '.join(ds.names)}. Italics and dots: directions of coin labels reach this value, too."
        page = render_comparison("Comparison of directions", sections_of(ds, measured=measured), lead)
    with written_beside(out) as folder:
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / TABLES).write_text(text + "\n", encoding="utf-8")
        if page is not None:
            (folder / PAGE).write_text(page, encoding="utf-8")


def combine_directions(parts: Sequence[str], options: CombineOptions, story: Story) -> dict[str, Any]:
    """Add directions, print what they do to each other, and write the sum.

    Args:
        parts: `DIRECTION=STRENGTH`, or a direction at strength 1.

    Raises:
        ConfigError: a part is no such text, or the folder is in use.
        GradiendError: a direction is missing or unusable, or they are not of one base model.
    """
    require_out(options.out, options.overwrite)
    weights = dict(_part(part) for part in parts)
    if len(weights) < len(parts):
        raise ConfigError("A direction is named twice. Name each once, with the strength that it should have.")
    with quiet(story):
        with story.step("Read") as step:
            ds = DirectionSet.from_pretrained(list(weights), options.base)
            step.outcome = ", ".join(ds.names)
        with story.step("Combine") as step:
            named = dict(zip(ds.names, weights.values(), strict=True))
            combination = ds.combine(named, orthogonal=options.orthogonal, density=options.density, rank=options.rank)
            step.outcome = f"{combination.direction.entries:,} stored numbers"
        with story.step("Save") as step, written_beside(options.out) as folder:
            combination.save_pretrained(folder)
            step.outcome = str(options.out)
    story.show(f"\n{combination.report}\n\nUnmeasured: gradiend-hub evaluate {options.out} --data ROWS measures it.")
    return {"folder": options.out, "report": combination.report.to_dict()}


def _part(text: str) -> tuple[str, float]:
    """A direction and its strength."""
    source, mark, number = text.rpartition("=")
    if not mark:
        return text, 1.0
    try:
        return source, float(number)
    except ValueError:
        raise ConfigError(f"{text!r}: expected DIRECTION=STRENGTH, e.g. alice/number=0.5.") from None
