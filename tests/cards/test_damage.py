"""What a card says of damage: on each set, what limits a dose, what is generated, and what was not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.cards.card import render_card
from gradiend_hub.cards.caveats import caveats
from gradiend_hub.evaluation import (
    Continuation,
    GenerationFigures,
    GenerationPoint,
    GenerationReport,
    Report,
    StrengthPoint,
)  # fmt: skip
from gradiend_hub.evaluation.damage import Damage
from tests.reports import full_report

from .test_headline import CLASSES, FILLERS, head


def damage(tokens: int, quality: float, collateral: float) -> Damage:
    bounds = {
        "quality": [quality - 0.004, quality + 0.003],
        "collateral_quality": [collateral - 0.006, collateral + 0.005],
    }
    return Damage(
        tokens, 3.2, 0.4, quality, quality - 0.003, 0.01, collateral, collateral - 0.005, 0.02, intervals=bounds
    )


def with_damage(point: StrengthPoint) -> StrengthPoint:
    cost = 0.004 * abs(point.strength)
    sets = {"neutral": damage(2100, 1 - cost, 1 - cost), "own": damage(1010, 1 - 9 * cost, 1 - 1.7 * cost)}
    sets["chat"] = damage(512, 1 - 1.2 * cost, 1 - cost)
    return replace(point, damage=sets, slot={"collateral": 0.0123, "within 3SG": 0.0456})


def figures(repeat: float) -> GenerationFigures:
    return GenerationFigures(2.5, {"1": 0.7, "2": 0.9, "3": 0.95}, repeat, 20.0, {"3SG": 0.02, "3PL": 0.01})


def damaged_report() -> Report:
    report = full_report(CLASSES, FILLERS)
    fault = "55% of a text is one repeat, of its own 10%"
    points = [
        GenerationPoint(s, "prompts", 8, figures(0.5), figures(0.1), faults=[fault] * (s == 1))
        for s in (-1.0, 0.0, 1.0)
    ]
    said = Continuation(
        "Why is the sky blue?", "prompts", {"-1.0": "It scatters.", "0.0": "Blue light.", "1.0": "he he he"}
    )
    asked = Continuation("The girls ran because", "feature", {"-1.0": "they", "0.0": "she", "1.0": "he"})
    for name, split in report.splits.items():
        report.splits[name] = replace(
            split,
            curve=[with_damage(p) for p in split.curve],
            generation=GenerationReport(24, points, [said, asked]),
            unit_limit="own",
            band_limits=["own", "generation"],
            control_norms=[[5.0, 6.0]] * len(split.control),
        )
    report.settings = {"quality_floor": 0.99, "goal": "strengthen", "damage_sets": ["chat", "neutral", "own"]}
    return report


def row(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_card_shows_damage_by_set_and_names_what_limits_it(tmp_path: Path) -> None:
    report = damaged_report()
    head(report, tmp_path)
    config = GradiendConfig.from_pretrained(str(tmp_path)).replaced(safe_band=[-1.0, 1.5])
    text = str(render_card(tmp_path, config, report))
    assert "0.993 [0.987, 0.998]" in row(text, "| quality on own text, the words of the classes left out |")
    assert "0.996 [0.992, 0.999]" in row(text, "| quality on neutral text |")
    assert "0.995 [0.991, 0.998]" in row(text, "| quality on the set 'chat' |")
    assert "another source" not in text
    assert "0.0123" in row(text, "| KL at the slots, but the words of the classes, nats |")
    assert "0.0456" in row(text, "| KL at the slots, within 3SG, nats |")
    sound = row(text, "| what the model goes on with |")
    assert sound.count("| sound |") == 1 and "55% of a text is one repeat" in sound
    assert "it is **limited by own text**" in text
    assert "(limited by own text)" in text and "(limited by continuations)" in text
    assert "| Why is the sky blue? | It scatters. | Blue light. | he he he |" in text
    assert "about equal worst damage at ±1" in text
    found = caveats(report, "test", report.splits["test"])
    assert any(
        s.startswith("**At strength +1 the model's own text is not sound** (prompts prompts): 55% of") for s in found
    )
    assert not any("neutral text alone" in sentence for sentence in found)


def test_the_set_that_is_damaged_most_is_the_one_that_a_caveat_names() -> None:
    report = damaged_report()
    report.settings["quality_floor"] = 0.995
    found = " ".join(caveats(report, "test", report.splits["test"]))
    assert "At strength +1 the quality on own text is 99.32 %, below the 99.5 %" in found
    assert "quality on neutral text is" not in found


def test_what_was_not_measured_is_said_so(tmp_path: Path) -> None:
    """A report of version 0.1 keeps its unit, and says by what it was measured."""
    report = full_report(CLASSES, FILLERS)
    head(report, tmp_path)
    text = str(render_card(tmp_path))
    for start in ("| quality on own text", "| quality on text of another source", "| what the model goes on with"):
        cells = row(text, start).split(" | ")[1:]
        assert cells and all("not measured" in cell for cell in cells), start
    assert "%.3f" % (report.splits["test"].at(1.0).quality or 0) in row(text, "| quality on neutral text |")
    assert "of equal sparsity and equal norm" in text and "limited by" not in text
    found = caveats(report, "test", report.splits["test"])
    assert any(sentence.startswith("The strength unit was chosen by neutral text alone") for sentence in found)


def test_a_report_with_damage_is_read_back(tmp_path: Path) -> None:
    report = damaged_report()
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    broken: Any = report.splits["test"].curve[0].damage["own"]
    object.__setattr__(broken, "tokens", "many")
    report.save(tmp_path)
    with pytest.raises(Exception, match="tokens"):
        Report.load(tmp_path)
