"""Reading feature data that others made, in the layouts in which it lies on the Hub and on disk."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from gradiend_hub.constants import SLOT
from gradiend_hub.errors import DataError

from .counterfactual import in_case_of
from .funnel import Funnel
from .rows import COLUMNS
from .sources import SPLIT_NAMES, file_builder
from .splits import Leaks, divided_anew, find_leaks

__all__ = ["ReadData", "read_feature_data"]

Record = Mapping[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadData:
    """Rows in this library's schema, by split, what became of the rows that were read, and texts that splits share."""

    rows: datasets.DatasetDict
    funnel: Funnel
    leaks: Leaks


def read_feature_data(
    source: str | Path | Mapping[str, Any] | datasets.Dataset | datasets.DatasetDict,
    classes: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    splits: Mapping[str, float] | None = None,
    seed: int = 0,
) -> ReadData:
    """Read rows of two or more classes, whatever layout they have.

    Some published sets have the same texts in several splits; that is noted in `leaks`, and a warning is logged.

    These are known, each with or without a column `split`:

    * this library's own: `masked`, `factual`, `alternative`, `factual_class`, `alternative_class`;
    * one table with `masked`, `label`, `label_class`, perhaps `alternative` and `alternative_class`;
    * pairs: `masked`, `source`, `target`, `source_id`, `target_id` (configurations such as `white_to_black`);
    * a configuration or file per class, with `masked` and a column per class; its own column has the factual word;
    * a configuration or file per class, with `masked` and `label` (or `token`); words of the other class are alternatives;
    * name templates: `masked` with `[NAME]` and one `[PRONOUN]`, and the columns `name`, `pronoun`, `label`.

    Args:
        source: Hub id, file (CSV, Parquet, JSON lines), folder, data set, or a mapping from class or split names to them.
        classes: classes to keep; by default all. Needed where a class is neither a column's nor a configuration's name.
        revision: branch, tag or commit on the Hub.
        token: access token for the Hub.
        splits: shares in which all rows are divided anew, texts together, whatever splits the set has.
        seed: decides which alternative a row gets where several would do, and the new splits.

    Raises:
        DataError: nothing can be read, the layout is none of these, or a class has no rows.
    """
    parts = list(_parts(source, classes, revision, token))
    funnel, dropped = Funnel(), Counter[str]()
    funnel.start("read", "rows", sum(len(records) for _, _, records in parts))
    names = list(classes) if classes else _class_names(parts)
    rows: dict[str, list[dict[str, str]]] = {}
    pending: list[dict[str, str]] = []
    for part, split, records in parts:
        for record in records:
            for row in _unified(record, part, names):
                where = str(record.get("split") or split)
                row["split"] = SPLIT_NAMES.get(where, where)
                if reason := _unusable(row, names):
                    dropped[reason] += 1
                elif "alternative" in row:
                    rows.setdefault(row["split"], []).append(row)
                else:
                    pending.append(row)
    rows_of_words, lost = _with_alternatives(pending, names, random.Random(seed))
    for row in rows_of_words:
        rows.setdefault(row["split"], []).append(row)
    dropped.update(lost)
    for reason, count in dropped.items():
        funnel.drop(reason, count)
    _require_classes(rows, names, funnel)
    order = sorted(rows, key=lambda s: (["train", "validation", "test", s].index(s), s))
    columns = (*COLUMNS, "split")
    found = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict({c: [r[c] for r in rows[s]] for c in columns}) for s in order}
    )
    if splits is not None:
        found = divided_anew(found, splits, seed)
    texts = [text for part in found.values() for text in part["masked"]]
    leaks = find_leaks(texts, [s for s, part in found.items() for _ in range(len(part))], list(found), None)
    if leaks.pairs:
        logger.warning(
            "%s of %s. What is measured on rows that were learned from says nothing: use without_leaks, or let the option "
            "`splits` make new splits.", leaks, source if isinstance(source, (str, Path)) else "the data set",
        )  # fmt: skip
    return ReadData(found, funnel, leaks)


# ------------------------------------------------------------------------------------------------------------- loading


def _parts(
    source: Any, classes: Sequence[str] | None, revision: str | None, token: str | bool | None
) -> Iterator[tuple[str, str, Any]]:
    """(name of the configuration or file, split, records) of everything that has to be read."""
    if isinstance(source, datasets.Dataset):
        yield "", "train", source
    elif isinstance(source, Mapping):
        for name, part in source.items():
            is_split = SPLIT_NAMES.get(name, name) in ("train", "validation", "test") and isinstance(
                part, datasets.Dataset
            )
            for inner, split, records in _parts(part, classes, revision, token):
                yield (inner, name, records) if is_split else (name, split, records)
    elif Path(source).is_file() or (Path(source).is_dir() and (tables := _tables(Path(source), classes))):
        for path in [Path(source)] if Path(source).is_file() else tables:
            kind = file_builder(path)
            data = _loaded(kind or "", data_files=str(path))
            yield path.name.partition(".")[0], "train", data["train"]
    else:
        configs = _loaded(str(source), list_configs=True, revision=revision, token=token)
        for config in _wanted(configs, classes):
            for split, records in _loaded(str(source), name=config, revision=revision, token=token).items():
                yield config, split, records


def _tables(folder: Path, classes: Sequence[str] | None) -> list[Path]:
    """A folder's files of single classes, if that is what it holds."""
    tables = [path for path in sorted(folder.iterdir()) if path.is_file() and file_builder(path) not in (None, "text")]
    stems = {path.name.partition(".")[0] for path in tables}
    usual = {"train", "test", *SPLIT_NAMES, *SPLIT_NAMES.values()}
    if not stems or stems & usual or (folder / "README.md").exists():
        return []
    return [
        path for path in tables if not classes or path.name.partition(".")[0] in {*classes} or not stems & {*classes}
    ]


def _wanted(configs: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The configurations that hold the classes: named as they are, or as pairs of them."""
    if not classes:
        return list(configs)
    named = [c for c in configs if c in classes]
    pairs = [c for c in configs if "_to_" in c and set(c.split("_to_")) <= set(classes)]
    return named or pairs or list(configs)


def _loaded(path: str, *, list_configs: bool = False, **options: Any) -> Any:
    try:
        if list_configs:
            return datasets.get_dataset_config_names(path, **options)
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if "scripts are no longer supported" in str(error):
            raise DataError(
                f"{path} is made by a script, which this library does not run. Save its rows as Parquet or JSON lines with "
                "the software that it was written for, and read that file."
            ) from error
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path!r} cannot be read. {first}") from error


# ------------------------------------------------------------------------------------------------------------- layouts


def _class_names(parts: Sequence[tuple[str, str, Any]]) -> list[str]:
    """Classes that the data name: in their columns, or by their configurations."""
    for column in ("factual_class", "label_class", "source_id"):
        found = [dict.fromkeys(map(str, records[column])) for _, _, records in parts if column in records.column_names]
        if found:
            return list(dict.fromkeys(chain(*found)))
    if any({"name", "pronoun", "label"} <= set(records.column_names) for _, _, records in parts):
        return list(dict.fromkeys(chain(*(map(str, records["label"]) for _, _, records in parts))))
    return list(dict.fromkeys(name for name, _, _ in parts))


def _unified(record: Record, part: str, classes: Sequence[str]) -> Iterable[dict[str, str]]:
    """The rows of a record; without `alternative` where another class's words have to give it."""
    masked = record.get("masked")
    if set(COLUMNS) <= record.keys():
        return [{name: record[name] for name in COLUMNS}]
    if {"name", "pronoun", "label"} <= record.keys():
        filled = str(masked).replace("[NAME]", str(record["name"])).replace("[PRONOUN]", SLOT)
        return [{"masked": filled, "factual": record["pronoun"], "factual_class": str(record["label"])}]
    if {"source", "target", "source_id", "target_id"} <= record.keys():
        return [{
            "masked": record["masked"], "factual": record["source"], "alternative": record["target"],
            "factual_class": record["source_id"], "alternative_class": record["target_id"],
        }]  # fmt: skip
    word, own = record.get("label", record.get("token")), part
    if "label_class" in record:
        own = str(record["label_class"])
        if record.get("alternative") and record.get("alternative_class"):
            others = {str(record["alternative_class"]): record["alternative"]}
            return [_pair(record, word, own, other, value) for other, value in others.items()]
    elif part in record:
        others = {name: record[name] for name in classes if name != part and name in record}
        if others:
            return [_pair(record, record[part], part, name, value) for name, value in others.items()]
        word = record[part]
    if masked is None or word is None:
        raise DataError(
            f"The columns {sorted(record)} (of {part or 'the data set'}) are of no known layout. Expected `masked` with "
            f"{list(COLUMNS[1:])}, or with label and label_class, or with source, target, source_id and target_id, or "
            "with label or the class's name in a configuration or file per class."
        )
    return [{"masked": masked, "factual": word, "factual_class": own}]


def _pair(record: Record, word: Any, own: str, other: str, value: Any) -> dict[str, str]:
    return {
        "masked": record["masked"], "factual": word, "alternative": value, "factual_class": own, "alternative_class": other,
    }  # fmt: skip


def _unusable(row: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    if any(not isinstance(value, str) or not value.strip() for value in row.values()):
        return "a value is missing"
    if not {row["factual_class"], row.get("alternative_class", row["factual_class"])} <= {*classes}:
        return "of another class"
    slots = row["masked"].count(SLOT)
    if slots != 1:
        return "no slot" if slots == 0 else "more than one slot"
    return "factual and alternative are the same word" if row["factual"] == row.get("alternative") else None


def _with_alternatives(
    rows: Sequence[dict[str, str]], classes: Sequence[str], rng: random.Random
) -> tuple[list[dict[str, str]], Counter[str]]:
    """Give every row a word of each other class, by its frequency there and in the case of the row's own word."""
    counts = {name: Counter(row["factual"].lower() for row in rows if row["factual_class"] == name) for name in classes}
    made, dropped = [], Counter[str]()
    for row in rows:
        for name in classes:
            words = counts[name]
            if name == row["factual_class"] or not words:
                continue
            (word,) = rng.choices(list(words), list(words.values()))
            if word == row["factual"].lower():
                dropped["factual and alternative are the same word"] += 1
                continue
            made.append({**row, "alternative": in_case_of(row["factual"], word), "alternative_class": name})
    return made, dropped


def _require_classes(rows: Mapping[str, Sequence[Mapping[str, str]]], classes: Sequence[str], funnel: Funnel) -> None:
    found = Counter(row["factual_class"] for part in rows.values() for row in part)
    if empty := [name for name in classes if not found[name]]:
        raise DataError(
            f"Class {empty[0]!r} has no usable rows (rows per class: {dict(found)}). What became of all rows:\n{funnel}"
        )
