"""What a card says first follows from the figures: works, weak, opposite, not measured, not learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.cards import render_card, render_rewritten_card
from gradiend_hub.cards.caveats import caveats
from gradiend_hub.evaluation import Report, StrengthPoint
from gradiend_hub.evaluation.shift import shifts
from tests.cards.test_card import CLASSES, FILLERS, full_report, saved

FLOOR = 0.9


def curve(up: tuple[float, float], down: tuple[float, float], half: float = 0.01) -> list[StrengthPoint]:
    """Points at −1, 0, 1: P(3SG) on 3PL rows at (0, 1), P(3PL) on 3SG rows at (0, −1); intervals ± half."""
    points = []
    for strength, p, q in ((-1.0, up[0], down[1]), (0.0, up[0], down[0]), (1.0, up[1], down[0])):
        chances = {"3SG": {"3SG": 1 - q, "3PL": q}, "3PL": {"3SG": p, "3PL": 1 - p}}
        bounds = {"3SG on 3PL": [p - half, p + half], "3PL on 3SG": [q - half, q + half]}
        points.append(StrengthPoint(strength, chances, 3.0, 0.4, 0.95, 0.94, 0.01, bounds))
    return points


def report_of(points: list[StrengthPoint], **changes: Any) -> Report:
    report = full_report(CLASSES, FILLERS)
    split = replace(report.splits["test"], curve=points, **changes)
    report.splits = {"eval": split, "test": split}
    return report


def head(report: Report, folder: Path) -> str:
    """The card up to its first section."""
    if not (folder / "adapter_config.json").exists():
        saved(folder, classes=CLASSES, fillers=FILLERS)
    report.save(folder)
    return str(render_card(folder)).split("\n---\n", 1)[1].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("up", "half", "chance", "outcome"),
    [
        ((0.1, 0.6), 0.01, None, "works"),
        ((0.1, 0.6), 0.01, 0.2, "works"),
        ((0.1, 0.6), 0.01, 0.595, "weak"),  # a random direction does as much
        ((0.1, 0.14), 0.001, None, "weak"),  # small, if certain
        ((0.1, 0.3), 0.25, None, "weak"),  # the interval reaches below the base model's value
        ((0.5, 0.48), 0.05, None, "weak"),
        ((0.5, 0.48), 0.01, None, "opposite"),  # small, but certain
        ((0.6, 0.1), 0.2, None, "opposite"),
        ((0.6, 0.1), 0.6, None, "opposite"),  # large, if uncertain
    ],
)
def test_the_outcome_of_each_sign(up: tuple[float, float], half: float, chance: float | None, outcome: str) -> None:
    control = [] if chance is None else [curve((0.1, chance), (0.1, 0.1)), curve((0.1, 0.0), (0.1, 0.1))]
    split = replace(report_of(curve(up, (0.1, 0.9), half)).splits["test"], control=control)
    found = shifts(split, CLASSES)
    assert [s.strength for s in found] == [1.0, -1.0]
    assert (found[0].outcome, found[0].before, found[0].after) == (outcome, *up)
    assert found[0].chance == chance
    mirrored = replace(split, curve=curve((0.1, 0.9), up, half), control=[])
    if chance is None:
        assert shifts(mirrored, CLASSES)[1].outcome == outcome


def test_a_direction_that_does_the_opposite_says_so_first(tmp_path: Path) -> None:
    text = head(report_of(curve((0.4, 0.1), (0.5, 0.2)), control=[]), tmp_path)
    assert text.count("the opposite of what it is for was measured") == 2
    assert "3SG becomes less likely**: P(3SG) on 3PL rows 0.400 → 0.100." in text.replace("&#58;", ":")
    assert "becomes more likely" not in text
    both = head(report_of(curve((0.1, 0.6), (0.5, 0.2)), control=[]), tmp_path)
    assert "**3SG becomes more likely**" in both and "3PL becomes less likely**" in both


def test_a_sign_that_was_not_measured_claims_nothing(tmp_path: Path) -> None:
    report = report_of(curve((0.1, 0.6), (0.1, 0.9))[1:], control=[])
    text = head(report, tmp_path)
    assert "**3SG becomes more likely**" in text
    assert "* At strength -1, **the effect on 3PL was not measured**." in text
    alone = replace(report.splits["test"], curve=[])
    assert [s.outcome for s in shifts(alone, CLASSES)] == ["not measured"] * 2


def null_report() -> Report:
    """What labels by coin give: no class is told from the other, nor from neutral text."""
    report = report_of(curve((0.3, 0.31), (0.3, 0.3)))
    split = report.splits["test"]
    encoder = replace(
        split.encoder, correlation=0.04, accuracy=0.52, ternary_accuracy=0.35, auc=0.5, held_out=None,
        intervals={"accuracy": [0.46, 0.58], "correlation": [-0.08, 0.16]},
    )  # fmt: skip
    report.splits = {"test": replace(split, encoder=encoder)}
    report.converged, report.verdict = False, "The correlation is 0.04, where 0.5 is expected."
    return report


def test_what_was_not_learned_is_said_at_the_top(tmp_path: Path) -> None:
    text = head(null_report(), tmp_path)
    note = "> **Not learned.** The training did not find this feature in the base model. The correlation is 0.04, where"
    assert note in text and text.index("Not learned") < text.index("GRADIEND")
    assert "becomes more likely" not in text
    for known in (True, None):
        learned = null_report()
        learned.converged = known
        assert "Not learned" not in head(learned, tmp_path)


def test_nulls_are_not_said_to_tell_the_classes_apart() -> None:
    report = null_report()
    found = caveats(report, "test", report.splits["test"])
    assert not any("tells the classes apart" in sentence for sentence in found)
    assert (
        "**The encoder does not tell the classes apart:** correlation 0.040, accuracy 0.520 (at least 0.460)." in found
    )
    good = full_report(CLASSES, FILLERS)
    assert not any("does not tell" in sentence for sentence in caveats(good, "test", good.splits["test"]))


@pytest.mark.parametrize("floor", [0.9, 0.96, 0.99, None])
def test_the_floor_is_that_of_the_report(floor: float | None, tmp_path: Path) -> None:
    report = report_of(curve((0.1, 0.6), (0.1, 0.9)))
    report.settings = {} if floor is None else {"quality_floor": floor, "goal": "debias"}
    found = " ".join(caveats(report, "test", report.splits["test"]))
    assert "99 %" not in found or floor == 0.99
    if floor in (0.96, 0.99):  # the quality is 0.95
        floor_text = f"{100 * floor:.1f} %"
        wanted = f"At strength +1 the quality on neutral text is 95.00 %, below the {floor_text} at which the strength "
        wanted += "unit was chosen"
        assert f"{wanted} on other data." in found
        assert f"{wanted}." in " ".join(caveats(report, "eval", report.splits["eval"]))
    else:
        assert "below the" not in found
    head(report, tmp_path)
    chosen = "The unit was chosen to debias, with at least"
    assert (
        f"{chosen} {100 * (floor or 0):.1f} % of the quality left on neutral text, the" in str(render_card(tmp_path))
    ) is bool(floor)


def test_the_rewritten_card_says_it_too() -> None:
    from gradiend_hub import GradiendConfig
    from gradiend_hub.adapter.receipt import EditReceipt

    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, objective="masked_lm")
    options: dict[str, Any] = {
        "direction": "a/b", "strength": 1.0, "receipt": EditReceipt(1, 2, 0.1, {}, 0.0), "dtype": "float32",
    }  # fmt: skip
    null = str(render_rewritten_card(config, report=null_report(), **options))
    assert "**Not learned:**" in null and "becomes more likely" not in null and "towards" not in null
    opposite = report_of(curve((0.4, 0.1), (0.5, 0.2)), control=[])
    text = str(render_rewritten_card(config, report=opposite, **options))
    assert "the opposite of what it is for" in text and "towards" not in text
    good = str(render_rewritten_card(config, report=report_of(curve((0.1, 0.6), (0.1, 0.9)), control=[]), **options))
    assert "rewritten towards 3SG\n" in good and "**" not in good.split("becomes more likely")[0].split("\n")[-1]
    assert "becomes more likely" not in str(render_rewritten_card(config, report=None, **options))
