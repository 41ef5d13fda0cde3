"""`verify`: the self-test of a published direction, claimed and found; and what of its claims nobody has measured here."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from rich.text import Text

from gradiend_hub import GradiendModel
from gradiend_hub.cards.card import card_state
from gradiend_hub.evaluation.selftest import Verification
from gradiend_hub.hub.resolve import resolve_folder
from gradiend_hub.printable import printable

from .console import Story
from .looking import VerifyOptions
from .quiet import quiet
from .tables import columns_table


def show_verification(direction: str, options: VerifyOptions, story: Story) -> dict[str, Any]:
    """Print the table of what is claimed and what was found. The exit code is 1 if anything differs or is impossible.

    Raises:
        GradiendError: the direction or its base cannot be loaded, or there is no self-test.
    """
    given: dict[str, Any] = {} if options.dtype is None else {"dtype": options.dtype}
    with quiet(story), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*to a relative of its base model")  # a line of the table says so
        with story.step("Load", told=False):
            model = GradiendModel.from_pretrained(
                direction,
                base_model=options.base,
                revision=options.revision,
                strength=0.0,
                allow_related=options.base is not None,
                allow_unverified_base=options.allow_unverified_base,
                **given,
            )
        with story.step("Measure", told=False):
            result: Verification = model.verify(full=options.full)
        found = resolve_folder(direction, revision=options.revision)
        card = card_state(found.folder)
    table = columns_table(["check"], ["claimed", "found"])
    table.add_column("", justify="right", no_wrap=True)
    for check in result.checks:
        verdict = Text("ok", style="green") if check.passed else Text("DIFFERS", style="bold red")
        table.add_row(*(Text(printable(text)) for text in (check.name, check.claimed, check.found)), verdict)
    wrong = sum(not check.passed for check in result.checks)
    tolerance = f"values may differ by {result.tolerance:g}"
    story.show(table)
    story.show(
        f"\ncard: {card}\n{len(result.checks)} checks, {tolerance}: " + (f"{wrong} differ." if wrong else "all agree.")
    )
    if found.commit is not None:
        story.show(f"files: the bytes that the Hub lists at commit {found.commit}.")
    for line in result.remarks:
        story.show(line)
    for claim in result.implausible:
        story.show(Text.assemble(("impossible: ", "bold red"), printable(claim, 500)))
    return {
        "direction": direction,
        "passed": result.passed,
        "differ": wrong,
        "tolerance": result.tolerance,
        "card": card,
        "commit": found.commit,
        "checks": [asdict(check) for check in result.checks],
        "figures": result.figures,
        "figures_measured": result.measured,
        "implausible": result.implausible,
        "unmeasured": result.unmeasured,
        "exit_code": 0 if result.passed else 1,
    }
