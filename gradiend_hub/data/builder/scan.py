"""One pass over a source: texts are filtered, what is dropped is counted, and slots are gathered."""

from __future__ import annotations

import random
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data.funnel import Funnel
from gradiend_hub.errors import DataError

from .language import check_language
from .matching import GLUE, JOINTS, Matcher, goes_on, inside_token
from .neutral import NeutralPool
from .sources import Texts, read_source, sentence_windows
from .spec import FeatureDataConfig
from .spool import Spool
from .tags import EXCLUDED, Hit

Accept = Callable[[str, str, str, str], bool]
"""Filter of slots: it is given the text before it, the word, the text after it, and the class's name."""

_VOCABULARY_TEXTS = 1000
"""Texts whose words are counted, to name the nearest ones when a class finds nothing, and to tell the language."""

_UNREADABLE = ("no text", "broken encoding")
_TEXT_REASONS = (
    "no word of a class",
    f"holds {SLOT}",
    "too short",
    "too long",
    "refused characters",
    "words of several classes",
)
_REPEATED = "read before"

_Usable = Callable[[str, list[Hit]], list[Hit]]
"""Filter of a text's slots: it returns those that can be used."""


@dataclass
class Candidates:
    """Batch that passed the filters: numbers in memory, texts on disk."""

    spool: Spool
    texts: array[int] = field(default_factory=lambda: array("q"))
    classes: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    word_ids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Units:
    """Texts or sentences of a batch, where a sentence's own part begins, and their places in the batch."""

    texts: list[str]
    owns: list[int] | None
    places: Sequence[int]


class Scan:
    """Reads a source once.

    Args:
        config: filters, and where the columns are.
        matcher: finds the words of the classes.
        spool: columns `masked`, `factual`, perhaps `group`, and `split`, for the slots.
        accept: a last filter, for what no option says.
    """

    def __init__(self, config: FeatureDataConfig, matcher: Matcher, spool: Spool, accept: Accept | None = None) -> None:
        self.config, self.candidates, self._matcher, self._accept = config, Candidates(spool), matcher, accept
        self.read = 0
        self.dropped: Counter[str] = Counter()
        """Texts by the filter that dropped them; with all slots asked for, slots by theirs."""
        self.lost: Counter[int] = Counter()
        """Texts with words of a class that some filter dropped."""
        self.vocabulary: Counter[str] = Counter()
        self.neutral = NeutralPool(config.neutral.max_texts, config.seed) if config.neutral else None
        self._units = self._kept = self._matched = 0
        self._rng = random.Random(config.seed)
        self._seen: set[int] = set()
        filters = config.filters
        self._refuse = re.compile(filters.refuse) if filters.refuse else None
        self._counts_words = filters.min_words > 1 or filters.max_words is not None
        self._all, self._deduplicate = config.occurrences == "all", filters.deduplicate
        self._usable = self._slot_filters()

    @property
    def funnel(self) -> Funnel:
        funnel = Funnel()
        funnel.start("read", "texts", self.read)
        for name in _UNREADABLE:
            funnel.drop(name, self.dropped[name])
        if self.config.filters.unit == "sentence":
            funnel.start("divided into sentences", "sentences", self._units)
        for name in _TEXT_REASONS:
            funnel.drop(name, self.dropped[name])
        if self._all:
            funnel.start("words of the classes in them", "slots", self._matched)
        for name in (*self._usable, _REPEATED):
            funnel.drop(name, self.dropped[name])
        return funnel

    def run(self, source: Any) -> None:
        """Read everything, or `max_texts`.

        Raises:
            DataError: the source is empty, cannot be read, or is evidently in another language.
        """
        left = float("inf") if self.config.max_texts is None else self.config.max_texts
        for batch in read_source(source, self.config):
            texts = batch.texts[: int(min(left - self.read, len(batch.texts)))]
            places = self._readable(texts)
            good = texts if len(places) == len(texts) else [texts[place] for place in places]
            # accents belong to their letters, as in the words of the classes
            if not unicodedata.is_normalized("NFC", "\n".join(text for text in good if not text.isascii())):
                good = [unicodedata.normalize("NFC", text) for text in good]
            if self.config.filters.unit == "sentence":
                context = self.config.filters.context
                windows = [
                    (*w, p) for p, text in zip(places, good, strict=True) for w in sentence_windows(text, context)
                ]
                units = _Units([w[0] for w in windows], [w[1] for w in windows], [w[2] for w in windows])
            else:
                units = _Units(good, None, places)
            if self.read < _VOCABULARY_TEXTS:
                self.vocabulary.update(word for text in units.texts for word in re.findall(r"\w+", text.lower()))
                check_language(self.vocabulary, self.config.language)
            self.read += len(texts)
            self._units += len(units.texts)
            self._take(units, batch)
            if self.read >= left:
                break
        if not self.read:
            raise DataError("The source has no texts.")

    def _readable(self, texts: Sequence[Any]) -> Sequence[int]:
        """Places of the texts that are texts."""
        if {*map(type, texts)} == {str} and not any(map(str.isspace, texts)) and all(texts):
            together = "".join(texts)  # nearly always all are well, which is seen at once
            if "\ufffd" not in together and "\0" not in together:
                return range(len(texts))
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
        hits_of = self._matcher.find(units.texts)
        if self.neutral is not None:
            homes = {"given": batch.splits, "group": batch.groups}.get(
                self.config.split_by
            )  # which texts must not leave
            for place, text in enumerate(units.texts):
                if place not in hits_of and self._unfit(text) is None:
                    self.neutral.offer(text, homes[units.places[place]] if homes else "")
        none = len(units.texts) - len(hits_of)
        whole, one_class = units.owns is None and self.neutral is None, not self.config.filters.mixed
        for place, hits in hits_of.items():
            text, own = units.texts[place], units.owns[place] if units.owns else 0
            found = hits if whole else [hit for hit in hits if hit[2] != EXCLUDED]
            slots = [hit for hit in found if hit[0] >= own] if own else found
            if not slots:
                none += 1
                continue
            groups = {slots[0][2]} if len(slots) == 1 else {group for _, _, group in slots}
            reason = self._unfit(text)
            if reason is None and one_class and len(found) > 1 and len({group for _, _, group in found}) > 1:
                reason = "words of several classes"  # in the context, too: the model reads it
            if reason is None:
                self._matched += len(slots)
                reason = self._filter(text, slots)
            if reason is None:
                self._keep(text, slots, units.places[place], batch)
            else:
                if reason in _TEXT_REASONS or not self._all:
                    self.dropped[reason] += 1
                self.lost.update(groups)
        self.dropped["no word of a class"] += none
        self.candidates.spool.written()

    def _keep(self, text: str, slots: list[Hit], place: int, batch: Texts) -> None:
        """Note one slot of a text, or all of them."""
        candidates, key = self.candidates, self.config.key
        columns = candidates.spool.columns
        self._kept += 1
        if len(slots) > 1 and self.config.occurrences == "one":
            slots = [self._rng.choice(slots)]
        for start, end, group in slots:
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

    def _unfit(self, text: str) -> str | None:
        """Return the reason a text is left out, or None."""
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
        """Remove slots that are not to be used; return the reason if none is left."""
        for reason, usable in self._usable.items():
            kept = usable(text, slots)
            if len(kept) < len(slots):
                if self._all:
                    self.dropped[reason] += len(slots) - len(kept)
                slots[:] = kept
                if not kept:
                    return reason
        if self._deduplicate:
            key = hash(text.lower())
            if key in self._seen:
                if self._all:
                    self.dropped[_REPEATED] += len(slots)
                return _REPEATED
            self._seen.add(key)
        return None

    def _slot_filters(self) -> dict[str, _Usable]:
        """Return the filters of slots by the reason for which slots are dropped."""
        filters, needed, accept = self.config.filters, self.config.filters.min_left_words, self._accept
        specs, names = self.config.classes.values(), list(self.config.classes)
        found: dict[str, _Usable] = {}
        words = [self.config.key(word) for spec in specs for word in spec.words]
        if len(set(words)) < len(words) or not all(spec.words for spec in specs):
            found["a word that several classes claim"] = _unclaimed
        found["only in longer tokens (s/he, it.com)"] = _without(GLUE, inside_token)
        if not filters.contractions:
            found["only in contractions or compounds"] = _without(JOINTS, goes_on)
        if needed:
            found["too few words before the slot"] = lambda text, slots: [
                hit for hit in slots if len(text[: hit[0]].split(None, needed)) >= needed
            ]
        if accept is not None:
            found["not accepted"] = lambda text, slots: [
                (s, e, g) for s, e, g in slots if accept(text[:s], text[s:e], text[e:], names[g])
            ]
        return found


def _unclaimed(text: str, slots: list[Hit]) -> list[Hit]:
    claims = Counter((start, end) for start, end, _ in slots)
    return [hit for hit in slots if claims[hit[0], hit[1]] == 1]


def _without(marks: frozenset[str], unusable: Callable[[str, int, int], bool]) -> _Usable:
    """Return a filter of words that are unusable in their text, which can only be where one of the marks touches them."""

    def usable(text: str, slots: list[Hit]) -> list[Hit]:
        return [
            hit
            for hit in slots
            if (text[hit[1] : hit[1] + 1] not in marks and text[hit[0] - 1 : hit[0]] not in marks)  # nearly always
            or not unusable(text, hit[0], hit[1])
        ]

    return usable
