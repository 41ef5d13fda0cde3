"""`suite`: many directions that a YAML file describes, from one stream of gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from gradiend_hub.artifact.validation import check
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data.loading import load_rows
from gradiend_hub.errors import ConfigError
from gradiend_hub.folders import require_writable
from gradiend_hub.training import DirectionSuite
from gradiend_hub.training.suite_report import write_suite_report
from gradiend_hub.training.suite_rows import redrawn

from .console import Story, on_interrupt
from .quiet import quiet
from .recipes import read_sections, require_named, training_arguments


@dataclass(frozen=True)
class SuiteRecipe:
    """A suite in words.

    Attributes:
        model: folder or Hub id of the base model, or several of them; each has a folder of its own then.
        train_dataset, eval_dataset, test_dataset: rows of all classes; data sets as in a recipe of `train`.
        neutral_dataset, neutral_train_dataset: sentences without the features.
        pairs: all, rest, or a list of pairs of class names.
        merged: name of a class to the classes that it is made of.
        identities: read texts of other classes as rows of no feature.
        seeds: a run for each, with splits drawn anew where `split_by` is given.
        split_by: text or word; the rows of all splits are then divided anew for each seed.
        direction: fields of `GradiendConfig`.
        args: fields of `GradiendTrainingArguments`.
    """

    model: str | list[str]
    train_dataset: Any
    eval_dataset: Any = None
    test_dataset: Any = None
    neutral_dataset: Any = None
    neutral_train_dataset: Any = None
    pairs: str | list[Any] = "all"
    merged: dict[str, list[str]] = field(default_factory=dict)
    identities: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    split_by: str | None = None
    direction: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


def run_suite(recipe: Path, overrides: Sequence[str] | None, story: Story) -> dict[str, Any]:
    """Learn, measure and compare every direction of a suite. What is saved already is not learned again.

    Raises:
        GradiendError: something in the file cannot work; most of it is found before anything is learned.
    """
    read = _read(recipe, overrides)
    folder = Path(read.args.setdefault("output_dir", f"out/{recipe.stem}"))
    require_writable(folder)
    with quiet(story):
        with story.step("Load") as step:
            usual = {"train_dataset": "train", "eval_dataset": "validation", "test_dataset": "test"}
            usual |= {"neutral_dataset": "train", "neutral_train_dataset": "train"}
            data = {
                name: list(load_rows(getattr(read, name), split, name))
                for name, split in usual.items()
                if getattr(read, name) is not None
            }
            step.outcome = f"{len(data['train_dataset']):,} training rows"
        if isinstance(read.model, str):
            found = _of_base(read, read.model, folder, data, story)
        else:
            bases = {name: _of_base(read, model, folder / name, data, story) for name, model in _named(read).items()}
            found = {"bases": bases}
    for place in [folder] if isinstance(read.model, str) else [folder / name for name in found["bases"]]:
        story.show(f"\n{place / 'README.md'}\n{place / 'suite.html'}", soft_wrap=True)
    return {"folder": folder, **found}


def _named(recipe: SuiteRecipe) -> dict[str, str]:
    """The name of each base model's folder, and where it is."""
    named = {re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "base": model for model in recipe.model}
    if len(named) < len(recipe.model):
        raise ConfigError(
            f"model: two base models have the same name, {', '.join(recipe.model)}; learn one of them apart."
        )
    return named


def _of_base(recipe: SuiteRecipe, model: str, folder: Path, data: dict[str, list[Any]], story: Story) -> dict[str, Any]:
    """Learn, measure and compare the directions of one base model."""
    runs: dict[str, dict[str, Path]] = {}
    base = load_base_model(model, objective=recipe.direction.get("objective"))
    for seed in recipe.seeds:
        name = f"seed-{seed}"
        place = folder / name if len(recipe.seeds) > 1 else folder
        args = {"logging_strategy": "no", "save_strategy": "no", **recipe.args}
        suite = DirectionSuite(
            base,
            training_arguments({**args, "output_dir": str(place), "seed": seed, "disable_tqdm": True}),
            config=recipe.direction,
            pairs=recipe.pairs,
            merged=recipe.merged,
            identities=recipe.identities,
            **_drawn(data, recipe.split_by, seed),
        )
        later = "What is saved is kept; the same command goes on."
        with on_interrupt(later), story.step("Learn") as step:
            left = len(suite.pending)
            runs[name] = suite.train()
            step.outcome = f"{left} of {len(suite.pairs)} directions, seed {seed}"
    with story.step("Compare") as step:
        found = write_suite_report(folder, runs, base)
        step.outcome = str(folder)
    return found


def _read(path: Path, overrides: Sequence[str] | None) -> SuiteRecipe:
    content = read_sections(SuiteRecipe, path, overrides, "examples/suite.yaml")
    require_named(path, content, "model", "train_dataset")
    content = {name: value for name, value in content.items() if value is not None}
    kinds = get_type_hints(SuiteRecipe)
    for name in [name for name in ("model", "pairs", "identities") if name in content]:
        check(kinds[name], content[name], name)
    if content.get("split_by") not in (None, "text", "word"):
        raise ConfigError(f"{path}: split_by must be text or word, found {content['split_by']!r}.")
    seeds = content.get("seeds", [0])
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int for seed in seeds)
        or len({*seeds}) < len(seeds)
    ):
        raise ConfigError(f"{path}: seeds must be a list of different whole numbers, found {seeds!r}.")
    return SuiteRecipe(**content)


def _drawn(data: dict[str, list[Any]], split_by: str | None, seed: int) -> dict[str, list[Any]]:
    """The data sets, with the rows of all splits divided anew if that is asked for."""
    if split_by is None:
        return data
    names = {"train": "train_dataset", "validation": "eval_dataset", "test": "test_dataset"}
    rows = [row for name in names.values() for row in data.get(name, [])]
    neutral = {name: texts for name, texts in data.items() if name.startswith("neutral")}
    return neutral | {names[split]: found for split, found in redrawn(rows, seed, by=split_by).items()}
