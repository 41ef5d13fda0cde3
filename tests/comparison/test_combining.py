"""Sums of directions: the same bits as PEFT's, what their parts do to each other, and the artifact that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.comparison import DirectionSet
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report

WEIGHTS = {"number": 1.0, "gender": -0.5}


@pytest.fixture
def ds(compared: dict[str, Path], compared_base: Any) -> DirectionSet:
    return DirectionSet.from_pretrained(compared, compared_base)


def test_peft_adds_the_same_bits(ds: DirectionSet, compared: dict[str, Path], compared_base: Any) -> None:
    model = GradiendModel.from_pretrained(compared["number"], base_model=compared_base, adapter_name="number")
    model.load_adapter(compared["gender"], adapter_name="gender")
    model.load_adapter(compared["aware"], adapter_name="aware")
    model.set_strength({"number": 1.0, "gender": 1.0, "aware": 1.0})
    weights = {**WEIGHTS, "aware": 0.25}
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum")
    theirs = model._directions["sum"]
    direction, _ = ds.combine(weights)
    assert direction.parameters.keys() == theirs.parameters.keys()
    for name, part in direction.parameters.items():
        assert torch.equal(part.dense(part.decoder), theirs.parameters[name].dense(theirs.parameters[name].decoder))
    model.unload()


def test_sparse_stays_sparse(ds: DirectionSet) -> None:
    direction, _ = ds.combine({"gender": 2.0})
    assert all(part.indices is not None for part in direction.parameters.values())
    assert direction.entries == ds["gender"].direction.entries
    cut, _ = ds.combine(WEIGHTS, density=0.01)
    assert cut.entries == round(0.01 * cut.numel) or cut.entries < 0.011 * ds.frame.numel


def test_ranks_add_and_are_cut_again_on_request(ds: DirectionSet) -> None:
    low = {name: (ds[name].direction.to_rank(3), ds[name].config) for name in ("number", "aware")}
    both = DirectionSet.from_directions(low)
    direction, _ = both.combine({"number": 1.0, "aware": 1.0})
    matrices = [part for part in direction.parameters.values() if part.rank]
    assert matrices and max(part.rank for part in matrices) > 3
    cut, _ = both.combine({"number": 1.0, "aware": 1.0}, rank=2)
    assert max(part.rank or 0 for part in cut.parameters.values()) == 2


def test_effects_of_the_parts_add_up(ds: DirectionSet) -> None:
    direction, report = ds.combine(WEIGHTS)
    whole = DirectionSet.from_directions({"sum": (direction, ds.combine(WEIGHTS).config)})
    predicted = ds.predicted_effects()
    for column in predicted.columns:
        by_hand = sum(weight * predicted[name, column].value for name, weight in WEIGHTS.items())
        assert report.total[column] == pytest.approx(by_hand, rel=1e-6)
        gradient, factor = ds[column].gradient
        assert report.total[column] == pytest.approx(factor * direction.inner(gradient, 1.0, 0.0), rel=1e-4)
    squares = [ds.combine({name: weight}).direction.norm() ** 2 for name, weight in WEIGHTS.items()]
    assert report.cancellation == pytest.approx(1 - direction.norm() ** 2 / sum(squares), abs=1e-6)
    assert whole.similarity()["sum", "sum"].value == pytest.approx(1)


def test_opposite_parts_cancel(ds: DirectionSet) -> None:
    direction, report = ds.combine({"number": 1.0, "aware": 0.5})
    assert report.cosine["number", "aware"].value < 0 and report.cancellation > 0
    assert direction.norm() > 0


def test_damage_comes_from_the_curves(ds: DirectionSet) -> None:
    _, report = ds.combine(WEIGHTS)
    curve = ds["number"].report.splits["eval"]
    assert report.damage["number"] == pytest.approx(1 / curve.at(1.0).quality - 1)
    positive = sum(max(0.0, report.damage[name]) for name in WEIGHTS)
    assert report.damage["sum"] == pytest.approx(positive) and report.damage_method == "independent"
    _, report = ds.combine({"number": 1e6})
    assert report.damage == {"number": None, "sum": None} and "no curve of number" in report.notes[0]
    _, report = ds.combine({"aware": 1.0})
    assert report.damage_method == "fisher" and report.damage["sum"] == pytest.approx(max(0.0, report.damage["aware"]))


def test_projected_parts_leave_the_others_alone(ds: DirectionSet) -> None:
    direction, report = ds.combine(WEIGHTS, orthogonal=True)
    assert report.effects["number", "gender"].value == pytest.approx(0, abs=1e-6)
    assert report.effects["gender", "number"].value == pytest.approx(0, abs=1e-6)
    for name in WEIGHTS:  # and that is so of the direction itself
        gradient, factor = ds[name].gradient
        assert factor * direction.inner(gradient, 1.0, 0.0) == pytest.approx(report.total[name], rel=1e-3)
    assert report.metric == "Euclidean" and all(0 <= cost < 0.2 for cost in report.cost.values())
    _, mixed = ds.combine({"aware": 1.0, "gender": 1.0}, orthogonal=True)
    assert mixed.metric == "Euclidean and Fisher"
    assert json.loads(report.to_json())["cost"].keys() == WEIGHTS.keys() and "Euclidean" in str(report)


def test_projection_needs_a_gradient(ds: DirectionSet) -> None:
    blind = DirectionSet.from_directions({name: (ds[name].direction, ds[name].config) for name in ("number", "gender")})
    with pytest.raises(ConfigError, match="needs the gradient of each part, and that of number is not known"):
        blind.combine(WEIGHTS, orthogonal=True)
    _, report = blind.combine(WEIGHTS)
    assert report.effects.columns == () and report.damage["sum"] is None


def test_a_combination_is_an_artifact(ds: DirectionSet, compared_base: Any, tmp_path: Path) -> None:
    combination = ds.combine({"gender": -0.5, "number": 1.0})
    combination.save_pretrained(tmp_path / "sum")
    card = (tmp_path / "sum" / CARD_FILE).read_text(encoding="utf-8")
    assert "Unmeasured" in card and "**A combination** of 2 directions" in card
    assert "| gender (male / female) | – | -0.500 |" in card
    report = Report.load(tmp_path / "sum")
    assert [(p.direction, p.weight) for p in report.parents] == [("gender", -0.5), ("number", 1.0)]
    model = GradiendModel.from_pretrained(tmp_path / "sum", base_model=compared_base)
    assert model.active_peft_config.feature_classes == ["female", "male"]  # the first part's, at its negative strength
    stored = model.direction
    for name, part in combination.direction.parameters.items():
        assert torch.equal(part.decoder, stored.parameters[name].decoder)
    model.unload()
    again = DirectionSet.from_pretrained([tmp_path / "sum", ds["gender"].folder], compared_base)
    assert again.similarity()["sum", "gender"].value == pytest.approx(
        ds.combine({"gender": 1.0}).direction.inner(combination.direction)
        / ds.combine({"gender": 1.0}).direction.norm()
        / combination.direction.norm(),
        abs=0.05,
    )
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        combination.save_pretrained(tmp_path / "file")
