"""Splits of rows: dividing rows into them, texts that reached two of them, and rows of one template."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from gradiend_hub.errors import DataError

from .row import TextRow

SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other names of the usual splits."""

_CHUNK = 2000
_PAIRS = 2**22
"""Pairs of rows whose shared words are in memory at a time."""

_SHINGLE = 3
GROUP_COLUMNS = ("group", "document", "template")
"""Columns that say which rows are no independent observations, the first that all rows have."""

_WORD = re.compile(r"\w+")

Indices = NDArray[np.int64]


def assign(units: Indices, strata: Indices, splits: Mapping[str, float], rng: np.random.Generator) -> Indices:
    """The split of every row, as its index in `splits`; rows of one unit stay together.

    Args:
        units: [N] the unit of each row: its text, its group or its word.
        strata: [N] the class of each row (of a unit: that of its first row). Every class is divided in the same shares.
        splits: share of each split; they are scaled to a sum of 1.

    Raises:
        DataError: a class has fewer units than there are splits.
    """
    _, first, unit_of, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    shares = np.array(list(splits.values()))
    chosen = np.empty(len(first), dtype=np.int64)
    for stratum in np.unique(strata[first]):
        members = rng.permutation(np.flatnonzero(strata[first] == stratum))
        if len(members) < len(splits):
            raise DataError(
                f"Class {stratum} has {len(members)} independent units (texts, groups or words), too few for "
                f"{len(splits)} splits. Ask for fewer splits, more data or another split_by."
            )
        chosen[members] = _divide(sizes[members].tolist(), shares / shares.sum())
    return chosen[unit_of.reshape(-1)]


def _divide(sizes: Sequence[int], shares: NDArray[np.float64]) -> list[int]:
    """A split for each unit: always the one that lacks most, and none stays empty."""
    lacking = [float(share) * sum(sizes) for share in shares]
    chosen = []
    for size in sizes:
        split = lacking.index(max(lacking))
        lacking[split] -= size
        chosen.append(split)
    for empty in set(range(len(shares))) - set(chosen):
        rich = max(set(chosen), key=chosen.count)
        chosen[min((i for i, c in enumerate(chosen) if c == rich), key=sizes.__getitem__)] = empty
    return chosen


@dataclass(frozen=True)
class Leaks:
    """Texts of one split that occur in a later one again.

    Attributes:
        pairs: (row, row of a later split, similarity); one pair for each row that leaks.
        threshold: similarity from which two texts count as the same.
    """

    pairs: list[tuple[int, int, float]]
    threshold: float

    @property
    def rows(self) -> list[int]:
        return [row for row, _, _ in self.pairs]

    @property
    def exact(self) -> int:
        return sum(similarity == 1 for _, _, similarity in self.pairs)

    def __str__(self) -> str:
        return f"{len(self.pairs)} rows occur in a later split again ({self.exact} of them word for word)"


def find_leaks(
    texts: Iterable[str], splits: Sequence[Any], order: Sequence[Any], threshold: float | None = 0.8
) -> Leaks:
    """Rows whose text, or nearly the same one, is in a later split, too.

    Two texts are compared by the Jaccard index of their sequences of three words, exactly and for all pairs; upper case,
    punctuation and white space do not count. The evaluation splits stay whole: it is the earlier split's row that leaks.

    Args:
        texts: [N] texts, with their slots; they are read once.
        splits: [N] split of each.
        order: the splits; the training one is that of this name, or the first.
        threshold: similarity from which two texts count as the same; `None` finds equal ones only, and fast.
    """
    order = training_first(order)
    place = np.array([order.index(split) for split in splits])
    if threshold is None:
        return _equal(texts, place.tolist())
    features, sizes = _shingles(texts)
    best: dict[int, tuple[int, int, float]] = {}
    for position in range(len(order) - 1):
        earlier, later = np.flatnonzero(place == position), np.flatnonzero(place > position)
        if not len(later):
            break
        index = features[later].T.tocsc()
        for start in range(0, len(earlier), _CHUNK):
            rows = earlier[start : start + _CHUNK]
            shared = (features[rows] @ index).tocoo()
            similarity = shared.data / (sizes[rows[shared.row]] + sizes[later[shared.col]] - shared.data)
            for at in np.flatnonzero(similarity >= threshold - 1e-9):
                pair = int(rows[shared.row[at]]), int(later[shared.col[at]]), float(similarity[at])
                if pair[0] not in best or pair[2] > best[pair[0]][2]:
                    best[pair[0]] = pair
    return Leaks([best[row] for row in sorted(best)], threshold)


def training_first(names: Iterable[Any]) -> list[Any]:
    """Splits in their order, but the one called "train" first: rows are repeated in it, and taken out of it."""
    return sorted(names, key=lambda name: name != "train")


def _equal(texts: Iterable[str], places: Sequence[int]) -> Leaks:
    """Rows whose text is in a later split word for word."""
    keys = array("q", (hash(" ".join(_WORD.findall(text.lower()))) for text in texts))
    latest = {key: row for row, key in sorted(enumerate(keys), key=lambda item: places[item[0]])}
    pairs = [(row, latest[key], 1.0) for row, key in enumerate(keys) if places[latest[key]] > places[row]]
    return Leaks(pairs, 1.0)


def divided_anew(rows: datasets.DatasetDict, splits: Mapping[str, float], seed: int = 0) -> datasets.DatasetDict:
    """All rows, equal ones once, in new splits, whatever splits they had; rows of one text stay together.

    Args:
        rows: splits with the columns `masked`, `factual_class` and `split`.
        splits: share of each new split.
        seed: decides which text goes where.

    Raises:
        DataError: a class has fewer texts than there are splits.
    """
    every = datasets.concatenate_datasets([part.remove_columns("split") for part in rows.values()])
    every = every.select(list({tuple(row.values()): number for number, row in enumerate(every)}.values()))
    keys = [" ".join(_WORD.findall(text.lower())) for text in every["masked"]]
    units = np.unique(np.array(keys), return_inverse=True)[1].reshape(-1)
    chosen = assign(units, np.array(every["factual_class"][:]), splits, np.random.default_rng(seed))
    parts = {name: every.select(np.flatnonzero(chosen == number)) for number, name in enumerate(splits)}
    return datasets.DatasetDict({name: part.add_column("split", [name] * len(part)) for name, part in parts.items()})


def without_leaks(
    rows: datasets.DatasetDict, threshold: float | None = 0.8, column: str = "masked"
) -> tuple[datasets.DatasetDict, Leaks]:
    """Splits without the rows of earlier ones whose text is in a later one again, and what was found.

    Args:
        rows: splits; the training one is called "train" or comes first.
        threshold: see `find_leaks`.
        column: column of the texts.

    Raises:
        DataError: nothing is left of a split.
    """
    splits = [name for name, part in rows.items() for _ in range(len(part))]
    leaks = find_leaks([text for part in rows.values() for text in part[column]], splits, list(rows), threshold)
    leaking, kept, start = set(leaks.rows), {}, 0
    for name, part in rows.items():
        kept[name] = part.select([i for i in range(len(part)) if start + i not in leaking])
        if len(part) and not len(kept[name]):
            raise DataError(
                f"All {len(part)} rows of split {name!r} occur in a later split again. Let divided_anew (or the option "
                "splits of read_feature_data) make new splits."
            )
        start += len(part)
    return datasets.DatasetDict(kept), leaks


def row_groups(records: Sequence[Mapping[str, Any] | TextRow], *, threshold: float = 0.5) -> list[int]:
    """Return the number of the independent unit that each record belongs to: its document, template or frame.

    Rows of one frame ("The [NOUN] said that [MASK] was late" with many nouns) are no independent observations: an interval
    over rows is too narrow then, and one over units is right. A column `group`, `document` or `template` says which rows
    belong together. Without one, those do whose texts share most of their words, directly or through others.

    Args:
        records: [N] records with `masked` and perhaps one of `GROUP_COLUMNS`, or rows that were read from such.
        threshold: Jaccard index of two texts' words from which on they are one frame. On the bundled pronouns, 0.5 finds
            the templates and joins no two of the verses.

    Returns:
        [N] numbers from 0 on, in the order in which the units occur.
    """
    columns = [record if isinstance(record, Mapping) else record.record() for record in records]
    column = next((name for name in GROUP_COLUMNS if all(of.get(name) is not None for of in columns)), None)
    if column is not None:
        keys = [str(of[column]) for of in columns]
    else:
        features, sizes = _shingles((of["masked"] for of in columns), 1)
        links: list[NDArray[np.int64]] = [np.zeros((2, 0), dtype=np.int64)]
        step = max(1, min(_CHUNK, _PAIRS // max(1, len(records))))  # nearly every two texts share some word
        for start in range(0, len(records), step):
            shared = (features[start : start + step] @ features.T).tocoo()
            rows = start + shared.row.astype(np.int64)
            alike = shared.data >= threshold * (sizes[rows] + sizes[shared.col] - shared.data) - 1e-9
            links.append(np.stack([rows[alike], shared.col[alike]]))
        found = np.concatenate(links, axis=1)
        shape = (len(records), len(records))
        graph = sparse.coo_matrix((np.ones(found.shape[1]), (found[0], found[1])), shape)
        keys = connected_components(graph, directed=False)[1].tolist()
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _shingles(texts: Iterable[str], length: int = _SHINGLE) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    """[N, shingles] whether a sequence of so many words occurs in a text, and how many different ones each has."""
    hashes, ends = array("q"), array("q", [0])  # of 64 bits: that two of millions agree by chance is next to impossible
    for text in texts:
        words = _WORD.findall(text.lower())
        shingles = {*map(hash, zip(*(words[i:] for i in range(length)), strict=False))} or {hash(tuple(words))}
        hashes.extend(shingles)
        ends.append(len(hashes))
    known, columns = np.unique(np.array(hashes, dtype=np.int64), return_inverse=True)
    data = np.ones(len(hashes), dtype=np.int32)
    offsets = np.array(ends, dtype=np.int64)
    matrix = sparse.csr_matrix((data, columns.reshape(-1), offsets), shape=(len(offsets) - 1, len(known)))
    return matrix, np.diff(offsets)
