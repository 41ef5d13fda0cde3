"""Finding words by their grammar, as a spaCy pipeline sees it."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradiend_hub.errors import ConfigError
from gradiend_hub.lazy import require

from .spec import FeatureDataConfig

EXCLUDED = -1
"""Class of words that no neutral text may hold."""

Hit = tuple[int, int, int]
"""Start and end of a word in a text, and the index of its class (or `EXCLUDED`)."""


def in_word(character: str) -> bool:
    """Return whether a character is part of a word: a letter, a digit, or a mark that combines with them ("वहाँ" has two)."""
    return character.isalnum() or (character != "" and unicodedata.category(character)[0] == "M")


def _names(text: str) -> list[str]:
    return text.split()


# universaldependencies.org/u/pos and /u/feat
_UPOS = _names("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X SPACE")
_FEATURES = _names(
    "Abbr Animacy Aspect Case Clusivity Definite Degree Deixis DeixisRef Evident ExtPos Foreign Gender Mood NounClass "
    "Number NumType Person Polarity Polite Poss PronType Reflex Tense Typo VerbForm Voice"
)
_ATTRIBUTES = ("pos", "tag", "dep", "ent_type")


class TagMatcher:
    """Tokens that meet lemmas and tags, as a spaCy pipeline sees them.

    Args:
        config: classes and language.
        nlp: the loaded pipeline.
        excluded: tags that make a text unfit as neutral.
    """

    def __init__(self, config: FeatureDataConfig, nlp: Any, excluded: Sequence[Mapping[str, str]] = ()) -> None:
        if config.language and nlp.lang != config.language:
            raise ConfigError(
                f"language is {config.language!r}, but the spaCy model {config.spacy_model!r} reads {nlp.lang!r}."
            )
        self._nlp = nlp
        self._asked = {
            group: (frozenset(spec.lemmas), dict(spec.tags))
            for group, spec in enumerate(config.classes.values())
            if spec.needs_spacy
        }
        self._wordless = [group for group, spec in enumerate(config.classes.values()) if not spec.words]
        self._excluded = [dict(tags) for tags in excluded]
        for tags in (*(spec.tags for spec in config.classes.values()), *excluded):
            self._check(tags)
        self.values_seen: Counter[str] = Counter()
        """Values of the asked tags on tokens that met everything else, for a message when a class finds nothing."""

    def find(self, texts: Sequence[str], words: Sequence[list[Hit]]) -> Iterator[list[Hit]]:
        """Hits of each text.

        Args:
            texts: the texts.
            words: the hits of the word lists in each; those whose class says nothing of grammar stay as they are.
        """
        for doc, found in zip(self._nlp.pipe(texts), words, strict=True):
            hits = [hit for hit in found if self._holds(doc, hit)]
            for token in doc:
                start, end = token.idx, token.idx + len(token.text)
                if self._wordless and not _is_part(doc.text, start, end):
                    hits += [(start, end, group) for group in self._wordless if self._is(token, group)]
                if any(self._meets(token, tags) for tags in self._excluded):
                    hits.append((start, end, EXCLUDED))
            yield sorted(hits)

    def _holds(self, doc: Any, hit: Hit) -> bool:
        """Return whether a word, or one word of a phrase, has the role that its class asks for."""
        start, end, group = hit
        if group not in self._asked:
            return True
        tokens = doc.char_span(start, end)  # none for a part of a token, whose grammar is not the word's
        return tokens is not None and any(self._is(token, group) for token in tokens)

    def _is(self, token: Any, group: int) -> bool:
        lemmas, tags = self._asked[group]
        if (not lemmas or token.lemma_ in lemmas) and self._meets(token, tags):
            return True
        self.values_seen.update(f"{name}={_value(token, name)}" for name in tags)
        return False

    @staticmethod
    def _meets(token: Any, tags: Mapping[str, str]) -> bool:
        return all(value in _value(token, name).split(",") for name, value in tags.items())

    def _check(self, tags: Mapping[str, str]) -> None:
        """Refuse a tag or value that no token can have."""
        labels = [
            label
            for name in ("morphologizer", "tagger")
            if self._nlp.has_pipe(name)
            for label in self._nlp.get_pipe(name).labels
        ]
        features = {part.partition("=")[0] for label in labels for part in label.split("|") if "=" in part}
        known = [*_ATTRIBUTES, *sorted({*_FEATURES, *features})]
        for name, value in tags.items():
            if name not in known:
                raise ConfigError(f"Unknown tag {name!r}{_nearest(name, known)}. Expected one of {', '.join(known)}.")
            values = _UPOS if name == "pos" else _values(labels, name)
            if values and value not in values:
                raise ConfigError(
                    f"The tag {name} has no value {value!r}{_nearest(value, values)}. Expected one of {', '.join(values)}."
                )


def _is_part(text: str, start: int, end: int) -> bool:
    """Return whether a token is a part of a word: spaCy divides "cannot" and "gonna"."""
    return in_word(text[start - 1 : start]) or in_word(text[end : end + 1])


def _values(labels: Iterable[str], name: str) -> list[str]:
    """Values of a morphological feature that a model can give."""
    parts = (part.partition("=") for label in labels for part in label.split("|"))
    return sorted({one for feature, _, value in parts if feature == name for one in value.split(",")})


def _value(token: Any, name: str) -> str:
    if name in _ATTRIBUTES:
        return str(getattr(token, f"{name}_"))
    return ",".join(token.morph.get(name))


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def load_spacy(config: FeatureDataConfig) -> Any:
    """The spaCy pipeline of a configuration.

    Raises:
        ConfigError: spaCy or the model is missing, with the command that installs it.
    """
    if not config.spacy_model:
        raise ConfigError("Lemmas and tags need spacy_model, e.g. en_core_web_sm or de_core_news_sm.")
    spacy = require("spacy", "Reading lemmas and tags")
    try:
        return spacy.load(config.spacy_model)
    except OSError as error:
        raise ConfigError(
            f"The spaCy model {config.spacy_model!r} is not installed: python -m spacy download {config.spacy_model}"
        ) from error
