"""The whole measurement of a direction: control, completions, what is missing, and what is written into the config."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, read_rows
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.evaluation import (
    EvaluationSettings,
    NotFiniteError,
    StrengthPoint,
    StrengthProbe,
    above_control,
    complete,
    control_curves,
    edit_account,
    evaluate_direction,
    random_direction,
)
from gradiend_hub.evaluation.control import _norm_of_damage
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import make_objective

from .test_probe import CLASSES, FILLERS, TEXTS, word_direction


@pytest.fixture
def rows(pronouns: Any) -> list[Row]:
    return read_rows(pronouns["validation"].select(range(12)), CLASSES)


def measured(base: Any, *, sparse: bool = False, bias: bool = False) -> tuple[GradiendModel, Any]:
    """A direction on the words, with an encoder, sparse or dense, with or without a bias."""
    tokenizer = AutoTokenizer.from_pretrained(base.name_or_path)
    ((name, part),) = word_direction(base, tokenizer, rest=0.5).parameters.items()
    generator = torch.Generator().manual_seed(2)
    encoder = 1e-3 * torch.randn(part.numel, generator=generator)
    part = ParameterDirection(part.shape, part.decoder, 0.1 * part.decoder.roll(1) if bias else None, encoder)
    direction = Direction({name: part}, 0.2)
    if sparse:
        direction = direction.to_sparse(0.01)
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, decoder_sign=1, strength_unit=0.3)
    return GradiendModel.from_direction(base, direction, config), make_objective(base, tokenizer)


@pytest.mark.parametrize(("sparse", "bias"), [(False, True), (True, False), (True, True)])
def test_random_directions_have_the_norm_and_the_entries_of_the_direction(
    masked_path: Any, sparse: bool, bias: bool
) -> None:
    model, _ = measured(load_base_model(masked_path), sparse=sparse, bias=bias)
    own, config = model.direction, model.active_peft_config
    first, again, other = (random_direction(model, seed) for seed in (1, 1, 2))
    model.unload()
    for sign in (1.0, -1.0):
        c_w, c_b = config.coefficients(sign)
        unit = config.strength_unit
        assert first.norm(sign * unit, unit) == pytest.approx(own.norm(c_w, c_b), rel=1e-4)
    assert first.spec() == own.spec()
    name = next(iter(own.parameters))
    a, b, c, d = (x.parameters[name] for x in (first, again, other, own))
    assert torch.equal(a.decoder, b.decoder) and not torch.equal(a.decoder, c.decoder)
    assert (a.decoder_bias is None) == (not bias)
    overlap = torch.corrcoef(torch.stack([a.dense(a.decoder).flatten(), d.dense(d.decoder).flatten()]))[0, 1]
    assert abs(float(overlap)) < 0.05
    first.check()


def test_a_control_is_read_in_place_and_leaves_no_trace(masked_path: Any, rows: list[Row]) -> None:
    base = load_base_model(masked_path)
    model, objective = measured(base)
    model.set_strength(0.4)
    held = {n: p.clone() for n, p in base.state_dict().items()}
    probe = StrengthProbe(model, objective, rows, TEXTS)
    drawn_ones = control_curves(probe, (-1.0, 0.0, 1.0), draws=2, seed=5)
    curves = [drawn.points for drawn in drawn_ones]
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert model.strengths == {"default": 0.4}
    assert all(torch.equal(p, held[n]) for n, p in base.state_dict().items())
    assert [[p.strength for p in curve] for curve in curves] == [[-1.0, 0.0, 1.0]] * 2
    assert curves[0][1] == curves[1][1] == probe.measure(0.0)
    assert curves[0][2] != curves[1][2]
    drawn, norm = random_direction(model, 5), drawn_ones[0].norms[1]
    model.unload()
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, decoder_sign=1, strength_unit=0.3)
    alone = GradiendModel.from_direction(base, drawn, config)
    point = StrengthProbe(alone, objective, rows, TEXTS).measure(norm)  # few rows: the subset is all of them
    alone.unload()
    assert curves[0][2].probability["3PL"] == pytest.approx(point.probability["3PL"], rel=1e-4)
    assert curves[0][2].kl == pytest.approx(point.kl, rel=1e-3)


def test_a_control_damages_the_worst_set_as_much_as_the_direction(
    masked_path: Any, rows: list[Row], neutral: Any
) -> None:
    """At both signs: by the bound that decides what is safe. Without text to read damage on, norms are equal."""
    model, objective = measured(load_base_model(masked_path))
    model.active_peft_config.strength_unit = 1.0
    texts = neutral["text"][:40]
    probe = StrengthProbe(model, objective, rows, texts, own=100)
    curves = control_curves(probe, (-1.0, 0.0, 1.0), draws=2, seed=5)
    for sign in (-1.0, 1.0):
        (name, quality) = probe.measure(sign).worst() or ("", 0.0)
        assert name in ("neutral", "own") and quality < 1
        for drawn in curves:
            at = next(p for p in drawn.points if p.strength == sign)
            worst = at.worst()
            assert worst is not None
            assert 0.6 < (1 - worst[1]) / (1 - quality) < 1.5
            assert worst[1] == min(d.counted(n)[1] for n, d in at.damage.items())
            assert drawn.norms[sign > 0] != 1
    (plain,) = control_curves(StrengthProbe(model, objective, rows), (-1.0, 1.0), draws=1)
    assert plain.norms == [1.0, 1.0]
    model.unload()


class Growing:
    """A probe whose damage is as wanted at a norm, growing as a mixture of the norm and its square; NaN beyond a cliff."""

    model = SimpleNamespace(active_peft_config=SimpleNamespace(strength_unit=1.0))

    def __init__(self, wanted: float, norm: float, linear: float, cliff: float) -> None:
        self.wanted, self.norm, self.linear, self.cliff = wanted, norm, linear, cliff
        self.read: list[float] = []

    def summary(self, dose: float) -> Any:
        self.read.append(dose)
        if dose > self.cliff:
            raise NotFiniteError("NaN")
        part = dose / self.norm
        return SimpleNamespace(expected_damage=self.wanted * (self.linear * part + (1 - self.linear) * part**2))

    damage = StrengthProbe.damage


def test_the_norm_of_a_random_direction_is_looked_for_between_what_is_too_small_and_too_large() -> None:
    rng = np.random.default_rng(0)
    asked: list[int] = []
    for _ in range(200):
        wanted, norm = 10 ** rng.uniform(-3, -0.5), 10 ** rng.uniform(0.3, 2.3)
        probe: Any = Growing(wanted, norm, rng.uniform(0, 1), norm * rng.choice([2.0, math.inf]))
        found = _norm_of_damage(probe, 1.0, wanted, first=norm * 10 ** rng.uniform(-0.7, 0.7))
        assert found == probe.read[-1]  # it was read, and serves as the curve's point
        assert 0.6 < found / norm < 1.5
        asked.append(len(probe.read))
    assert np.mean(asked) < 2.7 and max(asked) <= 5


@pytest.mark.parametrize("kind", ["masked", pytest.param("causal", marks=pytest.mark.slow)])
def test_everything_is_measured_and_written_down(request: pytest.FixtureRequest, rows: list[Row], kind: str) -> None:
    base = load_base_model(request.getfixturevalue(f"{kind}_path"))
    model, objective = measured(base, bias=True)
    config = model.active_peft_config
    split = evaluate_direction(
        model,
        objective,
        rows,
        TEXTS * 3,
        EvaluationSettings(floor=0.97, controls=1),
        choose_unit_for="strengthen",
        trained_words={"he", "they"},
    )
    strengths = [p.strength for p in split.curve]
    assert strengths == sorted(set(strengths))
    assert {-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0} <= set(strengths)
    assert {p.strength for p in split.search} <= set(strengths)
    assert config.safe_band is not None and -2 <= config.safe_band[0] < 0 < config.safe_band[1]
    ends = [end for end in split.break_point or [] if end is not None]
    assert config.break_point == (ends if len(ends) == 2 else None)
    assert len(split.missing) == 2 - len(ends)
    assert all(p.kl is not None and p.intervals.keys() >= {"kl", "nll", "quality"} for p in split.curve)
    assert len(split.control) == 1 and above_control(split.curve, split.control) is not None
    other = {row.alternative.lower() for row in rows} - {"he", "they"}
    assert split.encoder.held_out is not None
    assert sum(split.encoder.held_out.rows.values()) == sum(row.alternative.lower() in other for row in rows)
    assert split.encoder.neutral_rows == 9 and split.encoder.other_rows > 0
    kinds = {s.kind for s in split.encoder.encodings}
    assert kinds == {"3SG", "3PL", "neutral", "other"}
    assert all(s.text.count("[MASK]") == 1 and s.output for s in split.encoder.encodings)
    words = {w for of in FILLERS.values() for w in of}
    assert not any(s.output.lower() in words for s in split.encoder.encodings if s.kind == "other")
    fresh = evaluate_direction(model, objective, rows, TEXTS * 3, EvaluationSettings(floor=0.97, controls=0))
    assert fresh.search == [] and fresh.control == [] and above_control(fresh.curve, fresh.control) is None
    if config.break_point is not None:
        wanted = {-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, *config.safe_band, *config.break_point}
        assert [p.strength for p in fresh.curve] == sorted(wanted)
    assert fresh.at(1.0).quality == pytest.approx(split.at(1.0).quality)
    model.unload()


def test_rows_whose_feature_values_are_known_are_not_encoded_again(masked_path: Any, rows: list[Row]) -> None:
    model, objective = measured(load_base_model(masked_path))
    h = model.encode([objective.record(row) for row in rows])
    options = EvaluationSettings(strengths=(-1.0, 0.0, 1.0), controls=0)
    fresh, known = (evaluate_direction(model, objective, rows, TEXTS, options, encoded=of) for of in (None, h))
    assert fresh.encoder is not None and known.encoder is not None
    assert known.encoder.class_means == pytest.approx(fresh.encoder.class_means, abs=1e-5)
    assert known.encoder.neutral_abs_mean == pytest.approx(fresh.encoder.neutral_abs_mean, abs=1e-5)
    other = evaluate_direction(model, objective, rows, TEXTS, options, encoded=-h)
    assert other.encoder is not None and other.encoder.correlation == pytest.approx(-(fresh.encoder.correlation or 0))
    model.unload()


def test_what_the_data_lacks_is_named(masked_path: Any, rows: list[Row]) -> None:
    base = load_base_model(masked_path)
    model, objective = measured(base)
    singular = [row for row in rows if row.factual_class == "3SG"]
    split = evaluate_direction(
        model, objective, singular, (), EvaluationSettings(controls=1), choose_unit_for="strengthen"
    )
    assert [m.split(":")[0] for m in split.missing][:2] == ["No rows of 3PL", "No neutral text"]
    assert (split.encoder.correlation, split.at(1.0).quality) == (None, None)
    assert split.at(1.0).damage.keys() == {"own"} and model.active_peft_config.safe_band is not None
    without = EvaluationSettings(controls=0, own_tokens=0)
    split = evaluate_direction(model, objective, singular, (), without, choose_unit_for="strengthen")
    assert [m.split(":")[0] for m in split.missing] == [
        "No rows of 3PL",
        "No neutral text",
        "No text to read damage on",
    ]
    assert split.break_point is None and model.active_peft_config.safe_band is None
    assert split.flat().keys() == {"accuracy", "mean_3SG", "probability_3PL"}
    with pytest.raises(DataError, match="no rows to measure"):
        evaluate_direction(model, objective, [])
    model.unload()
    with pytest.raises(BaseModelError, match="no head that an objective is known for"):
        make_objective(base.bert, objective.tokenizer)


def test_debiasing_recommends_another_strength(masked_path: Any, rows: list[Row]) -> None:
    model, objective = measured(load_base_model(masked_path))
    without = EvaluationSettings(controls=0, own_tokens=0)
    split = evaluate_direction(model, objective, rows, (), without, choose_unit_for="debias")
    strength = model.active_peft_config.strength
    chances = split.at(strength).probability.values()
    assert strength not in (0.0, 1.0)
    assert all(str(strength) in completion.by_strength for completion in split.completions)
    settings = EvaluationSettings(strengths=(0.0, 1.0), controls=0, own_tokens=0)
    again = evaluate_direction(model, objective, rows, (), settings)
    assert [p.strength for p in again.curve] == sorted([0.0, strength, 1.0])
    assert "whatever it costs" in split.missing[1] and "whatever it costs" not in again.missing[1]
    assert sum(of["3SG"] - of["3PL"] for of in chances) == pytest.approx(0.0, abs=0.04)
    model.unload()


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_completions_are_what_the_model_writes(request: pytest.FixtureRequest, rows: list[Row], kind: str) -> None:
    base = load_base_model(request.getfixturevalue(f"{kind}_path"))
    model, objective = measured(base)
    found = complete(model, objective, rows, (0.0, 1.0))
    assert 2 <= len(found) <= 6
    assert model.strengths == {"default": 0.0}
    tokenizer = objective.tokenizer
    for strength in (0.0, 1.0):
        with model.strength_at(strength), torch.no_grad():
            for completion in found:
                written = completion.by_strength[str(strength)]
                if kind == "causal":
                    ids = tokenizer(completion.text, return_tensors="pt")
                    new = base.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=objective.pad_token_id)
                    expected = tokenizer.decode(new[0, ids.input_ids.shape[1] :], skip_special_tokens=True).strip()
                    assert written == expected
                    continue
                ids = tokenizer(completion.text.replace(" [MASK]", tokenizer.mask_token), return_tensors="pt")
                at = ids.input_ids[0].tolist().index(tokenizer.mask_token_id)
                top = base(**ids).logits[0, at].softmax(-1).topk(5)
                words = [tokenizer.decode([t]).strip() for t in top.indices.tolist()]
                assert [word for word, _ in written] == words
                assert [p for _, p in written] == pytest.approx(top.values.tolist(), abs=1e-4)
    model.unload()
    assert complete(model, objective, []) == []


def test_where_the_edit_falls_and_what_types_lose(masked_path: Any) -> None:
    base = load_base_model(masked_path)
    model, _ = measured(base, bias=True)
    ((name, part),) = model.direction.parameters.items()
    layers, lost = edit_account(model)
    c_w, c_b = model.active_peft_config.coefficients(1.0)
    delta = part.dense(part.delta(c_w, c_b))
    weight = base.get_parameter(name).detach()
    (layer,) = layers
    assert (layer.tensors, layer.entries, layer.share) == (1, int(delta.count_nonzero()), 1.0)
    assert layer.relative_norm == pytest.approx(float(delta.double().norm() / weight.double().norm()))
    assert layer.layer in name
    for kind in ("float16", "bfloat16"):
        dtype = getattr(torch, kind)
        half = GradiendModel.from_direction(
            load_base_model(masked_path).to(dtype), model.direction, model.active_peft_config, strength=1.0
        )
        stored = weight.to(dtype).double()
        achieved = half.get_base_model().get_parameter(name).detach().double() - stored
        expected = float(((achieved - delta.double()) ** 2).sum() / (delta.double() ** 2).sum())
        assert lost[kind] == pytest.approx(expected, rel=1e-3)
    assert 0 < lost["float16"] < lost["bfloat16"] < lost["int8"] < 1
    scale = weight.abs().max(1, keepdim=True).values / 127
    levels = torch.fake_quantize_per_channel_affine(
        weight, scale[:, 0], torch.zeros(len(scale), dtype=torch.int32), 0, -127, 127
    )
    edited = torch.fake_quantize_per_channel_affine(
        levels + delta, scale[:, 0], torch.zeros(len(scale), dtype=torch.int32), 0, -127, 127
    )
    share = float(((edited - levels - delta).double() ** 2).sum() / (delta.double() ** 2).sum())
    assert lost["int8"] == pytest.approx(share, rel=1e-2)
    model.unload()


def test_nothing_is_lost_of_a_coarse_edit_and_all_of_a_tiny_one(masked_path: Any) -> None:
    base = load_base_model(masked_path)
    model, _ = measured(base)
    model.active_peft_config.strength_unit = 1e-9
    lost = edit_account(model)[1]
    assert lost["bfloat16"] == pytest.approx(1.0, abs=1e-3)
    assert math.isclose(lost["int8"], 1.0, abs_tol=1e-3)
    model.unload()


def test_an_effect_is_compared_with_every_control() -> None:
    def curve(up: list[float], down: list[float]) -> list[StrengthPoint]:
        chances = {"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.5, "b": 0.5}}
        ends = {"a on b": up, "b on a": down}
        return [StrengthPoint(s, chances, None, None, None, None, None, ends) for s in (-1.0, 0.0, 1.0)]

    def verdict(*controls: list[StrengthPoint]) -> bool | None:
        return above_control(curve([0.3, 0.5], [0.2, 0.4]), controls)

    low, high = curve([0.1, 0.2], [0.1, 0.19]), curve([0.1, 0.2], [0.1, 0.21])
    assert verdict(low) is verdict(low, low) is True
    assert verdict(high) is verdict(low, high) is False
    assert verdict() is None
