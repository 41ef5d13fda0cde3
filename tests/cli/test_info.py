"""`info` of several directions, and of one beside a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradiend_hub.evaluation import Report
from tests.adapter.support import config_for, random_direction
from tests.models import build
from tests.reports import full_report

from .conftest import Run

CLASSES = ["3SG", "3PL"]
FILLERS = {"3SG": ["he", "she"], "3PL": ["they"]}


def saved(folder: Path, *, report: Report | None = None, seed: int = 0) -> Path:
    """A direction of the small BERT, with a report if one is given."""
    model = build("bert")
    direction = random_direction(model, seed=seed)
    config_for(direction, model, feature_classes=CLASSES, fillers=FILLERS, objective="masked_lm").save_pretrained(
        str(folder)
    )
    direction.save(folder)
    if report is not None:
        report.save(folder)
    return folder


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    return saved(tmp_path / "measured", report=full_report(CLASSES, FILLERS))


def test_several_stand_side_by_side(run: Run, measured: Path, tmp_path: Path) -> None:
    bare = saved(tmp_path / "bare", seed=1)
    alone = [json.loads(run("info", folder, "--json").stdout) for folder in (measured, bare)]
    result = run("info", measured, bare, measured, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["directions"] == [*alone, alone[0]]
    shown = run("info", measured, bare).stdout
    point = Report.load(measured).splits["test"].at(1.0)
    lines = " ".join(shown.split())
    assert f"{point.probability['3PL']['3SG']:.3f}" in lines and lines.count("not measured") > 4
    assert max(map(len, shown.splitlines())) <= 80
    assert run("info", measured, bare, "--revision", "v1").exit_code == 1


def test_whether_they_would_fit(run: Run, measured: Path, tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "base")
    build("llama").save_pretrained(tmp_path / "llama")
    result = run("info", measured, "--base", tmp_path / "base", "--json")
    assert result.exit_code == 0, result.stderr
    fit = json.loads(result.stdout)["fit"]
    assert fit["fits"] is True and fit["relation"] == "same"
    result = run("info", measured, "--base", tmp_path / "llama")
    assert result.exit_code == 1 and "no, different" in " ".join(result.stdout.split())
    both = run("info", measured, measured, "--base", tmp_path / "llama", "--json")
    assert both.exit_code == 1
    assert [one["fit"]["fits"] for one in json.loads(both.stdout)["directions"]] == [False, False]
    assert run("info", measured, "--base", tmp_path / "nothing").exit_code == 1


def test_a_strangers_names_do_nothing_to_the_terminal(run: Run, tmp_path: Path) -> None:
    folder = saved(tmp_path / "x", report=full_report(CLASSES, FILLERS))
    fields = json.loads((folder / "gradiend_report.json").read_text())
    fields["verdict"], fields["converged"] = "\u202egnihton", False
    (folder / "gradiend_report.json").write_text(json.dumps(fields))
    result = run("info", folder, folder)
    assert "\u202e" not in result.stdout + result.stderr and "\x1b" not in result.stdout
