"""What an edited model goes on with: figures by hand, one prompt at a time, and edits that break the model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.validation import read_as
from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation import GenerationProbe, GenerationReport, beginnings, measure_generation
from gradiend_hub.evaluation.continuations import class_word_share, distinct, longest_repeat
from gradiend_hub.objectives import make_objective
from gradiend_hub.objectives.greedy import greedy
from tests import models

PROMPTS = {
    "neutral": ["The old house at the end of", "In the year 1900 the", "A small town in the north of the country is"],
    "feature": ["The woman said that", "The children went home because"],
}


def edited(path: Path, delta: Any) -> tuple[GradiendModel, Any, Any]:
    """A model with a hand-made decoder on its word embeddings, its objective and tokenizer."""
    base, tokenizer = load_base_model(path), AutoTokenizer.from_pretrained(path)
    name, parameter = next((n, p) for n, p in base.named_parameters() if "embed_tokens" in n)
    decoder = delta(parameter.detach(), tokenizer)
    direction = Direction({name: ParameterDirection(tuple(parameter.shape), decoder.flatten())})
    fillers = {"3SG": ["he", "she"], "3PL": ["they"]}
    config = GradiendConfig(feature_classes=["3SG", "3PL"], fillers=fillers, strength_unit=1.0, decoder_sign=1)
    model = GradiendModel.from_direction(base, direction, config)
    model.set_strength(0.0)
    return model, make_objective(base, tokenizer), tokenizer


def noise(weights: torch.Tensor, _: Any) -> torch.Tensor:
    return torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)) * weights.std()


def towards(word: str, times: float) -> Any:
    def delta(weights: torch.Tensor, tokenizer: Any) -> torch.Tensor:
        found = torch.zeros_like(weights)
        found[tokenizer.convert_tokens_to_ids(word)] = times * weights[tokenizer.convert_tokens_to_ids(word)]
        return found

    return delta


def test_figures_of_texts_by_hand() -> None:
    assert longest_repeat([1, 2, 3, 4]) == 0
    assert longest_repeat([7] * 8) == 7 / 8  # overlapping
    assert longest_repeat([1, 2, 3, 9, 1, 2, 3, 8]) == 3 / 8
    assert longest_repeat([]) == longest_repeat([5]) == 0
    assert distinct([[1, 2] * 20], 1) == 2 / 40
    assert distinct([[1, 2] * 20, [2, 1] * 20], 2) == 2 / 78  # of all texts together
    assert distinct([[1, 2, 3]], 1) is None  # too few to say anything
    words = {"3SG": ["he", "She"], "3PL": ["they"]}
    assert class_word_share(["She said he's late. They", "HE left"], words) == {"3SG": 2 / 7, "3PL": 1 / 7}
    assert class_word_share([], words) == {"3SG": 0, "3PL": 0}


def test_prompts_of_texts_are_their_beginnings() -> None:
    texts = ["one two three four", "one two three five", "short", "a b c d"]
    assert beginnings(texts, count=5, words=3) == ["one two three", "a b c"]
    assert len(beginnings([f"w{i} b c d" for i in range(50)], count=5, words=3)) == 5


def test_continuations_and_likelihoods_are_those_of_one_prompt_at_a_time(causal_path: Path) -> None:
    model, objective, tokenizer = edited(causal_path, noise)
    base, prompts = model.get_base_model(), [p for of in PROMPTS.values() for p in of]
    for strength in (0.0, 0.3):
        with torch.no_grad(), model.strength_at(strength):
            samples = objective.generate(base, prompts, tokens=12, batch_size=3)
            for prompt, sample in zip(prompts, samples, strict=True):
                start = tokenizer(prompt, return_tensors="pt").input_ids
                if objective.encode(prompt).added[-1]:
                    start = start[:, :-1]
                ids = start
                for _ in range(12):  # greedy by hand, without padding or a cache
                    ids = torch.cat([ids, base(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
                    if int(ids[0, -1]) == tokenizer.eos_token_id:
                        break
                written = ids[0, start.shape[1] :]
                assert list(sample.labels) == written.tolist()
                assert list(sample.inputs["input_ids"]) == ids[0, :-1].tolist()

    probe = GenerationProbe(model, objective, PROMPTS, new_tokens=12, batch_size=2)
    points = probe.measure(0.3)
    assert [(p.kind, p.prompts, p.strength) for p in points] == [("neutral", 3, 0.3), ("feature", 2, 0.3)]
    assert model.strength == 0.0
    for point, kind in zip(points, PROMPTS, strict=True):
        for figures, strength in ((point.edited, 0.3), (point.own, 0.0)):
            likelihoods, lengths = [], []
            for prompt in PROMPTS[kind]:
                with torch.no_grad():
                    with model.strength_at(strength):
                        (sample,) = objective.generate(base, [prompt], tokens=12)
                    logits = base(input_ids=torch.tensor([sample.inputs["input_ids"]])).logits[0].log_softmax(-1)
                chances = [float(logits[p, t]) for p, t in zip(sample.positions, sample.labels, strict=True)]
                likelihoods.append(-sum(chances) / len(chances))
                lengths.append(sum(t not in tokenizer.all_special_ids for t in sample.labels))
            assert figures.nll == pytest.approx(sum(likelihoods) / len(likelihoods), rel=1e-4)
            assert figures.length == sum(lengths) / len(lengths)
        low, high = point.nll_rise or (0, 0)
        assert low <= point.edited.nll - point.own.nll <= high


def test_the_base_model_is_sound_and_broken_ones_are_not(causal_path: Path) -> None:
    model, objective, _ = edited(causal_path, noise)
    report = measure_generation(model, objective, PROMPTS, (0.0, 0.02, 3.0), new_tokens=24)
    assert report.sound(0.0) and report.sound(0.02) and not report.sound(3.0)
    assert all("unlikely" in " ".join(point.faults) for point in report.at(3.0))
    assert all(point.nll_rise == [0, 0] for point in report.at(0.0))
    assert {sample.kind for sample in report.samples} == {"neutral", "feature"}
    assert all(sample.by_strength.keys() == {"0.0", "0.02", "3.0"} for sample in report.samples)
    again = read_as(GenerationReport, json.loads(json.dumps(asdict(report))))
    assert again == report
    with pytest.raises(KeyError, match="measured"):
        report.sound(7.0)

    stuck, objective, tokenizer = edited(causal_path, towards("Ġthey", 20.0))
    assert tokenizer.convert_tokens_to_ids("Ġthey") != tokenizer.unk_token_id
    found = [fault for point in GenerationProbe(stuck, objective, PROMPTS).measure(1.0) for fault in point.faults]
    assert any("words are of 3PL" in fault for fault in found)
    assert any("one repeat" in fault for fault in found)

    mute, objective, _ = edited(causal_path, towards(tokenizer.eos_token, 50.0))
    probe = GenerationProbe(mute, objective, PROMPTS)
    found = [fault for strength in (1.0, -1.0) for point in probe.measure(strength) for fault in point.faults]
    assert any("they have" in fault for fault in found)


def test_nothing_to_continue_is_refused(causal_path: Path, masked_path: Path) -> None:
    model, objective, _ = edited(causal_path, noise)
    with pytest.raises(DataError, match="no prompts"):
        GenerationProbe(model, objective, {"neutral": []})
    with pytest.raises(DataError, match="nothing to continue"):
        GenerationProbe(model, objective, {"neutral": ["[MASK] said"]}).measure(0.0)
    base, tokenizer = load_base_model(masked_path), AutoTokenizer.from_pretrained(masked_path)
    with pytest.raises(DataError, match="'masked_lm' generates no text"):
        make_objective(base, tokenizer).generate(base, ["a [MASK]"], tokens=3)


def test_a_prompt_longer_than_the_model_reads_loses_its_beginning(causal_path: Path) -> None:
    _, objective, _ = edited(causal_path, noise)
    objective.max_length = 20
    ids = objective.prompt_ids(("The house " * 30).strip(), tokens=8)
    assert len(ids) == 12
    whole = objective.encode(("The house " * 30).strip())
    assert ids[-6:] == list(whole.ids[: whole.end][-6:])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt", "mamba"])
def test_padding_on_the_left_does_not_change_what_is_written(architecture: str) -> None:
    model = models.build(architecture)
    prompts = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25]]
    apart = architecture == "mamba"
    together = greedy(model, prompts, tokens=6, pad=0, apart=apart)
    assert together == [greedy(model, [p], tokens=6, pad=0)[0] for p in prompts]
