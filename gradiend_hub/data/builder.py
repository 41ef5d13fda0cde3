"""`FeatureDatasetBuilder`: from raw text to rows with a slot, their splits, and neutral text."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from gradiend_hub.errors import DataError

from .counterfactual import Alternatives
from .feature_data import FeatureData
from .funnel import Funnel
from .language import told_language
from .matching import Matcher, fold
from .neutral import NeutralPool
from .rows import COLUMNS
from .scan import Accept, Scan
from .spec import FeatureDataConfig
from .splits import Indices, assign, find_leaks
from .spool import Spool

__all__ = ["FeatureDatasetBuilder"]


class FeatureDatasetBuilder:
    """Builds a feature data set from raw text, streaming: memory grows with what is kept (a few numbers a row) alone.

    Args:
        config: classes, filters, splits; see `FeatureDataConfig`.
        nlp: a loaded spaCy pipeline, instead of the one that `config.spacy_model` names.
        accept: a filter of your own after all others: called with the text before a slot, the word, the text after it and
            the class's name, it says whether the slot is taken.
        cache_dir: folder for the Arrow files of the result, by default the cache of `datasets`.

    Raises:
        ConfigError: a tag that does not exist, a language that is not the model's, a missing model.
    """

    def __init__(
        self,
        config: FeatureDataConfig,
        *,
        nlp: Any = None,
        accept: Accept | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.config = config
        self._names = list(config.classes)
        self._accept = accept
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._matcher = Matcher(config, nlp)

    def build(self, source: Any = None) -> FeatureData:
        """Read a source (by default the configuration's) and make the data set.

        Args:
            source: a `Dataset`, `IterableDataset` or `DatasetDict`, a list of texts, or what `config.source` may be.

        Raises:
            DataError: a class has no rows, with the nearest words that do occur, or the splits cannot be made.
        """
        config = self.config
        rng = np.random.default_rng(config.seed)
        columns = ["masked", "factual"] + ["group"] * (config.group_column is not None) + ["split"]
        with Spool(columns, self._cache_dir) as spool:
            scan = Scan(config, self._matcher, spool, self._accept)
            scan.run(config.source if source is None else source)
            self._require_every_class(scan)
            table = spool.table()
        spool.path.unlink()  # it stays mapped until the table is gone
        numbers = scan.candidates
        texts, classes, words = (np.array(a, dtype=np.int64) for a in (numbers.texts, numbers.classes, numbers.words))
        funnel, names = scan.funnel, list(numbers.word_ids)
        chosen = self._cap(classes, words, rng, funnel)
        splits, order = self._split(table, chosen, texts, classes, words, names, rng)
        masked = table["masked"].take(chosen)
        leaks = find_leaks(masked.to_pylist(), splits.tolist(), range(len(order)), config.near_duplicates)
        if config.fix_leaks and leaks.rows:
            funnel.drop("nearly the same text in a later split", len(leaks.rows))
            keep = np.setdiff1d(np.arange(len(chosen)), leaks.rows)
            chosen, splits = chosen[keep], splits[keep]
        keep = self._balance(classes[chosen], splits, rng, funnel)
        chosen, splits = chosen[keep], splits[keep]
        rows, digest = self._write(
            table.take(chosen), classes[chosen], words[chosen], names, splits, order, rng, funnel
        )
        neutral = self._neutral_splits(scan.neutral, np.array(numbers.lengths)[chosen], order)
        return FeatureData(rows, neutral, funnel, leaks, digest, config)

    def _require_every_class(self, scan: Scan) -> None:
        counts = Counter(scan.candidates.classes)
        for group, name in enumerate(self._names):
            if counts[group]:
                continue
            spec = self.config.classes[name]
            asked = ", ".join(
                map(repr, [*spec.words[:5], *spec.lemmas[:5], *(f"{k}={v}" for k, v in spec.tags.items())])
            )
            if scan.lost[group]:
                hint = f"Its words occur in {scan.lost[group]} texts, but every one was filtered:\n{scan.funnel}"
            else:
                near = {n for w in spec.words for n in difflib.get_close_matches(fold(w), scan.vocabulary, n=3)}
                hint = f"Words that do occur and look alike: {', '.join(sorted(near)) or 'none'}."
                if seen := self._matcher.tags_seen:
                    hint += f" Tags of its words that were seen: {', '.join(seen)}."
                if told := told_language(scan.vocabulary):
                    hint += f" The texts look like {told}."
            raise DataError(f"Class {name!r} ({asked}) has no rows in {scan.read:,} texts. {hint}")

    # ------------------------------------------------------------------------------------------------------ choosing

    def _cap(self, classes: Indices, words: Indices, rng: np.random.Generator, funnel: Funnel) -> Indices:
        """Indices of the candidates that the caps leave, in their order."""
        chosen = rng.permutation(len(classes))
        for name, key, most in (
            ("over max_per_word", words, self.config.max_per_word),
            ("over max_per_class", classes, self.config.max_per_class),
        ):
            if most is not None:
                kept = chosen[_rank(key[chosen]) < most]
                funnel.drop(name, len(chosen) - len(kept))
                chosen = kept
        return np.sort(chosen)

    def _split(
        self, table: pa.Table, chosen: Indices, texts: Indices, classes: Indices, words: Indices, names: list[str],
        rng: np.random.Generator,
    ) -> tuple[Indices, list[str]]:  # fmt: skip
        """The split of every chosen row as an index, and the names of the splits."""
        config = self.config
        if config.split_by == "given":
            found = table["split"].take(chosen).to_pylist()
            order = sorted(set(found), key=lambda s: ([*config.splits, s].index(s), s))
            return np.array([order.index(split) for split in found], dtype=np.int64), order
        if config.split_by == "group":
            units = np.unique(table["group"].take(chosen).to_numpy(zero_copy_only=False), return_inverse=True)[1]
        elif config.split_by == "word":
            units = self._families(names)[words[chosen]]
        else:
            units = texts[chosen]
        strata = np.array(self._names)[classes[chosen]]
        if config.split_by == "word" and config.pairs:
            strata[:] = "of pairs"  # a family has words of several classes
        return assign(units, strata, config.splits, rng), list(config.splits)

    def _families(self, names: list[str]) -> Indices:
        """Words that are paired go into one split together: [words] the family of each."""
        family = {name: number for number, name in enumerate(names)}
        for pair in self.config.pairs:
            keys = [key for word in pair if (key := self.config.key(word)) in family]
            merged = {family[key] for key in keys}
            family = {k: min(merged) if v in merged else v for k, v in family.items()} if merged else family
        families: Indices = np.array([family[name] for name in names], dtype=np.int64)
        return families

    def _balance(self, classes: Indices, splits: Indices, rng: np.random.Generator, funnel: Funnel) -> Indices:
        """Positions of the rows to keep (some twice, if asked for), shuffled."""
        rows = rng.permutation(len(classes))
        if self.config.balance == "none":
            return rows
        key = splits[rows] * len(self._names) + classes[rows]
        counts = np.bincount(key, minlength=(splits.max() + 1) * len(self._names)).reshape(-1, len(self._names))
        if self.config.balance == "strict":
            kept: Indices = rows[_rank(key) < counts.min(axis=1)[splits[rows]]]
            funnel.drop("over the smallest class of its split", len(rows) - len(kept))
            return kept
        train = [rows[(splits[rows] == 0) & (classes[rows] == group)] for group in range(len(self._names))]
        most = max(map(len, train))
        repeats = [np.resize(part, most)[len(part) :] for part in train if len(part)]
        return rng.permutation(np.concatenate([rows, *repeats]))

    # ------------------------------------------------------------------------------------------------------- writing

    def _write(
        self, table: pa.Table, classes: Indices, words: Indices, names: list[str], splits: Indices, order: list[str],
        rng: np.random.Generator, funnel: Funnel,
    ) -> tuple[datasets.DatasetDict, str]:  # fmt: skip
        """Rows with their alternatives, a data set per split."""
        grouped = "group" in table.column_names
        alternatives = Alternatives(self.config, names, classes, words, splits, random.Random(int(rng.integers(2**32))))
        digest = hashlib.sha256()
        parts, written, lonely = {}, 0, 0
        for number, split in enumerate(order):
            positions = np.flatnonzero(splits == number)
            with Spool([*COLUMNS, "split", *(["group"] if grouped else [])], self._cache_dir) as spool:
                for start in range(0, len(positions), 10_000):
                    chunk = positions[start : start + 10_000]
                    texts = table.take(chunk)
                    columns = [texts["masked"].to_pylist(), texts["factual"].to_pylist()]
                    groups = texts["group"].to_pylist() if grouped else None
                    for i, (row, masked, factual) in enumerate(zip(chunk.tolist(), *columns, strict=True)):
                        own = self._names[classes[row]]
                        found = alternatives.of(row, factual)
                        lonely += not found
                        for word, other in found:
                            values = (masked, factual, word, own, other, split, *([groups[i]] if groups else []))
                            digest.update("\x1f".join(values).encode() + b"\x1e")
                            for column, value in zip(spool.columns, values, strict=True):
                                column.append(value)
                            written += 1
                    spool.written()
                parts[split] = spool.dataset()
        funnel.drop("no partner for its word", lonely)
        funnel.start("rows, one for each alternative", "rows", written)
        return datasets.DatasetDict(parts), digest.hexdigest()

    def _neutral_splits(
        self, pool: NeutralPool | None, lengths: Indices, order: list[str]
    ) -> datasets.DatasetDict | None:
        wanted = self.config.neutral
        if pool is None or wanted is None:
            return None
        texts = pool.draw(wanted.max_texts, lengths.tolist() if wanted.match_length else None)
        shares = [self.config.splits.get(name, 1.0) for name in order]
        ends = np.round(np.cumsum(shares) / sum(shares) * len(texts)).astype(int)
        starts = [0, *ends[:-1]]
        return datasets.DatasetDict(
            {n: datasets.Dataset.from_dict({"text": texts[a:b]}) for n, a, b in zip(order, starts, ends, strict=True)}
        )


def _rank(keys: Indices) -> Indices:
    """[N] how many equal keys came before each."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(keys)])
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, sizes)
    return ranks
