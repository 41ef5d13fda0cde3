"""`verify`: the self-test of a published direction, claimed and found."""

from __future__ import annotations

import warnings
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradiend_hub import GradiendModel
from gradiend_hub.cards.card import card_state
from gradiend_hub.evaluation.selftest import Verification
from gradiend_hub.hub.resolve import resolve_folder

from .quiet import quiet

__all__ = ["show_verification"]


def show_verification(
    direction: str, *, base: str | None, dtype: str | None, revision: str | None, console: Console
) -> bool:
    """Print the table of what is claimed and what was found; whether all of it agrees.

    Raises:
        GradiendError: the direction or its base cannot be loaded, or there is no self-test.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*to a relative of its base model")  # a line of the table says so
        model = GradiendModel.from_pretrained(
            direction, base_model=base, revision=revision, strength=0.0, allow_related=base is not None,
            **options,
        )  # fmt: skip
        result: Verification = model.verify()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("check", overflow="fold")
    for name in ("claimed", "found", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for check in result.checks:
        verdict = Text("ok", style="green") if check.passed else Text("DIFFERS", style="bold red")
        table.add_row(Text(check.name), Text(check.claimed), Text(check.found), verdict)
    console.print(table)
    wrong = sum(not check.passed for check in result.checks)
    tolerance = f"values may differ by {result.tolerance:g}"
    state = card_state(resolve_folder(direction, revision=revision).folder)
    console.print(
        f"\ncard: {state}\n{len(result.checks)} checks, {tolerance}: " + (f"{wrong} differ." if wrong else "all agree.")
    )
    return result.passed
