"""From text to rows: what is kept, what is counted as dropped, and every mistake of a configuration or a source."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from gradiend_hub.data import FeatureData, FeatureDataConfig, FeatureDatasetBuilder, NeutralSpec, TextFilters, read_rows
from gradiend_hub.data.builder.matching import WordMatcher
from gradiend_hub.data.builder.sources import sentences
from gradiend_hub.errors import ConfigError, DataError
from tests.benchmarks.measure import peak_growth

PRONOUNS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}
NOUNS = [f"{a}{b}" for a in ("ba", "do", "fi", "gu", "ke", "lo") for b in ("nder", "mp", "rt", "st", "ll", "ck", "gg")]
LOOSE = TextFilters(min_left_words=0)


def texts(count: int, seed: int = 0, pronouns: tuple[str, ...] = ("he", "she", "it", "they")) -> list[str]:
    """Different sentences with one pronoun each."""
    rng = random.Random(seed)
    return [
        f"The {' '.join(rng.sample(NOUNS, 4))} {number} said that {rng.choice(pronouns)} saw "
        f"{rng.choice(NOUNS)} {rng.choice(NOUNS)}."
        for number in range(count)
    ]


def built(source: Any, **options: Any) -> FeatureData:
    options.setdefault("classes", PRONOUNS)
    return FeatureDatasetBuilder(FeatureDataConfig(**options)).build(source)


def rows_of(data: FeatureData) -> list[dict[str, str]]:
    return [row for part in data.rows.values() for row in part]


def test_rows_of_the_schema() -> None:
    source = texts(400)
    data = built(source)
    rows = rows_of(data)
    assert set(data.rows) == {"train", "validation", "test"}
    assert len(read_rows(rows, ["3SG", "3PL"])) == len(rows) == data.funnel.kept
    for row in rows:
        assert row["masked"].replace("[MASK]", row["factual"]) in source
        assert row["factual"] in PRONOUNS[row["factual_class"]]
        assert row["alternative"] in PRONOUNS[row["alternative_class"]]
        assert row["factual_class"] != row["alternative_class"]
    for name, part in data.rows.items():
        assert set(part["split"]) == {name}
        counts = Counter(part["factual_class"])
        assert counts["3SG"] == counts["3PL"]  # balance: strict
    assert built(source).digest == data.digest != built(source, seed=1).digest


def test_alternatives_follow_the_frequencies() -> None:
    source = texts(300, pronouns=("he",)) + texts(100, 1, ("it",)) + texts(400, 2, ("they",))
    rows = rows_of(built(source, balance="none"))
    counts = Counter(row["alternative"] for row in rows if row["factual_class"] == "3PL")
    assert counts["he"] + counts["it"] == sum(counts.values())
    assert 0.65 < counts["he"] / sum(counts.values()) < 0.85


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.text("abcd '-ÄßİK.", max_size=12), max_size=6),
    st.sets(st.sampled_from(["a", "ab", "abc", "b c", "b-c", "d.", "bc", "ä", "c d", "d"]), min_size=1),
)
def test_matcher_finds_what_a_regular_expression_does(found: list[str], words: set[str]) -> None:
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])")
    matcher = WordMatcher((word, 0) for word in words)
    hits = matcher.find(found)
    for place, text in enumerate(found):
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
        assert [(s, e) for s, e, _ in hits.get(place, [])] == [m.span() for m in pattern.finditer(lower)]


def test_words_not_surface_matches() -> None:
    """The reference counts "it" in "it's", and words in words; here both are left alone, and counted."""
    data = [
        "Then she-wolves and a he-man, it's said, came to them here.",
        "The theyre item hers shell whither came along there.",
        "Then the dog saw that it was late.",
        "Then the dogs saw that THEY were late.",
    ]
    made = built(data, splits={"train": 1})
    assert sorted(row["factual"] for row in rows_of(made)) == ["THEY", "it"]
    assert [r["alternative"] for r in rows_of(made) if r["factual"] == "THEY"] == ["IT"]
    steps = {name: left for name, _, left in made.funnel.steps}
    assert (steps["no word of a class"], steps["only in contractions or compounds"]) == (3, 2)
    kept = built(data, splits={"train": 1}, filters=TextFilters(contractions=True), occurrences="all", balance="none")
    assert Counter(row["factual"] for row in rows_of(kept)) == {"it": 2, "he": 1, "THEY": 1}


def test_words_are_told_apart_by_what_stands_beside_them() -> None:
    """ "her" that somebody owns and "her" that somebody sees are the same word, without a parser."""
    classes = {
        "object": {"words": ["her", "him"], "after": r"(?=[.,]| (today|again)\b)"},
        "possessive": {"words": ["her", "his"], "after": " [a-z]+(er|ther)", "before": r"\b(saw|met|knew) "},
    }
    source = [
        "They all saw Her sister there.", "Then we all met HER again.", "When they came we met him, too.",
        "There they met his brother there.", "The dog of her sister barked.", "Nobody was there at all.",
    ]  # fmt: skip
    options: dict[str, Any] = {"splits": {"train": 1}, "balance": "none", "filters": LOOSE, "neutral": NeutralSpec(9)}
    made = FeatureDatasetBuilder(FeatureDataConfig.from_dict({"classes": classes, **options})).build(source)
    found = {row["masked"]: row["factual_class"] for row in rows_of(made)}
    assert found == {
        "They all saw [MASK] sister there.": "possessive", "Then we all met [MASK] again.": "object",
        "When they came we met [MASK], too.": "object", "There they met [MASK] brother there.": "possessive",
    }  # fmt: skip
    assert made.neutral is not None
    assert made.neutral["train"]["text"] == source[-1:]  # "her" that is of neither class is no neutral word
    exact = built(source, classes=classes, case_sensitive=True, **options | {"neutral": None})
    assert sorted(row["factual"] for row in rows_of(exact)) == ["him", "his"]


def test_a_word_that_two_classes_claim_is_counted_and_left_out() -> None:
    classes = {
        "a": {"words": ["it"], "after": " was"},
        "b": {"words": ["it"], "after": " was (here|there)"},
        "c": ["he"],
    }
    source = ["So then it was late.", "So then it was here.", "So then he was here."]
    with pytest.raises(DataError, match=r"Class 'b'(?s:.*)a word that several classes claim +2 texts +−1"):
        built(source, classes=classes, splits={"train": 1}, balance="none", filters=LOOSE)


def test_a_word_is_no_alternative_to_itself() -> None:
    """The same word may be of two classes; between them it has no alternative."""
    classes = {"m": {"words": ["der"], "after": " Hund"}, "f": {"words": ["der"], "after": " Frau"}, "n": ["das"]}
    source = ["Dann kam der Hund.", "Dann kam Der Frau.", "Dann kam das Kind."]
    options: dict[str, Any] = {"splits": {"train": 1}, "filters": LOOSE, "counterfactual": "all"}
    rows = rows_of(built(source, classes=classes, **options))
    assert {(row["factual"], row["factual_class"], row["alternative"]) for row in rows} == {
        ("der", "m", "das"), ("Der", "f", "Das"), ("das", "n", "der"),
    }  # fmt: skip
    with pytest.raises(
        DataError, match=r"Every split needs rows of(?s:.*)no other word to replace its word +0 texts +−2"
    ):
        built(source, classes={"m": classes["m"], "f": classes["f"]}, **options)


def test_every_split_has_rows_of_every_class() -> None:
    source = [*texts(20, pronouns=("he",)), *texts(20, 1, ("they",))]
    given: dict[str, Any] = {"split_by": "given", "split_column": "part"}
    columns = {"text": source, "part": ["train"] * 20 + ["test"] * 20}
    with pytest.raises(DataError, match=r"'train': \{'3SG': \d+, '3PL': 0\}(?s:.*)\nread +40 texts"):
        built(datasets.Dataset.from_dict(columns), **given)
    again = {"text": texts(40) + [t.upper() for t in texts(40)], "part": ["train"] * 40 + ["test"] * 40}
    leaky: dict[str, Any] = {**given, "filters": TextFilters(deduplicate=False)}
    for balance in ("none", "strict", "oversample"):
        with pytest.raises(DataError, match=r"'train': \{'3SG': 0(?s:.*)nearly the same text in a later split"):
            built(datasets.Dataset.from_dict(again), balance=balance, **leaky)


def test_the_training_split_is_called_so_or_the_first() -> None:
    source = [*texts(40, pronouns=("he",)), *texts(20, 1, ("they",))]
    made = built(source, splits={"test": 0.3, "train": 0.7}, balance="oversample")
    counts = {name: Counter(part["factual_class"]) for name, part in made.rows.items()}
    assert counts == {"train": {"3SG": 28, "3PL": 28}, "test": {"3SG": 12, "3PL": 6}}
    assert made.funnel.steps[-2:] == [
        ("training rows of smaller classes repeated", "texts", 74),
        ("rows, one for each alternative", "rows", 74),
    ]
    columns = {"text": texts(60) + [t.upper() for t in texts(60)[:20]], "part": ["test"] * 60 + ["train"] * 20}
    columns["text"] += texts(20, 5)
    columns["part"] += ["train"] * 20
    leaky = built(
        datasets.Dataset.from_dict(columns), split_by="given", split_column="part", balance="none",
        filters=TextFilters(deduplicate=False), splits={"test": 1, "train": 1},
    )  # fmt: skip
    assert {name: len(part) for name, part in leaky.rows.items()} == {"train": 20, "test": 60}


def test_a_held_out_word_is_in_no_text_of_another_split() -> None:
    words = ("he", "she", "it", "me", "we", "they", "you", "us")
    source = [f"{text[:-1]} with {words[number % 8]} again." for number, text in enumerate(texts(600, pronouns=words))]
    data = built(
        source, classes={"a": words[:4], "b": words[4:]}, split_by="word", balance="none", near_duplicates=None
    )
    held = {name: {row["factual"] for row in part} for name, part in data.rows.items()}
    for name, part in data.rows.items():
        others = set[str]().union(*(found for other, found in held.items() if other != name))
        assert all(not others & set(re.findall(r"\w+", row["masked"])) for row in part)
    dropped = {name: n for name, _, n in data.funnel.rows()}["a word of another split in the text"]
    assert len(rows_of(data)) == 600 - int(dropped[1:]) < 600


def test_a_filter_of_ones_own() -> None:
    calls = []

    def accept(before: str, word: str, after: str, name: str) -> bool:
        calls.append((before + word + after, name))
        return word != "it"

    source = texts(80)
    config = FeatureDataConfig(PRONOUNS, balance="none", near_duplicates=None)
    made = FeatureDatasetBuilder(config, accept=accept).build(source)
    assert sorted(text for text, _ in calls) == sorted(source)
    refused = sum(" it " in text for text in source)
    assert ("not accepted", "texts", 80 - refused) in made.funnel.steps
    assert {row["factual"] for row in rows_of(made)} == {"he", "she", "they"}
    assert {name for text, name in calls if " they " in text} == {"3PL"}


def test_every_filter_is_counted() -> None:
    good = texts(40, pronouns=("he", "they"))
    bad = [
        None, "", "   ", "Broken \ufffd byte he saw here.", "A [MASK] that he saw here.", "no such word at all here",
        "a b c he", "a b c he " + "x " * 60, "a b c {he} d e", "a b c he d they e", "well he came along with us",
        good[0].upper(),
    ]  # fmt: skip
    filters = TextFilters(min_words=5, max_words=50, refuse=r"[{}]", mixed=False)
    data = built([*good, *bad], filters=filters, balance="none", near_duplicates=None)
    dropped = {name: n for name, _, n in data.funnel.rows() if n}
    assert dropped == dict.fromkeys(
        ["broken encoding", "no word of a class", "holds [MASK]", "too short", "too long", "refused characters",
         "words of several classes", "too few words before the slot", "read before"], "−1",
    ) | {"no text": "−3"}  # fmt: skip
    assert data.funnel.kept == 40
    assert str(data.funnel).splitlines()[0].startswith("read")


def test_sentences_with_context() -> None:
    text = "Mr. B. Smith came in. The dog barked. After that it slept well! The cats said they would not."
    filters = TextFilters(unit="sentence", context=1, min_left_words=2)
    found = {row["masked"] for row in rows_of(built([text], filters=filters, splits={"train": 1}))}
    assert found == {
        "The dog barked. After that [MASK] slept well!",
        "After that it slept well! The cats said [MASK] would not.",
    }


def test_one_slot_or_all() -> None:
    source = [f"{t[:-1]} and then they left." for t in texts(60)]
    one, every = (built(source, occurrences=o, balance="none", filters=LOOSE) for o in ("one", "all"))
    assert len(rows_of(one)) == 60
    assert len(rows_of(every)) == 120
    filled = [{row["masked"].replace("[MASK]", row["factual"]) for row in part} for part in every.rows.values()]
    assert not filled[0] & filled[1] and not filled[0] & filled[2]  # slots of a text stay in one split


def test_every_slot_is_counted() -> None:
    """With all slots asked for, those that a filter takes from a text that keeps another one are counted, too."""
    source = ["It seemed to me that he's here when he came and they left.", "So then well they came here."]
    data = built(source, splits={"train": 1}, occurrences="all", balance="none")
    assert data.funnel.steps == [
        ("read", "texts", 2), ("words of the classes in them", "slots", 5),
        ("only in contractions or compounds", "slots", 4), ("too few words before the slot", "slots", 3),
        ("rows, one for each alternative", "rows", 3),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"has no rows(?s:.*)read before +2 slots +−2"):
        built(["Well so then he saw it."] * 2, splits={"train": 1}, occurrences="all")


def test_words_of_the_context_count_as_mixed() -> None:
    text = "When they all left. Then after he came home."
    filters: dict[str, Any] = {"unit": "sentence", "context": 1, "min_left_words": 0}
    source = [text, "Then he went.", "Then they went."]
    mixed, pure = (
        built(source, splits={"train": 1}, balance="none", filters=TextFilters(**filters, mixed=m))
        for m in (True, False)
    )
    assert len(rows_of(mixed)) == 4
    assert ("words of several classes", "sentences", 3) in pure.funnel.steps
    assert all("he came" not in row["masked"] and "[MASK] came" not in row["masked"] for row in rows_of(pure))


def test_an_empty_line_ends_a_sentence() -> None:
    assert sentences("Early life\n\nHe was born in 1910. Then\nit rained.\r\n \r\nLater") == [
        "Early life", "He was born in 1910.", "Then\nit rained.", "Later",
    ]  # fmt: skip


def test_accents_may_be_marks_of_their_own() -> None:
    """Text and words in which an accent is a character of its own (NFD) are the same as those in which it is not."""
    classes = {"a": ["e\u0301te\u0301", "he"], "b": ["été nord", "they"]}
    source = ["so then was été here", "so then was e\u0301te\u0301 Nord here", "so then he\u0301 was here"]
    rows = rows_of(built(source, classes=classes, splits={"train": 1}, balance="none"))
    assert {(row["factual"], row["alternative"]) for row in rows} == {("été", "été nord"), ("été Nord", "été")}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux only")
def test_builds_leave_no_file_open() -> None:
    source = texts(60)
    built(source)
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = [built(source) for _ in range(3)]
    assert len(made) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_caps_and_balance() -> None:
    source = texts(300, pronouns=("he",)) + texts(50, 1, ("she",)) + texts(90, 2, ("they",))
    capped = Counter(r["factual"] for r in rows_of(built(source, max_per_word=30, balance="none")))
    assert capped == {"he": 30, "she": 30, "they": 30}
    classes = Counter(r["factual_class"] for r in rows_of(built(source, max_per_class=40, balance="none")))
    assert classes == {"3SG": 40, "3PL": 40}
    more = built(source, balance="oversample")
    counts = {name: Counter(part["factual_class"]) for name, part in more.rows.items()}
    assert counts["train"]["3SG"] == counts["train"]["3PL"] == 280
    assert counts["test"] == {"3SG": 35, "3PL": 9}
    assert len({row["masked"] for row in more.rows["train"]}) == 280 + 72


def test_pairs_and_case() -> None:
    options: dict[str, Any] = {
        "classes": {"m": ["actor", "He", "John"], "f": ["actress", "She", "Mary"]},
        "pairs": [["actor", "actress"], ["he", "she"], ["John", "Mary"]],
        "counterfactual": "paired", "filters": LOOSE, "splits": {"train": 1}, "balance": "none",
    }  # fmt: skip
    source = ["The actor left.", "Here ACTRESS Smith sat.", "Mary came in.", "An Actress sang.", "When he went."]
    found = {row["factual"]: row["alternative"] for row in rows_of(built(source, **options))}
    assert found == {"actor": "actress", "ACTRESS": "ACTOR", "Mary": "John", "Actress": "Actor", "he": "she"}
    with pytest.raises(ConfigError, match=r"class 'm' has words without a partner in `pairs`: \['He'\]"):
        built(source, **options | {"pairs": [["actor", "actress"], ["John", "Mary"]]})
    with pytest.raises(ConfigError, match=r"pairs: \['actor', 'queen'\] must be one word of each class"):
        built(source, **options | {"pairs": [["actor", "queen"]]})


def test_all_alternatives_and_several_classes() -> None:
    classes = {"1": ["i"], "2": ["you"], "3": ["he", "she"]}
    source = texts(60, pronouns=("I", "you", "he", "she"))
    rows = rows_of(built(source, classes=classes, counterfactual="all", balance="none"))
    pairs = Counter((row["factual_class"], row["alternative_class"]) for row in rows)
    assert set(pairs) == {(a, b) for a in classes for b in classes if a != b}
    assert pairs["1", "3"] == 2 * pairs["1", "2"]
    sampled = rows_of(built(source, classes=classes, balance="none"))
    assert len(sampled) == 2 * 60  # every row against each other class


@pytest.mark.parametrize("split_by", ["random", "group", "word", "given"])
def test_splits(split_by: str) -> None:
    source = texts(600, pronouns=("he", "she", "it", "we", "they", "you", "us", "me"))
    classes = {"a": ["he", "she", "it", "me"], "b": ["we", "they", "you", "us"]}
    columns = {
        "text": source,
        "doc": [f"d{i % 37}" for i in range(600)],
        "part": ["val", "train", "train", "test"] * 150,
    }
    data = built(
        datasets.Dataset.from_dict(columns), classes=classes, split_by=split_by, balance="none", group_column="doc",
        split_column="part", splits={"train": 6, "validation": 2, "test": 2}, near_duplicates=None,
    )  # fmt: skip
    assert list(data.rows) == ["train", "validation", "test"]
    rows = rows_of(data)
    assert len(rows) == 600
    of = {"random": "masked", "group": "group", "word": "factual", "given": "masked"}[split_by]
    seen = [{row[of] for row in part} for part in data.rows.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    if split_by == "word":  # and no alternative gives a held-out word away
        assert all(
            {row["alternative"] for row in part} <= words for part, words in zip(data.rows.values(), seen, strict=True)
        )
    if split_by == "given":
        where = dict(zip(source, columns["part"], strict=True))
        assert all(where[r["masked"].replace("[MASK]", r["factual"])][:3] == r["split"][:3] for r in rows)
    if split_by == "random":
        assert [len(part) for part in data.rows.values()] == pytest.approx([360, 120, 120], abs=2)


def test_paired_words_are_held_out_together() -> None:
    pairs = [["he", "she"], ["king", "queen"], ["boy", "girl"], ["lord", "lady"]]
    classes = {"m": [a for a, _ in pairs], "f": [b for _, b in pairs]}
    source = texts(400, pronouns=tuple(word for pair in pairs for word in pair))
    data = built(source, classes=classes, pairs=pairs, counterfactual="paired", split_by="word", balance="none")
    for part in data.rows.values():
        assert {row["factual"] for row in part} == {row["alternative"] for row in part}


def test_leaks_between_splits_are_dropped_from_the_earlier_one() -> None:
    source = texts(200)
    again = [text.replace("The", "the", 1).replace(".", "!") for text in source[:50]]
    columns = {"text": [*source, *again], "part": ["train"] * 200 + ["test"] * 50}
    options: dict[str, Any] = {"split_by": "given", "split_column": "part", "balance": "none"}
    fixed = built(datasets.Dataset.from_dict(columns), **options)
    assert [len(part) for part in fixed.rows.values()] == [150, 50]
    assert (len(fixed.leaks.pairs), fixed.leaks.exact) == (50, 50)
    reported = built(datasets.Dataset.from_dict(columns), **options, fix_leaks=False)
    assert [len(part) for part in reported.rows.values()] == [200, 50]
    assert str(reported.leaks) == "50 rows occur in a later split again (50 of them word for word)"


def test_neutral_text() -> None:
    short = [f"A {NOUNS[i % 42]} {i} came." for i in range(300)]
    long = [f"{' '.join(NOUNS[:8])} {i} were seen with {NOUNS[i % 42]}." for i in range(300)]
    refused = ["A banana of his came here.", "Nobody told them about it."]
    data = built(
        [*texts(400), *short, *long, *refused], filters=TextFilters(min_words=3),
        neutral=NeutralSpec(60, exclude_words=("his", "them")),
    )  # fmt: skip
    assert data.neutral is not None
    found = [row["text"] for part in data.neutral.values() for row in part]
    assert len(set(found)) == 60
    assert set(found) <= {*short, *long}
    feature = [len(row["masked"]) for row in rows_of(data)]
    assert sum(map(len, found)) / 60 == pytest.approx(sum(feature) / len(feature), rel=0.15)  # matched in length
    plain = built(
        [*texts(400), *short, *long], neutral=NeutralSpec(60, match_length=False), filters=TextFilters(min_words=3)
    )
    assert plain.neutral is not None
    assert 15 < sum(len(row["text"]) < 25 for part in plain.neutral.values() for row in part) < 45


def test_files_and_streams(tmp_path: Path) -> None:
    source = texts(80)
    expected = built(source).digest
    (tmp_path / "a.txt").write_text("\n".join(source), encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in source)
    table = datasets.Dataset.from_dict({"text": source})
    table.to_csv(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl.gz", "a.csv", "a.parquet"):
        assert built(str(tmp_path / name)).digest == expected
        assert (
            FeatureDatasetBuilder(FeatureDataConfig(PRONOUNS, {"path": str(tmp_path / name)})).build().digest
            == expected
        )
    assert built(table.to_iterable_dataset()).digest == built(table).digest == expected
    splits = datasets.DatasetDict({"train": table.select(range(60)), "val": table.select(range(60, 80))})
    given = built(splits, split_by="given", balance="none")
    assert {name: len(part) for name, part in given.rows.items()} == {"train": 60, "validation": 20}
    assert built(table, max_texts=30).funnel.steps[0] == ("read", "texts", 30)


OLD_CSV = pytest.mark.skipif(
    Version(datasets.__version__) < Version("5.2"), reason="it reads no table with broken bytes"
)


@pytest.mark.parametrize("ending", ["txt", pytest.param("csv", marks=OLD_CSV), "jsonl"])
def test_broken_bytes_are_counted(tmp_path: Path, ending: str) -> None:
    lines = [text.encode() for text in texts(60)]
    lines[7] += "Grüße".encode("latin-1")
    if ending == "csv":
        lines = [b"text", *(b'"' + line + b'"' for line in lines)]
    if ending == "jsonl":
        lines = [b'{"text": "' + line + b'"}' for line in lines]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"\n".join(lines))
    assert ("broken encoding", "texts", 59) in built(str(path)).funnel.steps
    whole = built({"path": str(path), "encoding": "latin-1"})  # the right name of the encoding reads them all
    assert "broken encoding" not in [name for name, _, _ in whole.funnel.steps]


def test_a_data_set_of_the_hub(hub: Any, repo_id: str) -> None:
    source = texts(80)
    datasets.Dataset.from_dict({"sentence": source}).push_to_hub(repo_id)
    data = built({"path": repo_id, "split": "train"}, text_column="sentence")
    assert data.digest == built(source).digest
    assert built(repo_id, text_column="sentence", split_by="given", balance="none").funnel.steps[0] == (
        "read",
        "texts",
        80,
    )


@pytest.mark.slow
def test_a_large_file_is_read_in_constant_memory(tmp_path: Path) -> None:
    """What a file 300 times as large adds to the whole process, Arrow's and the parser's memory included."""
    block = "".join(
        f"In the year {n} the long and winding road was seen and nobody came along.\n" for n in range(10_000)
    )
    kept = "\n".join(texts(400)) + "\n"
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    for path, repeats in ((small, 1), (large, 300)):
        with path.open("w", encoding="utf-8") as file:
            file.write(kept)
            for _ in range(repeats):
                file.write(block)
    assert large.stat().st_size > 200 * 2**20
    options: dict[str, Any] = {"neutral": NeutralSpec(50)}
    built(str(small), **options)
    data: list[FeatureData] = []
    grown = peak_growth(lambda: data.append(built(str(large), **options)))
    assert data[0].funnel.steps[0] == ("read", "texts", 3_000_400)
    assert grown < 160  # MiB; the file alone has more than 200


def test_memory_does_not_grow_with_the_stream() -> None:
    """Ten times the text, the same peak: what is not kept leaves nothing behind."""

    def stream(count: int) -> Iterator[dict[str, str]]:
        for number in range(count):
            word = ("he", "they")[number % 2] if number % (count // 200) < 2 else "nobody"
            yield {"text": f"In the year {number} the long and winding road was seen and {word} came along." * 3}

    peaks = []
    for count in (4_000, 40_000):
        builder = FeatureDatasetBuilder(FeatureDataConfig(classes=PRONOUNS, neutral=NeutralSpec(50)))
        source = datasets.IterableDataset.from_generator(stream, gen_kwargs={"count": count})
        builder.build(source)
        tracemalloc.start()
        builder.build(source)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["A bear saw them there."], {}, r"Class '3SG' \('he', 'she', 'it'\) has no rows in 1 texts. Words that do occ"),
        (["There she saw shrieking bears"], {"classes": {"a": ["shrieks"], "b": ["she"]}, "filters": LOOSE},
         r"Class 'a' \('shrieks'\) .* look alike: .*shrieking"),
        (["He saw it.", "When they came home"], {}, r"'3SG'.*occur in 1 texts, but every one was filtered:\nread"),
        ([], {}, "The source has no texts"),
        (["Gr\ufffd\ufffd he was", "\ufffd they were"], {}, r"as source\.encoding\.(?s:.*)broken encoding +0 texts +−2"),
        (datasets.Dataset.from_dict({"text": [1, 2]}), {}, r"Class '3SG' .*\nread +2 texts\nno text +0 texts +−2"),
        (datasets.Dataset.from_dict({"a": ["x"]}), {}, r"no column 'text', it has \['a'\]. Name the right one as text_c"),
        ("nowhere.txt", {}, "there is no file nowhere.txt"),
        (texts(9, pronouns=("he", "they")), {"split_by": "word"}, "Class 3(SG|PL) has 1 independent units.*too few for 3"),
        (texts(9), {"split_by": "given"}, "the source has no splits. Name their column as split_column"),
        (3, {}, "expected a data set, a list of texts, a file or a Hub id, found int"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_used(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        built(source, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": PRONOUNS, "filter": {}}, "Unknown key filter: did you mean filters?"),
        (
            {"classes": PRONOUNS, "filters": {"min_word": 3}},
            "Unknown key filters.min_word: did you mean filters.min_words",
        ),
        ({"classes": {"a": ["x"]}}, r"A feature needs two classes or more, found \['a'\]"),
        ({"classes": {"a": ["x", "y"], "b": ["Y"]}}, "The word 'Y' belongs to the classes 'a' and 'b'"),
        ({"classes": {"a": ["x"], "b": {}}}, "classes.b says nothing"),
        (
            {"classes": {"a": ["x"], "b": [False]}},
            "classes.b.words: expected a list of words, found .*quote words such as",
        ),
        ({"classes": {"a": ["x"], "b": "nowhere.txt"}}, "The word list nowhere.txt cannot be read"),
        (
            {"classes": PRONOUNS | {"a": {"words": ["x"], "after": "("}}},
            r"classes.a.after: '\(' is no regular expression",
        ),
        ({"classes": PRONOUNS, "filters": {"refuse": "["}}, r"filters.refuse: '\[' is no regular expression"),
        ({"classes": PRONOUNS, "balance": "all"}, "balance: expected one of strict, oversample, none, found 'all'"),
        ({"classes": PRONOUNS, "splits": {"train": 0}}, "every share must be larger than 0"),
        ({"classes": PRONOUNS, "split_by": "group"}, "split_by: group needs group_column"),
        ({"classes": PRONOUNS, "near_duplicates": 2}, r"near_duplicates: expected a number in \(0, 1\], found 2"),
        ({"classes": PRONOUNS, "max_per_word": "many"}, "max_per_word: expected an integer of 1 or more, found 'many'"),
        ({"classes": ["he"]}, "classes: expected a mapping from class names to words"),
    ],
)
def test_configurations_that_cannot_work(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureDataConfig.from_dict(content)


def test_word_lists_and_lists_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("# men\nactor\nhost # a person\n\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text("m,f\nactor,actress\nhost,hostess\n", encoding="utf-8")
    content = {
        "classes": {"m": str(tmp_path / "m.txt"), "f": {"words": ["hostess", "actress"]}},
        "pairs": str(tmp_path / "p.csv"), "counterfactual": "paired",
    }  # fmt: skip
    config = FeatureDataConfig.from_dict(content)
    assert config.classes["m"].words == ("actor", "host")
    assert config.partners()["host", "m"] == {"f": ["hostess"]}
    (tmp_path / "p.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected a header with the classes \['m', 'f'\]"):
        FeatureDataConfig.from_dict(content)
