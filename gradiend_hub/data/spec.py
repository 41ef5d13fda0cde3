"""What a feature data set is built from: classes of words, filters and splits, as one YAML file can say them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gradiend_hub.errors import ConfigError

__all__ = ["ClassSpec", "FeatureDataConfig", "NeutralSpec", "TextFilters", "check_choice", "check_names", "read_words"]

DEFAULT_SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class ClassSpec:
    """What belongs to a feature class. A token has to meet all that is given.

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
            return value
        if isinstance(value, (str, list, tuple)):
            value = {"file": value} if isinstance(value, str) else {"words": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"classes.{name}: expected words, a word list's path or a mapping, found {value!r}.")
        check_names(value, ("file", *(f.name for f in fields(cls))), f"classes.{name}.")
        words = [*value.get("words", ()), *(read_words(value["file"]) if "file" in value else ())]
        spec = cls(
            tuple(dict.fromkeys(_words(words, f"classes.{name}.words"))),
            tuple(_words(value.get("lemmas", ()), f"classes.{name}.lemmas")),
            {str(k): str(v) for k, v in dict(value.get("tags") or {}).items()},
            *(check_pattern(value.get(side, ""), f"classes.{name}.{side}") for side in ("before", "after")),
        )
        if not (spec.words or spec.needs_spacy):
            raise ConfigError(f"classes.{name} says nothing: give it words, a file, lemmas or tags.")
        return spec


@dataclass(frozen=True)
class TextFilters:
    """Which texts and slots are taken; every text that is not is counted under its filter.

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

    unit: str = "text"
    context: int = 0
    min_words: int = 1
    max_words: int | None = None
    min_chars: int = 1
    max_chars: int | None = None
    min_left_words: int = 3
    refuse: str | None = None
    contractions: bool = False
    mixed: bool = True
    deduplicate: bool = True


@dataclass(frozen=True)
class NeutralSpec:
    """Sentences without any word of any class.

    Attributes:
        max_texts: how many are kept.
        exclude_words: further words that must not occur, e.g. other forms of the same pronouns.
        exclude_tags: spaCy marks that no token may have; a list of mappings as in `ClassSpec.tags`.
        match_length: draw them so that they are as long as the feature's texts.
    """

    max_texts: int = 1000
    exclude_words: tuple[str, ...] = ()
    exclude_tags: tuple[Mapping[str, str], ...] = ()
    match_length: bool = True


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
        language: language code; a spaCy model of another language, and text that is evidently in another one, are refused.
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
    occurrences: str = "one"
    max_texts: int | None = None
    max_per_class: int | None = None
    max_per_word: int | None = None
    balance: str = "strict"
    counterfactual: str = "sampled"
    splits: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLITS))
    split_by: str = "random"
    near_duplicates: float | None = 0.8
    fix_leaks: bool = True
    neutral: NeutralSpec | None = None
    seed: int = 0
    card: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FeatureDataConfig:
        """From what a YAML file holds.

        Raises:
            ConfigError: an unknown key (with the nearest one), a value that cannot work, or a file that cannot be read.
        """
        check_names(content, [f.name for f in fields(cls)], "")
        values = dict(content)
        for name, section in (("filters", TextFilters), ("neutral", NeutralSpec)):
            if isinstance(values.get(name), Mapping):
                check_names(values[name], [f.name for f in fields(section)], f"{name}.")
                values[name] = section(**{k: _frozen(v) for k, v in values[name].items()})
        if not isinstance(values.get("classes"), Mapping):
            raise ConfigError(
                "classes: expected a mapping from class names to words, e.g. {3SG: [he, she], 3PL: [they]}."
            )
        return cls(**values)

    def __post_init__(self) -> None:
        parsed = {str(name): ClassSpec.parse(str(name), value) for name, value in self.classes.items()}
        object.__setattr__(self, "classes", parsed)
        if isinstance(self.pairs, str):
            object.__setattr__(self, "pairs", _read_pairs(self.pairs, list(parsed)))
        if len(parsed) < 2:
            raise ConfigError(f"A feature needs two classes or more, found {list(parsed)}.")
        check_pattern(self.filters.refuse or "", "filters.refuse")
        check_choice(self.filters.unit, ("text", "sentence"), "filters.unit")
        check_choice(self.occurrences, ("one", "all"), "occurrences")
        check_choice(self.balance, ("strict", "oversample", "none"), "balance")
        check_choice(self.counterfactual, ("paired", "sampled", "all"), "counterfactual")
        check_choice(self.split_by, ("random", "group", "word", "given"), "split_by")
        if self.split_by == "group" and self.group_column is None:
            raise ConfigError("split_by: group needs group_column, the column to read.")
        if not self.splits or any(share <= 0 for share in self.splits.values()):
            raise ConfigError(f"splits: every share must be larger than 0, found {dict(self.splits)}.")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ConfigError(f"near_duplicates must lie in (0, 1], found {self.near_duplicates}.")
        for name in ("max_texts", "max_per_class", "max_per_word"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}: expected a number of 1 or more, found {value!r}.")
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
                    raise ConfigError(
                        f"The word {word!r} belongs to the classes {seen[key]!r} and {name!r}. Remove it from one, or tell "
                        "them apart by tags or by what stands before or after."
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

    def key(self, word: str) -> str:
        """What is compared when a word is looked up."""
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
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The word list {path} cannot be read ({error}). Expected UTF-8, one word a line.") from error
    return [word for line in lines if (word := line.partition("#")[0].strip())]


def _read_pairs(path: str, classes: list[str]) -> list[tuple[str, ...]]:
    import csv

    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The list of pairs {path} cannot be read ({error}).") from error
    if not rows or not set(classes) <= rows[0].keys():
        raise ConfigError(
            f"{path}: expected a header with the classes {classes}, found {list(rows[0]) if rows else []}."
        )
    return [tuple(row[name].strip() for name in classes) for row in rows]


def check_names(found: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a key that means nothing, and name the nearest one that does."""
    names = list(known)
    for key in found:
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {where}{nearest[0]}?" if nearest else f"expected one of {', '.join(names)}."
            raise ConfigError(f"Unknown key {where}{key}: {hint}")


def check_choice(value: str, known: Sequence[str], name: str) -> None:
    """Refuse a value that is none of the known ones."""
    if value not in known:
        raise ConfigError(f"{name}: expected one of {', '.join(known)}, found {value!r}.")


def check_pattern(value: Any, name: str) -> str:
    """Refuse what is no regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ConfigError(f"{name}: {value!r} is no regular expression ({error}).") from error
    return str(value)


def _words(value: Any, what: str) -> list[str]:
    if isinstance(value, str) or any(not isinstance(word, str) or not word.strip() for word in value):
        raise ConfigError(f"{what}: expected a list of words, found {value!r}. In YAML, quote words such as 'no'.")
    return [word.strip() for word in value]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
