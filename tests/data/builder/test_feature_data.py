"""What is saved and published reads back as what was built, and the card says what is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from gradiend_hub.data import FeatureData, FeatureDataConfig, FeatureDatasetBuilder, NeutralSpec, TextFilters
from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.hub import retry
from gradiend_hub_cli import app
from tests.data.builder.test_build import PRONOUNS, texts

NEUTRAL = [f"Nobody {number} was seen in the old house on the long road today." for number in range(80)]


@pytest.fixture(scope="module")
def data() -> FeatureData:
    card = {"pretty_name": "Numbers | and more", "license": "cc0-1.0", "source": "Sentences of this test"}
    config = FeatureDataConfig(PRONOUNS, neutral=NeutralSpec(40), language="en", card=card)
    return FeatureDatasetBuilder(config).build([*texts(300), *NEUTRAL])


def same(left: Any, right: Any) -> bool:
    return {k: part[:] for k, part in left.items()} == {k: part[:] for k, part in right.items()}


def test_a_saved_set_reads_back(data: FeatureData, tmp_path: Path) -> None:
    folder = str(data.save(tmp_path / "set"))
    assert same(datasets.load_dataset(folder), data.rows)
    assert same(datasets.load_dataset(folder, "neutral"), data.neutral)
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    for name, part in data.rows.items():
        assert name in card
        assert part["factual_class"][:].count("3PL") > 0
    trained = len(data.rows["train"]) // 2
    rest = [len(data.rows[name]) // 2 for name in ("validation", "test")]
    assert f"| 3PL | {trained} | {rest[0]} | {rest[1]} | {trained + sum(rest)} |" in card
    assert "| neutral sentences | 32 | 4 | 4 | 40 |" in card
    assert "| read | 380 texts |  |" in card
    assert card.count(r"\[MASK\]") == 6  # three examples of each class
    assert 'load_dataset("path/to/this/folder")' in card and str(tmp_path) not in card
    assert "Licence: cc0-1.0" in card and data.digest in card and "Sentences of this test" in card


def test_sets_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """By datasets, too, whose cache knows a local folder by its last name and the header of its card."""
    for seed in range(2):
        config = FeatureDataConfig(PRONOUNS, neutral=NeutralSpec(10 + seed), seed=seed)
        made = FeatureDatasetBuilder(config).build([*texts(80, seed), *NEUTRAL])
        folder = str(made.save(tmp_path / str(seed) / "namesake"))
        assert same(datasets.load_dataset(folder), made.rows)
        assert same(datasets.load_dataset(folder, "neutral"), made.neutral)


def test_a_push_is_one_commit_of_a_data_set(data: FeatureData, hub: Any, repo_id: str) -> None:
    commit = data.push_to_hub(repo_id)
    assert len(HfApi().list_repo_commits(repo_id, repo_type="dataset")) == 2  # the empty repository, and this
    assert "/datasets/" in commit.commit_url
    assert same(datasets.load_dataset(repo_id), data.rows)
    assert data.push_to_hub(repo_id).oid == commit.oid  # nothing to do
    assert not HfApi().repo_exists(repo_id)  # and no model of that name


def test_the_configuration_is_saved_and_shown(tmp_path: Path, hub: Any, repo_id: str) -> None:
    """What is beside the rows builds them again, and does not say where on a machine they came from."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts(200)), encoding="utf-8")
    filters = TextFilters(refuse="[{}]|```+", min_left_words=2)
    made = FeatureDatasetBuilder(FeatureDataConfig(PRONOUNS, {"path": str(path)}, filters=filters, seed=3)).build()
    made.save(tmp_path / "set")
    made.push_to_hub(repo_id)
    for text in (
        (tmp_path / "set" / "build.json").read_text(encoding="utf-8"),
        Path(HfApi().hf_hub_download(repo_id, "build.json", repo_type="dataset")).read_text(encoding="utf-8"),
    ):
        content = json.loads(text)
        assert content["source"] == {"path": "text.txt"} and content["filters"]["refuse"] == filters.refuse
        assert FeatureDatasetBuilder(FeatureDataConfig.from_dict(content)).build(str(path)).digest == made.digest
        card = made.card(repo_id).text
        assert f"````json\n{text}````" in card  # longer than what it holds
        assert card.index("<details>") < card.index(text) < card.index("</details>")
        assert str(tmp_path) not in card


def test_a_folder_that_is_a_file(data: FeatureData, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(ConfigError, match=r"out is a file.*another folder"):
            data.save(folder)
        run = CliRunner().invoke(
            app, ["data", "build", "examples/data.yaml", str(folder), "--set", "source=nowhere.txt"]
        )
        assert run.exit_code == 1
        assert "is a file" in " ".join(run.output.split())  # before the source is looked at


def test_a_folder_in_use_is_replaced_on_demand_only(data: FeatureData, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    data.save(folder)
    for name in ("old.jsonl", "neutral/old.jsonl", "notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"text": "x"}\n')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"is not empty \(README.md, build.json.*or overwrite=True .* to replace that data set"
    ):
        data.save(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    data.save(folder, overwrite=True)
    gone = {folder / "old.jsonl", folder / "neutral" / "old.jsonl"}
    assert {path for path in folder.rglob("*") if path.is_file()} == before.keys() - gone
    for overwrite in (False, True):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "train.jsonl").write_text("mine")
        with pytest.raises(ConfigError, match=r"is not empty \(train.jsonl\). Use another folder"):
            data.save(tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "train.jsonl").read_text() == "mine"


def test_a_model_without_a_tokenizer() -> None:
    run = CliRunner().invoke(app, ["data", "words", "examples/data.yaml", "no/such-model"])
    assert run.exit_code == 1
    assert isinstance(run.exception, SystemExit)
    assert "There is no tokenizer at 'no/such-model'" in " ".join(run.output.split())


def test_a_saved_data_set_is_pushed_later(data: FeatureData, hub: Any, repo_id: str, tmp_path: Path) -> None:
    folder = data.save(tmp_path / "set")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = CliRunner().invoke(app, ["data", "push", str(folder), repo_id, "--json"])
    assert run.exit_code == 0, run.output
    commit = json.loads(run.stdout)["commit"]
    assert commit == HfApi().repo_info(repo_id, repo_type="dataset").sha
    assert same(datasets.load_dataset(repo_id), data.rows)
    card = Path(HfApi().hf_hub_download(repo_id, "README.md", repo_type="dataset")).read_text(encoding="utf-8")
    assert f'load_dataset("{repo_id}")' in card and "path/to/this/folder" not in card
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert data.push_to_hub(repo_id).oid == commit  # the same set by the other door
    fewer = data.rows["train"].select(range(data.rows["train"].num_rows - 1))
    other = replace(data, rows=datasets.DatasetDict({**data.rows, "train": fewer})).save(tmp_path / "other")
    run = CliRunner().invoke(
        app, ["data", "push", str(other), repo_id, "--json"]
    )  # its card is not one changed by hand
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["commit"] != commit
    assert datasets.load_dataset(repo_id)["train"].num_rows == fewer.num_rows


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("build.json", None, "no build.json"),
        ("README.md", None, "no README.md"),
        ("train.jsonl", '{"a": ', "cannot be read"),
    ],
)
def test_what_is_no_data_set_is_not_pushed(
    data: FeatureData, hub: Any, repo_id: str, tmp_path: Path, name: str, text: str | None, reason: str
) -> None:
    path = data.save(tmp_path / "set") / name
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    run = CliRunner().invoke(app, ["data", "push", str(tmp_path / "set"), repo_id])
    assert run.exit_code == 1 and reason in " ".join(run.output.split()), run.output
    assert not HfApi().repo_exists(repo_id, repo_type="dataset")


def test_a_push_that_fails_says_so(data: FeatureData, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.0)
    with pytest.raises(HubPushError, match="Could not push to the data set bob/nothing: the token may not write there"):
        data.push_to_hub("bob/nothing")


def test_on_the_command_line(tmp_path: Path, masked_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join([*texts(200), *NEUTRAL]), encoding="utf-8")
    source = [
        "--set",
        f"source.path={tmp_path / 'text.txt'}",
        "--set",
        "source.name=null",
        "--set",
        "source.split=train",
    ]
    run = CliRunner().invoke(app, ["data", "build", "examples/data.yaml", str(tmp_path / "out"), *source])
    assert run.exit_code == 0, run.output
    assert "read" in run.output and "neutral sentences" in run.output
    assert set(datasets.load_dataset(str(tmp_path / "out"))) == {"train", "validation", "test"}
    run = CliRunner().invoke(
        app, ["data", "words", "examples/data.yaml", str(masked_path), "--set", "classes.3PL=[they, themselfs]"]
    )
    assert run.exit_code == 0, run.output
    assert "##" in next(line for line in run.output.splitlines() if "themselfs" in line)
    run = CliRunner().invoke(app, ["data", "build", "examples/data.yaml", str(tmp_path / "b"), "--set", "balanc=x"])
    assert run.exit_code == 1
