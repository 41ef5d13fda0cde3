"""Recipes: YAML files that say what to learn from what."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from peft import PeftConfig

from gradiend_hub import GradiendConfig, GradiendTrainingArguments
from gradiend_hub.errors import ConfigError, DataError, first_line

from .yaml_files import read_yaml

__all__ = ["Recipe", "load_split", "read_recipe"]

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
        neutral_train_dataset: further sentences, which a damage-aware decoder (`args.decoder: fisher`) learns from.
        test_dataset: rows that only measure the result.
        test_neutral_dataset: sentences that only measure the result.
        direction: fields of `GradiendConfig`.
        args: fields of `GradiendTrainingArguments`.
    """

    model: str
    train_dataset: Any
    eval_dataset: Any = None
    neutral_dataset: Any = None
    neutral_train_dataset: Any = None
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
    _check_args(content["args"])
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


def _check_args(args: Mapping[str, Any]) -> None:
    """Refuse values of a wrong type, which `TrainingArguments` takes and fails on much later, or never reads."""
    if "resume_from_checkpoint" in args:
        raise ConfigError("args.resume_from_checkpoint: a run is resumed with `gradiend-hub train … --resume`.")
    for f in fields(GradiendTrainingArguments):
        if f.name not in args or args[f.name] is None or not isinstance(f.default, (int, float)):
            continue
        found, switch = args[f.name], isinstance(f.default, bool)
        if isinstance(found, bool) if switch else isinstance(found, (int, float)) and not isinstance(found, bool):
            continue
        raise ConfigError(f"args.{f.name}: expected {'true or false' if switch else 'a number'}, found {found!r}.")


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
