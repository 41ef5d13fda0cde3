"""Where texts come from: a data set in memory or streamed, a file, or the Hub; always read in batches."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from gradiend_hub.errors import ConfigError, DataError, GradiendError, first_line

from .spec import FeatureDataConfig, check_names

_BATCH = 1000
_BUILDERS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
_KEYS = ("path", "name", "split", "revision", "streaming", "data_files", "sample_by", "encoding")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other names of the usual splits."""

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
        what = str(source["path"] if isinstance(source, Mapping) and "path" in source else source)
        source = _load(source)
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


def _load(source: str | Path | Mapping[str, Any]) -> Any:
    """Open a source without reading it."""
    wanted = dict(source) if isinstance(source, Mapping) else {"path": str(source)}
    check_names(wanted, _KEYS, "source.")
    if not isinstance(wanted.get("path"), (str, Path)):
        raise ConfigError(f"source: expected a `path`, a file or a Hub id, found {wanted}.")
    path = Path(wanted["path"])
    options: dict[str, Any] = {"streaming": wanted.pop("streaming", True), "split": wanted.pop("split", None)}
    encoding = wanted.pop("encoding", None)
    wanted = {key: value for key, value in wanted.items() if value is not None}
    local = path.is_file()
    if unread := [k for k in ("name", "revision", "data_files") if k in wanted] if local else []:
        raise ConfigError(f"source.{unread[0]}: a file has none; it is of data sets on the Hub. Remove it.")
    if encoding is not None and not (local and file_builder(path) != "parquet"):
        raise ConfigError("source.encoding: only a text, CSV or JSON file has one that can be chosen. Remove it.")
    if local:
        wanted = {**file_options(path), **{k: v for k, v in wanted.items() if k == "sample_by"}}
        options["split"] = options["split"] or "train"
        if wanted["path"] != "parquet":
            # undecodable bytes become U+FFFD, by which such texts are found and counted; under the name "utf-8", the JSON
            # reader of datasets would hand them to Arrow as they are
            wanted |= {"encoding_errors": "replace", "encoding": _codec(encoding or "utf-8")}
    elif file_builder(path) is not None or (path.is_absolute() and not path.exists()):
        raise DataError(f"source: there is no file {path}.")
    with reading(f"source: {str(path)!r}"):
        return datasets.load_dataset(**wanted, **options)


def _codec(encoding: Any) -> str:
    """The codec that reads an encoding; that of UTF-8 leaves out a mark at the beginning (U+FEFF), which is no text."""
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"source.encoding: expected an encoding that Python knows, e.g. utf-8 or latin-1, found {encoding!r}."
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def file_builder(path: Path) -> str | None:
    """The reader of `datasets` for a file, by its ending (before .gz and the like)."""
    return next((_BUILDERS[suffix] for suffix in path.suffixes[::-1] if suffix in _BUILDERS), None)


def file_options(path: Path) -> dict[str, Any]:
    """What `datasets.load_dataset` needs to read a file.

    Raises:
        DataError: the file's ending is none that can be read.
    """
    kind = file_builder(path)
    if kind is None:
        raise DataError(
            f"{path} cannot be read. Expected a file that ends in {', '.join(_BUILDERS)} (or that and .gz)."
        )
    return {"path": kind, "data_files": str(path)} | ({"sep": "\t"} if ".tsv" in path.suffixes else {})


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever a file's reader fails with becomes one error that names the file.

    Every format has a library of its own with exceptions of its own, and some are none that say an error: `StopIteration`
    of an empty JSON file, and `EOFError` of a cut archive, which a command line takes for the end of the input.

    Raises:
        DataError: nothing could be read, with the reason and the next step.
    """
    try:
        yield
    except (GradiendError, MemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, datasets.exceptions.DatasetGenerationError) and cause.__cause__:
            cause = cause.__cause__  # that one says only that there was an error
        first = first_line(cause)
        raise DataError(f"{what} cannot be read. {first.rstrip('.')}.{_next_step(cause)}") from error


def _next_step(cause: BaseException) -> str:
    if "scripts are no longer supported" in str(cause):
        return (
            " It is made by a script, which this library does not run. Save its rows as Parquet or JSON lines with the "
            "software that it was written for, and name that file."
        )
    if isinstance(cause, UnicodeError):
        return " Save it as UTF-8."
    if isinstance(cause, (EOFError, zlib.error, gzip.BadGzipFile)):
        return " The file is damaged or not whole: copy it again."
    if isinstance(cause, StopIteration) or type(cause).__name__ in ("EmptyDataError", "SchemaInferenceError"):
        return " The file is empty: name one that has rows."
    return ""


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
