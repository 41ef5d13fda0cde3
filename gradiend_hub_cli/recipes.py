"""Recipes: YAML files that say what to learn from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from peft import PeftConfig

from gradiend_hub import GradiendConfig, GradiendTrainingArguments
from gradiend_hub.artifact.validation import check, check_keys
from gradiend_hub.errors import ConfigError, first_line

from .yaml_files import read_yaml

_MEASURED = {"parameters", "has_bias", "strength_unit", "strength", "safe_band", "break_point"}
_DIRECTION = [
    f.name
    for f in fields(GradiendConfig)
    if f.name not in {g.name for g in fields(PeftConfig)} | _MEASURED and not f.name.endswith("_version")
]
_ARGS = [f.name for f in fields(GradiendTrainingArguments) if f.init]


@dataclass(frozen=True)
class Recipe:
    """A training run in words.

    Attributes:
        model: folder or Hub id of the base model.
        train_dataset: the rows to learn from. A data set is a folder or Hub id, `ID:CONFIG`, or a mapping with `path`,
            `name`, `split` and `revision`.
        data: in its place, text to make rows of: fields of `FeatureDataConfig`. Its splits `train`, `validation` and `test`,
            and its neutral sentences, are used where no other data set is named.
        eval_dataset: rows on which the strength unit is chosen.
        neutral_dataset: sentences without the feature, for the same purpose.
        neutral_train_dataset: further sentences, which a decoder learns from that spares them; by default every other one
            of `neutral_dataset`, if these are at least 100.
        test_dataset: rows that only measure the result.
        test_neutral_dataset: sentences that only measure the result.
        damage_datasets: further data sets by name, e.g. `chat`, on which damage is measured: sentences, or prompts.
        direction: fields of `GradiendConfig`.
        args: fields of `GradiendTrainingArguments`.
    """

    model: str
    train_dataset: Any = None
    data: dict[str, Any] | None = None
    eval_dataset: Any = None
    neutral_dataset: Any = None
    neutral_train_dataset: Any = None
    test_dataset: Any = None
    test_neutral_dataset: Any = None
    damage_datasets: dict[str, Any] = field(default_factory=dict)
    direction: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Read a recipe and replace values by `KEY=VALUE` with dots in the key.

    Raises:
        ConfigError: no such file, no YAML mapping, an unknown or a missing key.
    """
    content = read_sections(Recipe, path, overrides, "examples/train.yaml")
    if not isinstance(sets := content.setdefault("damage_datasets", {}), dict):
        raise ConfigError(f"{path}: damage_datasets must hold data sets by name, e.g. {{chat: …}}, found {sets!r}.")
    require_named(path, content, "model", *(() if "data" in content else ("train_dataset",)))
    if "data" in content:
        if content.get("train_dataset"):
            raise ConfigError(f"{path}: train_dataset names rows and data makes some. Remove one of them.")
        if not isinstance(content["data"], dict):
            raise ConfigError(f"{path}: data must hold keys and values as in examples/data.yaml.")
    return Recipe(**content)


def read_sections(kind: Any, path: Path, overrides: Sequence[str] | None, example: str) -> dict[str, Any]:
    """Read a file with the fields of a dataclass, of which `direction` and `args` are sections with fields of their own.

    Raises:
        ConfigError: no such file or YAML mapping; a key, a field of a direction or an argument of a training that nothing
            reads; an argument of a wrong type; or a section that holds no fields.
    """
    content = read_yaml(path, overrides, example)
    check_keys(content, [f.name for f in fields(kind)], "")
    for name, allowed in (("direction", _DIRECTION), ("args", _ARGS)):
        section = content[name] = content.get(name) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name} must hold keys and values, found {section!r}.")
        check_keys(section, allowed, f"{name}.")
    _check_args(content["args"])
    return content


def require_named(path: Path, content: Mapping[str, Any], *names: str) -> None:
    """Refuse a file that does not say where a model or its data are."""
    for name in names:
        if not content.get(name):
            raise ConfigError(f"{path}: {name} is missing. It is the folder or the Hub id to use.")


def training_arguments(fields: Mapping[str, Any]) -> GradiendTrainingArguments:
    """Make the arguments of a training of a section `args`.

    Raises:
        ConfigError: two do not go together, or a value is unusable.
    """
    try:
        return GradiendTrainingArguments(**fields)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"args: {first_line(error)}") from error


def _check_args(args: Mapping[str, Any]) -> None:
    """Refuse values of a wrong type, which `TrainingArguments` takes and fails on much later, or never reads."""
    if "resume_from_checkpoint" in args:
        raise ConfigError("args.resume_from_checkpoint: a run is resumed with `gradiend-hub train … --resume`.")
    kinds = get_type_hints(GradiendTrainingArguments)
    for name, value in args.items():
        check(kinds[name], value, f"args.{name}")
