"""`verify`: the self-test of a published direction, claimed and found."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gradiend_hub import GradiendModel
from gradiend_hub.cards.card import card_state
from gradiend_hub.evaluation.selftest import Verification
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .quiet import quiet

__all__ = ["show_verification"]


def show_verification(
    direction: str, base: str | None, dtype: str | None, revision: str | None, story: Story
) -> dict[str, Any]:
    """Print the table of what is claimed and what was found. The exit code is 1 if anything differs.

    Raises:
        GradiendError: the direction or its base cannot be loaded, or there is no self-test.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    with quiet(story), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*to a relative of its base model")  # a line of the table says so
        with story.step("Load", told=False):
            model = GradiendModel.from_pretrained(
                direction, base_model=base, revision=revision, strength=0.0, allow_related=base is not None, **options
            )
        with story.step("Measure", told=False):
            result: Verification = model.verify()
        card = card_state(resolve_folder(direction, revision=revision).folder)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("check", overflow="fold")
    for name in ("claimed", "found"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for check in result.checks:
        verdict = Text("ok", style="green") if check.passed else Text("DIFFERS", style="bold red")
        table.add_row(Text(check.name), Text(check.claimed), Text(check.found), verdict)
    wrong = sum(not check.passed for check in result.checks)
    tolerance = f"values may differ by {result.tolerance:g}"
    story.show(table)
    story.show(
        f"\ncard: {card}\n{len(result.checks)} checks, {tolerance}: " + (f"{wrong} differ." if wrong else "all agree.")
    )
    return {
        "direction": direction,
        "passed": result.passed,
        "differ": wrong,
        "tolerance": result.tolerance,
        "card": card,
        "checks": [asdict(check) for check in result.checks],
        "exit_code": 0 if result.passed else 1,
    }
