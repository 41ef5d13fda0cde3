"""`init`: what it writes is read as it was meant, and trains; what cannot be used is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub_cli import app
from gradiend_hub_cli.init import _one_line
from gradiend_hub_cli.recipes import read_recipe
from gradiend_hub_cli.yaml_files import parse_yaml

from .conftest import Run

WORDS = "3SG=he, she, it 3PL=they"


@pytest.fixture(scope="module")
def text(pronouns: DatasetDict, neutral: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with their own words, and sentences without: a text as people have it."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rows = [row["masked"].replace("[MASK]", row["factual"]) for row in pronouns["train"].select(range(0, 1200, 4))]
    path.write_text("\n".join([*rows, *neutral["text"][:90]]), encoding="utf-8")
    return path


def init(file: Path, base: Path, text: Path, *more: str, words: str = WORDS) -> list[str]:
    return ["init", str(file), "--model", str(base), "--words", words, "--text", str(text), *more]


@pytest.mark.slow
def test_what_it_writes_trains(run: Run, masked_path: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "feature.yaml"
    result = run(*init(file, masked_path, text, "--json"))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["file"] == str(file) and found["objective"] == "masked_lm"
    assert [word["verdict"] for word in found["classes"]["3PL"]] == ["one token"]
    assert file.read_text(encoding="utf-8").count("#") > 15
    recipe = read_recipe(file)
    assert recipe.direction == {"feature_classes": ["3SG", "3PL"]}
    assert recipe.data is not None and recipe.data["classes"]["3SG"] == ["he", "she", "it"]
    few = {"output_dir": tmp_path / "out", "max_steps": 4, "save_strategy": "no", "num_runs": 1}
    few |= {"per_device_train_batch_size": 8, "quality_tokens": 100, "controls": 1}
    options = [part for name, value in few.items() for part in ("--set", f"args.{name}={value}")]
    fewer = ["--set", "data.max_per_class=24", "--set", "data.neutral.max_texts=12"]
    trained = run("train", file, *options, *fewer, "--json")
    assert trained.exit_code == 0, trained.stderr
    said = json.loads(trained.stdout)
    assert said["measured"] == "test" and said["steps"] == 4
    config = GradiendConfig.from_pretrained(tmp_path / "out")
    assert config.feature_classes == ["3SG", "3PL"] and {*config.fillers["3SG"]} <= {"he", "she", "it"}
    predicted = json.loads(run("train", file, "--dry-run", "--json").stdout)
    assert predicted["train_rows"] == sum(of["train"] for of in found["rows"].values())


def test_questions_are_asked_until_the_answers_can_be_used(
    causal_path: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "feature.yaml"
    answers = ["", str(tmp_path), causal_path, "", "he they", "A=he B=he", "A= B=they", WORDS, tmp_path / "none", text]
    result = CliRunner().invoke(app, ["init", str(file)], input="".join(f"{answer}\n" for answer in answers))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("Not usable: ") == 7
    assert result.stderr.count("Which words?") == 5
    assert "belongs to the classes 'A' and 'B'" in result.stderr
    assert "min_left_words: 3" in file.read_text(encoding="utf-8")
    assert read_recipe(file).model == str(causal_path)


def test_an_end_of_the_answers_names_the_option(run: Run, masked_path: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path / "a.yaml"), "--model", str(masked_path)], input="")
    assert result.exit_code == 1 and "Give it as --words" in result.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda line: [*line[:4], "--words", "SG=he PL=丕"],
            "The model reads no word of PL: 丕 (unknown to the tokenizer)",
        ),
        (lambda line: [*line[:4], "--words", "SG=he PL=they X=it"], "expected two classes with their words"),
        (lambda line: [*line[:4], "--words", "SG=he PL=theey", *line[6:]], "Class 'PL' ('theey') has no rows"),
        (lambda line: [*line[:6], "--text", ""], "A text is needed"),
        (lambda line: [*line, "--text-column", "nope"], "no column 'nope'"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error(
    run: Run, masked_path: Path, text: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], says: str
) -> None:
    table = text
    if says.startswith("no column"):
        table = tmp_path / "table.csv"
        Dataset.from_dict({"said": text.read_text(encoding="utf-8").splitlines()}).to_csv(table)
    file = tmp_path / "feature.yaml"
    result = run(*change(init(file, masked_path, table)))
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert not file.exists()


def test_a_file_in_use_is_kept(run: Run, masked_path: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "feature.yaml"
    file.write_text("mine: true\n")
    refused = run(*init(file, masked_path, text))
    assert refused.exit_code == 1 and "add --overwrite" in refused.stderr
    assert file.read_text() == "mine: true\n"
    assert "is a folder" in run(*init(tmp_path, masked_path, text)).stderr
    assert run(*init(file, masked_path, text, "--overwrite", "--quiet")).exit_code == 0
    assert "feature_classes" in file.read_text()


def test_little_text_is_told(run: Run, masked_path: Path, tmp_path: Path) -> None:
    """Few rows, a word that does not occur, no sentence without the words."""
    path = tmp_path / "little.txt"
    towns = ["Rome", "Oslo", "Lima", "Bonn", "Cork", "Pisa", "York", "Bern", "Nice", "Kiel", "Graz", "Linz"]
    path.write_text("\n".join(f"On the road to {t} we heard that {w} had left." for w in ("he", "they") for t in towns))
    file = tmp_path / "feature.yaml"
    result = run(*init(file, masked_path, path, "--json"))
    assert result.exit_code == 0, result.stderr
    advice = " ".join(json.loads(result.stdout)["advice"])
    for expected in ("row of she, it", "Few training rows", "No neutral sentences"):
        assert expected in advice
        assert expected in result.stderr
    data = read_recipe(file).data
    assert data is not None and "neutral" not in data


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3)))
def test_every_value_is_read_as_it_was_meant(value: Any) -> None:
    written = _one_line(value)
    assert "\n" not in written
    assert parse_yaml(f"key: {written} # a comment") == {"key": value}


@pytest.mark.parametrize("word", ["no", "on", "null", "1e3", "0x1", "~", "'s", "12:30", "#tag", "a: b", "[MASK]", "😀"])
def test_words_that_yaml_reads_otherwise(word: str) -> None:
    assert parse_yaml(f"a: {_one_line([word])} # x") == {"a": [word]}


def test_rows_of_both_kinds_are_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("model: x\ntrain_dataset: y\ndata: {classes: {A: [a], B: [b]}}\n")
    result = run("train", file)
    assert result.exit_code == 1 and "Remove one of them" in result.stderr
    file.write_text("model: x\ndata: text.txt\n")
    assert "data must hold keys and values" in run("train", file).stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_that_windows_has_written_is_read(tmp_path: Path, encoding: str) -> None:
    text = "# written there\nmodel: x\ntrain_dataset: y\ndirection: {feature_classes: [Bär, Bären]}\n"
    (tmp_path / "a.yaml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    recipe = read_recipe(tmp_path / "a.yaml")
    assert (recipe.model, recipe.direction) == ("x", {"feature_classes": ["Bär", "Bären"]})
