"""Preference pairs on the command line: a recipe is trained, asked, measured again, verified and published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradiend_hub import GradiendModel
from gradiend_hub.evaluation import Report

from .conftest import Run, invoke, write_recipe

ROOT = Path(__file__).parents[2]
POLITE = ROOT / "examples" / "data" / "preferences" / "polite"


@pytest.fixture(scope="module")
def polite(causal_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction that the example's recipe makes of fewer rows."""
    folder = tmp_path_factory.mktemp("polite")
    fields: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "preferences.yaml").read_text("utf-8"))
    for name in ("train", "eval"):
        path = ROOT / fields[f"{name}_dataset"]
        assert path.is_file()
        lines = path.read_text("utf-8").splitlines()
        (folder / path.name).write_text("\n".join(lines[:: 1 + (name == "train") * 3]) + "\n", encoding="utf-8")
        fields[f"{name}_dataset"] = str(folder / path.name)
    (folder / "neutral.jsonl").write_text('{"text": "The old house was dark."}\n{"text": "He went to the city."}\n')
    fields |= {"model": str(causal_path), "neutral_dataset": str(folder / "neutral.jsonl")}
    fields["args"] |= {"output_dir": str(folder / "out"), "controls": 1, "use_cpu": True}
    result = invoke("train", write_recipe(folder, fields))
    assert result.exit_code == 0, result.stderr
    assert "apply" in result.stdout and "PROMPT" in result.stdout
    return folder / "out"


def test_what_was_learned_is_in_report_and_card(polite: Path) -> None:
    report = Report.load(polite)
    split = report.splits["eval"]
    assert split.encoder is not None and split.encoder.auc is not None and split.encoder.auc > 0.9
    shares = [split.at(strength).readings["share"] for strength in (-1.0, 1.0)]
    assert shares[0] < shares[1]
    low, high = split.at(1.0).intervals["share"]
    assert low <= shares[1] <= high
    card = (polite / "README.md").read_text("utf-8")
    assert "share of its completion" in card and "| strength | share | log-odds per token |" in card


def test_a_prompt_is_answered_at_every_strength(polite: Path, run: Run) -> None:
    result = run("apply", polite, "Where is the king? They said", "--strengths", "-1,0,1", "--tokens", "5", "--json")
    assert result.exit_code == 0, result.stderr
    (text,) = json.loads(result.stdout)["texts"]
    assert [at["strength"] for at in text["at"]] == [-1, 0, 1]
    assert all(at["completion"] for at in text["at"]) and "guesses" not in text["at"][0]


def test_it_is_measured_again_and_verified(polite: Path, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = (POLITE / "validation.jsonl").read_text("utf-8").splitlines()
    data.write_text("\n".join(rows[:4]) + "\n", encoding="utf-8")
    result = run("evaluate", polite, "--data", data, "--out", tmp_path / "report.json", "--json")
    assert result.exit_code == 0, result.stderr
    again = Report.load(tmp_path / "report.json").splits["test"]
    assert again.encoder is not None and sum(again.encoder.rows.values()) == 8  # both transitions of each pair
    assert run("verify", polite).exit_code == 0


def test_it_travels_over_the_hub(polite: Path, hub: Any, repo_id: str, causal_path: Path) -> None:
    model = GradiendModel.from_pretrained(polite, strength=0.0)
    record = json.loads((POLITE / "validation.jsonl").read_text("utf-8").splitlines()[0])
    before = model.encode([record])
    model.push_to_hub(repo_id)
    found = GradiendModel.from_pretrained(repo_id, base_model=str(causal_path), strength=0.0)
    assert found.active_peft_config.objective_options == {"per_token": True, "chat": False}
    assert float(found.encode([record])) == pytest.approx(float(before), abs=1e-6)
