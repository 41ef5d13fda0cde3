"""Configuration of a feature data set: classes of words, filters and splits, as one YAML file can say them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from gradiend_hub.artifact.validation import SHARE, at_least, check_fields, check_keys, one_of
from gradiend_hub.data.text_files import read_text, separator_of
from gradiend_hub.errors import ConfigError

from .language import language_code

Natural = Annotated[int, at_least(0)]
Positive = Annotated[int, at_least(1)]

DEFAULT_SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}

_CARD = ("pretty_name", "license", "source", "description")


@dataclass(frozen=True)
class ClassSpec:
    """Marks of the words of a feature class. A token has to meet all that are given.

    Attributes:
        words: words or short phrases; matched as whole words.
        lemmas: base forms, as spaCy finds them.
        tags: spaCy's marks by name: `pos`, `tag`, `dep`, `ent_type`, or a morphological feature such as `Case`.
        before, after: regular expressions for the text right before and right after the word: `after: " (was|is)\\b"` takes
            "it" as a subject only, `before: "(my|his) "` a noun that somebody has. Case counts if it does for words.
    """

    words: tuple[str, ...] = ()
    lemmas: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    after: str = ""

    @property
    def needs_spacy(self) -> bool:
        return bool(self.lemmas or self.tags)

    @classmethod
    def parse(cls, name: str, value: Any) -> ClassSpec:
        """From a list of words, the path of a word list, or a mapping with `file` and the attributes."""
        if isinstance(value, ClassSpec):
            value = {f.name: getattr(value, f.name) for f in fields(cls)}
        if isinstance(value, (str, list, tuple)):
            value = {"file": value} if isinstance(value, str) else {"words": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"classes.{name}: expected words, a word list's path or a mapping, found {value!r}.")
        check_keys(value, ("file", *(f.name for f in fields(cls))), f"classes.{name}.")
        words = _words(value.get("words", ()), f"classes.{name}.words")
        words += read_words(value["file"]) if "file" in value else []
        spec = cls(
            tuple(dict.fromkeys(words)),
            tuple(_words(value.get("lemmas", ()), f"classes.{name}.lemmas")),
            _tags(value.get("tags", {}), f"classes.{name}.tags"),
            *(check_pattern(value.get(side, ""), f"classes.{name}.{side}") for side in ("before", "after")),
        )
        if not (spec.words or spec.needs_spacy):
            raise ConfigError(f"classes.{name} says nothing: give it words, a file, lemmas or tags.")
        return spec


@dataclass(frozen=True)
class TextFilters:
    """Filters of texts and slots; every text that is left out is counted under its filter.

    Attributes:
        unit: `"text"` takes each text as it is, `"sentence"` divides it into sentences first.
        context: sentences before the slot's own that are kept with it (with unit `"sentence"`).
        min_words, max_words, min_chars, max_chars: length of the text.
        min_left_words: words before the slot, which are all that a causal model reads.
        refuse: a regular expression; texts in which it is found are left out.
        contractions: whether a word counts that goes on with an apostrophe or a hyphen ("he's", "she-wolf").
        mixed: whether a text may hold words of several classes.
        deduplicate: take a text once only; case does not count.
    """

    unit: Annotated[str, one_of("text", "sentence")] = "text"
    context: Natural = 0
    min_words: Natural = 1
    max_words: Positive | None = None
    min_chars: Natural = 1
    max_chars: Positive | None = None
    min_left_words: Natural = 3
    refuse: str | None = None
    contractions: bool = False
    mixed: bool = True
    deduplicate: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "filters.")
        check_pattern(self.refuse or "", "filters.refuse")
        if self.context and self.unit == "text":
            raise ConfigError(
                "filters.context: texts are kept whole, so there is none. Add unit: sentence, or remove it."
            )
        for least, most in (("min_words", "max_words"), ("min_chars", "max_chars")):
            if (getattr(self, most) or math.inf) < getattr(self, least):
                raise ConfigError(
                    f"filters.{most} is {getattr(self, most)}, less than {least} ({getattr(self, least)}): no text can pass."
                )


@dataclass(frozen=True)
class NeutralSpec:
    """Sentences without any word of any class.

    Attributes:
        max_texts: how many are kept.
        exclude_words: further words that must not occur, e.g. other forms of the same pronouns.
        exclude_tags: spaCy marks that no token may have; a list of mappings as in `ClassSpec.tags`.
        match_length: draw them so that they are as long as the feature's texts.
    """

    max_texts: Positive = 1000
    exclude_words: tuple[str, ...] = ()
    exclude_tags: tuple[Mapping[str, str], ...] = ()
    match_length: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude_words", tuple(_words(self.exclude_words, "neutral.exclude_words")))
        if isinstance(self.exclude_tags, (list, tuple)):
            found = tuple(_tags(tags, "neutral.exclude_tags") for tags in self.exclude_tags)
            object.__setattr__(self, "exclude_tags", found)
        check_fields(self, "neutral.")


@dataclass(frozen=True)
class FeatureDataConfig:
    """All that decides what a data set holds.

    Attributes:
        classes: feature classes by name, see `ClassSpec.parse`. Two or more; every ordered pair of them gets rows.
        source: file (text, CSV, Parquet, JSON lines), Hub id, or a mapping with `path`, `name`, `split`, `revision`,
            `streaming`; not needed when the data set itself is handed to `FeatureDatasetBuilder.build`.
        text_column: column of the texts.
        group_column: column that names the document or template of a text, for `split_by: group`.
        split_column: column that names a text's split, for `split_by: given`; a `DatasetDict` has splits of its own.
        pairs: words that replace each other, one of each class; a list, or the path of a CSV file with a column per class.
        case_sensitive: whether "It" and "it" are different words.
        language: language code ("en-US" is read as "en"); a spaCy model of another language, and text that is evidently in
            another one, are refused.
        spacy_model: name of the spaCy model, for lemmas and tags.
        filters: see `TextFilters`.
        occurrences: `"one"` slot per text, chosen at random, or `"all"`: a row for each.
        max_texts: stop reading after this many texts.
        max_per_class, max_per_word: rows that are kept at most, drawn at random.
        balance: `"strict"` cuts classes to the smallest one, `"oversample"` repeats training rows, `"none"`.
        counterfactual: the alternative word is the `"paired"` one, `"sampled"` by frequency, or `"all"` of them in turn.
        splits: share of each split.
        split_by: `"random"`, `"group"`, `"word"` (held-out vocabulary) or `"given"`.
        near_duplicates: similarity (Jaccard index of three-word sequences) from which two texts count as the same;
            `None` looks for equal texts only.
        fix_leaks: drop rows that occur in a later split again; otherwise they are only reported.
        neutral: see `NeutralSpec`; `None` collects none.
        seed: decides everything that is drawn.
        card: what the card says that the data cannot: `pretty_name`, `license`, `source`, `description`.
    """

    classes: Mapping[str, ClassSpec]
    source: Any = None
    text_column: str = "text"
    group_column: str | None = None
    split_column: str | None = None
    pairs: Sequence[Sequence[str]] = ()
    case_sensitive: bool = False
    language: str | None = None
    spacy_model: str | None = None
    filters: TextFilters = field(default_factory=TextFilters)
    occurrences: Annotated[str, one_of("one", "all")] = "one"
    max_texts: Positive | None = None
    max_per_class: Positive | None = None
    max_per_word: Positive | None = None
    balance: Annotated[str, one_of("strict", "oversample", "none")] = "strict"
    counterfactual: Annotated[str, one_of("paired", "sampled", "all")] = "sampled"
    splits: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLITS))
    split_by: Annotated[str, one_of("random", "group", "word", "given")] = "random"
    near_duplicates: Annotated[float, SHARE] | None = 0.8
    fix_leaks: bool = True
    neutral: NeutralSpec | None = None
    seed: Natural = 0
    card: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FeatureDataConfig:
        """From what a YAML file holds.

        Raises:
            ConfigError: an unknown key (with the nearest one), a value that cannot work, or a file that cannot be read.
        """
        check_keys(content, [f.name for f in fields(cls)], "")
        values = dict(content)
        for name, section in (("filters", TextFilters), ("neutral", NeutralSpec)):
            if isinstance(values.get(name), Mapping):
                check_keys(values[name], [f.name for f in fields(section)], f"{name}.")
                values[name] = section(**values[name])
        return cls(**{"classes": None, **values})

    def __post_init__(self) -> None:
        if not isinstance(self.classes, Mapping):
            raise ConfigError(
                "classes: expected a mapping from class names to words, e.g. {3SG: [he, she], 3PL: [they]}."
            )
        parsed = {str(name): ClassSpec.parse(str(name), value) for name, value in self.classes.items()}
        object.__setattr__(self, "classes", parsed)
        if isinstance(self.pairs, (str, Path)):
            object.__setattr__(self, "pairs", _read_pairs(self.pairs, list(parsed)))
        check_fields(self, "")
        object.__setattr__(self, "pairs", tuple(tuple(pair) for pair in self.pairs))
        card = {"license" if key == "licence" else key: text for key, text in self.card.items()}  # as the Hub spells it
        check_keys(card, _CARD, "card.")
        object.__setattr__(self, "card", card)
        if self.language is not None:
            object.__setattr__(self, "language", language_code(self.language))
        if len(parsed) < 2:
            raise ConfigError(f"A feature needs two classes or more, found {list(parsed)}.")
        if self.split_by == "group" and self.group_column is None:
            raise ConfigError("split_by: group needs group_column, the column to read.")
        if not self.splits or any(share <= 0 for share in self.splits.values()):
            raise ConfigError(f"splits: every share must be larger than 0, found {dict(self.splits)}.")
        if wrong := [name for name in self.splits if not re.fullmatch(r"\w+(\.\w+)*", name)]:
            raise ConfigError(f"splits: a split's name is one word, found {wrong[0]!r}.")
        if self.spacy_model and not self.needs_spacy:
            raise ConfigError(
                f"spacy_model is {self.spacy_model!r}, but no class has lemmas or tags and neutral has no exclude_tags, so "
                "it would read nothing. Remove it, or add them."
            )
        self._check_overlap()
        self._check_pairs()

    def _check_overlap(self) -> None:
        """Two classes that differ in their words only must not share one."""
        seen: dict[tuple[str, Any], str] = {}
        for name, spec in self.classes.items():
            for word in spec.words:
                told_apart_by = (tuple(sorted(spec.tags.items())), spec.lemmas, spec.before, spec.after)
                key = (self.key(word), told_apart_by)
                if seen.setdefault(key, name) != name:
                    by_case = word not in self.classes[seen[key]].words
                    raise ConfigError(
                        f"The word {word!r} belongs to the classes {seen[key]!r} and {name!r}. Remove it from one, or tell "
                        f"them apart by {'case_sensitive: true, ' if by_case else ''}tags or what stands before or after."
                    )

    def _check_pairs(self) -> None:
        partners = self.partners()
        if self.counterfactual != "paired":
            return
        for name, spec in self.classes.items():
            lonely = [w for w in spec.words if (self.key(w), name) not in partners]
            if lonely or not spec.words:
                raise ConfigError(
                    f"counterfactual: paired, but class {name!r} has words without a partner in `pairs`: {lonely[:5]}."
                )

    @property
    def needs_spacy(self) -> bool:
        excluded = self.neutral.exclude_tags if self.neutral else ()
        return bool(excluded) or any(spec.needs_spacy for spec in self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, with every default; a source that a file cannot hold is `None`."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def key(self, word: str) -> str:
        """Return the form of a word that is compared."""
        return word if self.case_sensitive else word.lower()

    def partners(self) -> dict[tuple[str, str], dict[str, list[str]]]:
        """(word, its class) → words of other classes that replace it, by class.

        Raises:
            ConfigError: a pair with a word of no class, or with two of one.
        """
        class_of = {self.key(w): name for name, spec in self.classes.items() for w in spec.words}
        found: dict[tuple[str, str], dict[str, list[str]]] = {}
        for pair in self.pairs:
            classes = [class_of.get(self.key(str(word))) for word in pair]
            if None in classes or len(set(classes)) != len(classes):
                raise ConfigError(
                    f"pairs: {list(pair)} must be one word of each class, but the words' classes are {classes}."
                )
            for word, name in zip(pair, classes, strict=True):
                others = found.setdefault((self.key(str(word)), str(name)), {})
                for other, of in zip(pair, classes, strict=True):
                    if of != name:
                        others.setdefault(str(of), []).append(str(other))
        return found


def read_words(path: str | Path) -> list[str]:
    """Words of a file: one a line, `#` begins a comment."""
    try:
        lines = read_text(Path(path)).splitlines()
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"The word list {path} cannot be read ({error}). Expected UTF-8, one word a line.") from error
    return [word for line in lines if (word := line.partition("#")[0].strip())]


def _read_pairs(path: str | Path, classes: list[str]) -> list[tuple[str, ...]]:
    try:
        lines = read_text(Path(path)).splitlines()
        rows = list(csv.DictReader(lines, delimiter=separator_of(lines[0]))) if lines else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"The list of pairs {path} cannot be read ({error}).") from error
    if not rows or not set(classes) <= rows[0].keys():
        raise ConfigError(
            f"{path}: expected a header with the classes {classes}, found {list(rows[0]) if rows else []}."
        )
    return [tuple((row[name] or "").strip() for name in classes) for row in rows]


def check_pattern(value: Any, name: str) -> str:
    """Refuse what is no regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ConfigError(f"{name}: {value!r} is no regular expression ({error}).") from error
    return str(value)


def _words(value: Any, what: str) -> list[str]:
    """Words of a list; a single text is one word."""
    plural = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    words = list(value) if plural else [value]
    if any(not isinstance(word, str) or not word.strip() for word in words):
        raise ConfigError(f"{what}: expected a list of words, found {value!r}. In YAML, quote words such as 'no'.")
    return [word.strip() for word in words]


def _tags(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what}: expected a mapping such as {{pos: DET, Case: Nom}}, found {value!r}.")
    return {str(name): str(mark) for name, mark in value.items()}


def _plain(value: Any) -> Any:
    """Return a value as JSON and YAML can hold it."""
    if isinstance(value, ClassSpec):  # most attributes of most classes say nothing
        return {f.name: _plain(said) for f in fields(value) if (said := getattr(value, f.name))}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else None
