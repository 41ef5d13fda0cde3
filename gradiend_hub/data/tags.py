"""Finding words by their grammar, as a spaCy pipeline sees it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradiend_hub.errors import ConfigError

from .spec import FeatureDataConfig

EXCLUDED = -1
"""Class of words that no neutral text may hold."""

Hit = tuple[int, int, int]
"""Start and end of a word in a text, and the index of its class (or `EXCLUDED`)."""


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
        self._key = config.key
        self._classes = [
            (frozenset(config.key(w) for w in spec.words), frozenset(spec.lemmas), dict(spec.tags))
            for spec in config.classes.values()
        ]
        self._excluded = [dict(tags) for tags in excluded]
        for tags in (*(spec.tags for spec in config.classes.values()), *excluded):
            self._check(tags)
        self.values_seen: Counter[str] = Counter()
        """Values of the asked tags on tokens that met everything else, for a message when a class finds nothing."""

    def find(self, texts: Sequence[str]) -> Iterator[list[Hit]]:
        """Hits of each text."""
        for doc in self._nlp.pipe(texts):
            hits: list[Hit] = []
            for token in doc:
                for group, (words, lemmas, tags) in enumerate(self._classes):
                    if words and self._key(token.text) not in words:
                        continue
                    if (not lemmas or token.lemma_ in lemmas) and self._meets(token, tags):
                        hits.append((token.idx, token.idx + len(token.text), group))
                    else:
                        self.values_seen.update(f"{name}={_value(token, name)}" for name in tags)
                if any(self._meets(token, tags) for tags in self._excluded):
                    hits.append((token.idx, token.idx + len(token.text), EXCLUDED))
            yield hits

    @staticmethod
    def _meets(token: Any, tags: Mapping[str, str]) -> bool:
        return all(value in _value(token, name).split(",") for name, value in tags.items())

    def _check(self, tags: Mapping[str, str]) -> None:
        """Refuse a tag or value that no token can have."""
        labels = [label for name in ("morphologizer", "tagger") if self._nlp.has_pipe(name)
                  for label in self._nlp.get_pipe(name).labels]  # fmt: skip
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
    try:
        import spacy
    except ImportError as error:
        raise ConfigError(
            "Lemmas and tags need spaCy, which is not installed: pip install 'gradiend_hub[spacy]'"
        ) from error
    try:
        return spacy.load(config.spacy_model)
    except OSError as error:
        raise ConfigError(
            f"The spaCy model {config.spacy_model!r} is not installed: python -m spacy download {config.spacy_model}"
        ) from error
