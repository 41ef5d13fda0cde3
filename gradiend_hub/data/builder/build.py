"""`FeatureDatasetBuilder`: from raw text to rows with a slot, their splits, and neutral text."""

from __future__ import annotations

import difflib
import hashlib
import logging
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data.funnel import Funnel
from gradiend_hub.data.row import COLUMNS
from gradiend_hub.data.splits import Indices, assign, find_leaks, training_first
from gradiend_hub.errors import DataError

from .counterfactual import Alternatives
from .feature_data import FeatureData
from .language import told_language
from .matching import Matcher, WordMatcher, fold
from .neutral import NeutralPool
from .scan import Accept, Scan
from .spec import FeatureDataConfig
from .spool import Spool

logger = logging.getLogger(__name__)

_CHUNK = 10_000
"""Rows whose texts are in memory at a time."""


class FeatureDatasetBuilder:
    """Builds a feature data set from raw text, streaming: memory grows with what is kept alone.

    That is for each row a few numbers and, while near duplicates are looked for, one for each word of its text, for each
    text that was read once the number that tells it from others, and the text of the rows while they are shuffled.

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
        self.config = config = _composed(config)
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
        homes: dict[str, int] = {}  # the split of each group that has rows, for its neutral texts
        if config.neutral is not None and config.split_by == "group":
            homes = dict(zip(table["group"].take(chosen).to_pylist(), splits.tolist(), strict=True))
        if config.split_by == "word":
            keep = self._without_held_out(table, chosen, words[chosen], names, splits, funnel)
            chosen, splits = chosen[keep], splits[keep]
        masked = (text for texts in _chunks(table, chosen) for text in texts)
        leaks = find_leaks(masked, splits.tolist(), range(len(order)), config.near_duplicates)
        if config.fix_leaks and leaks.rows:
            funnel.drop("nearly the same text in a later split", len(leaks.rows))
            keep = np.setdiff1d(np.arange(len(chosen)), leaks.rows)
            chosen, splits = chosen[keep], splits[keep]
        keep = self._balance(classes[chosen], splits, len(order), rng, funnel)
        chosen, splits = chosen[keep], splits[keep]
        self._require_every_split(classes[chosen], splits, order, funnel)
        rows, digest = self._write(
            table.take(chosen), classes[chosen], words[chosen], names, splits, order, rng, funnel
        )
        neutral = self._neutral_splits(scan.neutral, np.array(numbers.lengths)[chosen], order, homes, rng, funnel)
        return FeatureData(rows, neutral, funnel, leaks, digest, config)

    def _require_every_class(self, scan: Scan) -> None:
        counts = Counter(scan.candidates.classes)
        for group, name in enumerate(self._names):
            if counts[group]:
                continue
            spec = self.config.classes[name]
            marks = [*spec.words[:5], *spec.lemmas[:5], *(f"{k}={v}" for k, v in spec.tags.items())]
            asked = ", ".join(map(repr, marks))
            if scan.lost[group]:
                hint = f"Its words occur in {scan.lost[group]} texts, but every one was filtered:\n{scan.funnel}"
            else:
                near = {n for w in spec.words for n in difflib.get_close_matches(fold(w), scan.vocabulary, n=3)}
                hint = f"Words that do occur and look alike: {', '.join(sorted(near)) or 'none'}."
                if seen := self._matcher.tags_seen:
                    hint += f" Tags of its words that were seen: {', '.join(seen)}."
                if told := told_language(scan.vocabulary):
                    hint += f" The texts look like {told}."
                if 2 * scan.dropped["broken encoding"] > scan.read:
                    hint += " Most texts are not in the encoding that they are read in: name theirs as source.encoding."
                hint += f" What became of all texts:\n{scan.funnel}"
            raise DataError(f"Class {name!r} ({asked}) has no rows in {scan.read:,} texts. {hint}")

    def _require_every_split(self, classes: Indices, splits: Indices, order: list[str], funnel: Funnel) -> None:
        """Refuse what would be written as an empty file, or can say nothing of a class."""
        count = len(self._names)
        counts = np.bincount(splits * count + classes, minlength=len(order) * count).reshape(-1, count)
        if counts.all():
            return
        by_class = [dict(zip(self._names, of, strict=True)) for of in counts.tolist()]
        found = dict(zip(order, by_class, strict=True))
        raise DataError(
            f"Every split needs rows of every class, found {found}. Ask for fewer splits, give more data, or choose another "
            f"split_by. What became of all texts:\n{funnel}"
        )

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
        self,
        table: pa.Table,
        chosen: Indices,
        texts: Indices,
        classes: Indices,
        words: Indices,
        names: list[str],
        rng: np.random.Generator,
    ) -> tuple[Indices, list[str]]:
        """The split of every chosen row as an index, and the names of the splits."""
        config = self.config
        if config.split_by == "given":
            found = table["split"].take(chosen).to_pylist()
            order = training_first(sorted(set(found), key=lambda s: ([*config.splits, s].index(s), s)))
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
        order = training_first(config.splits)
        return assign(units, strata, {name: config.splits[name] for name in order}, rng), order

    def _families(self, names: list[str]) -> Indices:
        """Words that are paired go into one split together: [words] the family of each."""
        family = {name: number for number, name in enumerate(names)}
        for pair in self.config.pairs:
            keys = [key for word in pair if (key := self.config.key(word)) in family]
            merged = {family[key] for key in keys}
            family = {k: min(merged) if v in merged else v for k, v in family.items()} if merged else family
        families: Indices = np.array([family[name] for name in names], dtype=np.int64)
        return families

    def _without_held_out(
        self, table: pa.Table, chosen: Indices, words: Indices, names: list[str], splits: Indices, funnel: Funnel
    ) -> Indices:
        """Positions of the rows whose text, too, is without the words of any other split."""
        home = np.full(len(names), -1)  # of a word that no row has, nothing is held out
        home[words] = splits
        matcher = WordMatcher(
            ((name, number) for number, name in enumerate(names)), case_sensitive=self.config.case_sensitive
        )
        keep, start = np.ones(len(chosen), dtype=bool), 0
        for texts in _chunks(table, chosen):
            for place, hits in matcher.find([text.replace(SLOT, " ") for text in texts]).items():
                found = home[[word for _, _, word in hits]]
                keep[start + place] = np.isin(found, (-1, splits[start + place])).all()
            start += len(texts)
        funnel.drop("a word of another split in the text", int((~keep).sum()))
        return np.flatnonzero(keep)

    def _balance(
        self, classes: Indices, splits: Indices, count: int, rng: np.random.Generator, funnel: Funnel
    ) -> Indices:
        """Positions of the rows to keep (some twice, if asked for), shuffled."""
        rows = rng.permutation(len(classes))
        if self.config.balance == "none":
            return rows
        key = splits[rows] * len(self._names) + classes[rows]
        counts = np.bincount(key, minlength=count * len(self._names)).reshape(-1, len(self._names))
        if self.config.balance == "strict":
            kept: Indices = rows[_rank(key) < counts.min(axis=1)[splits[rows]]]
            funnel.drop("over the smallest class of its split", len(rows) - len(kept))
            return kept
        train = [rows[(splits[rows] == 0) & (classes[rows] == group)] for group in range(len(self._names))]
        most = max(map(len, train))
        repeats = [np.resize(part, most)[len(part) :] for part in train if len(part)]
        every = np.concatenate([rows, *repeats])
        if len(every) > len(rows):
            funnel.start("training rows of smaller classes repeated", funnel.steps[-1][1], len(every))
        return rng.permutation(every)

    # ------------------------------------------------------------------------------------------------------- writing

    def _write(
        self,
        table: pa.Table,
        classes: Indices,
        words: Indices,
        names: list[str],
        splits: Indices,
        order: list[str],
        rng: np.random.Generator,
        funnel: Funnel,
    ) -> tuple[datasets.DatasetDict, str]:
        """Rows with their alternatives, a data set per split."""
        grouped = "group" in table.column_names
        alternatives = Alternatives(self.config, names, classes, words, splits, random.Random(int(rng.integers(2**32))))
        digest = hashlib.sha256()
        parts, written = {}, 0
        paired = np.ones(len(classes), dtype=bool)
        for number, split in enumerate(order):
            positions = np.flatnonzero(splits == number)
            with Spool([*COLUMNS, "split", *(["group"] if grouped else [])], self._cache_dir) as spool:
                for start in range(0, len(positions), _CHUNK):
                    chunk = positions[start : start + _CHUNK]
                    texts = table.take(chunk)
                    columns = [texts["masked"].to_pylist(), texts["factual"].to_pylist()]
                    groups = texts["group"].to_pylist() if grouped else None
                    for i, (row, masked, factual) in enumerate(zip(chunk.tolist(), *columns, strict=True)):
                        own = self._names[classes[row]]
                        found = alternatives.of(row, factual)
                        paired[row] = bool(found)
                        for word, other in found:
                            values = (masked, factual, word, own, other, split, *([groups[i]] if groups else []))
                            digest.update("\x1f".join(values).encode() + b"\x1e")
                            for column, value in zip(spool.columns, values, strict=True):
                                column.append(value)
                            written += 1
                    spool.written()
                parts[split] = spool.dataset()
        funnel.drop("no other word to replace its word", int((~paired).sum()))
        self._require_every_split(classes[paired], splits[paired], order, funnel)
        funnel.start("rows, one for each alternative", "rows", written)
        return datasets.DatasetDict(parts), digest.hexdigest()

    def _neutral_splits(
        self,
        pool: NeutralPool | None,
        lengths: Indices,
        order: list[str],
        homes: Mapping[str, int],
        rng: np.random.Generator,
        funnel: Funnel,
    ) -> datasets.DatasetDict | None:
        """Neutral texts in the shares of the splits, or where their split or group belongs; a split without any is left
        out, since an empty file cannot be read."""
        wanted = self.config.neutral
        if pool is None or wanted is None:
            return None
        given = order if self.config.split_by == "given" else None
        drawn = pool.draw(wanted.max_texts, lengths.tolist() if wanted.match_length else None, given)
        splits = self._neutral_homes([unit for _, unit in drawn], order, homes, rng)
        texts = {n: [t for (t, _), s in zip(drawn, splits, strict=True) if order[s] == n] for n in order}
        funnel.neutral = Funnel([("neutral texts, without a word of any class", "texts", pool.offered)])
        funnel.neutral.drop(f"more than the {wanted.max_texts:,} asked for, or read before", pool.offered - len(drawn))
        if len(drawn) < wanted.max_texts or not all(texts.values()):
            logger.warning(
                "neutral: asked for %d texts, found %d (%s). Give more text without words of the classes, loosen `filters`, "
                "or ask for fewer.",
                wanted.max_texts,
                len(drawn),
                ", ".join(f"{n} {len(t)}" for n, t in texts.items()),
            )
        parts = {name: datasets.Dataset.from_dict({"text": found}) for name, found in texts.items() if found}
        return datasets.DatasetDict(parts) if parts else None

    def _neutral_homes(
        self, units: list[str], order: list[str], homes: Mapping[str, int], rng: np.random.Generator
    ) -> list[int]:
        """The split of each neutral text, as its index."""
        if self.config.split_by == "given":
            return [order.index(unit) for unit in units]
        shares = np.array([self.config.splits[name] for name in order])
        if self.config.split_by == "group":
            strangers = sorted({*units} - {*homes})
            drawn = rng.choice(len(order), len(strangers), p=shares / shares.sum()).tolist()
            known = {**homes, **dict(zip(strangers, drawn, strict=True))}
            return [known[unit] for unit in units]
        ends = np.round(np.cumsum(shares) / shares.sum() * len(units)).astype(int)
        return [split for split, size in enumerate(np.diff(ends, prepend=0).tolist()) for _ in range(size)]


def _composed(config: FeatureDataConfig) -> FeatureDataConfig:
    """A configuration whose words have their accents as the texts will: in one character with the letter (NFC)."""

    def nfc(text: str) -> str:
        return unicodedata.normalize("NFC", text)

    classes = {
        name: replace(
            spec,
            words=tuple(map(nfc, spec.words)),
            lemmas=tuple(map(nfc, spec.lemmas)),
            before=nfc(spec.before),
            after=nfc(spec.after),
        )
        for name, spec in config.classes.items()
    }
    pairs = [[nfc(str(word)) for word in pair] for pair in config.pairs]
    same = classes == config.classes and pairs == [[*pair] for pair in config.pairs]
    return config if same else replace(config, classes=classes, pairs=pairs)


def _chunks(table: pa.Table, rows: Indices) -> Iterator[list[str]]:
    """The masked texts of rows, which are in the order of the table, some at a time."""
    end = 0
    for part in table["masked"].chunks:
        start, end = end, end + len(part)
        first, last = np.searchsorted(rows, (start, end))
        for at in range(first, last, _CHUNK):
            yield part.take(pa.array(rows[at : min(at + _CHUNK, last)] - start)).to_pylist()


def _rank(keys: Indices) -> Indices:
    """[N] how many equal keys came before each."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(keys)])
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, sizes)
    return ranks
