"""`compare`, `combine` and `suite` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from gradiend_hub.base_model import load_base_model
from gradiend_hub.comparison import DirectionSet
from gradiend_hub.errors import BaseModelMismatchError
from gradiend_hub.training import DirectionSuite
from gradiend_hub_cli import app
from tests.training.support import arguments
from tests.training.test_suite import FRAMES, rows


@pytest.fixture(scope="module")
def pair(masked_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two directions of a suite that were not evaluated."""
    args = arguments(
        tmp_path_factory.mktemp("pair") / "out", solver="closed_form", max_steps=-1, per_device_train_batch_size=6
    )
    suite = DirectionSuite(
        load_base_model(masked_path), args, train_dataset=rows(FRAMES[:6]), config={"scope": ["*.layer.2.*"]},
        pairs=[("man", "woman"), ("man", "thing")],
    )  # fmt: skip
    return [str(folder) for folder in suite.train().values()]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_directions_are_compared_from_their_files(pair: list[str], tmp_path: Path) -> None:
    result = run("compare", *pair, "--json", "--measure", "--out", str(tmp_path / "page"))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cosine"]["rows"] == ["man_woman", "man_thing"] and found["cosine"]["values"][0][0] == 1
    assert found["predicted_effects"]["values"][0][0] > 0 and found["measured_effects"]["null"] is None
    assert json.loads((tmp_path / "page" / "comparison.json").read_text())["cosine"] == found["cosine"]
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "man_woman" in page and "Unmeasured" in page and "<script" not in page
    again = run("compare", *pair, "--out", str(tmp_path / "page"))
    assert again.exit_code == 1 and "not empty" in again.output


def test_a_checkpoint_is_compared(pair: list[str], masked_path: Path) -> None:
    result = run("compare", *pair, "--with", str(masked_path))
    assert result.exit_code == 1 and "base model's own weights" in " ".join(result.output.split())


def test_directions_are_combined(pair: list[str], tmp_path: Path) -> None:
    result = run("combine", f"{pair[0]}=1", f"{pair[1]}=-0.5", "--out", str(tmp_path / "sum"), "--orthogonal", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["report"]
    assert found["weights"] == {"man_woman": 1.0, "man_thing": -0.5} and found["metric"] == "Euclidean"
    assert run("info", str(tmp_path / "sum")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "{0}", "{0}"], "named twice"),
        (["compare", "/no/such"], "no folder"),
        (["combine", "{0}=big", "--out", "{out}"], "DIRECTION=STRENGTH"),
        (["combine", "{0}=1", "{0}=2", "--out", "{out}"], "named twice"),
        (["combine", "{0}=0", "--out", "{out}"], "all weights are zero"),
    ],
)
def test_mistakes_are_named(arguments: list[str], said: str, pair: list[str], tmp_path: Path) -> None:
    result = run(*(a.format(*pair, out=tmp_path / "new") for a in arguments))
    assert result.exit_code == 1 and said in " ".join(result.output.split()) and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_suite_is_learned_from_a_file(masked_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(FRAMES[:5])), encoding="utf-8")
    recipe = tmp_path / "suite.yaml"
    recipe.write_text(
        f"model: {masked_path}\ntrain_dataset: {data}\npairs: [[man, woman], [person, thing]]\n"
        "merged: {person: [man, woman]}\nseeds: [0, 1]\nsplit_by: text\ndirection: {scope: ['*.layer.2.*']}\n"
        f"args: {{output_dir: {tmp_path / 'out'}, per_device_train_batch_size: 4, controls: 1}}\n",
        encoding="utf-8",
    )
    result = run("suite", str(recipe), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["directions"]) == 4 and found["tables"]["cosine"]["rows"] == ["man_woman", "person_thing"]
    assert {"suite.html", "suite.json", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "standard deviation" in (tmp_path / "out" / "suite.html").read_text()
    assert run("suite", str(recipe), "--json").exit_code == 0  # there is nothing left to learn


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pears: all", "pears: did you mean pairs"),
        ("pairs: some", "'all', 'rest' or a list"),
        ("pairs: []", "at least one direction"),
        ("pairs: 3", "pairs"),
        ("pairs: [[man, woman], [man, woman]]", "a name of its own"),
        ("pairs: [[man, child]]", "no class 'child'"),
        ("merged: {person: []}", "a new name"),
        ("merged: [person]", "merged must hold"),
        ("merged: {person: 3}", "a new name"),
        ("identities: maybe", "identities"),
        ("seeds: []", "different whole numbers"),
        ("seeds: [0, 0]", "different whole numbers"),
        ("split_by: letter", "split_by must be text or word"),
        ("model: 3", "model"),
        ("model: []", "model is missing"),
        ("direction: {densty: 1}", "direction.densty: did you mean direction.density"),
        ("direction: {feature_classes: [man, woman]}", "name them in pairs"),
        ("args: {solver: autoencoder}", "closed_form or ridge"),
        ("args: {learning_rat: 1}", "args.learning_rat: did you mean args.learning_rate"),
        ("args: {controls: many}", "args.controls"),
        ("args: 3", "args must hold keys and values"),
    ],
)
def test_mistakes_in_a_suite_are_named_before_anything_is_learned(
    line: str, said: str, masked_path: Path, tmp_path: Path
) -> None:
    data, recipe = tmp_path / "rows.jsonl", tmp_path / "suite.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(FRAMES[:2])), encoding="utf-8")
    usual = {"model": str(masked_path), "train_dataset": str(data), "args": f"{{output_dir: {tmp_path / 'out'}}}"}
    usual = {name: value for name, value in usual.items() if not line.startswith(f"{name}:")}
    text = "\n".join([*(f"{name}: {value}" for name, value in usual.items()), line])
    recipe.write_text(text, encoding="utf-8")
    result = run("suite", str(recipe))
    assert result.exit_code == 1 and said in " ".join(result.output.split()), result.output
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_suite_of_several_base_models(masked_path: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    base = load_base_model(masked_path)
    with torch.no_grad():
        base.get_parameter("bert.encoder.layer.2.output.dense.weight").mul_(-1)
    base.save_pretrained(twin)
    AutoTokenizer.from_pretrained(masked_path).save_pretrained(twin)
    data, recipe, out = tmp_path / "rows.jsonl", tmp_path / "suite.yaml", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(FRAMES[:4])), encoding="utf-8")
    recipe.write_text(
        f"model: [{masked_path}, {twin}]\ntrain_dataset: {data}\npairs: [[man, woman]]\n"
        f"direction: {{scope: ['*.layer.2.*']}}\nargs: {{output_dir: {out}, per_device_train_batch_size: 4, controls: 0}}\n",
        encoding="utf-8",
    )
    result = run("suite", str(recipe), "--json")
    assert result.exit_code == 0, result.output
    assert {*json.loads(result.stdout)["bases"]} == {masked_path.name, "twin"}
    for name in (masked_path.name, "twin"):
        assert (out / name / "man_woman" / "README.md").is_file() and (out / name / "suite.html").is_file()
    with pytest.raises(BaseModelMismatchError):
        DirectionSet.from_pretrained([out / masked_path.name / "man_woman", out / "twin" / "man_woman"])
    recipe.write_text(recipe.read_text().replace(str(twin), str(masked_path)), encoding="utf-8")
    result = run("suite", str(recipe))
    assert result.exit_code == 1 and "the same name" in " ".join(result.output.split())
