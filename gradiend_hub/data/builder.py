"""`FeatureDatasetBuilder`: from raw text to rows with a slot, their splits, and neutral text."""

from __future__ import annotations

import difflib
import hashlib
import random
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from gradiend_hub.constants import SLOT
from gradiend_hub.errors import DataError

from .counterfactual import Alternatives
from .funnel import Funnel
from .matching import EXCLUDED, Hit, TagMatcher, WordMatcher, fold, goes_on, load_spacy
from .neutral import NeutralPool
from .rows import COLUMNS
from .sources import Texts, read_source, sentence_windows
from .spec import FeatureDataConfig
from .splits import Indices, Leaks, assign, find_leaks
from .spool import Spool

__all__ = ["FeatureData", "FeatureDatasetBuilder"]

_VOCABULARY_TEXTS = 1000
"""Texts whose words are remembered, to name the nearest ones when a class finds nothing."""


@dataclass(frozen=True)
class FeatureData:
    """What a builder made.

    Attributes:
        rows: splits of rows with the columns `masked`, `factual`, `alternative`, `factual_class`, `alternative_class`,
            `split` and, if the source has groups, `group`.
        neutral: splits of sentences (`text`) without the feature, in the same shares; `None` if none were asked for.
        funnel: what became of every text.
        leaks: texts that reached two splits, before they were dropped.
        digest: SHA-256 of all rows in order.
        config: what they were built from.
    """

    rows: datasets.DatasetDict
    neutral: datasets.DatasetDict | None
    funnel: Funnel
    leaks: Leaks
    digest: str
    config: FeatureDataConfig

    def save(self, folder: str | Path) -> Path:
        """Write JSON lines and the card, as `datasets.load_dataset(folder)` reads them."""
        from .card import save_data

        return save_data(self, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Publish rows, neutral text and card in one commit; options are those of `publish_folder`."""
        from .card import push_data

        return push_data(self, repo_id, **options)


@dataclass
class _Candidates:
    """Slots that passed the filters: numbers in memory, texts on disk."""

    spool: Spool
    texts: array[int] = field(default_factory=lambda: array("q"))
    classes: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    word_ids: dict[str, int] = field(default_factory=dict)


class FeatureDatasetBuilder:
    """Builds a feature data set from raw text, streaming: memory grows with what is kept (a few numbers a row) alone.

    Args:
        config: classes, filters, splits; see `FeatureDataConfig`.
        nlp: a loaded spaCy pipeline, instead of the one that `config.spacy_model` names.
        cache_dir: folder for the Arrow files of the result, by default the cache of `datasets`.

    Raises:
        ConfigError: a tag that does not exist, a language that is not the model's, a missing model.
    """

    def __init__(self, config: FeatureDataConfig, *, nlp: Any = None, cache_dir: str | Path | None = None) -> None:
        self.config = config
        self._names = list(config.classes)
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        neutral = config.neutral
        words = [(w, group) for group, spec in enumerate(config.classes.values()) for w in spec.words]
        words += [(w, EXCLUDED) for w in (neutral.exclude_words if neutral else ())]
        self._words = WordMatcher(words, case_sensitive=config.case_sensitive)
        excluded = neutral.exclude_tags if neutral else ()
        self._tags: TagMatcher | None = None
        if excluded or any(spec.needs_spacy for spec in config.classes.values()):
            self._tags = TagMatcher(config, nlp or load_spacy(config), excluded)
        self._every_text = bool(excluded) or any(not spec.words for spec in config.classes.values())

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
            scan = _Scan(self, _Candidates(spool))
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

    # ------------------------------------------------------------------------------------------------------ matching

    def hits(self, texts: Sequence[str]) -> dict[int, list[Hit]]:
        """Words of the classes, and words that no neutral text may hold, of the texts that have any, by place."""
        surface = self._words.find(texts)
        if self._tags is None:
            return surface
        # where every class names words, the parser reads only texts that hold one
        places = list(range(len(texts))) if self._every_text else list(surface)
        parsed = dict(zip(places, self._tags.find([texts[place] for place in places]), strict=True))
        for place, hits in surface.items() if self.config.neutral else ():
            marks = hits if not self._every_text else [hit for hit in hits if hit[2] == EXCLUDED]
            parsed[place] += [(start, end, EXCLUDED) for start, end, _ in marks]
        return {place: hits for place, hits in parsed.items() if hits}

    def _require_every_class(self, scan: _Scan) -> None:
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
                seen = [value for value, _ in self._tags.values_seen.most_common(5)] if self._tags else []
                hint = f"Words that do occur and look alike: {', '.join(sorted(near)) or 'none'}."
                hint += f" Tags of its words that were seen: {', '.join(seen)}." if seen else ""
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


@dataclass(frozen=True)
class _Units:
    """Texts or sentences of a batch, where a sentence's own part begins, and their places in the batch."""

    texts: list[str]
    owns: list[int] | None
    places: list[int]


class _Scan:
    """One pass over the source: filters texts, counts what is dropped, and gathers slots."""

    def __init__(self, builder: FeatureDatasetBuilder, candidates: _Candidates) -> None:
        config = builder.config
        self.builder, self.config, self.candidates = builder, config, candidates
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.lost: Counter[int] = Counter()
        """Texts with words of a class that some filter dropped."""
        self.vocabulary: set[str] = set()
        self.neutral = NeutralPool(config.neutral.max_texts, config.seed) if config.neutral else None
        self._units = self._kept = 0
        self._rng = random.Random(config.seed)
        self._seen: set[int] = set()
        self._refuse = re.compile(config.filters.refuse) if config.filters.refuse else None
        self._counts_words = config.filters.min_words > 1 or config.filters.max_words is not None

    @property
    def funnel(self) -> Funnel:
        funnel = Funnel()
        funnel.start("read", "texts", self.read)
        for name in ("no text", "broken encoding"):
            funnel.drop(name, self.dropped[name])
        if self.config.filters.unit == "sentence":
            funnel.start("divided into sentences", "sentences", self._units)
        for name in (n for n in self.dropped if n not in ("no text", "broken encoding")):
            funnel.drop(name, self.dropped[name])
        if self.config.occurrences == "all":
            funnel.start("slots", "slots", len(self.candidates.texts))
        return funnel

    def run(self, source: Any) -> None:
        # the order of the funnel
        for name in ("no text", "broken encoding", "no word of a class", f"holds {SLOT}", "too short", "too long",
                     "refused characters", "words of several classes", "only in contractions or compounds",
                     "too few words before the slot", "read before"):  # fmt: skip
            self.dropped[name] = 0
        left = float("inf") if self.config.max_texts is None else self.config.max_texts
        for batch in read_source(source, self.config):
            texts = batch.texts[: int(min(left - self.read, len(batch.texts)))]
            self.read += len(texts)
            places = self._readable(texts)
            if self.config.filters.unit == "sentence":
                windows = [(*w, p) for p in places for w in sentence_windows(texts[p], self.config.filters.context)]
                units = _Units([w[0] for w in windows], [w[1] for w in windows], [w[2] for w in windows])
            else:
                units = _Units([texts[place] for place in places], None, places)
            if self.read <= _VOCABULARY_TEXTS:
                self.vocabulary.update(word for text in units.texts for word in re.findall(r"\w+", fold(text)))
            self._units += len(units.texts)
            self._take(units, batch)
            if self.read >= left:
                break
        if not self.read:
            raise DataError("The source has no texts.")

    def _readable(self, texts: Sequence[Any]) -> list[int]:
        """Places of the texts that are texts."""
        places = []
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text or text.isspace():
                self.dropped["no text"] += 1
            elif "\ufffd" in text or "\0" in text:
                self.dropped["broken encoding"] += 1
            else:
                places.append(place)
        return places

    def _take(self, units: _Units, batch: Texts) -> None:
        """Filter the units of a batch and keep their slots."""
        if self.config.split_by == "given" and batch.splits is None:
            raise DataError("split_by: given, but the source has no splits. Name their column as split_column.")
        hits_of = self.builder.hits(units.texts)
        if self.neutral is not None:
            for place, text in enumerate(units.texts):
                if place not in hits_of and self._unfit(text) is None:
                    self.neutral.offer(text)
        none = len(units.texts) - len(hits_of)
        whole = units.owns is None and self.neutral is None
        for place, hits in hits_of.items():
            text, own = units.texts[place], units.owns[place] if units.owns else 0
            slots = hits if whole else [hit for hit in hits if hit[2] != EXCLUDED and hit[0] >= own]
            if not slots:
                none += 1
                continue
            classes = [group for _, _, group in slots]
            reason = self._unfit(text) or self._filter(text, slots)
            if reason is not None:
                self.dropped[reason] += 1
                self.lost.update(set(classes))
                continue
            self._keep(text, slots, units.places[place], batch)
        self.dropped["no word of a class"] += none
        self.candidates.spool.written()

    def _keep(self, text: str, slots: list[Hit], place: int, batch: Texts) -> None:
        """Note one slot of a text, or all of them."""
        candidates, key = self.candidates, self.config.key
        columns = candidates.spool.columns
        self._kept += 1
        for start, end, group in slots if self.config.occurrences == "all" else [self._one(slots)]:
            factual = text[start:end]
            candidates.texts.append(self._kept)
            candidates.classes.append(group)
            candidates.words.append(candidates.word_ids.setdefault(key(factual), len(candidates.word_ids)))
            candidates.lengths.append(len(text))
            columns[0].append(text[:start] + SLOT + text[end:])
            columns[1].append(factual)
            if len(columns) == 4:
                columns[2].append(batch.groups[place] if batch.groups else "")
            columns[-1].append(batch.splits[place] if batch.splits else "train")

    def _one(self, slots: list[Hit]) -> Hit:
        return slots[0] if len(slots) == 1 else self._rng.choice(slots)

    def _unfit(self, text: str) -> str | None:
        """Why a text is not taken, whatever it says."""
        filters = self.config.filters
        if SLOT in text:
            return f"holds {SLOT}"
        words = len(text.split()) if self._counts_words else 1
        if len(text) < filters.min_chars or words < filters.min_words:
            return "too short"
        if (filters.max_chars and len(text) > filters.max_chars) or (filters.max_words and words > filters.max_words):
            return "too long"
        if self._refuse and self._refuse.search(text):
            return "refused characters"
        return None

    def _filter(self, text: str, slots: list[Hit]) -> str | None:
        """Remove slots that are not to be used; why, if none is left."""
        filters = self.config.filters
        if not filters.mixed and len({group for _, _, group in slots}) > 1:
            return "words of several classes"
        if not filters.contractions:
            slots[:] = [hit for hit in slots if not goes_on(text, hit[0], hit[1])]
            if not slots:
                return "only in contractions or compounds"
        if needed := filters.min_left_words:
            slots[:] = [hit for hit in slots if len(text[: hit[0]].split(None, needed)) >= needed]
            if not slots:
                return "too few words before the slot"
        if filters.deduplicate:
            key = hash(text.lower())
            if key in self._seen:
                return "read before"
            self._seen.add(key)
        return None


def _rank(keys: Indices) -> Indices:
    """[N] how many equal keys came before each."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(keys)])
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, sizes)
    return ranks
