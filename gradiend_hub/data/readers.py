"""Reading feature data that others made, in the layouts in which it lies on the Hub and on disk."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import datasets

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError

from .casing import case_of, listed_words
from .funnel import Funnel
from .loading import Source, file_kind, load_data, reading, require_path
from .row import COLUMNS
from .rows import require_distinct
from .splits import SPLIT_NAMES, Leaks, divided_anew, find_leaks

Record = Mapping[str, Any]
Part = tuple[str, str, datasets.Dataset]
"""Name of the configuration or file, split, records."""

_SAME = "factual and alternative are the same word"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadData:
    """Rows in this library's schema, by split, what became of the rows that were read, and texts that splits share."""

    rows: datasets.DatasetDict
    funnel: Funnel
    leaks: Leaks


@dataclass(frozen=True)
class _Found:
    """Content of a record: a text, a word and its class, and words of other classes by their class.

    `others` is `None` where the words of another class's records have to give the alternatives.
    """

    masked: str | None
    factual: str | None
    factual_class: str | None
    others: Mapping[str | None, str | None] | None = None


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

    Some published sets have the same texts in several splits; that is noted in `leaks`, and a warning is logged. A
    configuration of texts without a slot (`text`, no `masked`), such as the neutral one of this library's own sets, is
    left out and counted.

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
        DataError: nothing can be read, the layout is none of these, a class has no rows, or one of two classes has no
            word of its own.
    """
    parts = list(_parts(source, classes, revision, token))
    funnel, dropped = Funnel(), Counter[str]()
    funnel.start("read", "records", sum(len(records) for _, _, records in parts))
    parts, left_out = _with_slots(parts)
    for name, count in left_out.items():
        funnel.drop(f"texts without a slot ({name})", count)
    names = list(dict.fromkeys(classes)) if classes else _class_names(parts)
    judged: list[tuple[str, _Found]] = []
    for part, split, records in parts:
        for record in records:
            found = _found(record, part, names)
            if reason := _unusable(found, names):
                dropped[reason] += 1
            else:
                where = str(record.get("split") or split)
                judged.append((SPLIT_NAMES.get(where, where), found))
    rows = _rows(judged, names, random.Random(seed), dropped)
    for reason, count in dropped.items():
        funnel.drop(reason, count)
    funnel.start("rows, one for each alternative", "rows", sum(map(len, rows.values())))
    _require_classes(rows, names, _class_names(parts), funnel)
    order = sorted(rows, key=lambda s: (["train", "validation", "test", s].index(s), s))
    columns = (*COLUMNS, "split")
    made = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict({c: [r[c] for r in rows[s]] for c in columns}) for s in order}
    )
    if splits is not None:
        made = divided_anew(made, splits, seed)
        funnel.drop("in several of the old splits", funnel.kept - sum(map(len, made.values())))
    texts = [text for table in made.values() for text in table["masked"]]
    leaks = find_leaks(texts, [s for s, table in made.items() for _ in range(len(table))], list(made), None)
    if leaks.pairs:
        logger.warning(
            "%s of %s. What is measured on rows that were learned from says nothing: use without_leaks, or let the option "
            "`splits` make new splits.",
            leaks,
            source if isinstance(source, (str, Path)) else "the data set",
        )
    return ReadData(made, funnel, leaks)


# ------------------------------------------------------------------------------------------------------------- loading


def _parts(
    source: Any, classes: Sequence[str] | None, revision: str | None, token: str | bool | None
) -> Iterator[Part]:
    """Yield everything that has to be read."""
    if isinstance(source, datasets.Dataset):
        yield "", "train", source
    elif isinstance(source, Mapping):
        for name, part in source.items():
            is_split = SPLIT_NAMES.get(name, name) in ("train", "validation", "test") and isinstance(
                part, datasets.Dataset
            )
            for inner, split, records in _parts(part, classes, revision, token):
                yield (inner, name, records) if is_split else (name, split, records)
    elif not isinstance(source, (str, Path)):
        raise DataError(
            f"Expected a Hub id, a file, a folder, a data set or a mapping of them, found {type(source).__name__}. Of rows "
            "or a stream, datasets.Dataset.from_list(list(rows)) makes a data set."
        )
    elif Path(source).is_file() or (Path(source).is_dir() and (tables := _tables(Path(source), classes))):
        for path in [Path(source)] if Path(source).is_file() else tables:
            yield path.name.partition(".")[0], "train", load_data(path, "source")["train"]
    else:
        wanted = Source.parse(source, "source")
        require_path(wanted, "source")
        with reading(f"source: {wanted.path!r}"):
            configs = datasets.get_dataset_config_names(wanted.path, revision=revision, token=token)
        for config in [wanted.name] if wanted.name else _wanted(configs, classes):
            data = load_data({"path": wanted.path, "name": config, "revision": revision}, "source", token=token)
            for split, records in data.items():
                yield config, split, records


def _tables(folder: Path, classes: Sequence[str] | None) -> list[Path]:
    """A folder's files of single classes, if that is what it holds."""
    tables = [path for path in sorted(folder.iterdir()) if path.is_file() and file_kind(path) not in (None, "text")]
    stems = {path.name.partition(".")[0] for path in tables}
    usual = {"train", "test", *SPLIT_NAMES, *SPLIT_NAMES.values()}
    if not stems or stems & usual or (folder / "README.md").exists():
        return []
    return [path for path in tables if path.name.partition(".")[0] in classes] if _all_named(classes, stems) else tables


def _wanted(configs: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The configurations that hold the classes: named as they are, or as pairs of them."""
    if _all_named(classes, configs):
        return [config for config in configs if config in classes]
    return [c for c in configs if "_to_" in c and set(c.split("_to_")) <= {*(classes or ())}] or list(configs)


def _all_named(classes: Sequence[str] | None, found: Iterable[str]) -> TypeGuard[Sequence[str]]:
    """Return whether every class has a configuration or file of its name, so that the others need not be read."""
    return bool(classes) and {*(classes or ())} <= {*found}


# ------------------------------------------------------------------------------------------------------------- layouts


def _with_slots(parts: Sequence[Part]) -> tuple[list[Part], Counter[str]]:
    """The parts that have slots, and how many records the others have, which are only texts.

    What is of no known layout stays where nothing else could be read, so that this can be said.
    """
    texts = [p for p in parts if "text" in p[2].column_names and "masked" not in p[2].column_names]
    if len(texts) == len(parts):
        return list(parts), Counter()
    left_out = Counter[str]()
    for name, split, records in texts:
        left_out[name or split] += len(records)
    return [part for part in parts if part not in texts], left_out


def _class_names(parts: Sequence[Part]) -> list[str]:
    """Classes that the data name: in their columns, or by their configurations."""
    template = any({"name", "pronoun", "label"} <= set(records.column_names) for _, _, records in parts)
    for column in ("factual_class", "label_class", "source_id", *(["label"] if template else [])):
        found = [records.unique(column) for _, _, records in parts if column in records.column_names]
        if found:
            return list(dict.fromkeys(str(name) for name in chain(*found) if name is not None))
    return list(dict.fromkeys(name for name, _, _ in parts))


def _found(record: Record, part: str, classes: Sequence[str]) -> _Found:
    """Read a record by its columns."""
    if set(COLUMNS) <= record.keys():
        return _pair(record, "factual", "factual_class", "alternative", "alternative_class")
    if {"masked", "source", "target", "source_id", "target_id"} <= record.keys():
        return _pair(record, "source", "source_id", "target", "target_id")
    if {"masked", "name", "pronoun", "label"} <= record.keys():
        masked, name = record["masked"], record["name"]
        filled = str(masked).replace("[NAME]", str(name)).replace("[PRONOUN]", SLOT) if masked and name else None
        return _Found(filled, record["pronoun"], _text(record["label"]))
    own = part in record and "label_class" not in record
    word = part if own else next((c for c in ("label", "token") if c in record), None)
    if "masked" not in record or word is None:
        raise DataError(
            f"The columns {sorted(record)} (of {part or 'the data set'}) are of no known layout. Expected `masked` with "
            f"{list(COLUMNS[1:])}, or with label and label_class, or with source, target, source_id and target_id, or "
            "with label or the class's name in a configuration or file per class."
        )
    if own:
        others: dict[str | None, str | None] = {
            name: record[name] for name in classes if name != part and name in record
        }
        return _Found(record["masked"], record[word], part, others or None)
    if "label_class" not in record:
        return _Found(record["masked"], record[word], part)
    if record.get("alternative") and record.get("alternative_class"):
        return _pair(record, word, "label_class", "alternative", "alternative_class")
    return _Found(record["masked"], record[word], _text(record["label_class"]))


def _pair(record: Record, factual: str, own: str, alternative: str, other: str) -> _Found:
    others = {_text(record[other]): record[alternative]}
    return _Found(record["masked"], record[factual], _text(record[own]), others)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _unusable(found: _Found, classes: Sequence[str]) -> str | None:
    """Return the reason a record gives no row, or None; of several alternatives one has to be usable."""
    if _missing(found.masked) or _missing(found.factual) or _missing(found.factual_class):
        return "a value is missing"
    given = None if found.others is None else {n for n, word in found.others.items() if not _missing(word)} - {None}
    if given is not None and not given:
        return "a value is missing"
    if found.factual_class not in classes or (given is not None and not given & {*classes}):
        return "of another class"
    slots = str(found.masked).count(SLOT)
    if slots != 1:
        return "no slot" if slots == 0 else "more than one slot"
    return _SAME if given is not None and not _usable(found, classes) else None


def _missing(value: Any) -> bool:
    return not isinstance(value, str) or not value.strip()


def _usable(found: _Found, classes: Sequence[str]) -> dict[str, str]:
    """The words by which a record's own can be replaced, by class."""
    others = (found.others or {}).items()
    return {
        str(name): str(word)
        for name, word in others
        if name in classes and not _missing(word) and word != found.factual
    }


def _rows(
    judged: Sequence[tuple[str, _Found]], classes: Sequence[str], rng: random.Random, dropped: Counter[str]
) -> dict[str, list[dict[str, str]]]:
    """Rows by split: one for each alternative, which are the record's own or drawn from the words of other classes."""
    forms: dict[str, dict[str, Counter[str]]] = {name: {} for name in classes}
    for _, found in judged:
        if found.others is None:
            forms[str(found.factual_class)].setdefault(str(found.factual).lower(), Counter())[str(found.factual)] += 1
    listed = listed_words(forms)
    words = {
        name: Counter({listed[name][word]: spellings.total() for word, spellings in of_class.items()})
        for name, of_class in forms.items()
    }
    rows: dict[str, list[dict[str, str]]] = {}
    for split, found in judged:
        own, others = str(found.factual), _usable(found, classes)
        if found.others is None:
            drawn = _drawn({name: words[name] for name in classes if name != found.factual_class and words[name]}, rng)
            spellings = {of_class[own.lower()] for of_class in listed.values() if own.lower() in of_class}
            told_apart = len(spellings) > 1  # by a capital, as German "Sie" and "sie"
            case = case_of(own, listed[str(found.factual_class)][own.lower()] if told_apart else own.lower()) or str
            others = {name: case(word) for name, word in drawn.items() if case(word) != own}
            if not others:
                dropped[_SAME if drawn else "no word of another class"] += 1
        for name, word in others.items():
            rows.setdefault(split, []).append(
                {
                    "masked": str(found.masked),
                    "factual": own,
                    "alternative": word,
                    "factual_class": str(found.factual_class),
                    "alternative_class": name,
                    "split": split,
                }
            )
    return rows


def _drawn(words: Mapping[str, Counter[str]], rng: random.Random) -> dict[str, str]:
    """A word of each class, by its frequency there."""
    return {name: rng.choices(list(counts), list(counts.values()))[0] for name, counts in words.items()}


def _require_classes(
    rows: Mapping[str, Sequence[Mapping[str, str]]], classes: Sequence[str], named: Sequence[str], funnel: Funnel
) -> None:
    if not funnel.steps[0][2]:
        raise DataError("The data set has no records.")
    counts = Counter(row["factual_class"] for part in rows.values() for row in part)
    if empty := sorted((name for name in classes if not counts[name]), key=lambda name: name in named):
        raise DataError(
            f"Class {empty[0]!r} has no usable rows (rows per class: {dict(counts)}; classes that the data name: "
            f"{list(named)}). What became of all records:\n{funnel}"
        )
    if len(classes) == 2:  # of more, two may have the same words: articles of one form and several cases
        words: dict[str, dict[str, None]] = {name: {} for name in classes}
        for row in chain(*rows.values()):
            words[row["factual_class"]][row["factual"]] = words[row["alternative_class"]][row["alternative"]] = None
        require_distinct({name: [*of] for name, of in words.items()}, "The data set")
