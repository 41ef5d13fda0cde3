"""Classes by grammar, with spaCy pipelines made of rules: nothing is downloaded."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import spacy

from gradiend_hub.data import ClassSpec, FeatureDataConfig, FeatureDatasetBuilder, NeutralSpec, TextFilters
from gradiend_hub.errors import ConfigError, DataError, MissingLibraryError

LOOSE = TextFilters(min_left_words=0)
DER = {"masc_nom": {"words": ["der"], "tags": {"pos": "DET", "Case": "Nom", "Gender": "Masc"}},
       "fem_dat": {"words": ["der"], "tags": {"pos": "DET", "Case": "Dat", "Gender": "Fem"}}}  # fmt: skip
TEXTS = [
    "Dann bellte der Hund dort.",
    "Sie sprach mit der Frau dort.",
    "Der Mann kam mit der Katze.",
    "Es regnet viel.",
]


def config(**options: Any) -> FeatureDataConfig:
    return FeatureDataConfig(
        **{"language": "de", "splits": {"train": 1}, "filters": LOOSE, "balance": "none"} | options
    )


@pytest.fixture(scope="module")
def german() -> Any:
    """German rules: "der" after "mit" is feminine dative, any other one masculine nominative."""
    nlp = spacy.blank("de")
    ruler = nlp.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "der"}]], {"POS": "DET", "MORPH": "Case=Nom|Gender=Masc", "LEMMA": "der"})
    ruler.add([[{"LOWER": "mit"}, {"LOWER": "der"}]], {"MORPH": "Case=Dat|Gender=Fem"}, index=1)
    ruler.add([[{"LOWER": {"IN": ["bellte", "kam", "regnet"]}}]], {"POS": "VERB", "LEMMA": "tun"})
    return nlp


def test_the_same_word_in_two_roles(german: Any) -> None:
    """Surface matching cannot tell the "der" of a subject from that of a dative; tags can."""
    classes = DER | {"neuter": {"words": ["das"]}}
    builder = FeatureDatasetBuilder(config(classes=classes, occurrences="all"), nlp=german)
    rows = builder.build([*TEXTS, "Da ist das Haus."]).rows["train"]
    found = sorted({(m, c) for m, c in zip(rows["masked"], rows["factual_class"], strict=True) if c != "neuter"})
    assert found == [
        ("Dann bellte [MASK] Hund dort.", "masc_nom"),
        ("Der Mann kam mit [MASK] Katze.", "fem_dat"),
        ("Sie sprach mit [MASK] Frau dort.", "fem_dat"),
        ("[MASK] Mann kam mit der Katze.", "masc_nom"),
    ]


def test_lemmas_and_neutral_text_without_a_tag(german: Any) -> None:
    classes = {"verb": {"lemmas": ["tun"]}, "article": {"tags": {"pos": "DET"}}}
    source = [*TEXTS, "Heute ist alles ruhig.", "Alles bellte heute."]
    neutral = NeutralSpec(5, exclude_tags=({"pos": "VERB"},))
    made = FeatureDatasetBuilder(config(classes=classes, occurrences="all", neutral=neutral), nlp=german).build(source)
    rows = made.rows["train"]
    assert {r["factual"] for r in rows if r["factual_class"] == "verb"} == {"bellte", "kam", "regnet"}
    assert {r["factual"] for r in rows if r["factual_class"] == "article"} == {"der", "Der"}
    assert made.neutral is not None
    assert made.neutral["train"]["text"] == ["Heute ist alles ruhig."]


def test_a_word_in_another_role_is_not_neutral(german: Any) -> None:
    """The "der" of a dative is not of the class, but a text that holds it is no text without the feature."""
    classes = {"article": DER["masc_nom"], "verb": {"lemmas": ["tun"]}}
    source = [*TEXTS, "Heute ist alles ruhig."]
    made = FeatureDatasetBuilder(config(classes=classes, neutral=NeutralSpec(5)), nlp=german).build(source)
    assert made.neutral is not None
    assert made.neutral["train"]["text"] == ["Heute ist alles ruhig."]


@pytest.fixture(scope="module")
def english() -> Any:
    """English rules: a few pronouns and names; "cannot" and "gonna" are divided, as every English pipeline does it."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": {"IN": ["he", "they", "na"]}}]], {"POS": "PRON"})
    ruler.add([[{"LOWER": {"IN": ["new", "york", "not"]}}]], {"POS": "PROPN"})
    return nlp


def test_phrases_beside_grammar(english: Any) -> None:
    source = ["Then in New York they slept.", "So now he is gonna sleep.", "Here New-York was seen."]
    for city in (["New York"], {"words": ["New York"], "tags": {"pos": "PROPN"}}):
        classes = {"city": city, "p": {"tags": {"pos": "PRON"}}}
        options = {"language": "en", "classes": classes, "occurrences": "all"}
        rows = FeatureDatasetBuilder(config(**options), nlp=english).build(source).rows["train"]
        assert {*zip(rows["factual_class"], rows["factual"], strict=True)} == {
            ("city", "New York"), ("p", "they"), ("p", "he"),
        }  # fmt: skip
    never = classes | {"city": {"words": ["New York"], "tags": {"pos": "VERB"}}}
    with pytest.raises(DataError, match=r"'city' .* were seen: .*pos=PROPN"):
        FeatureDatasetBuilder(config(**options | {"classes": never}), nlp=english).build(source)


def test_parts_of_words_are_no_words(english: Any) -> None:
    """ "cannot" is no "can" with a "not" after it: a slot in its middle would be no word's."""
    classes = {"no": {"words": ["not"], "tags": {"pos": "PROPN"}}, "p": {"tags": {"pos": "PRON"}}, "w": ["can"]}
    source = ["You cannot see them.", "You're not they.", "We can see it."]
    made = FeatureDatasetBuilder(config(language="en", classes=classes, occurrences="all"), nlp=english).build(source)
    assert {*made.rows["train"]["masked"]} == {"You're [MASK] they.", "You're not [MASK].", "We [MASK] see it."}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Cas": "Nom"}, "Unknown tag 'Cas', did you mean 'Case'"),
        ({"pos": "DETT"}, "The tag pos has no value 'DETT', did you mean 'DET'"),
        ({"Gender": "Masc", "colour": "red"}, "Unknown tag 'colour'. Expected one of pos, tag, dep"),
    ],
)
def test_unknown_tags(german: Any, tags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureDatasetBuilder(config(classes={"a": ClassSpec(("der",), (), tags), "b": ["die"]}), nlp=german)


def test_a_class_without_a_token_says_which_tags_were_seen(german: Any) -> None:
    classes = DER | {"masc_nom": {"words": ["der"], "tags": {"Case": "Gen"}}}
    with pytest.raises(DataError, match=r"'masc_nom' \('der', 'Case=Gen'\) has no rows(?s:.*)were seen: .*Case=Nom"):
        FeatureDatasetBuilder(config(classes=classes), nlp=german).build(TEXTS)


def test_a_model_of_another_language(german: Any) -> None:
    with pytest.raises(ConfigError, match="language is 'en', but the spaCy model None reads 'de'"):
        FeatureDatasetBuilder(config(classes=DER, language="en"), nlp=german)


def test_what_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Lemmas and tags need spacy_model, e\.g\. en_core_web_sm"):
        FeatureDatasetBuilder(config(classes=DER))
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingLibraryError, match=r"not installed: pip install 'gradiend_hub\[spacy\]'"):
        FeatureDatasetBuilder(config(classes=DER, spacy_model="de_core_news_sm"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="not installed: python -m spacy download de_core_news_sm"):
        FeatureDatasetBuilder(config(classes=DER, spacy_model="de_core_news_sm"))
