"""Damage by the text that it is read on: collateral by hand, shared passes, sets of a user, and edits whose damage hides."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import AutoTokenizer

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, read_rows
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import EvaluationSettings, StrengthProbe, calibrate, evaluate_direction
from gradiend_hub.evaluation.curve import band_ends
from gradiend_hub.evaluation.damage import GENERATION, Damage, set_label, worst
from gradiend_hub.evaluation.distributions import Distributions, Rest
from gradiend_hub.evaluation.sets import damage_items
from gradiend_hub.gradients import Scope, select_parameters
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, Prompt, make_objective
from gradiend_hub.training import GradiendTrainingArguments
from gradiend_hub.training.data import read_damage_sets
from gradiend_hub.training.run import TrainingRun

from .test_probe import CLASSES, FILLERS, TEXTS, word_direction

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture
def rows(pronouns: Any) -> list[Row]:
    return read_rows(pronouns["validation"].select(range(12)), CLASSES)


@pytest.fixture(params=["masked", "causal"])
def measured(request: pytest.FixtureRequest) -> Iterator[tuple[GradiendModel, Objective]]:
    yield from opened(load_base_model(request.getfixturevalue(f"{request.param}_path")))


@pytest.fixture
def causal(causal_path: Any) -> Iterator[tuple[GradiendModel, Objective]]:
    yield from opened(load_base_model(causal_path))


def opened(base: Any) -> Iterator[tuple[GradiendModel, Objective]]:
    tokenizer = AutoTokenizer.from_pretrained(base.name_or_path)
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, decoder_sign=1)
    model = GradiendModel.from_direction(base, word_direction(base, tokenizer, rest=1.0), config)
    yield model, make_objective(base, tokenizer)
    model.unload()


# ------------------------------------------------------------------------------------------------------ collateral


def without(logits: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities of all but some outputs."""
    return logits.double().index_fill(-1, torch.tensor(ids), -math.inf).log_softmax(-1)


def test_the_rest_of_a_distribution_is_renormalised_whatever_is_left_of_it() -> None:
    """From nearly all to less than fp32 can tell from 1 − 1: against logits without the outputs."""
    generator = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(6, 50, generator=generator) for _ in range(2))
    ids = [3, 7, 20]
    for row, push in enumerate((-20.0, 0.0, 5.0, 12.0, 20.0, 60.0)):
        q[row, ids] += push
        p[5 - row, ids] += push
    rest, base = Rest(ids, 50), Distributions.of(p.log_softmax(-1))
    expected = stats.entropy(without(p, ids).exp(), without(q, ids).exp(), axis=-1)
    whole, collateral = rest.divergence(base, q.log_softmax(-1))
    assert collateral.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
    assert whole.tolist() == pytest.approx(base.divergence(q.log_softmax(-1)).tolist())
    nll = -q.log_softmax(-1)[:, 11].double() + rest.log_share(q.log_softmax(-1))
    assert nll.tolist() == pytest.approx((-without(q, ids)[:, 11]).tolist(), rel=1e-4, abs=1e-5)
    assert rest.holds(torch.tensor([3, 4, 20])).tolist() == [True, False, True]
    everything = Rest(range(50), 50)  # nothing would be left: nothing is left out
    assert len(everything) == 0 and everything.divergence(base, q.log_softmax(-1))[1].equal(whole)


@torch.no_grad()
def test_collateral_damage_is_that_of_the_rows_own_text_without_the_words_of_the_classes(
    measured: Any, rows: list[Row]
) -> None:
    """Every token of a causal model's text but slots and class words, by plain forward passes; a masked model's draws."""
    model, objective = measured
    base, tokenizer = model.get_base_model(), objective.tokenizer
    plain = copy.deepcopy(base)
    probe = StrengthProbe(model, objective, rows, TEXTS, own=10**6, batch_size=5)
    point, zero = probe.measure(0.6), probe.measure(0.0)
    ids = sorted(
        objective.class_outputs(FILLERS)
        | {i for row in rows for word in ("he", "she", "it", "they") for i in objective.outputs(row, word)[:1]}
    )
    words = {tokenizer.decode([i]).strip().lower() for i in ids}
    assert words == {"he", "she", "it", "they"}
    before, after, divergence, whole = [], [], [], []
    for number, row in enumerate(rows):
        (sample,) = objective.own_samples(row, Random(f"0 {number}"), ids)
        filled = objective.fill(row.masked, row.factual)
        for position, label in zip(sample.positions, sample.labels, strict=True):
            place = position + (not objective.reads_right_context)
            assert filled.encoded.ids[place] == label and place not in range(filled.start, filled.stop)
            assert label not in ids
        batch = torch.tensor([sample.inputs["input_ids"]])
        if objective.reads_right_context:
            kept = [i for i in range(len(filled.encoded.ids)) if i not in sample.positions]
            assert [batch[0, i] for i in kept] == [filled.encoded.ids[i] for i in kept]  # the word is in its place
        else:  # every token that has one before it
            wanted = [t for i, t in enumerate(filled.encoded.ids) if i and not filled.start <= i < filled.stop]
            assert list(sample.labels) == [t for t in wanted if t not in {*ids, *tokenizer.all_special_ids}]
        p = plain(input_ids=batch).logits[0, list(sample.positions)]
        with model.strength_at(0.6):
            q = base(input_ids=batch).logits[0, list(sample.positions)]
        labels = torch.tensor(sample.labels)[:, None]
        for into, logits in ((before, p), (after, q)):
            into += (-without(logits, ids).gather(1, labels)[:, 0]).tolist()
        divergence += stats.entropy(without(p, ids).exp(), without(q, ids).exp(), axis=-1).tolist()
        whole += stats.entropy(p.double().softmax(-1), q.double().softmax(-1), axis=-1).tolist()
    own = point.damage["own"]
    assert probe.scored["own"] == own.tokens == len(before)
    assert own.collateral_quality == pytest.approx(sum(before) / sum(after), rel=1e-4)
    assert own.collateral_kl == pytest.approx(sum(divergence) / len(divergence), rel=2e-3)
    assert own.kl == pytest.approx(sum(whole) / len(whole), rel=2e-3)
    assert own.collateral_quality_low is not None and own.collateral_quality_low < own.collateral_quality
    assert (zero.damage["own"].collateral_quality, zero.damage["own"].collateral_quality_low) == (1.0, 1.0)
    neutral = point.damage["neutral"]
    assert (neutral.quality, neutral.quality_low, neutral.kl) == (point.quality, point.quality_low, point.kl)


@torch.no_grad()
def test_the_shape_within_a_class_is_read_at_the_slot(measured: Any, rows: list[Row]) -> None:
    model, objective = measured
    base = model.get_base_model()
    point = StrengthProbe(model, objective, rows, TEXTS).measure(0.6)
    shape, rest = [], []
    everything = sorted(
        objective.class_outputs(FILLERS)
        | {
            i
            for row in rows
            for of in FILLERS.values()
            for word in of
            for i in objective.outputs(row, _spelled(row, word))
        }
    )
    for row in rows:
        reading = objective.samples(row, [_spelled(row, word) for word in ("he", "she", "it")])
        batch = objective.collate(reading[:1])
        p = objective.log_probs(base, batch)[0, 0]
        with model.strength_at(0.6):
            q = objective.log_probs(base, batch)[0, 0]
        ids = [sample.labels[0] for sample in reading]
        shape.append(stats.entropy(p[ids].double().exp(), q[ids].double().exp()))  # scipy normalises
        rest.append(stats.entropy(without(p, everything).exp(), without(q, everything).exp()))
    assert point.slot.keys() == {"collateral", "within 3SG"}  # they is alone in its class
    assert point.slot["within 3SG"] == pytest.approx(sum(shape) / len(shape), rel=2e-3)
    assert point.slot["collateral"] == pytest.approx(sum(rest) / len(rest), rel=2e-3)
    assert point.intervals["slot within 3SG"][0] <= point.slot["within 3SG"] <= point.intervals["slot within 3SG"][1]


def _spelled(row: Any, word: str) -> str:
    return word.capitalize() if row.factual[:1].isupper() else word


def test_a_causal_model_reads_slot_and_own_text_in_one_pass(causal: Any, rows: list[Row]) -> None:
    model, objective = causal
    passes: list[int] = []
    original = objective.log_probs
    objective.log_probs = lambda base, batch: (passes.append(len(batch)), original(base, batch))[1]
    points = []
    for own in (0, 10**6):
        probe = StrengthProbe(model, objective, rows, own=own)
        passes.clear()
        points.append(probe.measure(0.6))
        assert sum(passes) == 2 * len(rows)  # base and edited
    for of in CLASSES:
        assert points[0].probability[of] == pytest.approx(points[1].probability[of], rel=1e-4)
    some = StrengthProbe(model, objective, rows, own=60)
    assert 40 <= some.scored["own"] < 120
    assert points[1].damage["own"].tokens > 120


def test_intervals_of_own_text_count_rows_of_one_template_as_one(causal: Any, pronouns: Any) -> None:
    model, objective = causal
    row = next(row for row in pronouns["validation"] if row["factual_class"] == "3SG")
    again = [row | {"factual": word} for word in ("he", "she", "it") for _ in range(4)]
    other = [r for r in pronouns["validation"].select(range(20)) if r["masked"] != row["masked"]][:4]
    few = StrengthProbe(model, objective, read_rows([row, *other], CLASSES), own=10**6)
    many = StrengthProbe(model, objective, read_rows([*again, *other], CLASSES), own=10**6)
    groups = [len({*probe.items.sets["own"].text.tolist()}) for probe in (few, many)]
    assert groups[0] == groups[1] <= 5
    assert many.scored["own"] > 2 * few.scored["own"]


# ------------------------------------------------------------------------------------------------------------- sets


def with_template(objective: Any) -> Any:
    objective.tokenizer.chat_template = TEMPLATE
    return objective


def test_prompts_are_put_into_the_chat_template_and_the_base_models_replies_are_scored(causal: Any) -> None:
    model, objective = causal
    base = model.get_base_model()
    assert damage_items(model, objective, {}) == {}
    plain = objective.read_damage(
        {"messages": [{"role": "user", "content": "The dog"}, {"role": "user", "content": "ran"}]}
    )
    assert plain == Prompt("The dog\nran")
    with_template(objective)
    prompt = objective.read_damage({"prompt": "The old house"})
    assert prompt == Prompt("<user> The old house\n<assistant>")
    model.set_strength(5.0)  # the replies are the base model's, whatever is in force
    (item,) = damage_items(model, objective, {"chat": [prompt, prompt]})["chat"]
    model.set_strength(0.0)
    ids = objective.tokenizer(prompt.text, return_tensors="pt").input_ids
    written = base.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=objective.pad_token_id)
    assert list(item.sample.labels) == written[0, ids.shape[1] :].tolist()
    assert list(item.sample.positions) == list(range(ids.shape[1] - 1, written.shape[1] - 1))
    given = damage_items(model, objective, {"mine": ["The cat sat on the mat."]})
    assert (
        given.keys() == {"mine", "chat"} and len(given["chat"]) > 8
    )  # questions, for a model that answers in a template


def test_decoders_spare_replies_to_other_prompts_than_damage_is_measured_on(causal: Any) -> None:
    """A model without a chat template has none; what is scored are tokens that the base model itself wrote."""
    model, objective = causal
    base = model.get_base_model()
    texts, rows = ["The old house stood by the river."], [SimpleNamespace(input="x")] * 3
    data: Any = SimpleNamespace(fisher_texts=texts, rows=rows)
    args, scope = GradiendTrainingArguments("unused", use_cpu=True), Scope.dense(select_parameters(base))
    run = partial(TrainingRun, base, objective, model.active_peft_config, args, scope, data)
    assert run().spared == (texts, rows[:1], [])
    prompts = {str(p) for p in with_template(objective).chat_prompts(fitted=True)}
    assert len(prompts) > 8 and prompts.isdisjoint(map(str, objective.chat_prompts()))
    model.set_strength(0.0)
    samples = run().spared[2]
    assert 8 < len(samples) <= len(prompts)
    ids = torch.tensor([samples[0].inputs["input_ids"]])
    greedy = base(ids).logits[0, list(samples[0].positions)].argmax(-1)
    assert greedy.tolist() == list(samples[0].labels)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": 3},
        {"prompt": ""},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": ["hello"]},
        {"text": " "},
    ],
)
def test_prompts_that_are_none_are_refused(causal: Any, record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected"):
        causal[1].read_damage(record)


def test_a_template_that_refuses_its_messages_is_named(causal: Any) -> None:
    _, objective = causal
    objective.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"chat template refuses 'The dog'.*roles must alternate"):
        objective.read_damage({"prompt": "The dog"})


def test_sets_of_a_user_have_a_curve_each_and_are_checked(measured: Any, rows: list[Row]) -> None:
    model, objective = measured
    sets = read_damage_sets({"news": [{"text": t} for t in TEXTS], "tales": [{"text": TEXTS[0]}]}, objective)
    split = evaluate_direction(
        model, objective, rows, TEXTS, EvaluationSettings(strengths=(-1.0, 0.0, 1.0), controls=0), damage_sets=sets
    )
    assert all(p.damage.keys() == {"neutral", "own", "news", "tales"} for p in split.curve)
    for p in split.curve:
        assert p.worst(bound=False)[1] == min(d.counted(n)[0] for n, d in p.damage.items())
    assert split.at(1.0).damage["news"].quality == pytest.approx(split.at(1.0).quality, rel=0.2)
    for given, message in (
        ({"own": []}, "'own' cannot be the name"),
        ({"neutral": []}, "'neutral' cannot be the name"),
        ({3: []}, "3 cannot be the name"),
        ([{"text": "a"}], "by name"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_damage_sets(given, objective)
    with pytest.raises(DataError, match=r"chat.jsonl"):
        read_damage_sets({"chat": "chat.jsonl"}, objective)
    with pytest.raises(DataError, match=r"damage_datasets\['chat'\] has no rows"):
        read_damage_sets({"chat": []}, objective)
    with pytest.raises(DataError, match=r"damage_datasets\['chat'\]"):
        read_damage_sets({"chat": [{"words": "a"}]}, objective)


# ------------------------------------------------------------------------------------------ damage that neutral text hides


def hidden_direction(base: Any, objective: Any, rows: list[Row], texts: list[str], *words: str) -> Direction:
    """An edit of the last projection that writes a word where the rows' own texts are, and spares neutral text.

    With two words, the second is what the other sign writes.

    Its input side is (E[x xᵀ] of neutral text + λ)⁻¹ (mean of own text − mean of neutral text).
    """
    layer = base.model.layers[-1].mlp.down_proj
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0].detach()))
    with torch.no_grad():
        for text in [*texts, *(row.text for row in rows)]:
            base(**objective.tokenizer(text, return_tensors="pt"))
    handle.remove()
    neutral, own = torch.cat(seen[: len(texts)]), torch.cat(seen[len(texts) :])
    second = neutral.T @ neutral / len(neutral)
    reads = torch.linalg.solve(
        second + 0.02 * second.diagonal().mean() * torch.eye(len(second)), own.mean(0) - neutral.mean(0)
    )
    output = base.get_output_embeddings().weight.detach()
    tokens = [objective.tokenizer(f"a {word}", add_special_tokens=False).input_ids[-1] for word in words]
    writes = output[tokens[0]] - (output[tokens[1]] if words[1:] else output.mean(0))
    name = next(n for n, p in base.named_parameters() if p is layer.weight)
    return Direction({name: ParameterDirection(tuple(layer.weight.shape), torch.outer(writes, reads).flatten())})


@pytest.fixture
def hidden(request: pytest.FixtureRequest, causal_path: Any, pronouns: Any, neutral: Any) -> Iterator[tuple[Any, ...]]:
    base: nn.Module = load_base_model(causal_path)
    objective = make_objective(base, AutoTokenizer.from_pretrained(causal_path))
    rows = read_rows(pronouns["validation"].select(range(60)), CLASSES)
    texts = neutral["text"]
    learned_from = read_rows(pronouns["train"].select(range(80)), CLASSES)
    direction = hidden_direction(base, objective, learned_from, texts[400:520], *request.param)
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS, decoder_sign=1)
    model = GradiendModel.from_direction(base, direction, config)
    yield model, objective, rows, texts[:60]
    model.unload()


@pytest.mark.parametrize("hidden", [("house",)], indirect=True)
def test_damage_that_neutral_text_does_not_show_makes_a_dose_unsafe(hidden: Any) -> None:
    model, objective, rows, texts = hidden
    config = model.active_peft_config
    calibrate(StrengthProbe(model, objective, rows, texts), floor=0.97)
    unseen = config.strength_unit
    probe = StrengthProbe(model, objective, rows, texts, own=400)
    blind = probe.measure(1.0)
    assert blind.quality_low >= 0.97  # neutral text calls it safe
    assert blind.worst() is not None and blind.worst()[0] == "own" and blind.worst()[1] < 0.97
    assert 1 - blind.damage["own"].counted("own")[0] > 2 * (1 - blind.quality)
    search = calibrate(probe, floor=0.97)
    assert config.strength_unit < unseen / 1.3
    assert search.limited_by == "own"
    for sign in (-1.0, 1.0):
        _, quality_low = probe.measure(sign).worst()
        assert quality_low >= 0.97
    ends = band_ends([probe.measure(s) for s in (-4.0, -1.0, 0.0, 1.0, 4.0)], floor=0.97)
    assert ends is not None and ends[1] == (1.0, "own")


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [("he", "they")], indirect=True)
def test_continuations_that_are_not_sound_limit_the_unit_and_the_band(hidden: Any) -> None:
    """The same edit where own text is not read: what the model goes on with shows it."""
    model, objective, rows, texts = hidden
    config = model.active_peft_config
    settings = EvaluationSettings(floor=0.9, controls=0, own_tokens=0, generation=False)
    blind = evaluate_direction(model, objective, rows, texts, settings, choose_unit_for="strengthen")
    unseen = config.strength_unit
    assert blind.generation is None and blind.unit_limit in ("neutral", None)
    settings = EvaluationSettings(floor=0.9, controls=0, own_tokens=0)
    split = evaluate_direction(model, objective, rows, texts, settings, choose_unit_for="strengthen")
    assert config.strength_unit < unseen / 1.1
    assert split.unit_limit == GENERATION and GENERATION in (split.band_limits or [])
    assert split.generation is not None
    for strength in {-1.0, 0.0, 1.0, *config.safe_band}:
        assert split.generation.sound(strength)
    with model.strength_at(unseen / config.strength_unit):
        from gradiend_hub.evaluation.sets import continued

        writing = continued(model, objective, rows, texts, {})
        assert writing is not None
        points = [p for sign in (-1, 1) for p in writing.measure(sign * unseen / config.strength_unit)]
        assert any(p.faults for p in points)


def test_the_largest_sound_dose_is_found_below_the_largest_safe_one(causal: Any, rows: list[Row]) -> None:
    model, objective = causal
    config = model.active_peft_config
    probe = StrengthProbe(model, objective, rows, TEXTS)
    free = calibrate(probe, floor=0.9)
    largest = config.strength_unit
    limit = largest / 2.2
    held = calibrate(probe, floor=0.9, sound=lambda strength: abs(strength) * config.strength_unit <= limit)
    assert limit / 1.1 < config.strength_unit <= limit
    assert (free.limited_by, held.limited_by) == ("neutral", GENERATION)


def test_the_worst_set_is_the_one_that_counts_least_after() -> None:
    fine = Damage(10, 1.0, 0.5, 0.995, 0.99)
    own = Damage(10, 1.0, 0.5, 0.7, 0.6, collateral_quality=0.98, collateral_quality_low=0.97)
    assert worst({}) is None
    assert worst({"neutral": fine, "own": own}) == ("own", 0.97)  # what it is for may change on own text
    assert worst({"neutral": fine, "news": own}) == ("news", 0.6)
    assert worst({"neutral": fine}, bound=False) == ("neutral", 0.995)
    assert [set_label(n) for n in ("own", "neutral", "chat", GENERATION)] == [
        "own text", "neutral text", "the set 'chat'", "continuations",
    ]  # fmt: skip
