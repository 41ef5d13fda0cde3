"""A direction that `gradiend-hub train` has made, once for all tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gradiend_hub_cli import app
from tests.once import once

Run = Callable[..., Result]


def invoke(*arguments: object) -> Result:
    """Run a command in this process; an error that is no message of ours is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def run() -> Run:
    """`run("info", folder)` gives exit code, `stdout` and `stderr`."""
    return invoke


@dataclass(frozen=True)
class Trained:
    """A finished run of `gradiend-hub train`."""

    folder: Path
    recipe: dict[str, Any]
    shown: str


def recipe_fields(base: Path, out: Path) -> dict[str, Any]:
    """A run of seconds."""
    pronouns = str(base.parents[1] / "data" / "pronouns")
    neutral = {"path": pronouns, "name": "neutral", "split": "neutral[:8]"}
    return {
        "model": str(base),
        "train_dataset": {"path": pronouns, "split": "train[:64]"},
        "eval_dataset": {"path": pronouns, "split": "validation[:16]"},
        "neutral_dataset": neutral,
        "test_dataset": {"path": pronouns, "split": "test[:16]"},
        "direction": {"feature_classes": ["3SG", "3PL"]},
        "args": {
            "output_dir": str(out),
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "save_steps": 2,
            "logging_steps": 3,
            "quality_tokens": 300,
            "controls": 1,
        },
    }


def write_recipe(folder: Path, fields: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(masked_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A direction of the bundled masked model, measured on a few rows."""

    def make(folder: Path) -> None:
        fields = recipe_fields(masked_path, folder / "direction")
        result = invoke("train", write_recipe(folder, fields))
        assert result.exit_code == 0, result.stderr
        (folder / "shown").write_text(result.stdout, encoding="utf-8")

    folder = once(tmp_path_factory, "trained", make)
    fields = recipe_fields(masked_path, folder / "direction")
    return Trained(folder / "direction", fields, (folder / "shown").read_text("utf-8"))


@pytest.fixture(scope="session")
def causal_direction(causal_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of the bundled causal model that nobody has measured."""

    def make(folder: Path) -> None:
        fields = recipe_fields(causal_path, folder / "direction")
        for name in ("eval_dataset", "neutral_dataset", "test_dataset"):
            del fields[name]
        result = invoke(
            "train", write_recipe(folder, fields), "--set", "args.max_steps=4", "--set", "args.save_strategy=no"
        )
        assert result.exit_code == 0, result.stderr

    return once(tmp_path_factory, "causal", make) / "direction"
