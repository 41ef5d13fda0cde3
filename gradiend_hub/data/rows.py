"""The rows that everything else reads: text with a slot, its factual and its alternative filler, and their classes."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError

from .casing import listed_words

logger = logging.getLogger(__name__)

COLUMNS = ("masked", "factual", "alternative", "factual_class", "alternative_class")


@dataclass(frozen=True)
class Row:
    """One filling of one slot. `masked` holds the placeholder `[MASK]` once, whatever the model's mask token is."""

    masked: str
    factual: str
    alternative: str
    factual_class: str
    alternative_class: str

    def label(self, feature_classes: Sequence[str], source: str) -> float:
        """+1 if the class whose token gives the source gradient is the first feature class, else −1.

        With source "alternative" that token is the alternative, with "factual" and "diff" the factual one.
        """
        of = self.alternative_class if source == "alternative" else self.factual_class
        return 1.0 if of == feature_classes[0] else -1.0


def read_rows(
    dataset: Iterable[dict[str, object]],
    feature_classes: Sequence[str],
    *,
    what: str = "dataset",
    need_both: bool = True,
) -> list[Row]:
    """Rows of a `datasets.Dataset` (or any iterable of dictionaries) that belong to the two feature classes.

    Raises:
        DataError: no rows, a missing column, a value that is no text, a class that is not one of the two, or (unless
            `need_both` is false) a class without rows or a row whose two words are one.
    """
    rows: list[Row] = []
    for number, record in enumerate(dataset):
        if not isinstance(record, Mapping):
            raise DataError(
                f"{what}, row {number}: expected a dictionary with the columns {list(COLUMNS)}, found {record!r}."
            )
        if missing := [c for c in COLUMNS if c not in record]:
            raise DataError(
                f"{what}: column {missing} is missing. Expected the columns {list(COLUMNS)}, found {sorted(record)}. "
                f"A row is a text with one {SLOT}, two fillers and their classes."
            )
        values = {c: record[c] for c in COLUMNS}
        if wrong := [c for c, value in values.items() if not isinstance(value, str) or not value.strip()]:
            raise DataError(f"{what}, row {number}: {wrong[0]!r} must be a non-empty text, found {values[wrong[0]]!r}.")
        rows.append(Row(**values))  # type: ignore[arg-type]
    if not rows:
        raise DataError(f"{what} has no rows.")
    _check_classes(rows, feature_classes, what, need_both)
    if need_both and (same := [number for number, row in enumerate(rows) if row.factual == row.alternative]):
        word, count = rows[same[0]].factual, f"{len(same)} of {len(rows)}"
        raise DataError(
            f"{what}, row {same[0]}: factual and alternative are the same word, {word!r} (as in {count} rows), so there is "
            "no difference to learn from. Leave such rows out, or name another alternative."
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
                what, len(shared), name, other, ", ".join(map(repr, shared[:5])),
            )  # fmt: skip


def rows_digest(rows: Iterable[Row]) -> str:
    """sha256 of the content of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\x1f".join(asdict(row).values()).encode() + b"\x1e")
    return digest.hexdigest()


def read_texts(dataset: Iterable[dict[str, object]], *, what: str = "neutral dataset") -> list[str]:
    """The `text` column of a set of neutral sentences."""
    texts: list[str] = []
    for number, record in enumerate(dataset):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{what}, row {number}: expected a non-empty text in column 'text', found {text!r}.")
        texts.append(text)
    if not texts:
        raise DataError(f"{what} has no rows.")
    return texts
