"""Upper and lower case: it counts where it tells two classes apart, and else words follow the one that stood there."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.data import TextRow, class_fillers, read_feature_data, read_rows, require_distinct
from gradiend_hub.data.casing import Casing, begins_sentence, capitalised
from gradiend_hub.errors import DataError
from gradiend_hub.objectives import MaskedLMObjective
from gradiend_hub.objectives.examples import require_readable
from tests.objectives.tokenizers import masked_tokenizer

CLASSES = ["a", "b"]
WORDS = st.text("abcdefgäöéшя", min_size=2, max_size=6)
PATTERNS = {"lower": str, "Capitalised": capitalised, "ALL CAPS": str.upper}


def row(factual: str, alternative: str, masked: str = "so [MASK] went", classes: list[str] | None = None) -> TextRow:
    first, second = classes or CLASSES
    return TextRow(masked, factual, alternative, first, second)


def text_row(masked: str, factual: str, alternative: str, classes: list[str]) -> TextRow:
    return TextRow(masked, factual, alternative, *classes)


@given(st.lists(WORDS, min_size=4, max_size=4, unique_by=str.lower), st.sampled_from(list(PATTERNS)))
def test_listed_words_follow_the_pattern_of_the_row(words: list[str], pattern: str) -> None:
    case = PATTERNS[pattern]
    casing = Casing({"a": words[:2], "b": words[2:]})
    found = casing.of_row(row(case(words[0]), case(words[2])))
    assert [found(word) for word in words] == [case(word) for word in words]
    assert {casing.key(case(word)) for word in words for case in PATTERNS.values()} == {*words}


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3, unique=True))
def test_classes_that_differ_by_a_capital_stay_two(word: str, others: list[str]) -> None:
    """However often a class's word stands in either case: the rows that have both words tell which is which."""
    polite = capitalised(word)
    others = [other for other in others if other != word]
    rows = [row(polite, word), row(word, polite, classes=["b", "a"]), *(row(polite, other) for other in others)]
    fillers = class_fillers(rows, CLASSES)
    assert polite in fillers["a"] and word in fillers["b"]
    casing = Casing(fillers)
    assert (casing.key(polite), casing.key(word)) == (polite, word)
    for one in rows:
        assert {casing.of_row(one)(polite), casing.of_row(one)(word)} == {polite, word}


@pytest.mark.parametrize(
    ("masked", "factual", "alternative", "classes", "read"),
    [
        ("Dann gingen [MASK].", "Sie", "er", ["polite", "other"], ["Sie", "sie", "er"]),
        ("Dann gingen [MASK].", "sie", "Sie", ["other", "polite"], ["Sie", "sie", "er"]),
        ("Gut. [MASK] gingen.", "Sie", "Er", ["polite", "other"], ["Sie", "Sie", "Er"]),
        ("Gut. [MASK] gingen.", "Sie", "er", ["polite", "other"], ["Sie", "Sie", "Er"]),  # a sentence begins there
        ("Gut. [MASK] gingen.", "Sie", "Sie", ["other", "polite"], ["Sie", "Sie", "Er"]),
        ("DANN GINGEN [MASK].", "SIE", "ER", ["polite", "other"], ["SIE", "SIE", "ER"]),
    ],
)
def test_german_sie(masked: str, factual: str, alternative: str, classes: list[str], read: list[str]) -> None:
    casing = Casing({"polite": ["Sie"], "other": ["sie", "er"]})
    case = casing.of_row(row(factual, alternative, masked, classes), masked.partition("[MASK]")[0])
    assert [case(word) for word in ("Sie", "sie", "er")] == read


SIE = {"polite": ["Sie"], "other": ["sie"]}


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram_always"])
@pytest.mark.parametrize(("factual", "alternative"), [("Sie", "sie"), ("sie", "Sie")])
def test_the_tokens_that_are_read_are_those_of_the_written_words(kind: str, factual: str, alternative: str) -> None:
    tokenizer = masked_tokenizer(kind)
    objective = MaskedLMObjective(tokenizer)
    classes = ["polite", "other"] if factual == "Sie" else ["other", "polite"]
    (read,) = read_rows([text_row("der [MASK] kam", factual, alternative, classes).record()], [*SIE], need_both=False)
    readings = objective.readings(read, SIE)
    outputs = [{ids for reading in readings for ids in reading.outputs[of]} for of in (0, 1)]
    for (word,), found in zip(SIE.values(), outputs, strict=True):
        (ids,) = found
        text = tokenizer(f"der {word} kam", add_special_tokens=False).input_ids
        assert any(tuple(text[i : i + len(ids)]) == ids for i in range(len(text)))
    require_readable(objective, [read], SIE)


def test_a_tokenizer_without_capitals_cannot_tell_them_apart() -> None:
    objective = MaskedLMObjective(masked_tokenizer("word_piece"))
    rows = [text_row("der [MASK] kam", "Sie", "sie", ["polite", "other"])]
    with pytest.raises(
        DataError, match=r"writes the words of the fillers .* alike at 1 of 1 rows of the test data, so no"
    ):
        require_readable(objective, rows, SIE, what="the test data")


def test_words_that_say_nothing_of_their_case() -> None:
    casing = Casing({"a": ["I", "a", "Mann"], "b": ["we", "the", "Frau"]})
    assert casing.of_row(row("I", "we"))("we") == "we"
    assert casing.of_row(row("I", "We"))("we") == "We"
    assert casing.of_row(row("A", "THE"))("the") == "THE"
    assert casing.of_row(row("A", "The"))("the") == "The"
    assert casing.of_row(row("Mann", "Frau"))("we") == "we"
    assert casing.of_row(row("She", "They"))("we") == "We"  # of words that nobody listed, a capital is one of the text
    assert casing.of_row(row("mann", "frau"))("Frau") == "frau"


@pytest.mark.parametrize("before", ["", "It ended. ", 'He said: "Go!" ', "What? (", "one\n"])
def test_beginnings_of_sentences(before: str) -> None:
    assert begins_sentence(before)
    assert not begins_sentence(before + "Then ")


def test_a_row_needs_two_words() -> None:
    records = [row("he", "they").record(), row("they", "they", classes=["b", "a"]).record(), row("it", "it").record()]
    message = (
        r"train_dataset, row 1: factual and alternative are the same word, 'they' \(as in 2 of 3 rows\).*Leave such"
    )
    with pytest.raises(DataError, match=message):
        read_rows(records, CLASSES, what="train_dataset")
    assert len(read_rows(records, CLASSES, need_both=False)) == 3  # they can be encoded
    other = row("they", "he", classes=["b", "a"]).record()
    read = read_feature_data(datasets.Dataset.from_list([*records, other]))
    assert ("factual and alternative are the same word", "records", 2) in read.funnel.steps


def test_classes_need_words_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    require_distinct({"a": ["Sie"], "b": ["sie", "er"]})
    for fillers in ({"a": ["he"], "b": ["he"]}, {"a": ["he", "it"], "b": ["it"]}, {"a": ["it"], "b": ["he", "it"]}):
        with pytest.raises(DataError, match=r"classes 'a' and 'b' have the same words \('(he|it)'\).*words of its own"):
            require_distinct(fillers)
    rows = [row("he", "it"), row("it", "he"), row("it", "he", classes=["b", "a"])]
    with pytest.raises(DataError, match="The data set: the classes 'a' and 'b' have the same words"):
        read_feature_data(datasets.Dataset.from_list([one.record() for one in rows]))
    with caplog.at_level(logging.WARNING):
        require_distinct({"a": ["den", "dem"], "b": ["das", "dem"]})
    assert "1 of the words of the classes 'a' and 'b' are words of both ('dem')" in caplog.text


@pytest.mark.parametrize("explicit", [True, False])
def test_the_trainer_refuses_classes_of_the_same_words(masked_path: Any, tmp_path: Any, explicit: bool) -> None:
    fillers = {"a": ["he", "they"], "b": ["they", "he"]} if explicit else None
    rows = [row("he", "they").record(), row("they", "he").record()]
    rows += [{**r, "factual_class": "b", "alternative_class": "a"} for r in rows]
    config = GradiendConfig(feature_classes=CLASSES, fillers=fillers)
    args = GradiendTrainingArguments(output_dir=str(tmp_path / "out"))
    with pytest.raises(DataError, match="classes 'a' and 'b' have the same words"):
        GradiendTrainer(str(masked_path), config, args, train_dataset=rows)
