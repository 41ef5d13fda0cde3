"""Where texts come from: a data set in memory or streamed, a file, or the Hub; always read in batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from gradiend_hub.errors import ConfigError, DataError

from .spec import FeatureDataConfig, check_names

_BATCH = 1000
_BUILDERS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
_KEYS = ("path", "name", "split", "revision", "streaming", "data_files", "sample_by", "encoding")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other names of the usual splits."""


@dataclass(frozen=True)
class Texts:
    """A batch: texts (whatever the column held), and the group and the split of each if they are known."""

    texts: list[Any]
    groups: list[str] | None
    splits: list[str] | None


def read_source(source: Any, config: FeatureDataConfig) -> Iterator[Texts]:
    """Batches of `source`, which is a data set, a list of texts, a path, a Hub id, or a mapping that names one.

    Raises:
        ConfigError: the source cannot be understood.
        DataError: it cannot be read, or a column is missing.
    """
    named = (datasets.DatasetDict, datasets.IterableDatasetDict)
    if isinstance(source, (str, Path, Mapping)) and not isinstance(source, named):
        source = _load(source)
    if isinstance(source, named):
        for name, part in source.items():
            for batch in _batches(part, config):
                yield Texts(batch.texts, batch.groups, [SPLIT_NAMES.get(name, name)] * len(batch.texts))
    elif isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        yield from _batches(source, config)
    elif isinstance(source, Sequence):
        for start in range(0, len(source), _BATCH):
            yield Texts(list(source[start : start + _BATCH]), None, None)
    else:
        raise ConfigError(
            f"source: expected a data set, a list of texts, a file or a Hub id, found {type(source).__name__}."
        )


def _batches(data: Any, config: FeatureDataConfig) -> Iterator[Texts]:
    try:
        for batch in data.iter(_BATCH):
            yield Texts(
                _column(batch, config.text_column, "text_column"),
                _names(batch, config.group_column, "group_column"),
                [SPLIT_NAMES.get(s, s) for s in found]
                if (found := _names(batch, config.split_column, "split_column"))
                else None,
            )
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The source cannot be read on: {_first_line(error)}") from error


def _column(batch: Mapping[str, list[Any]], name: str, option: str) -> list[Any]:
    if name not in batch:
        raise DataError(f"The source has no column {name!r}, it has {sorted(batch)}. Name the right one as {option}.")
    return batch[name]


def _names(batch: Mapping[str, list[Any]], name: str | None, option: str) -> list[str] | None:
    return None if name is None else [str(value) for value in _column(batch, name, option)]


def _load(source: str | Path | Mapping[str, Any]) -> Any:
    """Open a source without reading it."""
    wanted = dict(source) if isinstance(source, Mapping) else {"path": str(source)}
    check_names(wanted, _KEYS, "source.")
    if "path" not in wanted:
        raise ConfigError(f"source: expected a `path`, a file or a Hub id, found {wanted}.")
    path = Path(wanted["path"])
    options: dict[str, Any] = {"streaming": wanted.pop("streaming", True), "split": wanted.pop("split", None)}
    encoding = wanted.pop("encoding", None) or "utf-8"
    kind = file_builder(path)
    if path.is_file():
        if kind is None:
            raise ConfigError(f"source: {path} must end in one of {', '.join(_BUILDERS)} (or that and .gz).")
        wanted = {"path": kind, "data_files": str(path), **{k: v for k, v in wanted.items() if k == "sample_by"}}
        options["split"] = options["split"] or "train"
        if kind == "csv" and ".tsv" in path.suffixes:
            wanted["sep"] = "\t"
        if kind != "parquet":
            # undecodable bytes become U+FFFD, by which such texts are found and counted; under the name "utf-8", the JSON
            # reader of datasets would hand them to Arrow as they are
            wanted |= {"encoding_errors": "replace", "encoding": "utf8" if encoding == "utf-8" else encoding}
    elif kind is not None or (path.is_absolute() and not path.exists()):
        raise DataError(f"source: there is no file {path}.")
    try:
        return datasets.load_dataset(**wanted, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if "scripts are no longer supported" in str(error):
            raise DataError(
                f"source: {wanted['path']} is made by a script, which this library does not run. Save its rows as Parquet "
                "or JSON lines with the software that it was written for, and name that file."
            ) from error
        raise DataError(f"source: {wanted['path']!r} cannot be loaded. {_first_line(error)}") from error


def file_builder(path: Path) -> str | None:
    """The reader of `datasets` for a file, by its ending (before .gz and the like)."""
    return next((_BUILDERS[suffix] for suffix in path.suffixes[::-1] if suffix in _BUILDERS), None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[\"'“‘„«(\[]*[A-ZÀ-ÞŒ0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|No|Nr|bzw|usw|ca|Abs|Art|Bd|evtl|ggf|inkl)|\b[A-Za-z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, divided after full stops that end no known abbreviation and no initial."""
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text, max(start, end.start() - 12), end.start()):
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [*found, last] if (last := text[start:].strip()) else found


def sentence_windows(text: str, context: int) -> Iterable[tuple[str, int]]:
    """Each sentence with up to `context` sentences before it, and where its own part begins."""
    parts = sentences(text)
    for number, sentence in enumerate(parts):
        before = " ".join(parts[max(0, number - context) : number])
        yield (f"{before} {sentence}", len(before) + 1) if before else (sentence, 0)
