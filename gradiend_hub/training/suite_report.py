"""Report and page of a suite: every direction with its figures, and how they compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.comparison import DirectionSet, mean_and_spread
from gradiend_hub.comparison.tables import Matrix
from gradiend_hub.plots.comparison import plot_matrix
from gradiend_hub.plots.comparison_page import Section, render_comparison, sections_of
from gradiend_hub.plots.save import can_draw
from gradiend_hub.plots.style import shown_split

__all__ = ["PAGE_FILE", "TABLES_FILE", "write_suite_report"]

PAGE_FILE, TABLES_FILE = "suite.html", "suite.json"


def write_suite_report(
    folder: Path,
    runs: Mapping[str, Mapping[str, Path]],
    base_model: nn.Module,
    *,
    measured: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Write `suite.json`, `suite.html` and `README.md` of a suite.

    Args:
        runs: name of each run, e.g. "seed-0", to the folders of its directions; tables are those of the first one, and with
            several there are means and standard deviations over them.
        measured: apply and encode, too, with the probes that travel with the directions.
        groups: name of each group to its directions.

    Returns:
        What `suite.json` holds.
    """
    sets = {name: DirectionSet.from_pretrained(folders, base_model) for name, folders in runs.items()}
    first = next(iter(sets.values()))
    figures = {
        f"{run}/{m.name}" if len(sets) > 1 else m.name: _figures(m) for run, ds in sets.items() for m in ds.members
    }
    cosines = [table for ds in sets.values() if isinstance(table := ds.similarity("cosine"), Matrix)]
    tables = {"cosine": cosines[0], "predicted_effects": first.predicted_effects()}
    sections = sections_of(first, measured=measured, groups=groups) if can_draw() else []
    if len(sets) > 1:
        mean, spread = mean_and_spread(cosines)
        tables |= {"cosine_mean": mean, "cosine_spread": spread}
        if sections:
            drawn = [(plot_matrix(table, limit=limit), table.measure) for table, limit in ((mean, 1.0), (spread, None))]
            sections.insert(1, Section(f"Over {len(sets)} runs", [mean.measure, spread.measure], drawn, mean))
    found = {"directions": figures, "tables": {name: table.to_dict() for name, table in tables.items()}}
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / TABLES_FILE).write_text(text + "\n", encoding="utf-8")
    if sections:
        lead = (
            f"{len(first)} directions of one base model. Italics and dots: directions of coin labels reach this, too."
        )
        page = render_comparison("A suite of directions", sections, lead)
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    (folder / CARD_FILE).write_text(_readme(figures, bool(sections)), encoding="utf-8")
    return found


def _figures(member: Any) -> dict[str, Any]:
    """Figures of a direction; `None` for what was not measured."""
    report = member.report
    split = shown_split(report)[1] if report is not None and report.splits else None
    encoder = split.encoder if split is not None else None
    references = report.references if report is not None else None
    effects = {p.strength: p.effect for p in split.curve if abs(p.strength) == 1} if split is not None else {}
    return {
        "classes": list(member.classes),
        "learned": None if report is None else report.converged,
        "decoder": None if report is None else report.training.get("decoder"),
        "verdict": "" if report is None else report.verdict,
        "correlation": None if encoder is None else encoder.correlation,
        "effect_up": effects.get(1.0),
        "effect_down": effects.get(-1.0),
        "split_half_cosine": None if references is None else references.split_half.get("cosine"),
    }


def _readme(figures: Mapping[str, Mapping[str, Any]], page: bool) -> str:
    def cell(value: Any) -> str:
        return "not measured" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    learned = {True: "yes", False: "no", None: "not known"}
    lines = [
        "# A suite of directions",
        "",
        "| direction | classes | learned | correlation | effect at +1 | effect at −1 | cosine of its halves |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, one in figures.items():
        numbers = " | ".join(cell(one[key]) for key in ("correlation", "effect_up", "effect_down", "split_half_cosine"))
        row = f"| [{name}]({name}) | {' / '.join(one['classes'])} | {learned[one['learned']]} | {numbers} |"
        lines.append(row.replace("\n", " "))
    lines += ["", f"How they compare: `{PAGE_FILE}`." if page else f"How they compare: `{TABLES_FILE}`.", ""]
    return "\n".join(lines)
