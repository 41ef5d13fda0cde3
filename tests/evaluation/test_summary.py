"""Figures of everything from what was read on some of it: against reading it all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import read_rows
from gradiend_hub.evaluation import EvaluationSettings, StrengthProbe, calibrate, evaluate_direction
from gradiend_hub.evaluation.calibration import _Doses
from gradiend_hub.evaluation.control import instead
from gradiend_hub.evaluation.intervals import mean_interval
from gradiend_hub.evaluation.part import NotFiniteError
from gradiend_hub.evaluation.summary import difference, estimate
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import make_objective

from .test_probe import CLASSES, FILLERS, word_direction


def correlated(rng: np.random.Generator, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A value and a similar one of each item, both partly that of the item's group."""
    first = rng.gamma(2.0, size=groups.max() + 1)[groups] + 0.3 * rng.normal(size=len(groups))
    return first, 0.8 * first + 0.05 * first**2 + 0.1 * rng.normal(size=len(groups))


def test_an_estimate_covers_what_everything_gives_and_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), rng.integers(1, 5, 200))
    many = correlated(rng, np.repeat(np.arange(100_000), 3))
    first_part = int(np.searchsorted(groups, 40))
    held = np.zeros(3)
    gain = []
    for _ in range(400):
        known, wanted = correlated(rng, groups)
        reference = estimate(known, groups)
        found = estimate(wanted[:first_part], groups, [reference])
        gap = abs(found.mean - wanted.mean())
        low, high = found.interval
        plain = estimate(wanted[:first_part], groups)
        held += [
            gap <= 2 * found.missing,
            low <= many[1].mean() <= high,
            abs(plain.mean - wanted.mean()) <= 2 * plain.missing,
        ]
        gain.append(plain.missing / found.missing)
        assert found.error >= found.whole
        assert difference(found, reference).mean == pytest.approx((wanted - known)[:first_part].mean())
    assert (held / 400 > (0.8, 0.9, 0.85)).all(), held / 400  # the values are skewed
    assert np.mean(gain) > 3  # what the reference is good for
    assert estimate(wanted, groups).interval == pytest.approx(mean_interval(wanted, groups))
    assert estimate(wanted, groups, [reference]).missing == 0


def test_a_reference_that_was_not_read_on_everything_passes_its_error_on() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(400)
    known, wanted = correlated(rng, groups)
    whole, half = estimate(known, groups), estimate(known[:200], groups)
    assert estimate(wanted[:50], groups, [half]).missing > 2 * estimate(wanted[:50], groups, [whole]).missing
    assert estimate(wanted[:50], groups, [half]).missing >= half.missing


@pytest.fixture(params=[("masked", 0), pytest.param(("causal", 1), marks=pytest.mark.slow)], ids=str)
def direction(request: pytest.FixtureRequest) -> Iterator[tuple[GradiendModel, Any]]:
    """A direction on the words, with noise of another seed and size each."""
    kind, seed = request.param
    base = load_base_model(request.getfixturevalue(f"{kind}_path"))
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, decoder_sign=1)
    tokenizer = AutoTokenizer.from_pretrained(base.name_or_path)
    directed = word_direction(base, tokenizer, rest=1.0 + seed, plural=-1.0 + 0.5 * seed)
    model = GradiendModel.from_direction(base, directed, config)
    yield model, make_objective(base, tokenizer)
    model.unload()


def test_the_sequential_search_finds_the_unit_of_the_exhaustive_one(
    direction: Any, pronouns: Any, neutral: Any
) -> None:
    """Within one step of the doses. Its figures are those of everything at ±1, and within their intervals elsewhere."""
    model, objective = direction
    rows = read_rows(pronouns["validation"].select(range(110)), CLASSES)
    texts = neutral["text"][:100]
    units, searches, probes = [], [], []
    for exhaustive in (False, True):
        model.active_peft_config.strength_unit = 1.0
        probes.append(StrengthProbe(model, objective, rows, texts, batch_size=64, tokens=100, exhaustive=exhaustive))
        searches.append(calibrate(probes[-1], floor=0.97))
        units.append(model.active_peft_config.strength_unit)
    sequential, exhaustive = probes
    assert len(sequential.parts) == 3 and len(exhaustive.parts) == 1
    assert 1 / 1.1 < units[0] / units[1] < 1.1
    model.active_peft_config.strength_unit = units[0]
    for sign in (-1.0, 1.0):
        own, expected = sequential.measure(sign), exhaustive.measure(sign)
        assert own.quality_low == pytest.approx(expected.quality_low, abs=1e-6) and own.quality_low >= 0.97
        assert own.effect == pytest.approx(expected.effect, abs=1e-5)
        assert own.effect_interval == pytest.approx(expected.effect_interval, abs=1e-5)
    for point in searches[0].points:
        expected = exhaustive.measure(point.strength)
        for name, (low, high) in point.intervals.items():
            of_all = expected.intervals[name]
            least = 0.4 if name.startswith("slot") else 0.6  # few rows of skewed values
            assert high - low > least * (of_all[1] - of_all[0]) - 1e-6, name
            middle, reach = (of_all[0] + of_all[1]) / 2, 1.5 * (high - low) / 2 + 1e-4
            assert abs((low + high) / 2 - middle) < reach, (name, point.strength)
    # a first look at most doses; the whole of the base model, of ±1, and of one dose at most that seemed best before
    read = [len(parts) for parts in sequential._read.values()]
    assert {*read} == {1, 3} and 3 <= read.count(3) <= 5


def test_what_does_nearly_the_same_is_known_from_few_readings(direction: Any, pronouns: Any, neutral: Any) -> None:
    model, objective = direction
    rows = read_rows(pronouns["validation"].select(range(110)), CLASSES)
    model.active_peft_config.strength_unit = 0.3
    probe = StrengthProbe(model, objective, rows, neutral["text"][:100], batch_size=64, tokens=100)
    probe.measure(1.0)
    (name, part), noise = next(iter(model.direction.parameters.items())), torch.Generator().manual_seed(0)
    similar = 0.95 * part.decoder + 0.05 * part.decoder.std() * torch.randn(part.decoder.shape, generator=noise)
    gaps = []
    with instead(model, Direction({name: ParameterDirection(part.shape, similar)})):
        expected = probe.aside().measure(1.0)
        for like in (False, True):
            aside = probe.aside(like=like)
            found = aside.measure(1.0, math.inf)  # a first look
            assert len(aside._read[0.3]) == 1 < len(probe.parts)
            gaps.append([abs(found.effect - expected.effect), abs(found.quality - expected.quality)])
            assert found.worst(bound=False)[1] == pytest.approx(
                expected.worst(bound=False)[1], abs=0.02 / (1 + 9 * like)
            )
    assert gaps[1][0] < 0.005 and gaps[1][1] < 0.001
    assert gaps[1][0] < 0.3 * gaps[0][0] and gaps[1][1] < 0.3 * gaps[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("direction", [("masked", 0)], indirect=True)
def test_an_exhaustive_evaluation_reads_everything_at_every_strength(
    direction: Any, pronouns: Any, neutral: Any
) -> None:
    model, objective = direction
    rows = read_rows(pronouns["validation"].select(range(100)), CLASSES)
    grid = (-1.0, -0.5, 0.0, 0.5, 1.0)
    model.active_peft_config.strength_unit = 0.3
    settings = [EvaluationSettings(strengths=grid, controls=0, exhaustive=every) for every in (False, True)]
    few, every = (evaluate_direction(model, objective, rows, neutral["text"][:60], s) for s in settings)
    probe = StrengthProbe(model, objective, rows, neutral["text"][:60], exhaustive=True, batch_size=64)
    for strength in grid:
        assert every.at(strength).quality == pytest.approx(probe.measure(strength).quality, abs=1e-6)
        assert every.at(strength).effect == pytest.approx(probe.measure(strength).effect, abs=1e-6)
    for strength in (-1.0, 0.0, 1.0):
        assert few.at(strength).quality == pytest.approx(every.at(strength).quality, abs=1e-6)
    assert few.at(0.5).effect != every.at(0.5).effect
    assert few.at(0.5).effect == pytest.approx(every.at(0.5).effect, abs=0.04)


def test_a_dose_that_breaks_on_a_later_part_is_left_alone() -> None:
    """As where a single text overflows in half precision: reading it to the end ends, and another dose is looked for."""
    doses, asked = _Doses.__new__(_Doses), list[float]()
    doses._first, doses.tried = 1.0, {0}

    def more(dose: float) -> bool:
        asked.append(dose)
        assert len(asked) < 10
        if len(asked) > 2:
            raise NotFiniteError("NaN")
        return True

    doses.probe = SimpleNamespace(more=more)  # type: ignore[assignment]
    doses.finish(0)
    assert doses.tried == set()
