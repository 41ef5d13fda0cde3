"""`gradiend-hub train`: recipes, their mistakes, an interruption, and publishing."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from gradiend_hub import GradiendTrainer
from gradiend_hub.data.loading import load_rows
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub_cli.recipes import read_recipe
from tests.hub_server import HubServer

from .conftest import Run, Trained, recipe_fields, write_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.yaml"
WEIGHTS = "adapter_model.safetensors"


def test_a_recipe_is_trained_measured_and_saved(trained: Trained) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    assert {
        "adapter_config.json",
        WEIGHTS,
        "gradiend_encoder.safetensors",
        "gradiend_report.json",
        "README.md",
    } <= names
    report = Report.load(trained.folder)
    assert report.steps == 6 and set(report.splits) == {"eval", "test"}
    assert sum(report.data["train_rows"].values()) == 64
    shown = trained.shown
    assert "step 3 of 6: loss" in shown and "What each strength changes (test split)" in shown
    assert str(trained.folder) in shown.replace("\n", "").replace(" ", "")


def test_the_example_recipe_names_what_is_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parents[1])
    recipe = read_recipe(EXAMPLE)
    assert Path(recipe.model, "config.json").is_file()
    assert len(load_rows(recipe.train_dataset, "train", "train_dataset")) > 1000
    for name, split in (("neutral_dataset", "validation"), ("test_neutral_dataset", "test")):
        sentences = load_rows(getattr(recipe, name), "train", name)
        assert len(sentences) == 400 and set(sentences["split"]) == {split}


def test_values_are_replaced_by_set(masked_path: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe_fields(masked_path, tmp_path / "out"))
    recipe = read_recipe(
        path, ["args.learning_rate=5e-2", "direction.layers=0-1", "args.save_strategy=no", "args.bf16=false"]
    )
    assert recipe.args["learning_rate"] == 0.05
    assert recipe.args["max_steps"] == 6
    assert recipe.direction == {"feature_classes": ["3SG", "3PL"], "layers": "0-1"}
    assert recipe.args["save_strategy"] == "no" and recipe.args["bf16"] is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("args.learning_rte=1", "Unknown key args.learning_rte: did you mean args.learning_rate?"),
        ("direction.feature_class=x", "did you mean direction.feature_classes?"),
        ("train_data=x", "did you mean train_dataset?"),
        ("direction.parameters={}", "Unknown key direction.parameters"),
        ("zzz=1", "Unknown key zzz: expected one of model, train_dataset,"),  # as declared
        ("direction.zzzzzz=1", "expected one of"),
        ("model=", "model is missing"),
        ("args", "expected KEY=VALUE"),
        ("model.path=x", "model has a value of its own"),
        ("args=7", "args must hold keys and values"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_right_one(
    run: Run, trained: Trained, tmp_path: Path, override: str, message: str
) -> None:
    result = run("train", write_recipe(tmp_path, trained.recipe), "--set", override)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "found list"), ("a: [", "not valid YAML"), ("", "found NoneType"), (None, "cannot be read")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_damage_sets_of_a_recipe_have_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ntrain_dataset: d\ndamage_datasets: [a, b]\n")
    with pytest.raises(ConfigError, match="damage_datasets must hold data sets by name"):
        read_recipe(path)
    path.write_text("model: m\ntrain_dataset: d\ndamage_datasets: {chat: prompts.jsonl}\n")
    assert read_recipe(path).damage_datasets == {"chat": "prompts.jsonl"}
    assert read_recipe(path, ["damage_datasets.news=n.jsonl"]).damage_datasets["news"] == "n.jsonl"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"name": "neutral"}, ConfigError, "a mapping with `path`"),
        (7, ConfigError, "a mapping with `path`"),
        ({"path": "{pronouns}", "splits": "train"}, ConfigError, "did you mean train_dataset.split?"),
        ({"path": "{pronouns}", "split": "dev"}, DataError, "dev"),
        ({"path": "{pronouns}", "name": "nouns"}, DataError, "nouns"),
        ("{pronouns}", DataError, "no split 'dev'"),
    ],
)
def test_a_data_set_that_is_not_there_is_named(
    masked_path: Path, source: Any, error: type[Exception], message: str
) -> None:
    pronouns = str(masked_path.parents[1] / "data" / "pronouns")
    if isinstance(source, dict):
        source = {key: value.format(pronouns=pronouns) for key, value in source.items()}
    elif isinstance(source, str):
        source = source.format(pronouns=pronouns)
    with pytest.raises(error, match=message):
        load_rows(source, "dev", "train_dataset")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("b.jsonl", "\n\n"),
        ("c.json", "[]"),
        ("d.csv", "masked,factual\n"),
        ("e.csv", ""),
        ("f/g.jsonl", ""),
    ],
)
def test_data_without_rows_are_named(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    source = file if file.parent == tmp_path else file.parent
    with pytest.raises(DataError, match=f"^train_dataset: {source}.* has no rows"):
        load_rows(str(source), "train", "train_dataset")


def test_a_data_set_is_a_folder_or_a_folder_with_a_configuration(masked_path: Path) -> None:
    pronouns = str(masked_path.parents[1] / "data" / "pronouns")
    assert "masked" in load_rows(pronouns, "test", "test_dataset").column_names
    assert "text" in load_rows(f"{pronouns}:neutral", "test", "neutral_dataset").column_names  # its only split


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=/nowhere", "There is no base model at '/nowhere'"),
        ("args.learning_rate=fast", "args.learning_rate: expected a number, found 'fast'"),
        ("args.bf16=please", "args.bf16: expected true or false"),
        ("args.quality_floor=2", "quality_floor: expected a number between 0 and 1"),
        ("args.hub_strategy=every_save", "only 'end' is supported"),
        ("direction.feature_classes=[3SG, plural]", "unknown class '3PL'"),
        ("direction.source=both", "GradiendConfig.source"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(
    run: Run, trained: Trained, tmp_path: Path, override: str, message: str
) -> None:
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, "--set", f"args.output_dir={tmp_path / 'out'}", "--set", override)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Learn" not in result.stdout


def test_an_output_folder_in_use_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    result = run("train", write_recipe(tmp_path, trained.recipe))
    assert result.exit_code == 1
    assert "is not empty" in result.stderr


def test_a_dry_run_predicts_and_leaves_nothing(run: Run, trained: Trained, tmp_path: Path, hub: HubServer) -> None:
    overrides = (
        f"args.output_dir={tmp_path / 'out'}",
        "args.push_to_hub=true",
        "args.hub_model_id=alice/never",
        "direction.layers=0-1",
    )
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, "--dry-run", *(part for override in overrides for part in ("--set", override)))
    assert result.exit_code == 0, result.stderr
    assert re.search(r"blocks 0-1 +32 +[\d,]+ +\d+\.\d+%", result.stdout)  # 16 tensors in each
    assert re.search(r"learning +0:00:\d\d \(6 steps of \S+ s\)", result.stdout) and "peak memory" in result.stdout
    assert re.search(r"evaluating +0:\d\d:\d\d", result.stdout)
    assert "Learn" not in result.stdout and not (tmp_path / "out").exists()
    assert not hub.log(path="/api/repos/create")


def test_resume_without_a_checkpoint_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, "--set", f"args.output_dir={tmp_path / 'new'}", "--resume")
    assert result.exit_code == 1
    assert "no checkpoint" in result.stderr


def test_an_interrupted_run_goes_on_to_the_same_result(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {name: value for name, value in trained.recipe.items() if name in ("model", "train_dataset", "direction")}
    path = write_recipe(
        tmp_path, {**fields, "args": {**trained.recipe["args"], "output_dir": str(tmp_path / "direction")}}
    )
    step = GradiendTrainer.training_step

    def interrupted(trainer: GradiendTrainer, *arguments: Any, **options: Any) -> Any:
        if trainer.state.global_step == 3:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
            signal.raise_signal(signal.SIGINT)  # what the terminal does on Ctrl-C
        return step(trainer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GradiendTrainer, "training_step", interrupted)
        result = run("train", path)
    assert result.exit_code == 130
    assert f"To go on from there: gradiend-hub train {path} --resume" in result.stderr
    assert "checkpoint-2 is kept" in result.stderr

    resumed = run("train", path, "--resume")
    assert resumed.exit_code == 0 and "Nothing was measured" in resumed.stdout
    assert run("train", path, "--set", f"args.output_dir={tmp_path / 'through'}").exit_code == 0
    assert (tmp_path / "direction" / WEIGHTS).read_bytes() == (tmp_path / "through" / WEIGHTS).read_bytes()


def test_an_interruption_before_any_checkpoint_says_so(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(GradiendTrainer, "training_step", interrupted)
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, "--set", f"args.output_dir={tmp_path / 'direction'}")
    assert result.exit_code == 130
    assert "No checkpoint was written yet" in result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")  # transformers, where a variable forbids them
def test_a_run_is_published_when_the_recipe_says_so(
    run: Run, trained: Trained, tmp_path: Path, hub: HubServer, repo_id: str
) -> None:
    overrides = (
        f"args.output_dir={tmp_path / 'out'}",
        "args.push_to_hub=true",
        f"args.hub_model_id={repo_id}",
        "args.max_steps=2",
        "test_dataset=null",
    )
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, *(part for override in overrides for part in ("--set", override)))
    assert result.exit_code == 0, result.stderr
    files = HfApi().list_repo_files(repo_id)
    assert WEIGHTS in files and "README.md" in files and not any("checkpoint" in name for name in files)
    assert "published" in result.stdout


def test_a_repository_without_write_permission_is_found_before_the_training(
    run: Run, trained: Trained, tmp_path: Path, hub: HubServer
) -> None:
    overrides = (f"args.output_dir={tmp_path / 'out'}", "args.push_to_hub=true", "args.hub_model_id=bob/of-bob")
    path = write_recipe(tmp_path, trained.recipe)
    result = run("train", path, *(part for override in overrides for part in ("--set", override)))
    assert result.exit_code == 1
    assert "bob/of-bob cannot be used" in result.stderr and "Nothing was trained" in result.stderr
