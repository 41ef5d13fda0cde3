"""`search`: directions that others have published."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from gradiend_hub.hub.search import FoundDirection, search_directions
from gradiend_hub.printable import printable

from .console import Story
from .looking import SearchOptions
from .quiet import quiet
from .tables import columns_table, megabytes


def show_search(text: str | None, options: SearchOptions, story: Story) -> dict[str, Any]:
    """Print what a search of the Hub has found.

    Raises:
        GradiendError: an option is out of range, or the Hub cannot be searched.
    """
    with quiet(story), story.step("Search", told=False):
        found = search_directions(text, **asdict(options))
    if not found:
        story.show("No direction was found. Ask for less, or leave out --base, --feature or the figures.")
    else:
        story.show(_table(found))
        story.show(
            "Figures are the authors' own. More of one: gradiend-hub info ID; to measure it: gradiend-hub evaluate ID."
        )
    return {"directions": [asdict(one) for one in found]}


def _table(found: list[FoundDirection]) -> Table:
    figures = ["correlation", "effect −1", "effect +1", "quality", "measured by", "downloads"]
    table = columns_table(["direction", "classes", "base model", "form"], figures)
    for one in found:
        said = one.summary
        figures = ["–"] * 5
        if said is not None:
            effects = [said.effect.get(strength) for strength in ("-1.0", "1.0")]
            quality = None if said.damage is None else 1 - said.damage
            figures = [
                *("–" if value is None else f"{value:.2f}" for value in (said.correlation, *effects)),
                "–" if quality is None else f"{quality:.1%}",
                f"author, {said.others} other{'s' * (said.others > 1)}" if said.others else "author",
            ]
        table.add_row(
            printable(one.repo_id),
            printable(" ↔ ".join(said.feature_classes)) if said else "–",
            printable(one.base_model or "–"),
            printable(f"{said.form}, {megabytes(said.size)}") if said else "–",
            *figures,
            f"{one.downloads:,}",
        )
    return table
