"""Text in another language than the one that was named is refused; what cannot be told is not."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder
from gradiend_hub.data.builder.language import check_language, language_code, told_language
from gradiend_hub.errors import DataError

SAMPLES = {
    "en": "The old man from the village was not at home, and his neighbours said that he had gone to the market with a cart "
    "of apples, which he sold for a good price in the town by the river.",
    "de": "Der alte Mann aus dem Dorf war nicht zu Hause, und seine Nachbarn sagten, dass er mit einem Wagen voller Äpfel "
    "auf den Markt gefahren ist, wo er sie für eine gute Summe an die Leute in der Stadt verkauft und sich freut.",
    "fr": "Le vieil homme du village n'était pas chez lui, et les voisins disaient qu'il est parti pour la ville avec une "
    "charrette de pommes, qui se vendent bien sur le marché, dans la rue des marchands, aux gens de passage.",
    "es": "El viejo del pueblo no estaba en casa, y los vecinos decían que se fue con una carreta de manzanas por el camino "
    "del mercado, donde las vende a los que pasan por la plaza, como todos los años, para su familia.",
    "it": "Il vecchio del paese non era in casa, e i vicini dicevano che era andato con una carretta di mele per la strada "
    "della città, dove gli uomini le comprano nel mercato, che è anche il luogo delle feste di tutti gli anni.",
    "pt": "O velho da aldeia não estava em casa, e os vizinhos diziam que foi com uma carroça de maçãs para o mercado, que "
    "são vendidas aos que passam pela praça, mais também por causa das festas dos pobres, como em todos os anos.",
    "nl": "De oude man van het dorp was niet thuis, en de buren zeiden dat hij met een kar vol appels naar de markt is, "
    "waar ze voor een goede prijs aan de mensen in de stad verkocht worden, maar ook bij het huis van zijn broer.",
}  # fmt: skip


def words(text: str, times: int = 10) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()) * times)


@pytest.mark.parametrize("code", SAMPLES)
def test_each_language_is_told_from_the_others(code: str) -> None:
    found = words(SAMPLES[code])
    assert (told_language(found) or "").endswith(f"({code})")
    check_language(found, code)
    check_language(found, f"{code}-XX")
    for other in SAMPLES.keys() - {code}:
        with pytest.raises(DataError, match=rf"language is '{other}', but the texts look like \w+ \({code}\)"):
            check_language(found, other)


@pytest.mark.parametrize("name", ["en", "EN", "en-US", "en_GB", " En-us "])
def test_a_region_is_not_the_language(name: str) -> None:
    assert language_code(name) == FeatureDataConfig({"a": ["x"], "b": ["y"]}, language=name).language == "en"


def test_what_cannot_be_told_is_not_refused() -> None:
    assert told_language(words(SAMPLES["en"], 1)) is None  # too few words
    assert told_language(Counter({f"word{n}": 1 for n in range(500)})) is None
    assert told_language(words(SAMPLES["en"] + SAMPLES["de"])) is None  # of both
    for unknown in (None, "tlh"):
        check_language(words(SAMPLES["de"]), unknown)


def test_german_classes_on_english_text() -> None:
    """With a language the build stops at the first batch; without one, the class that finds nothing says why."""
    classes = {"masc": ["der"], "neut": ["das"]}
    texts = [f"{number}. {SAMPLES['en']}" for number in range(20)]
    with pytest.raises(
        DataError, match=r"language is 'de', but the texts look like English \(en\). Name the right source"
    ):
        FeatureDatasetBuilder(FeatureDataConfig(classes, language="de")).build(texts)
    with pytest.raises(DataError, match=r"Class 'masc' .*has no rows.* The texts look like English \(en\)\."):
        FeatureDatasetBuilder(FeatureDataConfig(classes)).build(texts)
