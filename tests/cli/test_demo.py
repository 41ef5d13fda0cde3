"""`gradiend-hub demo`, shortened, with everything that it checks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import gradiend_hub_cli.demo as demo
from gradiend_hub import GradiendModel, GradiendTrainer
from gradiend_hub.evaluation import Report
from gradiend_hub.training.data import MeasuredRows
from tests.hub_server import HubServer

from .conftest import Run

SHORT = ("--max-steps", "4", "--share", "0.04")


def test_the_whole_story_with_the_hub(
    run: Run, hub: HubServer, repo_id: str, tmp_path: Path, masked_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("demo", "--examples", masked_path.parents[1], "--repo-id", repo_id, "--out", out, *SHORT)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    steps = ["Import", "Load", "Learn", "Calibrate", "Test", "Save", "Push", "Pull", "Rewrite", "Undo", "Merge"]
    firsts = [line.split()[0] for line in result.stdout.splitlines() if line and not line[0].isspace()]
    assert [word for word in firsts if word in steps] == steps
    lines = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]  # a path stays whole
    assert max(map(len, lines)) <= 80
    assert shown.count("strength -1 strength 0 strength +1") == len(demo.SENTENCES)
    for expected in ("4 steps", "to the same bits", "P(3SG) on 3PL rows", "quality", "seconds", "base model"):
        assert expected in shown
    assert (out / "direction" / "README.md").is_file()
    report = Report.load(out / "direction")
    assert report.settings["quality_tokens"] == 80 and 80 <= report.splits["test"].scored < 120  # of over 200
    assert report.splits["test"].control_norms == report.splits["eval"].control_norms
    assert "adapter_model.safetensors" in HfApi().list_repo_files(repo_id)
    assert f"{hub.url}/{repo_id}" in result.stdout.replace("\n", "").replace(" ", "")
    assert AutoModelForMaskedLM.from_pretrained(out / "merged").num_parameters() > 1_000_000
    assert hub.log(method="GET", path=repo_id), "the direction was not pulled from the Hub"
    typed = result.stdout.partition("\nGo on with\n")[2].replace("\\\n", " ").splitlines()
    said = {"apply": demo.TRY_IT, "info": "P(3SG) on 3PL rows"}
    assert [shlex.split(line)[:2] for line in typed] == [["gradiend-hub", command] for command in said]
    for line, expected in zip(typed, said.values(), strict=True):
        done = run(*shlex.split(line)[1:])
        assert done.exit_code == 0 and expected in done.stdout, (line, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_story_of_a_causal_model_without_the_hub(run: Run, tmp_path: Path, causal_path: Path) -> None:
    out = tmp_path / "out"
    result = run("demo", "--base", "causal", "--examples", causal_path.parents[1], "--out", out, *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    assert "Load again" in result.stderr and "Push" not in result.stderr
    found = json.loads(result.stdout)
    assert Path(found["folder"], "adapter_model.safetensors").is_file() and found["repository"] is None
    assert {"Learn", "Test", "Merge"} <= found["seconds"].keys() and found["report"]["curve"]
    assert AutoModelForCausalLM.from_pretrained(out / "merged").num_parameters() > 1_000_000


@pytest.mark.parametrize("broken", ["encodings", "strength 0", "merged"])
def test_a_check_that_fails_ends_the_demo(
    run: Run, tmp_path: Path, masked_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Each check gets one value that is off by a bit where it must be equal."""
    calls = 0
    logits, encode = demo._logits, GradiendModel.encode

    def off_by_one_bit(value: torch.Tensor, call: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = value.clone()
        # encodings are read by the self-test, too: each reading differs from all others
        for _ in range(calls if broken == "encodings" else calls == call):
            value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(9.0))
        return value

    call = {"encodings": 2, "strength 0": 1, "merged": 4}[broken]
    target = (GradiendModel, "encode") if broken == "encodings" else (demo, "_logits")
    original: Any = encode if broken == "encodings" else logits
    monkeypatch.setattr(*target, lambda *given, **named: off_by_one_bit(original(*given, **named), call))
    monkeypatch.setattr(GradiendTrainer, "evaluate", _unit_without_search)
    options = ("--examples", masked_path.parents[1], "--out", tmp_path / "out", "--max-steps", "2", "--share", "0.07")
    result = run("demo", *options)
    assert calls >= call
    assert result.exit_code == 1, result.stdout
    expected = {"encodings": "encodes 8 rows differently", "strength 0": "Strength 0", "merged": "merged model"}
    assert expected[broken] in result.stderr
    assert "In figures" not in result.stdout


def _unit_without_search(trainer: GradiendTrainer, *arguments: Any, metric_key_prefix: str = "eval", **_: Any) -> None:
    """Measure a few rows only: how strong the edit is does not matter for a check that fails."""
    trainer._measure(MeasuredRows(trainer._run.data.eval_rows[:4]), False, metric_key_prefix)


def test_material_that_is_not_there_is_asked_for(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--examples", tmp_path)
    assert result.exit_code == 1
    assert f"are not in {tmp_path}" in result.stderr and "clone of the repository" in result.stderr


def test_a_folder_in_use_is_refused_before_anything_else(run: Run, tmp_path: Path, masked_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = run("demo", "--examples", masked_path.parents[1], "--out", tmp_path)
    assert result.exit_code == 1
    assert "is not empty (notes.txt)" in result.stderr and "Load" not in result.stdout


def test_an_interruption_ends_with_130(
    run: Run, tmp_path: Path, masked_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(GradiendTrainer, "training_step", interrupted)
    result = run("demo", "--examples", masked_path.parents[1], "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 130 and result.stderr.startswith("Interrupted: ")
