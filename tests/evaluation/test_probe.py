"""What strengths change: hand-computed probabilities and scores, the search for the unit, and the safe band."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, TextRow, read_rows, row_groups
from gradiend_hub.errors import DataError, EditError
from gradiend_hub.evaluation import (
    EvaluationSettings,
    NotFiniteError,
    StrengthPoint,
    StrengthProbe,
    break_point,
    calibrate,
    control_curves,
    equalising_strength,
    evaluate_direction,
    measure_curve,
    safe_band,
)
from gradiend_hub.evaluation import calibration as calibration_module
from gradiend_hub.evaluation import part as part_module
from gradiend_hub.evaluation import probe as probe_module
from gradiend_hub.evaluation.control import Control, instead, random_direction
from gradiend_hub.evaluation.distributions import Distributions
from gradiend_hub.evaluation.intervals import mean_error, mean_interval
from gradiend_hub.evaluation.part import Part
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, make_objective, require_readable

CLASSES = ["3SG", "3PL"]
FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}
TEXTS = ["a wizened little man with frizzy grey hair", "on different sides of the issue", "the cat sat on the mat"]


@pytest.fixture(params=["masked", "causal"])
def bundled(request: pytest.FixtureRequest) -> Any:
    return load_base_model(request.getfixturevalue(f"{request.param}_path"))


@pytest.fixture
def masked(masked_path: Any) -> Any:
    return load_base_model(masked_path)


@pytest.fixture
def rows(pronouns: Any) -> list[Row]:
    return read_rows(pronouns["validation"].select(range(10)), CLASSES)


def word_direction(base: Any, tokenizer: Any, *, plural: float = -1.0, rest: float = 0.0) -> Direction:
    """A decoder on the word embeddings (which are the head's, too): +1 pushes the singular words, and noise."""
    name, parameter = next((n, p) for n, p in base.named_parameters() if "word_embeddings" in n or "embed_tokens" in n)
    decoder = torch.zeros_like(parameter)
    mean = parameter.detach().norm(dim=-1).mean()
    decoder[:] = rest * torch.randn(decoder.shape, generator=torch.Generator().manual_seed(0)) * mean / 15
    for word in ("he", "she", "it"):
        for form in (word, f"Ġ{word}"):
            if (token := tokenizer.convert_tokens_to_ids(form)) not in (None, tokenizer.unk_token_id):
                decoder[token] = 0.3 * parameter.detach()[token]
    for form in ("they", "Ġthey"):
        if (token := tokenizer.convert_tokens_to_ids(form)) not in (None, tokenizer.unk_token_id):
            decoder[token] = plural * 0.3 * parameter.detach()[token]
    return Direction({name: ParameterDirection(tuple(parameter.shape), decoder.flatten())})


@pytest.fixture
def opened() -> Iterator[list[GradiendModel]]:
    models: list[GradiendModel] = []
    yield models
    for model in models:
        model.unload()


def model_of(base: Any, *, unit: float = 1.0, **options: float) -> tuple[GradiendModel, Objective]:
    tokenizer = AutoTokenizer.from_pretrained(base.name_or_path)
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, strength_unit=unit, decoder_sign=1)
    model = GradiendModel.from_direction(base, word_direction(base, tokenizer, **options), config)
    return model, make_objective(base, tokenizer)


def by_hand(model: Any, tokenizer: Any, row: Row, *, causal: bool) -> dict[str, float]:
    """P(class) at the slot of one row, from an ordinary forward pass."""
    before, after = row.masked.split("[MASK]")
    if causal:
        logits = model(**tokenizer(before.rstrip(), return_tensors="pt")).logits[0, -1]
        forms = ["Ġ{}" if before.endswith(" ") else "{}"]
    else:
        encoded = tokenizer(before + tokenizer.mask_token + after, return_tensors="pt")
        logits = model(**encoded).logits[0, encoded.input_ids[0].tolist().index(tokenizer.mask_token_id)]
        forms = ["{}"]
    probabilities = logits.softmax(-1)
    capital = row.factual[:1].isupper() and causal
    return {
        name: sum(
            float(probabilities[tokenizer.convert_tokens_to_ids(forms[0].format(w.capitalize() if capital else w))])
            for w in words
        )
        for name, words in FILLERS.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.0, 0.7, -1.3])
def test_a_point_is_what_ordinary_forward_passes_give(bundled: Any, rows: list[Row], strength: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled.name_or_path)
    causal = tokenizer.mask_token is None
    plain = copy.deepcopy(bundled)
    model, objective = model_of(bundled, unit=0.5)
    probe = StrengthProbe(model, objective, rows, TEXTS, batch_size=4)
    point = probe.measure(strength)
    assert point.strength == strength
    for name, parameter in plain.named_parameters():
        if name in model.direction.parameters:
            part = model.direction.parameters[name]
            parameter.add_(0.5 * strength * part.dense(part.decoder))
    values = [by_hand(plain, tokenizer, row, causal=causal) for row in rows]
    for of in CLASSES:
        chosen = [v for v, row in zip(values, rows, strict=True) if row.factual_class == of]
        for name in CLASSES:
            assert point.probability[of][name] == pytest.approx(sum(v[name] for v in chosen) / len(chosen), rel=1e-3)
    if causal:  # every token is scored, so the mean can be computed by the model's own loss
        encoded = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
        total = sum(float(plain(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in encoded)
        tokens = sum(ids.shape[1] - 1 for ids in encoded)
        assert probe.scored == {"neutral": tokens}  # once each, however few they are
        assert point.nll == pytest.approx(total / tokens, rel=1e-4)
        correct = sum(int((plain(ids).logits[0, :-1].argmax(-1) == ids[0, 1:]).sum()) for ids in encoded)
        assert point.accuracy == pytest.approx(correct / tokens)
        base = probe.measure(0.0).nll
        assert base is not None
        assert point.quality == pytest.approx(base / (total / tokens), rel=1e-4)
    model.unload()


def test_measuring_leaves_the_model_bit_identical(masked: Any, rows: list[Row]) -> None:
    before = {n: p.clone() for n, p in masked.state_dict().items()}
    model, objective = model_of(masked)
    probe = StrengthProbe(model, objective, rows, TEXTS)
    zero = probe.measure(0.0)
    assert (zero.quality, zero.quality_low) == (1.0, 1.0)
    for strength in (1.0, -2.0, 1e3):
        probe.measure(strength)
    assert model.strengths == {"default": 0.0}
    again = StrengthProbe(model, objective, rows, TEXTS).measure(0.0)
    assert again == zero
    model.set_strength(0.5)
    half = {n: p.clone() for n, p in masked.state_dict().items()}
    probe.measure(-1.0)
    assert all(torch.equal(p, half[n]) for n, p in masked.state_dict().items())
    restored = model.unload()
    assert all(torch.equal(p, before[n]) for n, p in restored.state_dict().items())
    assert not any(p.grad is not None for p in restored.parameters())


def test_a_masked_model_is_scored_on_enough_tokens_that_the_seed_decides(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    first, again, other = (StrengthProbe(model, objective, rows, TEXTS * 20, seed=s) for s in (1, 1, 2))
    lengths = [len(objective.tokenizer(t).input_ids) - 2 for t in TEXTS * 20]
    draws = [max(1, round(0.15 * length)) * probe_module._MOST_DRAWS for length in lengths]
    assert first.scored["neutral"] == sum(map(min, lengths, draws)) < 2000
    few = StrengthProbe(model, objective, rows, TEXTS * 20, tokens=100)
    assert 100 <= few.scored["neutral"] < 100 + 20 * 3 * 3
    assert first.measure(0.0) == again.measure(0.0) != other.measure(0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_masked_text_is_never_scored_twice_at_one_token(
    masked: Any, rows: list[Row], opened: list[GradiendModel], seed: int
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    samples = StrengthProbe(model, objective, rows, [*TEXTS, ""], seed=seed)._sets["neutral"]
    scored = [(s.unit, position) for s in samples for position in s.sample.positions]
    assert len(scored) == len(set(scored)) > 20
    for sample in samples:
        ids = objective.tokenizer(TEXTS[sample.unit]).input_ids
        assert all(ids[p] == label for p, label in zip(sample.sample.positions, sample.sample.labels, strict=True))
        hidden = [
            i for i, token in enumerate(sample.sample.inputs["input_ids"]) if token == objective.tokenizer.mask_token_id
        ]
        assert hidden == list(sample.sample.positions)


def bootstrap_of_texts(texts: Any, statistic: Any, *values: Any) -> tuple[list[float], float]:
    """Percentiles of a statistic of means, when whole texts are drawn anew; and its standard deviation."""
    rng = np.random.default_rng(0)
    numbers = np.unique(texts)
    sums = np.array([[v[texts == n].sum() for n in numbers] for v in (*values, np.ones(len(texts)))])
    drawn = sums[:, rng.integers(len(numbers), size=(20_000, len(numbers)))].sum(-1)
    found = statistic(*(drawn[:-1] / drawn[-1]))
    return np.quantile(found, [0.025, 0.975]).tolist(), float(found.std())


def test_the_error_of_a_mean_of_grouped_values_is_the_bootstraps() -> None:
    """Groups of unequal sizes whose values are alike: their number decides, not that of the values."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(300) * 2, rng.integers(1, 30, 300))
    values = rng.normal(size=600)[groups] + rng.normal(size=len(groups))
    (_, expected) = bootstrap_of_texts(groups, lambda mean: mean, values)
    error, freedom = mean_error(values, groups)
    assert (error, freedom) == (pytest.approx(expected, rel=0.03), 299)
    assert error > 2.5 * mean_error(values)[0]
    shuffled = rng.permutation(len(values))
    assert mean_error(values[shuffled], groups[shuffled])[0] == pytest.approx(error)
    alone = np.arange(len(values))
    assert mean_error(values, alone) == pytest.approx(mean_error(values))  # each its own group: the ordinary error
    assert mean_error(values, 0 * groups) == mean_error(values)  # one group: nothing else to go by
    assert mean_interval(np.ones(4), np.array([0, 0, 1, 1])) == [1.0, 1.0]


def test_intervals_on_neutral_text_are_those_of_a_bootstrap_of_texts(
    bundled: Any, rows: list[Row], opened: list[GradiendModel], neutral: Any
) -> None:
    model, objective = model_of(bundled, rest=1.0)
    opened.append(model)
    texts = neutral["text"][:120]
    probe = StrengthProbe(model, objective, rows, texts)
    point, base, edited = probe.measure(1.5), probe.values(0.0), probe.values(1.5)
    base, edited = base.sets["neutral"], edited.sets["neutral"]
    of, compared = probe.items.sets["neutral"].text, probe.items.sets["neutral"].compared
    assert len(of) == probe.scored["neutral"] and len(compared) == len(edited.kl)
    tokens = {n: sum(of == n) for n in np.unique(of)}
    if probe._sets["neutral"][0].sample.labels[1:]:  # a causal model: every token is scored
        assert tokens == {n: len(objective.quality_samples(texts[n], Random(0))[0].positions) for n in tokens}

    def alike(ends: list[float], expected: list[float]) -> bool:
        width = expected[1] - expected[0]
        return ends == pytest.approx(expected, abs=0.12 * width)

    assert alike(point.intervals["nll"], bootstrap_of_texts(of, lambda mean: mean, edited.nll)[0])
    assert alike(point.intervals["kl"], bootstrap_of_texts(compared, lambda mean: mean, edited.kl)[0])
    expected, error = bootstrap_of_texts(of, lambda before, after: before / after, base.nll, edited.nll)
    assert alike(point.intervals["quality"], expected)
    assert point.quality_low == pytest.approx(point.quality - 1.65 * error, abs=0.3 * error)


def test_without_neutral_text_nothing_is_claimed_about_it(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows)
    point = probe.measure(1.0)
    assert (point.nll, point.accuracy, point.quality, point.quality_low) == (None, None, None, None)
    assert safe_band([point]) is None
    config = model.active_peft_config
    del config.__dict__["fillers"]
    config.fillers = None
    with pytest.raises(DataError, match="names no fillers"):
        StrengthProbe(model, objective, rows)
    config.fillers = FILLERS
    with pytest.raises(DataError, match="No rows"):
        StrengthProbe(model, objective, [])


def test_intervals_are_those_of_paired_differences(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows, TEXTS * 4)
    point = probe.measure(0.5)
    base, edited = probe.values(0.0).sets["neutral"].nll, probe.values(0.5).sets["neutral"].nll
    mean = (edited - base).mean()
    of = probe.items.sets["neutral"].text
    beyond = edited - base - mean / base.mean() * (base - base.mean()) - mean
    sums = [beyond[of == number].sum() for number in set(of)]
    assert len(sums) == len(TEXTS)  # each is there four times, and is one text
    error = np.std(sums, ddof=1) * math.sqrt(len(sums)) / len(of)
    low, high = stats.t.interval(0.95, len(sums) - 1, loc=mean, scale=error)
    assert point.quality == pytest.approx(base.mean() / edited.mean())
    bound = mean + stats.t.ppf(0.95, len(sums) - 1) * error
    assert point.quality_low == pytest.approx(base.mean() / (base.mean() + bound))
    assert point.intervals["quality"] == pytest.approx(
        [base.mean() / (base.mean() + high), base.mean() / (base.mean() + low)]
    )
    of_first = probe.values(0.5).probability[probe.items.row_class == 0, 1]
    error, freedom = mean_error(of_first, np.array(row_groups(rows))[[row.factual_class == "3SG" for row in rows]])
    low, high = point.intervals["3PL on 3SG"]
    middle, reach = of_first.mean(), stats.t.ppf(0.975, freedom) * error
    assert 0 <= low < middle < high <= 1
    for end in (low, high):  # Wilson's: the means that the found one is just as far from as their own spread allows
        assert (end - middle) ** 2 == pytest.approx(reach**2 * end * (1 - end) / (middle * (1 - middle)), rel=1e-6)
    assert point.probability["3SG"]["3PL"] == pytest.approx(of_first.mean())
    few = probe.subset(2, 8)
    assert 0 < few.scored["neutral"] < probe.scored["neutral"]
    assert [sum(few.items.row_class == of) for of in (0, 1)] == [2, 2]
    assert few.measure(0.5).nll == pytest.approx(few.values(0.5).sets["neutral"].nll.mean())


@torch.no_grad()
def test_divergence_is_that_of_the_whole_distribution(causal_path: Any, rows: list[Row]) -> None:
    base = load_base_model(causal_path)
    plain = copy.deepcopy(base)
    model, objective = model_of(base, rest=1.0)
    point = StrengthProbe(model, objective, rows, TEXTS, batch_size=2).measure(0.5)
    expected: list[float] = []
    with model.strength_at(0.5):
        for text in TEXTS:
            ids = objective.tokenizer(text, return_tensors="pt").input_ids
            p, q = (m(ids).logits[0, :-1].double().softmax(-1).numpy() for m in (plain, base))
            expected += stats.entropy(p, q, axis=-1).tolist()
    model.unload()
    assert point.kl == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert 0 < point.intervals["kl"][0] < point.kl < point.intervals["kl"][1]


def test_words_that_neither_model_knows_count_for_nothing_and_lost_ones_for_everything() -> None:
    p = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 2.0, 1.0]]).log_softmax(-1)
    q = torch.tensor([[0.5, 0.2, -math.inf], [0.0, 2.0, -math.inf]]).log_softmax(-1)
    found = Distributions.of(p).divergence(q)
    assert found.tolist() == pytest.approx(stats.entropy(p.exp(), q.exp(), axis=-1).tolist(), rel=1e-6)
    assert found[0] < math.inf == found[1]


def test_divergence_of_large_vocabularies_is_read_on_fewer_tokens(
    masked: Any, rows: list[Row], opened: list[GradiendModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    whole = StrengthProbe(model, objective, rows, TEXTS * 20).values(0.5).sets["neutral"]
    monkeypatch.setattr(probe_module, "KL_VALUES", 400 * masked.config.vocab_size)
    fewer = StrengthProbe(model, objective, rows, TEXTS * 20).values(0.5).sets["neutral"]
    assert len(whole.kl) == len(whole.nll) > 400
    assert 180 <= len(fewer.kl) < 250
    assert fewer.kl.mean() == pytest.approx(whole.kl.mean(), rel=0.3)
    assert (fewer.nll == whole.nll).all()
    monkeypatch.setattr(part_module, "LOGITS", 7 * masked.config.vocab_size)
    small = StrengthProbe(model, objective, rows, TEXTS, batch_size=64)
    (part,) = small.parts
    assert max(job.batch.positions.numel() for job in part._jobs if job.of) <= 7
    assert max(len(job.batch) for job in part._jobs if not job.of) == 7


def test_the_unit_is_the_safe_dose_with_the_best_effect(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows, TEXTS * 2)
    search = calibrate(probe, floor=0.97).points
    unit = model.active_peft_config.strength_unit
    by_dose: dict[float, list[StrengthPoint]] = {}
    for point in search:
        by_dose.setdefault(round(abs(point.strength), 9), []).append(point)
    assert all(len(pair) == 2 for pair in by_dose.values())

    def safe(pair: list[StrengthPoint]) -> bool:
        return all(p.quality_low is not None and p.quality_low >= 0.97 for p in pair)

    effects = {
        dose: up.probability["3PL"]["3SG"] + down.probability["3SG"]["3PL"] for dose, (down, up) in by_dose.items()
    }
    allowed = {dose for dose, pair in by_dose.items() if safe(pair)}
    assert 1.0 in allowed
    assert effects[1.0] == max(effects[dose] for dose in allowed)
    assert not all(map(safe, by_dose.values()))  # the search went up to where damage begins
    damage = max(1 - (p.quality_low or 0) for p in by_dose[max(allowed)])
    assert min(dose for dose in by_dose if dose not in allowed) / max(allowed) < 1.2 or damage > 0.8 * 0.03
    # what was measured during the search is what the new unit gives
    fresh = StrengthProbe(model, objective, rows, TEXTS * 2)
    recommended = next(p for p in search if p.strength == pytest.approx(1.0))
    again = fresh.measure(1.0)
    assert again.quality == pytest.approx(recommended.quality, rel=1e-6)
    assert again.probability["3PL"] == pytest.approx(recommended.probability["3PL"], rel=1e-4)
    assert unit > 0
    assert model.strengths == {"default": 0.0}


def test_the_unit_is_a_dose_whose_effect_is_above_that_of_random_directions(
    masked: Any, rows: list[Row], opened: list[GradiendModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control that does as much as the best dose leaves the choice to the next one; one that beats all, to the best."""
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    config = model.active_peft_config

    def unit(limit: float | None) -> tuple[float, list[StrengthPoint]]:
        """Chosen unit if random directions of at least this dose do more than the direction; none ever does by default."""
        asked: list[float] = []

        def control(probe: StrengthProbe, strengths: Any, *, draws: int, seed: int) -> list[Control]:
            asked.append(config.strength_unit)
            assert (strengths, draws, seed) == ((-1.0, 1.0), 2, 7)
            strong = limit is not None and config.strength_unit >= limit
            interval = [0.99, 1.0] if strong else [-1.0, -1.0]
            ends = {"3SG on 3PL": interval, "3PL on 3SG": interval}
            chances = {c: dict.fromkeys(CLASSES, 0.5) for c in CLASSES}
            return [Control([StrengthPoint(s, chances, None, None, None, None, None, ends) for s in strengths])] * draws

        config.strength_unit = 1.0
        monkeypatch.setattr(calibration_module, "control_curves", control)
        search = calibrate(StrengthProbe(model, objective, rows, TEXTS * 2), floor=0.97, controls=2, seed=7)
        assert len(search.control) == 2 and config.strength_unit in asked
        return config.strength_unit, search.points

    best, points = unit(None)
    second, others = unit(0.999 * best)
    assert 0 < second < best
    safe = {p.strength * second for p in others if p.strength > 0 and (p.quality_low or 0) >= 0.97}
    assert max(dose for dose in safe if dose < best * 0.999) == pytest.approx(second)
    assert unit(0.0)[0] == best
    assert {round(p.strength * best, 9) for p in points} == {round(p.strength * second, 9) for p in others}


def test_the_control_of_the_search_is_not_measured_again(
    masked: Any, rows: list[Row], opened: list[GradiendModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows, TEXTS)
    search = calibrate(probe, floor=0.97, controls=1, seed=3)
    fresh = control_curves(probe, (-1.0, 0.5, 1.0), draws=1, seed=3)
    read: list[float] = []
    original = Part.read
    monkeypatch.setattr(Part, "read", lambda self, model, s: (read.append(s), original(self, model, s))[1])
    assert control_curves(probe, (-1.0, 0.5, 1.0), search.control, draws=1, seed=3) == fresh
    (norms,) = [drawn.norms for drawn in fresh]
    assert [s for s in read if s != 0] == [0.5 * norms[1]]


def test_norms_of_random_directions_may_be_those_of_other_rows(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    calibrate(StrengthProbe(model, objective, rows[:5], TEXTS), floor=0.97)
    (elsewhere,) = control_curves(StrengthProbe(model, objective, rows[:5], TEXTS), (-1.0, 1.0), draws=1, seed=3)
    probe = StrengthProbe(model, objective, rows[5:], TEXTS[::-1])
    (found,) = control_curves(probe, (-1.0, 0.0, 1.0), draws=1, seed=3, norms=[elsewhere.norms])
    assert found.norms == elsewhere.norms and [p.strength for p in found.points] == [-1.0, 0.0, 1.0]
    assert len(probe._read) == 3  # ±1 of the direction and 0: none was read to set a norm
    with instead(model, random_direction(model, 3)):
        for sign, norm in zip((-1.0, 1.0), elsewhere.norms, strict=True):
            by_hand = probe.aside().measure(sign * norm)
            assert next(p for p in found.points if p.strength == sign).effect == pytest.approx(by_hand.effect, abs=1e-6)


def test_search_ends_without_neutral_text(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    search = calibrate(StrengthProbe(model, objective, rows)).points
    at = {p.strength: p for p in search}
    assert at[1.0].probability["3PL"]["3SG"] > at[min(at, key=abs)].probability["3PL"]["3SG"]


def test_a_direction_that_only_damages_is_refused(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    with pytest.raises(EditError, match=r"Even an edit of .* lowers the quality on neutral text under 100000.0% of"):
        calibrate(StrengthProbe(model, objective, rows, TEXTS), floor=1000.0)
    assert model.active_peft_config.strength_unit == 1.0


def test_strength_in_force_follows_the_new_unit(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    """Strength 0.5 stays 0.5, in the new unit, as if it were set anew."""
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    model.set_strength(0.5)
    calibrate(StrengthProbe(model, objective, rows, TEXTS), floor=0.97, controls=1)
    held = {n: p.clone() for n, p in masked.state_dict().items()}
    assert model.strengths == {"default": 0.5}
    assert model.active_peft_config.strength_unit != 1.0
    model.set_strength(0.0)
    model.set_strength(0.5)
    assert all(torch.equal(p, held[n]) for n, p in masked.state_dict().items())


def point(strength: float, score: float | None) -> StrengthPoint:
    return StrengthPoint(strength, {}, None if score is None else 1.0, 0.5, score, score)


@pytest.mark.parametrize(
    ("scores", "band"),
    [
        ({-2: 0.9, -1: 1.0, 0: 1.0, 1: 0.995, 2: 0.99}, [-1.0, 2.0]),
        ({-2: 1.0, -1: 0.98, 0: 1.0, 1: 0.98, 2: 1.0}, [0.0, 0.0]),  # not beyond the first damage
        ({2: 1.0, 0: 1.0, -2: 1.0, 1: 1.0, -1: 1.0}, [-2.0, 2.0]),
        ({0: 1.0}, [0.0, 0.0]),
        ({-1: 1.0, 0: 1.0, 1: None}, None),
    ],
)
def test_safe_band(scores: dict[int, float | None], band: list[float] | None) -> None:
    assert safe_band([point(float(s), score) for s, score in scores.items()], floor=0.99) == band


def test_evaluate_direction_uses_the_unit_that_is_there_unless_told_to_choose(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked, unit=0.25, rest=1.0)
    direction = model.direction
    encoded = {
        n: ParameterDirection(p.shape, p.decoder, encoder=torch.zeros_like(p.decoder))
        for n, p in direction.parameters.items()
    }
    config = model.active_peft_config
    model.unload()
    model = GradiendModel.from_direction(masked, Direction(encoded, 0.3), config)
    opened.append(model)
    used = evaluate_direction(
        model, objective, rows, TEXTS, EvaluationSettings(strengths=(0.0, 1.0), controls=1, tokens=400, own_tokens=200)
    )
    assert (model.active_peft_config.strength_unit, used.search) == (0.25, [])
    assert [p.strength for p in used.curve] == [0.0, 1.0]
    assert used.at(1.0).strength == 1.0
    assert used.encoder.class_means["3SG"] == pytest.approx(-math.tanh(0.3))  # of the other word, which is 3PL
    assert used.encoder.neutral_rows == len(TEXTS)
    settings = EvaluationSettings(strengths=(-1.0, 0.0, 1.0), floor=0.97, controls=1, tokens=400, own_tokens=200)
    chosen = evaluate_direction(model, objective, rows, TEXTS, settings, choose_unit_for="strengthen")
    assert chosen.search
    assert model.active_peft_config.strength_unit != 0.25
    assert model.active_peft_config.safe_band == safe_band(chosen.curve, floor=0.97) == [-1.0, 1.0] or chosen.search
    assert {-1.0, 0.0, 1.0} <= {p.strength for p in chosen.curve}
    flat = chosen.flat()
    assert flat["quality"] == min(chosen.at(s).quality or 0 for s in (-1.0, 1.0))
    assert flat["probability_3SG"] == chosen.at(1.0).probability["3PL"]["3SG"]
    assert flat["probability_3PL"] == chosen.at(-1.0).probability["3SG"]["3PL"]


def test_break_point() -> None:
    curve = [point(s, score) for s, score in ((-4.0, 0.7), (-3.0, 0.89), (-1.0, 0.95), (0.0, 1.0), (2.0, 0.91))]
    assert break_point(curve) == [-3.0, None]
    assert break_point(curve, level=0.93) == [-3.0, 2.0]
    assert break_point([point(1.0, None)]) is None


class Damaged:
    """A probe whose model loses 1 % of its score at strength ±1, growing with the square of the strength."""

    scored = 1

    def __init__(self, finite: float = math.inf) -> None:
        self.finite = finite
        self.asked: list[float] = []

    def measure(self, strength: float, wider: float | None = None) -> StrengthPoint:
        if strength not in self.asked:
            self.asked.append(strength)
        if abs(strength) > self.finite:
            raise NotFiniteError("NaN")
        return point(strength, 1 - 0.008 * strength**2)


def test_the_grid_is_refined_around_the_band_and_the_break_point() -> None:
    probe: Any = Damaged()
    curve = measure_curve(probe, (-2.0, -1.0, 0.0, 1.0, 2.0), floor=0.99).points
    band, broken = safe_band(curve, floor=0.99), break_point(curve)
    exact_band, exact_break = math.sqrt(0.01 / 0.008), math.sqrt(0.1 / 0.008)
    assert band is not None and broken is not None
    assert band[0] == -band[1] and exact_band / 1.1 < band[1] <= exact_band
    assert broken[1] is not None and broken[0] == -broken[1]
    assert 1.05 * exact_break < broken[1] < 1.2 * exact_break  # far enough beyond it that other rows show it, too
    assert len(probe.asked) <= 15  # at most five more of each sign
    plain: Any = Damaged()
    assert [p.strength for p in measure_curve(plain, (0.0, 1.0)).points] == plain.asked == [0.0, 1.0]


def test_strengths_at_which_the_model_computes_nan_end_the_curve() -> None:
    probe: Any = Damaged(finite=1.5)
    curve = measure_curve(probe, (-2.0, -1.0, 0.0, 1.0, 2.0), floor=0.99)
    assert max(abs(p.strength) for p in curve.points) <= 1.5
    assert {-2.0, 2.0} < set(curve.not_finite)
    low, high = break_point(curve.points, curve.not_finite) or (None, None)
    assert low == -high and 1.5 < high < 2.0  # refined like any other break point
    far: Any = Damaged(finite=1.5)
    curve = measure_curve(far, (1e30, 1.0), floor=0.99)
    assert curve.not_finite[-1] == 1e30 and max(far.asked) == 1e30 and sorted(far.asked)[-2] <= 4
    assert 1.5 < (break_point(curve.points, curve.not_finite) or [None, 0.0])[1] <= 4  # 1e15 would say nothing
    with pytest.raises(NotFiniteError):
        measure_curve(Damaged(finite=0.5), (0.0, 1.0))  # type: ignore[arg-type]


def test_strengths_that_compute_nan_are_named_and_are_a_break_point(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    split = evaluate_direction(
        model, objective, rows, TEXTS, EvaluationSettings(strengths=(1e39, 1.0, 0.0), controls=1)
    )
    assert [p.strength for p in split.curve] == [0.0, 1.0]
    assert split.break_point == [None, 1e39]
    assert "No figures at strength +1e+39: the model computes NaN or infinity there." in split.missing
    assert not any("positive strength has" in text for text in split.missing)


def test_the_control_is_read_at_the_unit(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    model, objective = model_of(masked, rest=1.0)
    opened.append(model)
    model.active_peft_config.safe_band, model.active_peft_config.break_point = [-1.3, 1.7], [-7.0, 9.0]
    split = evaluate_direction(model, objective, rows, TEXTS, EvaluationSettings(controls=2))
    strengths = [p.strength for p in split.curve]
    assert {-7.0, -1.3, 1.7, 9.0} < set(strengths)
    assert [[p.strength for p in drawn] for drawn in split.control] == [[-1.0, 0.0, 1.0]] * 2


def test_nan_is_named_and_never_averaged_away(masked: Any, rows: list[Row], opened: list[GradiendModel]) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows, TEXTS)
    token = objective.outputs(rows[3], "they")[0]
    bias = masked.cls.predictions.bias.data
    probe.measure(0.0)
    bias[token] = math.nan
    with pytest.raises(
        NotFiniteError, match=r"At strength 0.5 the edited model computes NaN or infinity: .* on 10 of 10"
    ):
        probe.measure(0.5)
    with pytest.raises(NotFiniteError, match=r"The base model itself \(strength 0\) computes NaN"):
        StrengthProbe(model, objective, rows, TEXTS).measure(1.0)
    with pytest.raises(NotFiniteError, match=r"first is row 0"):
        StrengthProbe(model, objective, rows).measure(0.0)


def test_fillers_are_checked_before_training(masked: Any, rows: list[Row]) -> None:
    objective = make_objective(masked, AutoTokenizer.from_pretrained(masked.name_or_path))
    require_readable(objective, rows, FILLERS)
    unknown = {**FILLERS, "3PL": ["they", "☃"]}
    with pytest.raises(DataError, match=r"cannot be read on 10 of 10 rows.*The first is row 0 .*'☃' is unknown"):
        require_readable(objective, rows, unknown)
    with pytest.raises(DataError, match="names no fillers"):
        require_readable(objective, rows, None)


def test_one_class_and_no_text_are_measured_as_far_as_they_go(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    singular = [row for row in rows if row.factual_class == "3SG"]
    probe = StrengthProbe(model, objective, singular)
    up, down = probe.measure(1.0), probe.measure(-1.0)
    assert list(up.probability) == ["3SG"]
    assert up.effect is None
    assert down.effect == down.probability["3SG"]["3PL"] == probe.effect(up, down)


def test_debiasing_finds_the_strength_at_which_the_classes_are_equally_likely(
    masked: Any, rows: list[Row], opened: list[GradiendModel]
) -> None:
    model, objective = model_of(masked)
    opened.append(model)
    probe = StrengthProbe(model, objective, rows)
    strength = equalising_strength(probe, (-1.0, 1.0))
    chances = probe.measure(strength).probability.values()
    mean = {c: sum(of[c] for of in chances) / 2 for c in CLASSES}
    before = {c: sum(of[c] for of in probe.measure(0.0).probability.values()) / 2 for c in CLASSES}
    assert abs(mean["3SG"] - mean["3PL"]) < 0.02
    assert abs(mean["3SG"] - mean["3PL"]) < abs(before["3SG"] - before["3PL"])
    with pytest.raises(EditError, match=r"No strength from 0.9 to 1 makes '3SG' and '3PL' equally likely"):
        equalising_strength(probe, (0.9, 1.0))


@torch.no_grad()
def test_words_of_several_tokens_are_read_slot_by_slot(bundled: Any, opened: list[GradiendModel]) -> None:
    """P(class) with a long word, from ordinary forward passes: a product over masks, or a chain of next tokens."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.name_or_path)
    causal = tokenizer.mask_token is None
    fillers = {"3SG": ["he", "unhelpful"], "3PL": ["they", "ourselves", "we"]}
    plain = copy.deepcopy(bundled)
    model, objective = model_of(bundled)
    opened.append(model)
    model.active_peft_config.fillers = fillers
    rows = [
        TextRow("The boys were home because [MASK] left.", "unhelpful", "they", "3SG", "3PL"),
        TextRow("The boys were [MASK] then.", "they", "he", "3PL", "3SG"),
    ]
    point = StrengthProbe(model, objective, rows, batch_size=3).measure(0.0)
    for row in rows:
        before, after = row.masked.split("[MASK]")
        for name, words in fillers.items():
            total = 0.0
            for word in words:
                prefix = tokenizer(before.rstrip()).input_ids if causal else []
                ids = tokenizer(f"{before}{word}" if causal else word, add_special_tokens=causal).input_ids[
                    len(prefix) :
                ]
                if causal:
                    logits = plain(torch.tensor([[*prefix, *ids]])).logits[0, len(prefix) - 1 : -1]
                else:
                    encoded = tokenizer(before + tokenizer.mask_token * len(ids) + after, return_tensors="pt")
                    logits = plain(**encoded).logits[0, encoded.input_ids[0] == tokenizer.mask_token_id]
                total += float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().exp())
            assert point.probability[row.factual_class][name] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("count", [1, 30, 47, 95, 110, 180, 200, 777])
def test_each_part_is_half_of_what_is_left_and_evenly_spread(count: int) -> None:
    halvings = probe_module._halvings(count)
    of_item = np.array(probe_module._parts(count, halvings + 1))  # another kind of items has a part more
    first = np.flatnonzero(of_item == 0)
    assert len(first) == count if count < 34 else 24 <= len(first) <= 34
    for part in range(2, halvings + 2):
        before = np.flatnonzero(of_item < part)
        assert len(before) <= max(len(first), (np.sum(of_item <= part) + 1) // 2)
        gaps = np.diff([-1, *before, count])
        assert gaps.max() <= 2 * count / len(before) + 1
    assert not np.isin(of_item, [1]).any() and probe_module._parts(count, 0) == [0] * count
