"""Reading data sets into rows, with every fault named."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

from gradiend_hub.errors import DataError

from .casing import listed_words
from .row import Row, TextRow

logger = logging.getLogger(__name__)


def read_rows(
    dataset: Iterable[Mapping[str, Any]],
    feature_classes: Sequence[str] | None,
    *,
    read: Callable[[Mapping[str, Any]], Row] = TextRow.read,
    prepare: Callable[[list[Any]], list[Any]] | None = None,
    what: str = "dataset",
    need_both: bool = True,
) -> list[Any]:
    """Read and check the records of a `datasets.Dataset` (or any iterable of dictionaries).

    Args:
        dataset: The records.
        feature_classes: The two classes that rows may name; `None` for any.
        read: Makes a row of a record: `Objective.read`; by default text with a slot.
        prepare: Makes the rows to use of those that were read: `Objective.prepare`; by default they are used as they are.
        what: How messages call the data.
        need_both: Whether each class must have a row.

    Returns:
        The rows, of the type that `read` makes.

    Raises:
        DataError: No rows, a record that cannot be read, a class that is not one of the two, or (unless `need_both` is
            false) a class without rows or a row whose two outputs are one.
    """
    rows = _read_all(dataset, read, what)
    if prepare is not None:
        rows = prepare(rows)
    if feature_classes is not None:
        _check_classes(rows, feature_classes, what, need_both)
        same = [number for number, row in enumerate(rows) if row.factual == row.alternative] if need_both else []
        if same:
            word, count = rows[same[0]].factual, f"{len(same)} of {len(rows)}"
            raise DataError(
                f"{what}, row {same[0]}: factual and alternative are the same word, {word!r} (as in {count} rows), so there "
                "is no difference to learn from. Leave such rows out, or name another alternative."
            )
        one = [number for number, row in enumerate(rows) if row.factual_class == row.alternative_class]
        if one and need_both:
            raise DataError(
                f"{what}, row {one[0]}: factual and alternative are both of the class {rows[one[0]].factual_class!r} (as in "
                f"{len(one)} of {len(rows)} rows). Expected one of each class; leave such rows out."
            )
    return rows


def _check_classes(rows: Sequence[Row], feature_classes: Sequence[str], what: str, need_both: bool) -> None:
    counts = Counter(row.factual_class for row in rows)
    named = counts.keys() | {row.alternative_class for row in rows}
    if unknown := sorted(named - set(feature_classes)):
        raise DataError(
            f"{what}: unknown class {unknown[0]!r}. GradiendConfig.feature_classes is {list(feature_classes)}, the rows "
            f"name {sorted(named)}. Rename the classes or leave those rows out."
        )
    if need_both and (empty := [c for c in feature_classes if not counts[c]]):
        raise DataError(
            f"{what}: class {empty[0]!r} has no rows (rows per factual class: {dict(counts)}). A direction needs factual "
            f"rows of both {feature_classes[0]!r} and {feature_classes[1]!r}."
        )


def class_fillers(rows: Iterable[Row], feature_classes: Sequence[str]) -> dict[str, list[str]]:
    """Return the words that fill the slot, by class, most frequent first.

    Upper and lower case count as one word within a class, written in lower case unless it never is (a name, a German noun).
    """
    counts: dict[str, Counter[str]] = {c: Counter() for c in feature_classes}
    forms: dict[str, dict[str, Counter[str]]] = {c: {} for c in feature_classes}
    for row in rows:
        for name, word, factual in (
            (row.factual_class, row.factual, 1),
            (row.alternative_class, row.alternative, 0),
        ):
            counts[name][word.lower()] += factual
            forms[name].setdefault(word.lower(), Counter())[word] += 1
    listed = listed_words(forms)
    return {c: [listed[c][word] for word, _ in counts[c].most_common()] for c in feature_classes}


def require_distinct(fillers: Mapping[str, Sequence[str]], what: str = "The words of the slot") -> None:
    """Refuse two classes of which one has no word of its own; a few words of both are only warned of.

    Raises:
        DataError: every word of a class is one of the other, too, so that nothing tells them apart.
    """
    for (name, words), (other, others) in combinations(fillers.items(), 2):
        shared = [word for word in words if word in others]
        if shared and (len({*shared}) == len({*words}) or {*others} <= {*shared}):
            raise DataError(
                f"{what}: the classes {name!r} and {other!r} have the same words ({', '.join(map(repr, shared[:5]))}), so "
                "no probability tells them apart. Give each class words of its own."
            )
        if shared:
            logger.warning(
                "%s: %d of the words of the classes %r and %r are words of both (%s). They count for either class; leave "
                "them out if they should not.",
                what,
                len(shared),
                name,
                other,
                ", ".join(map(repr, shared[:5])),
            )


def rows_digest(rows: Iterable[Row]) -> str:
    """Return the sha256 of the content of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        values = [getattr(row, field.name) for field in fields(row)]
        digest.update("\x1f".join(map(str, values)).encode() + b"\x1e")
    return digest.hexdigest()


def read_neutral(
    dataset: Iterable[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], Any] | None = None,
    *,
    what: str = "neutral dataset",
) -> list[Any]:
    """Read items without the feature: by default the texts of the column `text`.

    Args:
        dataset: The records.
        read: Makes an item of a record: `Objective.read_neutral`.
        what: How messages call the data.

    Raises:
        DataError: No records, or one that cannot be read.
    """
    return _read_all(dataset, read or neutral_text, what)


def _read_all(dataset: Iterable[Any], read: Callable[[Mapping[str, Any]], Any], what: str) -> list[Any]:
    found: list[Any] = []
    for number, record in enumerate(dataset):
        if not isinstance(record, Mapping):
            raise DataError(f"{what}, row {number}: expected a dictionary with a value by column, found {record!r}.")
        try:
            found.append(read(record))
        except DataError as error:
            raise DataError(f"{what}, row {number}: {error}") from error
    if not found:
        raise DataError(f"{what} has no rows.")
    return found


def neutral_text(record: Mapping[str, Any]) -> str:
    """Return the text of a record without the feature. Raises `DataError` if the column `text` holds none."""
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"expected a non-empty text in column 'text', found {text!r}.")
    return text


def read_texts(dataset: Iterable[Mapping[str, Any]], *, what: str = "neutral dataset") -> list[str]:
    """Read the column `text` of a set of neutral sentences."""
    return read_neutral(dataset, what=what)
