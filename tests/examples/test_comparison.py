"""The papers' comparison: 44 directions with rows for null and ceiling, and claims that are judged by the figures."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from gradiend_hub.comparison.tables import Matrix
from gradiend_hub.training.suite_rows import SharedRows, pairs_of
from tests.conftest import ROOT

BATCH = 8


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    before = {*sys.modules}
    yield importlib.import_module("comparison")
    for name in {"comparison", "common", "german_articles", "race_religion"} - before:
        sys.modules.pop(name, None)


def test_44_directions_have_rows_for_two_halves(example: Any) -> None:
    named = []
    for rows, pairs, merged in example.features().values():
        shared = SharedRows(rows)
        for pair in pairs_of(shared.classes, pairs, merged):
            named.append(pair.name)
            texts = Counter(str(own["factual_class"]) for row in rows if (own := pair.of(row)))
            assert min(texts[pair.first], texts[pair.second]) > BATCH, pair.name  # two gradients of each class at least
    assert len(named) == len({*named}) == 44


def test_figures_are_means_beside_null_and_ceiling(example: Any) -> None:
    names = ("a", "b", "c")
    values = np.array([[1.0, -0.5, 0.1], [-0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    null, unknown = np.full((3, 3), 0.2), np.full((3, 3), np.nan)
    table = Matrix("cosine", names, names, values, null, unknown, symmetric=True)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert example.beyond_null(table, pairs) == pytest.approx(2 / 3)  # -0.5 and 0.3, but not 0.1
    said = example.figures(pairs, table, table)
    assert said.startswith("mean |cosine| 0.30 (null 0.20, ceiling unknown, beyond the null 67%)") and said.endswith(
        "3 pairs."
    )
