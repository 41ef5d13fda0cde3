"""Classifiers on the command line: recipes of image and text files, decisions by strength, verification and merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import BASE_MODELS
from tests.training.test_classifiers import digit_rows, other_digits, sentences

from .conftest import Run, invoke, write_recipe


def recipe(folder: Path, model: str, classes: list[str], parts: dict[str, Any]) -> Path:
    files = {f"{name}_dataset": str(path) for name, path in parts.items()}
    args = {"output_dir": str(folder / "out"), "solver": "closed_form", "controls": 0, "save_strategy": "no"}
    direction = {"feature_classes": classes, "source": "diff"}
    return write_recipe(folder, {"model": str(BASE_MODELS / model), **files, "direction": direction, "args": args})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction from Parquet files of images, as `datasets` writes them."""
    folder, parts = tmp_path_factory.mktemp("digits"), {}
    rows = {
        "train": digit_rows("1", "7", slice(0, 60)),
        "eval": digit_rows("1", "7", slice(60, 90)),
        "neutral": other_digits("1", "7", 30),
    }
    for name, found in rows.items():
        images = [{**row, "image": Image.fromarray(row["image"]), "label": str(row["label"])} for row in found]
        table = datasets.Dataset.from_list(images).cast_column("image", datasets.Image())
        parts[name] = folder / f"{name}.parquet"
        table.to_parquet(parts[name])
    result = invoke("train", recipe(folder, "digits", ["1", "7"], parts))
    assert result.exit_code == 0, result.stderr
    assert "apply" in result.stdout and "IMAGE.png" in result.stdout
    return folder / "out"


def test_a_recipe_of_images(digits: Path, run: Run, tmp_path: Path) -> None:
    config = json.loads((digits / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["objective"] == "image_classification"
    row = digit_rows("1", "7", slice(100, 101))[0]
    Image.fromarray(np.kron(row["image"], np.ones((4, 4), np.uint8))).save(tmp_path / "digit.png")
    result = run("apply", digits, tmp_path / "digit.png", "--strengths=-1,0,1", "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["texts"]
    assert [at["strength"] for at in found["at"]] == [-1, 0, 1]
    chances = [at["classes"]["1"] for at in found["at"]]
    assert chances[0] < chances[1] < chances[2]
    for at in found["at"]:  # the labels that are listed have the classes' probabilities
        listed = {guess["word"]: guess["probability"] for guess in at["guesses"]}
        for name in {"1", "7"} & listed.keys():
            assert listed[name] == pytest.approx(at["classes"][name], abs=1e-6)
    assert run("verify", digits).exit_code == 0
    (tmp_path / "broken.png").write_bytes(b"nothing")
    failed = run("apply", digits, tmp_path / "broken.png")
    assert failed.exit_code != 0 and "broken.png: this is no image that can be read" in " ".join(failed.stderr.split())
    missing = run("apply", digits, tmp_path / "none.png")
    assert missing.exit_code != 0 and "cannot be read" in " ".join(missing.stderr.split())
    merged = run("merge", digits, tmp_path / "merged", "--strength", "1")
    assert merged.exit_code == 0, merged.stderr
    assert "ViTForImageClassification" in (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")


def test_a_recipe_of_sentences(run: Run, tmp_path: Path) -> None:
    parts = {}
    for name, rows in {"train": sentences(slice(0, 60)), "eval": sentences(slice(60, 90))}.items():
        parts[name] = tmp_path / f"{name}.jsonl"
        parts[name].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("train", recipe(tmp_path, "sentiment", ["positive", "negative"], parts))
    assert result.exit_code == 0, result.stderr
    shown = run("apply", tmp_path / "out", "It was a good day for us.", "--strengths=-1,0,1", "--json")
    (found,) = json.loads(shown.stdout)["texts"]
    chances = [at["classes"]["positive"] for at in found["at"]]
    assert chances[0] < chances[1] < chances[2]
    assert run("info", tmp_path / "out").exit_code == 0
