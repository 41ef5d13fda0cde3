"""Rows: reading, tokenising, their labels and every mistake in them."""

from __future__ import annotations

from typing import Any

import pytest

from gradiend_hub.data import TextRow, class_fillers, read_rows, read_texts, require_classes
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective, examples_of, neutral_examples
from tests.objectives.tokenizers import CORPUS, causal_tokenizer, masked_tokenizer

CLASSES = ["3SG", "3PL"]


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    singular = number % 2 == 0
    made = {
        "masked": "The dog barked because [MASK] was hungry.",
        "factual": "it" if singular else "they",
        "alternative": "they" if singular else "it",
        "factual_class": "3SG" if singular else "3PL",
        "alternative_class": "3PL" if singular else "3SG",
        "split": "train",
    }
    return made | changes


def test_rows_of_a_data_set(pronouns: Any) -> None:
    rows = read_rows(pronouns["test"], CLASSES)
    assert len(rows) == len(pronouns["test"])
    first = pronouns["test"][0]
    assert rows[0] == TextRow.read(first)
    assert read_rows([record(0), record(1)], CLASSES) == read_rows(iter([record(0), record(1)]), CLASSES)


def test_bundled_data_are_whole(pronouns: Any, neutral: Any) -> None:
    """≥ 1,000 rows per class in all, ≥ 500 neutral sentences, no text in two splits, no feature word in neutral text."""
    every = [row for split in pronouns.values() for row in read_rows(split, CLASSES)]
    assert all(sum(row.factual_class == name for row in every) >= 1000 for name in CLASSES)
    texts = [{row["masked"] for row in split} for split in pronouns.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    words = class_fillers(every, CLASSES)
    assert set(words["3PL"]) == {"they"}
    assert set(words["3SG"]) == {"he", "she", "it"}
    sentences = read_texts(neutral)
    assert len(sentences) >= 500
    feature = {"he", "she", "it", "they"}
    assert not any(feature & set(text.lower().replace(",", " ").replace(".", " ").split()) for text in sentences)


@pytest.mark.parametrize(
    ("source", "label"), [("alternative", -1.0), ("factual", 1.0), ("diff", 1.0)]
)  # the class whose token's gradient is the source
def test_label_is_of_the_class_that_gives_the_source(source: str, label: float) -> None:
    singular, plural = read_rows([record(0), record(1)], CLASSES)
    assert (singular.label(CLASSES, source), plural.label(CLASSES, source)) == (label, -label)
    assert singular.label(CLASSES[::-1], source) == -label


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "train_dataset has no rows"),
        (["The [MASK] ran."], r"row 0: expected a dictionary with a value by column, found 'The \[MASK\] ran.'"),
        ([{"text": "a"}], r"column \['masked', .*\] is missing. Expected the columns .*found \['text'\]"),
        ([record(0), {k: v for k, v in record(1).items() if k != "factual"}], r"column \['factual'\] is missing"),
        ([record(0), record(1, masked=None)], r"train_dataset, row 1: 'masked' must be a non-empty text, found None"),
        ([record(0, factual=3)], r"row 0: 'factual' must be a non-empty text, found 3"),
        ([record(0, factual="")], r"row 0: 'factual' must be a non-empty text, found ''"),
        ([record(0, alternative=" ")], r"row 0: 'alternative' must be a non-empty text, found ' '"),
        ([record(0, factual_class="1SG")], r"unknown class '1SG'. .*feature_classes is \['3SG', '3PL'\]"),
        ([record(0), record(1, alternative_class="2PL")], r"unknown class '2PL'.*Rename the classes or leave"),
        ([record(0), record(2)], r"class '3PL' has no rows \(rows per factual class: \{'3SG': 2\}\)"),
    ],
)
def test_every_mistake_has_a_message(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(records, CLASSES, what="train_dataset")


def test_one_class_is_enough_to_encode() -> None:
    assert len(read_rows([record(0)], CLASSES, need_both=False)) == 1


def test_examples_of_names_the_first_and_counts_all() -> None:
    objective = MaskedLMObjective(masked_tokenizer("word_piece"), name_or_path="tiny")
    good, bad = record(0), record(1, masked="They left.")
    long = record(1, masked="the dog " * 60 + "[MASK]")
    assert len(examples_of(objective, read_rows([good, record(1)], CLASSES))) == 2
    with pytest.raises(
        DataError, match=r"^train: 2 of 3 rows cannot be used; the first is row 1: No slot: expected ex"
    ):
        examples_of(objective, read_rows([good, bad, long], CLASSES), what="train")
    with pytest.raises(
        DataError, match=r"1 of 2 rows.*row 1: The row has \d+ tokens.*truncation could cut the slot off"
    ):
        examples_of(objective, read_rows([good, long], CLASSES))
    with pytest.raises(DataError, match=r"1 of 2 rows.*row 0: The filler 'é漢' is unknown to the tokenizer of tiny"):
        examples_of(objective, read_rows([record(0, factual="é漢"), record(1)], CLASSES))


def test_fillers_by_class_most_frequent_first() -> None:
    rows = read_rows(
        [record(0, factual="she"), record(0, factual="It"), record(2), record(1, alternative="he")], CLASSES
    )
    assert class_fillers(rows, CLASSES) == {"3SG": ["it", "she", "he"], "3PL": ["they"]}
    names = [record(0, factual="McCoy"), record(0, factual="McCoy"), record(0, factual="MCCOY", alternative="We")]
    assert class_fillers(read_rows([*names, record(1)], CLASSES), CLASSES) == {
        "3SG": ["McCoy", "it"],  # a name keeps its capitals
        "3PL": ["they", "We"],
    }


def test_texts() -> None:
    assert read_texts([{"text": "a b"}, {"text": "c", "more": 1}]) == ["a b", "c"]
    for records, message in (
        ([], "neutral dataset has no rows"),
        ([{"sentence": "a"}], "row 0: expected a non-empty text in column 'text', found None"),
        (["a"], "row 0: expected a dictionary with a value by column, found 'a'"),
        ([{"text": "a"}, {"text": " "}], "row 1: expected a non-empty text in column 'text', found ' '"),
    ):
        with pytest.raises(DataError, match=message):
            read_texts(records)


def test_neutral_examples_depend_on_the_seed_alone() -> None:
    for objective in (
        MaskedLMObjective(masked_tokenizer("byte_bpe")),
        CausalLMObjective(causal_tokenizer("byte_bpe")),
    ):
        texts = [*CORPUS, ""]
        first, again, other = (neutral_examples(objective, texts, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        assert len(first) == len(CORPUS)  # nothing can be asked of an empty text
        assert all(e.factual == e.alternative for e in first)


@pytest.mark.parametrize("classes", [None, ["a"], ["a", "b", "c"]])
def test_two_classes_are_needed(classes: list[str] | None) -> None:
    with pytest.raises(ConfigError, match="must name two classes, the one of positive strength first; found"):
        require_classes(classes)
    assert require_classes(["a", "b"]) == ("a", "b")
