"""`audit`: what is harmful, impossible or suspicious about a direction."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.text import Text

from gradiend_hub.evaluation.audit import audit
from gradiend_hub.printable import printable

from .console import Story
from .quiet import quiet
from .tables import pairs_table

_STYLES = {"refused": "bold red", "impossible": "bold red", "suspicious": "bold yellow"}


def show_audit(direction: str, revision: str | None, story: Story) -> dict[str, Any]:
    """Print the findings. The exit code is 1 if there is any.

    Raises:
        GradiendError: there is no direction.
    """
    with quiet(story), story.step("Look", told=False):
        result = audit(direction, revision=revision)
    table = pairs_table()
    for finding in result.findings:
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), Text(printable(finding.text, 1000)))
    if result.findings:
        story.show(table)
    else:
        story.show("Nothing harmful, impossible or suspicious was found in the files.")
    story.show(
        f"\nNothing was measured: the report's {result.figures:,} figures are the author's word. To measure: "
        f"gradiend-hub verify, gradiend-hub evaluate."
    )
    return {
        "direction": direction,
        "commit": result.commit,
        "figures": result.figures,
        "findings": [asdict(finding) for finding in result.findings],
        "exit_code": 1 if result.findings else 0,
    }
