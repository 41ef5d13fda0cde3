"""Sources of texts: a data set in memory or streamed, a file, or the Hub; always read in batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from gradiend_hub.data.loading import Source, load_data, reading
from gradiend_hub.data.splits import SPLIT_NAMES
from gradiend_hub.errors import ConfigError, DataError

from .spec import FeatureDataConfig

_BATCH = 1000
_SPLITS = (datasets.DatasetDict, datasets.IterableDatasetDict)
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    what = "The source"
    if isinstance(source, (str, Path, Mapping)) and not isinstance(source, _SPLITS):
        path = Source.parse(source, "source").path
        what = f"source: {path!r}"
        source = load_data(source, "source", streaming=True, lenient=True)
        if Path(path).is_file() and isinstance(source, _SPLITS):
            source = source["train"]  # a file says nothing of splits
    if isinstance(source, _SPLITS):
        for name, part in source.items():
            for batch in _batches(part, config, what):
                given = [SPLIT_NAMES.get(name, name)] * len(batch.texts)
                yield Texts(batch.texts, batch.groups, batch.splits or given)
    elif isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        yield from _batches(source, config, what)
    elif isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        if option := next((o for o in ("group_column", "split_column") if getattr(config, o) is not None), None):
            raise ConfigError(
                f"{option} is {getattr(config, option)!r}, but a list of texts has no columns. Hand over a data set: "
                "datasets.Dataset.from_dict(columns)."
            )
        for start in range(0, len(source), _BATCH):
            yield Texts(_writable(source[start : start + _BATCH]), None, None)
    else:
        raise ConfigError(
            f"source: expected a data set, a list of texts, a file or a Hub id, found {type(source).__name__}."
        )


def _batches(data: Any, config: FeatureDataConfig, what: str) -> Iterator[Texts]:
    read = 0
    with reading(what):
        for batch in data.iter(_BATCH):
            texts = _column(batch, config.text_column, "text_column")
            splits = _names(batch, config.split_column, "split_column", read)
            yield Texts(
                _writable(texts),
                _names(batch, config.group_column, "group_column", read),
                None if splits is None else [SPLIT_NAMES.get(split, split) for split in splits],
            )
            read += len(texts)


def _writable(texts: Sequence[Any]) -> list[Any]:
    """Half a character of UTF-16 cannot be written; as U+FFFD it is found and counted like other broken bytes."""
    try:
        "".join(texts).encode()  # nearly always all are well, which is seen at once
    except (TypeError, UnicodeEncodeError):
        return [_SURROGATE.sub("\ufffd", text) if isinstance(text, str) else text for text in texts]
    return list(texts)


def _column(batch: Mapping[str, list[Any]], name: str, option: str) -> list[Any]:
    if name not in batch:
        raise DataError(f"The source has no column {name!r}, it has {sorted(batch)}. Name the right one as {option}.")
    return batch[name]


def _names(batch: Mapping[str, list[Any]], name: str | None, option: str, read: int) -> list[str] | None:
    if name is None:
        return None
    values = _column(batch, name, option)
    if None in values:
        raise DataError(
            f"The column {name!r} ({option}) has no value in row {read + values.index(None)} of the source (counted from "
            "0). Fill it, or leave such rows out."
        )
    return [str(value) for value in values]


_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[\"'“‘„«(\[]*[A-ZÀ-ÞŒ0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|No|Nr|bzw|usw|ca|Abs|Art|Bd|evtl|ggf|inkl)|\b[A-Za-z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, divided at empty lines and after full stops that end no known abbreviation and no initial."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        start = 0
        for end in _END.finditer(paragraph):
            if not _ABBREVIATION.search(paragraph, max(start, end.start() - 12), end.start()):
                found.append(paragraph[start : end.end()].strip())
                start = end.end()
        if last := paragraph[start:].strip():
            found.append(last)
    return found


def sentence_windows(text: str, context: int) -> Iterable[tuple[str, int]]:
    """Each sentence with up to `context` sentences before it, and where its own part begins."""
    parts = sentences(text)
    for number, sentence in enumerate(parts):
        before = " ".join(parts[max(0, number - context) : number])
        yield (f"{before} {sentence}", len(before) + 1) if before else (sentence, 0)
