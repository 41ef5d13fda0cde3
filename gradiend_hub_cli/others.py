"""What others than the author have measured of a direction, as `info` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradiend_hub.artifact.fields import require_classes
from gradiend_hub.evaluation import SplitReport
from gradiend_hub.evaluation.damage import set_label
from gradiend_hub.evaluation.measurements import Headline, Measurements
from gradiend_hub.printable import printable

from .console import Story
from .tables import columns_table

if TYPE_CHECKING:
    from .info import Description

__all__ = ["measured_by", "show_others"]

_NONE = "–"


def measured_by(author: bool, others: Measurements) -> str:
    """Who has measured a direction, in words: "3: the author, bob (pull request 2), reports/mine.json"."""
    sources = [*(["the author"] if author else []), *(printable(one.source, 80) for one in others.reports)]
    return f"{len(sources)}: {', '.join(sources)}" if sources else "nobody"


def show_others(description: Description, story: Story) -> None:
    """Print what others have measured beside the author's figures; nothing where nobody else has."""
    others, classes = description.others, require_classes(description.config.feature_classes)
    if others.reports:
        story.show(f"\nMeasured by {measured_by(description.split is not None, others)}")
        effects = [f"P({printable(name, 20)}) at {sign}1" for name, sign in zip(classes, "+-", strict=True)]
        table = columns_table(["by", "rows"], ["correlation", *effects, "quality"])
        if description.split is not None:
            table.add_row("the author", *_cells(description.split, classes))
        for one in others.reports:
            note = {True: "", False: ", of other weights", None: ", of unknown weights"}[one.same_weights]
            if one.report.base_model != description.config.base_model_name_or_path:
                note += f", on {printable(one.report.base_model, 40)}"
            if one.split is not None:
                table.add_row(printable(one.source, 80) + note, *_cells(one.split, classes))
        story.show(table)
        story.show("Nobody has checked these figures; to measure them: gradiend-hub evaluate.")
    for entry in others.results:
        by = f", added by {printable(entry.by, 40)}" if entry.by else ""
        place = f" in pull request {entry.pull_request}" if entry.pull_request is not None else ""
        story.show(f"{printable(entry.dataset.id)} {printable(entry.dataset.task_id)}: {entry.value:g}{by}{place}")
    for problem in others.problems:
        story.warn(problem)


def _cells(split: SplitReport, classes: Sequence[str]) -> list[str]:
    found = Headline.of(split, classes)
    return [
        _NONE if found.rows is None else f"{found.rows:,}",
        *(
            _NONE if value is None else f"{value:.3f}"
            for value in (found.correlation, *(e.value for e in found.effects))
        ),
        _NONE if found.quality is None else f"{found.quality[1]:.2%} ({printable(set_label(found.quality[0]), 30)})",
    ]
