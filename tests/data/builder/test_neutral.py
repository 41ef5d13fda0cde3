"""Neutral texts stay in their own split or group, and too few of them are told of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from gradiend_hub.data import NeutralSpec, TextFilters
from tests.data.builder.test_build import built, texts

NEUTRAL = [f"Nobody {number} was seen in the old house on the long road today." for number in range(90)]


@pytest.mark.parametrize("split_by", ["given", "group"])
def test_neutral_texts_stay_where_they_belong(split_by: str) -> None:
    source = [*texts(90), *NEUTRAL]
    columns = {
        "text": source,
        "part": ["train", "test", "train"] * 60,
        "doc": [f"d{number % 13}" for number in range(90)] + [f"d{number % 17}" for number in range(90)],
    }
    data = built(
        datasets.Dataset.from_dict(columns), split_by=split_by, split_column="part", group_column="doc",
        splits={"train": 2, "test": 1}, neutral=NeutralSpec(60), near_duplicates=None, balance="none",
    )  # fmt: skip
    assert data.neutral is not None
    of = dict(zip(source, columns["part" if split_by == "given" else "doc"], strict=True))
    homes = {name: {of[text] for text in part["text"]} for name, part in data.neutral.items()}
    assert sum(map(len, data.neutral.values())) == 60
    assert not homes["train"] & homes["test"]
    if split_by == "given":
        assert homes == {"train": {"train"}, "test": {"test"}}
    else:
        for name, part in data.rows.items():
            other = "test" if name == "train" else "train"
            assert not {*part["group"]} & homes[other]


def test_too_few_neutral_texts_are_told_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    options: dict[str, Any] = {"neutral": NeutralSpec(40), "filters": TextFilters(min_words=3)}
    with caplog.at_level(logging.WARNING):
        few = built([*texts(200), *NEUTRAL[:20], *NEUTRAL[:5]], **options)
    assert "asked for 40 texts, found 20 (train 16, validation 2, test 2)" in caplog.text
    assert few.funnel.neutral is not None
    assert few.funnel.neutral.kept == 20
    assert str(few.funnel).splitlines()[-1].endswith("  20 texts  −5")
    caplog.clear()
    none = built(texts(200), **options)
    assert "asked for 40 texts, found 0" in caplog.text
    assert none.neutral is None
    folder = none.save(tmp_path / "set")
    assert not (folder / "neutral").exists()
    assert {*datasets.load_dataset(str(folder))} == {"train", "validation", "test"}
    caplog.clear()
    enough = built([*texts(200), *NEUTRAL], **options)
    assert not caplog.text
    assert enough.neutral is not None
    assert [len(part) for part in enough.neutral.values()] == [32, 4, 4]
