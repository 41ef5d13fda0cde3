"""Directions that version 0.1.0 wrote (schema 1) are loaded, verified and rendered by every later version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CONFIG_FILE, REPORT_FILE
from gradiend_hub.cards import render_card
from gradiend_hub.evaluation import Report
from tests.conftest import BASE_MODELS

STORED = Path(__file__).with_name("schema_1")
KINDS = tuple(sorted(path.name for path in STORED.iterdir()))


def test_there_are_some_of_each_objective() -> None:
    assert len(KINDS) == 3
    assert {kind.partition("_")[0] for kind in KINDS} == {"masked", "causal"}


@pytest.mark.parametrize("kind", KINDS)
def test_loads_verifies_and_is_saved_again(kind: str, tmp_path: Path) -> None:
    base = BASE_MODELS / kind.partition("_")[0]
    model = GradiendModel.from_pretrained(STORED / kind, base)
    found = model.verify()
    assert found.passed, [check for check in found.checks if not check.passed]
    assert sum(check.name.startswith("h:") for check in found.checks) == 8
    model.save_pretrained(tmp_path)
    again = GradiendModel.from_pretrained(tmp_path, model.unload())
    assert again.verify().passed
    stored = json.loads((STORED / kind / CONFIG_FILE).read_text(encoding="utf-8"))
    for config in (model.active_peft_config, again.active_peft_config):  # 1 is the dose that it always was
        assert config.strength_unit == stored["strength_unit"] == abs(config.coefficients(1.0)[0]) > 1
        assert config.safe_band == stored["safe_band"]
    for folder in (STORED / kind, tmp_path):
        card = str(render_card(folder))
        assert "The strength unit was chosen by neutral text alone" in card
        for source in ("own text, the words of the classes left out", "text of another source"):
            assert f"| quality on {source} | not measured | not measured | not measured |" in card


@pytest.mark.parametrize("kind", KINDS)
def test_reports_keep_what_has_another_name_now(kind: str) -> None:
    report = Report.load(STORED / kind)
    split = report.splits["eval"]
    assert split.encoder is not None
    text = (STORED / kind / REPORT_FILE).read_text(encoding="utf-8")
    assert text.count('"lm_score_low"') > 10
    assert split.scored > 0
    assert all(point.quality is not None and "quality" in point.intervals for point in split.curve)
    assert {e.kind for e in split.encoder.encodings} >= {"3SG", "3PL", "neutral"}
    assert all(e.output for e in split.encoder.encodings)
    assert split.encoder.outputs.keys() == {"he", "she", "it", "they"}
    assert "not measured" not in str(render_card(STORED / kind)).partition("## Side effects")[0]
