"""Rows of a suite: which directions there are between some classes, and which texts serve several of them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from gradiend_hub.data.splits import assign
from gradiend_hub.errors import ConfigError, DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A direction of a suite.

    Attributes:
        first, second: names of its classes.
        members: class of a row to the class of the direction that it belongs to.
    """

    first: str
    second: str
    members: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") or "class" for part in (self.first, self.second))

    def of(self, record: Record) -> dict[str, Any] | None:
        """A record with the direction's own classes; `None` if it belongs to another direction."""
        classes = [self.members.get(str(record.get(key))) for key in ("factual_class", "alternative_class")]
        if None in classes or classes[0] == classes[1]:
            return None
        return {**record, "factual_class": classes[0], "alternative_class": classes[1]}


def pairs_of(
    classes: Sequence[str],
    pairs: str | Sequence[Sequence[str]] = "all",
    merged: Mapping[str, Sequence[str]] | None = None,
) -> list[Pair]:
    """Name the directions of a suite.

    Args:
        classes: of the rows.
        pairs: "all" (each class with each other), "rest" (each class against all others), or a list of pairs of names, of
            classes or of `merged` ones.
        merged: name of a class to the classes that it is made of. With "all", merged classes that share none are paired too.

    Raises:
        ConfigError: A name is not known, classes overlap, or two directions have one name.
    """
    known = {name: [name] for name in classes}
    for name, members in _named_lists(merged):
        if not members or not {*members} <= {*classes} or name in known:
            raise ConfigError(
                f"merged: {name!r} must be a new name for a list of the classes {list(classes)}; found {members!r}."
            )
        known[name] = members
    if pairs == "rest":
        rest = {name: f"not {name}" for name in classes}
        known |= {other: [c for c in classes if c != name] for name, other in rest.items()}
        named: list[tuple[str, str]] = list(rest.items())
    elif pairs == "all":
        named = [
            *combinations(classes, 2),
            *(p for p in combinations([*known][len(classes) :], 2) if not {*known[p[0]]} & {*known[p[1]]}),
        ]
    elif isinstance(pairs, (str, Mapping)) or not isinstance(pairs, Iterable):
        raise ConfigError(f"pairs must be 'all', 'rest' or a list of pairs of class names, found {pairs!r}.")
    else:
        named = [_two(pair) for pair in pairs]
    found = [_pair(first, second, known) for first, second in named]
    names = [pair.name for pair in found]
    if not found or len({*names}) < len(names):
        twice = next((name for name in names if names.count(name) > 1), "none")
        raise ConfigError(f"A suite needs at least one direction, each with a name of its own; found {twice!r}.")
    return found


def _named_lists(merged: Any) -> list[tuple[str, list[str]]]:
    """Name and members of each merged class. Raises `ConfigError` for what is no list of names."""
    if merged is None:
        return []
    if not isinstance(merged, Mapping):
        raise ConfigError(f"merged must hold a list of classes for each new name, found {merged!r:.80}.")
    for name, members in merged.items():
        if isinstance(members, (str, Mapping)) or not isinstance(members, Iterable):
            raise ConfigError(f"merged: {name!r} must be a new name for a list of classes, found {members!r:.80}.")
    return [(str(name), [str(member) for member in members]) for name, members in merged.items()]


def _two(pair: Any) -> tuple[str, str]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ConfigError(f"pairs: expected two class names in each, found {pair!r}.")
    return str(pair[0]), str(pair[1])


def _pair(first: str, second: str, known: Mapping[str, Sequence[str]]) -> Pair:
    for name in (first, second):
        if name not in known:
            raise ConfigError(f"pairs: there is no class {name!r}; there are {', '.join(known)}.")
    if shared := {*known[first]} & {*known[second]}:
        raise ConfigError(f"pairs: {first!r} and {second!r} share {sorted(shared)[0]!r}, so nothing tells them apart.")
    return Pair(first, second, {m: name for name in (first, second) for m in known[name]})


def redrawn(
    records: Iterable[Record], seed: int, *, by: str = "text", shares: Mapping[str, float] | None = None
) -> dict[str, list[Record]]:
    """Divide records into splits anew: rows of one text, or of one word, stay together.

    Args:
        by: "text", or "word": held-out words, which rotate with the seed.
        shares: share of each split; default: 0.8 train, 0.1 validation, 0.1 test.

    Raises:
        ConfigError: `by` is neither.
        DataError: A class has fewer texts (or words) than there are splits.
    """
    if by not in ("text", "word"):
        raise ConfigError(f"split_by must be 'text' or 'word', found {by!r}.")
    rows, divided = list(records), dict(shares or {"train": 0.8, "validation": 0.1, "test": 0.1})
    key = "masked" if by == "text" else "factual"
    units = np.unique([str(row[key]).lower() for row in rows], return_inverse=True)[1]
    strata = np.unique([str(row["factual_class"]) for row in rows], return_inverse=True)[1]
    chosen = assign(units.astype(np.int64), strata.astype(np.int64), divided, np.random.default_rng(seed))
    return {name: [row for row, of in zip(rows, chosen, strict=True) if of == i] for i, name in enumerate(divided)}


@dataclass(frozen=True)
class SharedBatch:
    """Texts of one class whose gradients serve several directions.

    Attributes:
        factual_class: class of the texts' own word.
        rows: for each class of alternatives, the numbers of the rows that fill the same texts with it.
    """

    factual_class: str
    rows: Mapping[str, Sequence[int]]


class SharedRows:
    """Training rows of a suite, grouped by text: one forward pass serves all alternatives of a text.

    Args:
        records: rows of all classes; a text with several alternatives has a row for each.

    Raises:
        DataError: A record lacks a column.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.texts: dict[tuple[str, str, str], dict[str, int]] = {}
        for number, row in enumerate(self.records):
            try:
                key = (str(row["masked"]), str(row["factual"]), str(row["factual_class"]))
                self.texts.setdefault(key, {}).setdefault(str(row["alternative_class"]), number)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"train_dataset, row {number}: expected the columns masked, factual, alternative, factual_class and "
                    f"alternative_class ({error!r})."
                ) from error

    @property
    def classes(self) -> list[str]:
        """Classes of the rows, in the order in which they occur."""
        return list(dict.fromkeys(of for _, _, of in self.texts))

    def batches(self, size: int, seed: int) -> list[SharedBatch]:
        """Batches of texts of one class with the same alternatives; classes take turns, and every text comes once."""
        rng = random.Random(f"suite/{seed}")
        groups: dict[tuple[str, tuple[str, ...]], list[dict[str, int]]] = {}
        for key, alternatives in self.texts.items():
            groups.setdefault((key[2], tuple(sorted(alternatives))), []).append(alternatives)
        queues = []
        for (of, others), texts in groups.items():
            rng.shuffle(texts)
            cut = [texts[i : i + size] for i in range(0, len(texts), size)]
            queues.append([SharedBatch(of, {c: [text[c] for text in part] for c in others}) for part in cut])
        longest = max(map(len, queues))
        spread = [
            (i * longest / len(queue), n, batch) for n, queue in enumerate(queues) for i, batch in enumerate(queue)
        ]
        return [batch for _, _, batch in sorted(spread, key=lambda item: item[:2])]
