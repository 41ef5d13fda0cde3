"""What an evaluation costs, in tokens that the base model is given: a count, which no load of a machine changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.evaluation import EvaluationSettings

bench = pytest.importorskip("tests.benchmarks.bench_evaluation")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "most", "readings"),
    [("masked", 210_000, {"unit": 3.5, "all": 4.6}), ("causal", 60_000, {"unit": 3.5, "all": 5.5})],
)
def test_an_evaluation_reads_few_times_what_it_publishes(
    request: pytest.FixtureRequest, kind: str, most: int, readings: Mapping[str, float]
) -> None:
    """No more than before there was damage on own text and in continuations, padding included.

    The least are three whole readings: of the base model and of ±1, which are published on everything.
    """
    path: Path = request.getfixturevalue(f"{kind}_path")
    model, objective = bench.learned(path)
    rows, texts = bench.sample(100)
    data: Any = (model, objective, rows, texts)
    found = bench.forwarded(*data, EvaluationSettings())
    floor = 3 * bench.whole_reading(*data)
    model.unload()
    assert floor < sum(found.values()) <= min(most, readings["all"] * floor)
    assert found["unit"] <= readings["unit"] * floor
