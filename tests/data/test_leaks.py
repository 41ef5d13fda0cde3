"""Near duplicates between splits, compared with a plain double loop; words of feature text that are not the feature's."""

from __future__ import annotations

import random
import re
import tracemalloc
from typing import Any

import datasets
import numpy as np
import pytest

from gradiend_hub.data import TextRow, divided_anew, find_leaks, other_words, row_groups, without_leaks
from gradiend_hub.data.splits import assign
from gradiend_hub.errors import DataError


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}


@pytest.mark.parametrize("threshold", [None, 0.9, 0.5, 0.2])
def test_leaks_are_those_of_a_double_loop(threshold: float | None) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(["ab", "cd", "ef", "gh"], k=rng.randint(1, 9))) for _ in range(150)]
    splits = rng.choices(["train", "validation", "test"], k=150)
    order = ["train", "validation", "test"]
    expected: dict[int, float] = {}
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            if order.index(splits[i]) < order.index(splits[j]):
                similarity = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
                if similarity >= threshold if threshold else a == b:
                    expected[i] = max(similarity, expected.get(i, 0.0))
    leaks = find_leaks(texts, splits, order, threshold)
    assert {i: s for i, _, s in leaks.pairs} == pytest.approx(expected)
    assert leaks.rows == sorted(expected)
    assert all(order.index(splits[i]) < order.index(splits[j]) for i, j, _ in leaks.pairs)


def test_leaks_need_a_number_for_each_sequence_of_words() -> None:
    """Not the words themselves: some hundred bytes each."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices([f"word{n}" for n in range(5000)], k=20)) for _ in range(4000)]
    find_leaks(texts[:100], ["train", "test"] * 50, ["train", "test"])
    tracemalloc.start()
    leaks = find_leaks((text for text in texts), ["train"] * 3900 + ["test"] * 100, ["train", "test"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not leaks.pairs
    assert peak < 80 * 4000 * 18


def test_the_training_split_leaks_wherever_it_stands() -> None:
    texts = ["a b c d", "A b, c d.", "e f g h"]
    assert find_leaks(texts, ["test", "train", "train"], ["test", "train"]).pairs == [(1, 0, 1.0)]
    assert find_leaks(texts, ["test", "train", "train"], ["test", "train"], None).pairs == [(1, 0, 1.0)]


def test_leaks_of_a_finished_set_are_removed() -> None:
    texts = {"train": ["a b c [MASK]", "d e f [MASK]"], "test": ["A b c [MASK].", "g h [MASK]"]}
    rows = datasets.DatasetDict({name: datasets.Dataset.from_dict({"masked": found}) for name, found in texts.items()})
    kept, leaks = without_leaks(rows)
    assert {name: part["masked"][:] for name, part in kept.items()} == texts | {"train": ["d e f [MASK]"]}
    assert leaks.exact == 1
    rows["test"] = rows["train"]
    with pytest.raises(DataError, match=r"All 2 rows of split 'train' occur in a later split again. Let divided_anew"):
        without_leaks(rows)


def test_new_splits_keep_the_rows_of_a_text_together() -> None:
    rows = [
        {"masked": f"Text [MASK] {n}.", "factual_class": "ab"[k], "split": "train"} for n in range(40) for k in (0, 1)
    ]
    old = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)})
    new = divided_anew(old, {"train": 3, "test": 1})
    assert [len(part) for part in new.values()] == [60, 20]  # each once
    assert all(set(part["split"]) == {name} for name, part in new.items())
    assert not without_leaks(new)[1].pairs
    assert divided_anew(old, {"train": 3, "test": 1})["test"][:] == new["test"][:]
    assert divided_anew(old, {"train": 3, "test": 1}, seed=1)["test"][:] != new["test"][:]


def test_units_stay_together_and_shares_are_met() -> None:
    rng = np.random.default_rng(0)
    units = rng.integers(0, 300, 3000)
    chosen = assign(units, units % 2, {"train": 8, "validation": 1, "test": 1}, rng)
    assert all(len(set(chosen[units == unit])) == 1 for unit in range(300))
    for stratum in (0, 1):
        shares = np.bincount(chosen[units % 2 == stratum]) / (units % 2 == stratum).sum()
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    with pytest.raises(DataError, match="Class 1 has 1 independent units"):
        assign(np.array([0, 0, 1, 2]), np.array([1, 1, 2, 2]), {"a": 1, "b": 1}, rng)


def test_other_words_of_feature_text() -> None:
    rows = [{"masked": "The dogs barked because [MASK] saw it.", "factual": "they"}] * 40 + [
        {"masked": "[MASK]", "factual": "he"}
    ]
    made = other_words(rows, ["they", "it"], seed=1)
    assert len(made) == 40
    assert {row["factual"] for row in made} == {"The", "dogs", "barked", "because", "saw"}
    for row in made:
        assert row["alternative"] == row["factual"]
        assert row["masked"].replace("[MASK]", row["factual"]) == "The dogs barked because they saw it."
        assert row["factual_class"] == row["alternative_class"] == "neutral"


# ---------------------------------------------------------------------------------------------------------------- groups

FRAMES = [
    "The {} said that [MASK] would come home before the rain.",
    "Because the {} had been closed, [MASK] went to another town.",
    "At noon we saw the {} and heard how [MASK] sang.",
]
NOUNS = ["old baker", "king", "three tall sisters", "miller", "judge"]


def test_rows_of_one_frame_are_one_unit() -> None:
    records = [{"masked": frame.format(noun)} for noun in NOUNS for frame in FRAMES]
    assert row_groups(records) == [0, 1, 2] * len(NOUNS)
    rows = [TextRow(record["masked"], "he", "they", "a", "b") for record in records]
    assert row_groups(rows) == row_groups(records)
    assert row_groups([]) == []


@pytest.mark.parametrize("column", ["group", "document", "template"])
def test_a_column_says_which_rows_belong_together(column: str) -> None:
    records = [{"masked": FRAMES[0].format(noun), column: n % 2} for n, noun in enumerate(NOUNS)]
    assert row_groups(records) == [0, 1, 0, 1, 0]
    records[2][column] = None  # said of some rows only, it says nothing
    assert row_groups(records) == [0] * len(NOUNS)


def test_the_units_of_the_bundled_pronouns(pronouns: Any) -> None:
    """Templates come together, and no two verses do."""
    rows = list(pronouns["test"])
    units = row_groups(rows)
    of = {s: [unit for row, unit in zip(rows, units, strict=True) if row["source"] == s] for s in ("template", "kjv")}
    assert len(of["template"]) > 200 and len({*of["template"]}) < 30
    assert len({*of["kjv"]}) == len(of["kjv"])
    assert not {*of["kjv"]} & {*of["template"]}


def test_units_are_the_connected_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with a plain search through all pairs, in chunks that divide the rows."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefgh", k=5)) for _ in range(60)]
    unit = list(range(len(texts)))
    for i, first in enumerate(texts):
        for j, second in enumerate(texts[:i]):
            one, two = {*first.split()}, {*second.split()}
            if len(one & two) >= 0.7 * len(one | two) - 1e-9:
                old, new = unit[i], unit[j]
                unit = [new if u == old else u for u in unit]
    monkeypatch.setattr("gradiend_hub.data.splits._CHUNK", 7)
    found = row_groups([{"masked": text} for text in texts], threshold=0.7)
    assert len({*zip(found, unit, strict=True)}) == len({*found}) == len({*unit}) > 1
