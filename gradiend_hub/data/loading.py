"""The one door to data that somebody names: a file, a folder, a Hub id with or without a configuration, or rows in memory.

Files are read by their ending; UTF-16 and the separator of a CSV are found by looking. Whatever goes wrong is one
`DataError` that names the place, what was expected, what was found and the next step.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import LocalEntryNotFoundError

from gradiend_hub.artifact.validation import check_fields, check_keys
from gradiend_hub.errors import ConfigError, DataError, GradiendError, first_line

from .text_files import HEAD, OPENERS, encoding_of, separator_of

KINDS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
"""The reader of `datasets` for each ending."""

_TABLES = (datasets.Dataset, datasets.IterableDataset)
_SPLITS = (datasets.DatasetDict, datasets.IterableDatasetDict)


@dataclass(frozen=True)
class Source:
    """A data set on disk or on the Hub.

    Attributes:
        path: file, folder or Hub id.
        name: configuration.
        split: split of a folder or a Hub data set.
        revision: branch, tag or commit on the Hub.
        data_files: files of a folder or a Hub data set.
        sample_by: "line", "paragraph" or "document" of a text file.
        encoding: of a text, CSV or JSON file, where it cannot be found by looking.
        streaming: whether it is read from where it is, without a copy.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    data_files: Any = None
    sample_by: str | None = None
    encoding: str | None = None
    streaming: bool | None = None

    @classmethod
    def parse(cls, value: Any, what: str) -> Source:
        """Read a path, `ID`, `ID:CONFIG` or a mapping with the attributes.

        Raises:
            ConfigError: it is none of these.
            DataError: it is in a folder that cannot be looked into.
        """
        if isinstance(value, (str, Path)):
            path, _, name = (str(value), "", "") if "://" in str(value) else str(value).partition(":")
            found = cls(str(value)) if not name or _exists(str(value), what) else cls(path, name)
        elif isinstance(value, Mapping) and isinstance(value.get("path"), (str, Path)):
            check_keys(value, [field.name for field in fields(cls)], f"{what}.")
            found = cls(**{**value, "path": str(value["path"])})
            check_fields(found, f"{what}.")
        else:
            raise ConfigError(
                f"{what}: expected a folder, a file, a Hub id, or a mapping with `path`, found {value!r}."
            )
        if not found.path.strip():
            raise ConfigError(f"{what}: expected a folder, a file or a Hub id, found an empty text.")
        return replace(found, path=str(Path(found.path).expanduser())) if found.path.startswith("~") else found


def is_named(source: Any) -> bool:
    """Return whether a source is to be opened: a path or id, a mapping with `path`, or a data frame."""
    return _is_place(source) or _is_frame(source)


def _is_place(source: Any) -> bool:
    return isinstance(source, (str, Path)) or (isinstance(source, Mapping) and "path" in source)


def _is_frame(source: Any) -> bool:
    return type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "to_dict")


def load_rows(source: Any, split: str, what: str) -> Any:
    """Return the records of one split: a data set, or rows in memory as they are.

    Args:
        source: what `Source.parse` reads, a data set or several by split, a `pandas.DataFrame`, or an iterable of records.
        split: the split that is meant where the source names none and has several.
        what: name of the argument, for messages.

    Raises:
        ConfigError: the source is none of these.
        DataError: there is no such data set, configuration or split, or it has no rows.
    """
    named = _is_place(source)
    where = repr(str(Source.parse(source, what).path)) if named else "the data set"
    data = load_data(source, what)
    if isinstance(data, Mapping):
        chosen = split if split in data else next(iter(data), "")
        if chosen != split and len(data) != 1:
            raise DataError(f"{what}: no split {split!r} in {where}; name one of {list(data)} as `split`.")
        data = data[chosen]
    if named and isinstance(data, datasets.Dataset) and not len(data):  # a stream has no length
        raise _no_rows(what, Source.parse(source, what).path, "")
    return data


def load_data(
    source: Any, what: str, *, streaming: bool = False, lenient: bool = False, token: str | bool | None = None
) -> Any:
    """Open a source; splits stay apart, and a file is its only split.

    Args:
        source: as of `load_rows`.
        what: name of the argument, for messages.
        streaming: read from where it is, unless the source says otherwise.
        lenient: let undecodable bytes become U+FFFD, for readers that find and count these.

    Raises:
        ConfigError: the source is none of these, or has a setting that nothing would read.
        DataError: it cannot be read.
    """
    if isinstance(source, (str, Path)) or (isinstance(source, Mapping) and not isinstance(source, _SPLITS)):
        if isinstance(source, Mapping) and source and all(isinstance(part, _TABLES) for part in source.values()):
            return source
        return _open(Source.parse(source, what), what, streaming, lenient, token)
    if _is_frame(source):
        return datasets.Dataset.from_pandas(source, preserve_index=False)
    if isinstance(source, (*_TABLES, *_SPLITS)) or (isinstance(source, Iterable) and not isinstance(source, bytes)):
        return source
    raise ConfigError(
        f"{what}: expected a folder, a file, a Hub id, a mapping with `path`, a data set, a DataFrame or a list of rows, "
        f"found {type(source).__name__}."
    )


def _open(source: Source, what: str, streaming: bool, lenient: bool, token: str | bool | None) -> Any:
    path = Path(source.path)
    options: dict[str, Any] = {"streaming": streaming if source.streaming is None else source.streaming}
    with reading(f"{what}: {source.path!r}"):
        if path.is_file():
            options |= _file_options(source, path, what, lenient)
            if options["path"] == "json" and options.get("encoding", "utf-8")[:6] in ("utf-16", "utf-32"):
                return _wide_json(path, options["encoding"], source.split)  # which datasets cuts within characters
        else:
            if source.encoding is not None and not path.is_dir():
                raise ConfigError(
                    f"{what}.encoding: only a text, CSV or JSON file has one that can be chosen. Remove it."
                )
            require_path(source, what)
            options |= {"name": source.name, "split": source.split, "data_files": source.data_files, "token": token}
            if not path.is_dir():
                path = _hub_tables(source, token) or path
            if not path.is_dir():
                options["revision"] = source.revision
            options |= {"path": str(path)} | _folder_options(path, what)
            if path.is_dir() and not options["streaming"]:
                # the cache of datasets tells local folders apart by their last name only, and so may hold another one's rows
                options["download_mode"] = "force_redownload"
        try:
            return datasets.load_dataset(**{key: value for key, value in options.items() if value is not None})
        except ValueError as error:
            if "corresponds to no data" in str(error):
                raise _no_rows(what, path, "") from error
            raise


def _hub_tables(source: Source, token: str | bool | None) -> Path | None:
    """Download a Hub data set of CSV files, which are read as a folder's: `None` for one of other files."""
    patterns = ["README.md", "*.csv*", "*.tsv*"]  # the head of the card says which file is of which split
    wanted: Any = {"repo_type": "dataset", "revision": source.revision, "token": token, "allow_patterns": patterns}
    if HF_HUB_OFFLINE:
        try:
            folder = Path(snapshot_download(source.path, **wanted))
        except LocalEntryNotFoundError:
            return None
        return folder if _kind_of(_data_files(folder)) == "csv" else None
    options = {"name": source.name, "revision": source.revision, "data_files": source.data_files, "token": token}
    if datasets.load_dataset_builder(source.path, **options).name != "csv":
        return None
    return Path(snapshot_download(source.path, **wanted))


def _data_files(folder: Path) -> list[Path]:
    """Files of a folder that have a reader."""
    return [path for path in sorted(folder.rglob("*")) if file_kind(path) and path.is_file()]


def _kind_of(files: list[Path]) -> str | None:
    """The reader of most of these files, as `datasets` chooses it."""
    return Counter(map(file_kind, files)).most_common(1)[0][0] if files else None


def _file_options(source: Source, path: Path, what: str, lenient: bool) -> dict[str, Any]:
    """Return what `datasets.load_dataset` needs for one file."""
    kind = file_kind(path)
    if kind is None:
        raise DataError(
            f"{what}: {path} is no data set. Expected a folder, a Hub id, or a file that ends in {', '.join(KINDS)} "
            f"(or that and {', '.join(OPENERS)})."
        )
    if unread := next((key for key in ("name", "revision", "data_files") if getattr(source, key) is not None), None):
        raise ConfigError(f"{what}.{unread}: a file has none; it is of data sets on the Hub. Remove it.")
    if source.split not in (None, "train"):
        raise DataError(f"{what}: no split {source.split!r} in {path}: a file is one split, called 'train'. Name none.")
    options: dict[str, Any] = {"path": kind, "data_files": str(path), "split": source.split}
    if kind == "parquet":
        if source.encoding is not None:
            raise ConfigError(f"{what}.encoding: only a text, CSV or JSON file has one that can be chosen. Remove it.")
        return options
    look = _look(path, what, _codec(source.encoding, what), lenient)
    if source.sample_by is not None and kind == "text":
        options["sample_by"] = source.sample_by
    if lenient:  # under the name "utf-8", the JSON reader of datasets would hand broken bytes to Arrow as they are
        return {**options, "encoding": "utf-8-sig", "encoding_errors": "replace", **look}
    return {**options, **look}


def _folder_options(folder: Path, what: str) -> dict[str, Any]:
    """Return what the files of a local folder need to be read right."""
    if not folder.is_dir():
        return {}
    files = _data_files(folder)
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{what}: the folder {folder} holds no data. Expected files {', '.join(KINDS)}, found {found}.")
    kind = _kind_of(files)
    looks = {}
    for path in files:
        if file_kind(path) == kind != "parquet":
            with reading(f"{what}: {str(path)!r}"):
                looks[path] = _look(path, what)
    first = next(iter(looks), None)
    for path, look in looks.items():
        if first and look != looks[first]:
            raise DataError(
                f"{what}: {path} differs from {first.name} in encoding or separator ({look}, {looks[first]}). Save all "
                "files of the folder in the same way, best as UTF-8 with commas."
            )
    return looks[first] if first else {}


def _look(path: Path, what: str, encoding: str | None = None, lenient: bool = False) -> dict[str, Any]:
    """Return the encoding and the separator of a file as options, where they are not the usual ones.

    Raises:
        DataError: the file has no rows.
    """
    with OPENERS.get(path.suffix, open)(path, "rb") as file:
        head: bytes = file.read(HEAD)
    whole, found = len(head) < HEAD, encoding or encoding_of(head)
    decoder = codecs.getincrementaldecoder(found or "utf-8")("replace" if lenient else "strict")
    text = decoder.decode(head, final=whole).lstrip("\ufeff")
    lines = [line for line in text.splitlines() if line.strip()]
    kind = file_kind(path)
    if whole and (not lines or (kind == "json" and text.strip() == "[]")):
        raise _no_rows(what, path, ": the file is empty")
    options: dict[str, Any] = {} if found is None else {"encoding": found}
    if kind == "csv":
        if whole and len(lines) == 1:
            raise _no_rows(what, path, ": the file holds a header only")
        options |= {"sep": separator_of(lines[0], "\t" if ".tsv" in path.suffixes else ","), "keep_default_na": False}
    return options


def _wide_json(path: Path, encoding: str, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    """Read JSON or JSON lines of characters of two or four bytes."""
    with OPENERS.get(path.suffix, open)(path, "rt", encoding=encoding) as file:
        text = file.read()
    rows = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(str.strip, text.split("\n")))
    table = datasets.Dataset.from_list(list(rows))
    return datasets.DatasetDict({"train": table}) if split is None else table


def _codec(encoding: str | None, what: str) -> str | None:
    """Return the codec of a chosen encoding; that of UTF-8 leaves out a mark at the beginning, which is no text."""
    if encoding is None:
        return None
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"{what}.encoding: expected an encoding that Python knows, e.g. utf-8 or latin-1, found {encoding!r}."
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def file_kind(path: Path) -> str | None:
    """Return the reader of `datasets` for a file, by its ending (before .gz and the like)."""
    return next((KINDS[suffix] for suffix in path.suffixes[::-1] if suffix in KINDS), None)


def is_path(source: str) -> bool:
    """Return whether a name is of a file or folder, and cannot be a Hub id."""
    return (
        source.startswith((".", "~", os.sep))
        or "\\" in source
        or source.count("/") > 1
        or file_kind(Path(source)) is not None
    )


def require_path(source: Source, what: str) -> None:
    """Raise `DataError` if a source is a file or folder that does not exist."""
    if is_path(source.path) and not _exists(source.path, what):
        kind = "file" if file_kind(Path(source.path)) else "file or folder"
        raise DataError(f"{what}: there is no {kind} {source.path}. Expected a path that exists, or a Hub id.")


def _exists(path: str, what: str) -> bool:
    """Return whether there is a file or folder; one in a folder that is closed to the user is an error, with its name."""
    with reading(f"{what}: {path!r}"):
        try:
            Path(path).expanduser().stat()  # from Python 3.14 on, `exists` takes whatever fails for an answer
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _no_rows(what: str, path: str | Path, why: str) -> DataError:
    return DataError(f"{what}: {path} has no rows{why}. Name data that has some.")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a file's reader fails with into one error that names the file.

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
        undecoded = next((link for link in _chain(error) if isinstance(link, UnicodeError)), None)
        cause = undecoded or cause
        raise DataError(f"{what} cannot be read. {first_line(cause).rstrip('.')}.{_next_step(cause)}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _next_step(cause: BaseException) -> str:
    if "scripts are no longer supported" in str(cause):
        return (
            " It is made by a script, which this library does not run. Save its rows as Parquet or JSON lines with the "
            "software that it was written for, and name that file."
        )
    if isinstance(cause, datasets.exceptions.DatasetNotFoundError):
        return " Expected a file, a folder or a data set on the Hub; of a private one, log in with `hf auth login`."
    if isinstance(cause, UnicodeError):
        return " Save it as UTF-8, or name its `encoding`."
    if isinstance(cause, PermissionError):
        return " Let your user read it, or name a copy."
    if isinstance(cause, (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)):
        return " The file is damaged or not whole: copy it again."
    if isinstance(cause, StopIteration) or type(cause).__name__ in ("EmptyDataError", "SchemaInferenceError"):
        return " The file is empty: name one that has rows."
    return ""
