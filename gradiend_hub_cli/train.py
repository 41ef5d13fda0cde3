"""`train`: a YAML file says what to learn from what."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftConfig
from transformers.trainer_utils import get_last_checkpoint

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.errors import ConfigError, DataError, HubPushError, first_line
from gradiend_hub.hub.retry import summary

from .console import Interrupted, Story
from .quiet import follow, quiet
from .recipes import read_yaml
from .tables import curve_table, encoder_line, pairs_table

__all__ = ["Recipe", "load_split", "predict_recipe", "read_recipe", "run_recipe"]

_MEASURED = {"parameters", "has_bias", "strength_unit", "strength", "safe_band", "break_point"}
_DIRECTION = {
    f.name
    for f in fields(GradiendConfig)
    if f.name not in {g.name for g in fields(PeftConfig)} | _MEASURED and not f.name.endswith("_version")
}
_ARGS = {f.name for f in fields(GradiendTrainingArguments) if f.init}
_SOURCE = {"path", "name", "split", "revision"}
_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Endings of files that are read as a data set with one split, and how."""


@dataclass(frozen=True)
class Recipe:
    """A training run in words.

    Attributes:
        model: folder or Hub id of the base model.
        train_dataset: the rows to learn from. A data set is a folder or Hub id, `ID:CONFIG`, or a mapping with `path`,
            `name`, `split` and `revision`.
        eval_dataset: rows on which the strength unit is chosen.
        neutral_dataset: sentences without the feature, for the same purpose.
        test_dataset: rows that only measure the result.
        test_neutral_dataset: sentences that only measure the result.
        direction: fields of `GradiendConfig`.
        args: fields of `GradiendTrainingArguments`.
    """

    model: str
    train_dataset: Any
    eval_dataset: Any = None
    neutral_dataset: Any = None
    test_dataset: Any = None
    test_neutral_dataset: Any = None
    direction: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and replace values by `KEY=VALUE` with dots in the key.

    Raises:
        ConfigError: no such file, no YAML mapping, an unknown or a missing key.
    """
    content = read_yaml(path, overrides, "examples/train.yaml")
    known = {f.name for f in fields(Recipe)}
    _check_keys(content, known, "")
    for name, allowed in (("direction", _DIRECTION), ("args", _ARGS)):
        section = content.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name} must hold keys and values, found {section!r}.")
        _check_keys(section, allowed, f"{name}.")
    _check_numbers(content["args"])
    for name in ("model", "train_dataset"):
        if not content.get(name):
            raise ConfigError(f"{path}: {name} is missing. It is the folder or the Hub id to use.")
    return Recipe(**content)


def _check_keys(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in found:
        if key in known:
            continue
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {where}{nearest[0]}?" if nearest else f"expected one of {', '.join(sorted(known)[:12])}."
        raise ConfigError(f"Unknown key {where}{key}: {hint}")


def _check_numbers(args: Mapping[str, Any]) -> None:
    """`TrainingArguments` takes any text for a number, and fails on it much later."""
    for f in fields(GradiendTrainingArguments):
        if isinstance(f.default, (int, float)) and isinstance(args.get(f.name), str):
            expected = "true or false" if isinstance(f.default, bool) else "a number"
            raise ConfigError(f"args.{f.name}: expected {expected}, found {args[f.name]!r}.")


def load_split(source: Any, default_split: str, what: str) -> Dataset:
    """The data set that a recipe names; without a split, the default one or the only one there is.

    Raises:
        ConfigError: the recipe's entry is unusable.
        DataError: there is no such data set, configuration or split.
    """
    wanted = _parse_source(source, what)
    file = Path(wanted["path"])
    if file.is_file():
        if file.suffix not in _FILES:
            raise DataError(
                f"{what}: {file} is no data set. Expected a folder, a Hub id, or a file {', '.join(_FILES)}."
            )
        wanted = {**wanted, "path": _FILES[file.suffix], "data_files": str(file)}
    nothing = DataError(f"{what}: {file} has no rows.")
    if file.is_file() and not _has_content(file):
        raise nothing
    try:
        data = load_dataset(**wanted)
    except StopIteration as error:  # an empty file in a folder
        raise nothing from error
    except (OSError, ValueError, DatasetsError) as error:
        if "corresponds to no data" in str(error):
            raise nothing from error
        raise DataError(f"{what}: {str(file)!r} cannot be loaded as a data set. {first_line(error)}") from error
    if isinstance(data, DatasetDict):
        split = default_split if default_split in data else next(iter(data))
        if split != default_split and len(data) > 1:
            raise DataError(
                f"{what}: no split {default_split!r} in {str(file)!r}; name one of {list(data)} as `split`."
            )
        data = data[split]
    if not len(data):
        raise nothing
    return data


def _has_content(file: Path) -> bool:
    with file.open("rb") as lines:
        return any(line.strip() for line in lines)


def _parse_source(source: Any, what: str) -> dict[str, Any]:
    if isinstance(source, str):
        path, _, name = (source, "", "") if Path(source).exists() else source.partition(":")
        return {"path": path, "name": name or None}
    if not isinstance(source, dict) or not source.get("path"):
        raise ConfigError(f"{what}: expected a folder, a Hub id, or a mapping with `path`, found {source!r}.")
    _check_keys(source, _SOURCE, f"{what}.")
    return source


def predict_recipe(path: Path, overrides: Sequence[str], story: Story) -> None:
    """Print what a recipe would train and what that would cost. Nothing is learned, written or published.

    Raises:
        GradiendError: something in the recipe cannot work.
    """
    recipe = read_recipe(path, overrides)
    with quiet(), TemporaryDirectory() as unused:
        recipe.args.update(output_dir=unused, push_to_hub=False)
        with story.step("Load") as step:
            trainer = _trainer(recipe)
            step.outcome = f"{len(trainer.train_dataset):,} training rows"
        with story.step("Predict") as step:
            estimate = trainer.dry_run()
            step.outcome = "from three gradients; nothing was learned or written"
    story.console.print(f"\n{trainer.scope.table(trainer.base_model)}\n\n{estimate}")


def run_recipe(path: Path, overrides: Sequence[str], resume: bool, story: Story) -> None:
    """Train, measure, save and, if the recipe says so, push.

    Raises:
        GradiendError: something in the recipe cannot work; most of it is found before the training starts.
        Interrupted: Ctrl-C, with the command that goes on.
    """
    recipe = read_recipe(path, overrides)
    recipe.args.setdefault("output_dir", f"out/{path.stem}")
    with quiet():
        with story.step("Load") as step:
            trainer = _trainer(recipe)
            step.outcome = f"{len(trainer.train_dataset):,} training rows; {trainer.report.scope}"
        folder = Path(trainer.args.output_dir)
        if resume and (not folder.is_dir() or get_last_checkpoint(folder) is None):
            raise ConfigError(f"There is no checkpoint in {folder} to resume from. Start without --resume.")
        try:
            with story.step("Learn") as step:
                follow(trainer, step, keep_log=True)
                trainer.train(resume_from_checkpoint=resume)
                step.outcome = f"{trainer.state.global_step} steps"
            _measure(trainer, recipe, story)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(_how_to_resume(folder, path, overrides)) from interrupt
    with quiet():  # again, because with push_to_hub the training ends with progress bars switched on
        _save(trainer, story)
    _show(trainer, story)


def _trainer(recipe: Recipe) -> GradiendTrainer:
    # a mapping's own `split` wins; these are the usual names
    data = {
        name: load_split(getattr(recipe, name), split, name)
        for name, split in (("train_dataset", "train"), ("eval_dataset", "validation"), ("neutral_dataset", "train"))
        if getattr(recipe, name) is not None
    }
    try:
        args = GradiendTrainingArguments(**{**recipe.args, "disable_tqdm": True})
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"args: {first_line(error)}") from error
    try:
        return GradiendTrainer(recipe.model, GradiendConfig(**recipe.direction), args, **data)
    except HfHubHTTPError as error:  # with push_to_hub, the repository is made before the training
        raise HubPushError(
            f"The repository {args.hub_model_id or args.output_dir} cannot be used ({summary(error)}). Nothing was "
            "trained. Log in with `hf auth login`, name another args.hub_model_id, or set args.push_to_hub to false."
        ) from error


def _measure(trainer: GradiendTrainer, recipe: Recipe, story: Story) -> None:
    if recipe.eval_dataset is not None:
        with story.step("Evaluate") as step:
            trainer.evaluate()
            step.outcome = encoder_line(trainer.report.splits["eval"])
    if recipe.test_dataset is not None:
        with story.step("Test") as step:
            texts = recipe.test_neutral_dataset
            neutral = None if texts is None else load_split(texts, "test", "test_neutral_dataset")
            rows = load_split(recipe.test_dataset, "test", "test_dataset")
            trainer.evaluate(rows, metric_key_prefix="test", neutral_dataset=neutral)
            step.outcome = encoder_line(trainer.report.splits["test"])


def _save(trainer: GradiendTrainer, story: Story) -> None:
    folder = trainer.args.output_dir
    if trainer.args.push_to_hub:
        with story.step("Push") as step:
            commit = trainer.push_to_hub()
            step.outcome = f"saved in {folder}, published: {commit.commit_url if commit else 'by the first process'}"
        return
    with story.step("Save") as step:
        trainer.save_model()
        step.outcome = str(folder)


def _how_to_resume(folder: Path, path: Path, overrides: Sequence[str]) -> str:
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is None:
        return "No checkpoint was written yet (args.save_steps says how often one is), so the run has to start over."
    command = ["gradiend-hub", "train", str(path), *(part for o in overrides for part in ("--set", o)), "--resume"]
    return f"Everything up to {checkpoint} is kept. To go on from there: {shlex.join(command)}"


def _show(trainer: GradiendTrainer, story: Story) -> None:
    splits = trainer.report.splits
    name = next((n for n in ("test", "eval") if n in splits), None)
    if name is None:
        story.console.print("Nothing was measured, so strength 1 is no recommendation; name an eval_dataset.")
    else:
        story.console.print(f"\nWhat each strength changes ({name} split):")
        story.console.print(curve_table(splits[name], trainer.report.feature_classes))
    table = pairs_table()
    table.add_row("card", str(Path(trainer.args.output_dir, "README.md")))
    table.add_row("try it", f'gradiend-hub apply {trainer.args.output_dir} "TEXT WITH [MASK]"')
    story.console.print(table)
