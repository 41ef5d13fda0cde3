"""Right context for causal models: tokens, losses, shares and encodings beside plain transformers; the options."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.data import TextRow
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.gradients import directional_derivatives
from gradiend_hub.objectives import ClozeObjective, make_objective, objective_name
from gradiend_hub.scope import select_parameters
from tests.training.support import arguments

CLASSES = ["3SG", "3PL"]
ROWS = [
    TextRow("The doctor said that [MASK] was late for the meeting.", "he", "they", "3SG", "3PL"),
    TextRow("In the evening [MASK] were all at home, and the children slept.", "they", "she", "3PL", "3SG"),
    TextRow("[MASK] was here.", "He", "They", "3SG", "3PL"),
]


@pytest.fixture
def base(causal_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(causal_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(causal_path)


def objective_of(base: Any, tokenizer: Any, right: Any = "all", **options: Any) -> ClozeObjective:
    found = make_objective(base, tokenizer, name="cloze", options={"right_context": right}, **options)
    assert isinstance(found, ClozeObjective)
    return found


def by_hand(base: Any, tokenizer: Any, row: TextRow, word: str, right: int | None) -> torch.Tensor:
    """−log P of a word and of `right` tokens behind it (all: None), from transformers' loss of the whole text."""
    before, after = row.masked.split("[MASK]")
    ids = tokenizer(before + word + after, return_tensors="pt").input_ids
    start = len(tokenizer(before.rstrip()).input_ids) if before else 1
    word_tokens = len(tokenizer(before + word).input_ids) - start
    stop = ids.shape[1] if right is None else min(start + word_tokens + right, ids.shape[1])
    labels = ids.clone()
    labels[:, :start] = -100
    labels[:, stop:] = -100
    loss: torch.Tensor = base(input_ids=ids, labels=labels).loss * (stop - start)
    return loss


@pytest.mark.parametrize("right", [0, 1, 3, "all"])
def test_losses_are_transformers_of_the_filled_text(base: Any, tokenizer: Any, right: Any) -> None:
    objective = objective_of(base, tokenizer, right)
    factual, alternative = objective.losses(base, objective.collate_pairs([objective.example(row) for row in ROWS]))
    for i, row in enumerate(ROWS):
        for loss, word in ((factual[i], row.factual), (alternative[i], row.alternative)):
            plain = by_hand(base, tokenizer, row, word, None if right == "all" else right)
            assert loss.item() == pytest.approx(plain.item(), rel=1e-4)


def test_without_right_context_it_is_the_causal_objective(base: Any, tokenizer: Any) -> None:
    cloze, causal = objective_of(base, tokenizer, 0), make_objective(base, tokenizer, name="causal_lm")
    for row in ROWS:
        for word in (row.factual, row.alternative):
            a, b = cloze.sample(row, word), causal.sample(row, word)
            assert (a.positions, a.labels) == (b.positions, b.labels)
            assert a.inputs == b.inputs


def test_encodings_are_plain_autograds(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    tangents = {name: torch.randn_like(p) / p.numel() for name, p in select_parameters(base).items()}
    found = directional_derivatives(base, objective, [objective.example(row).factual for row in ROWS], tangents)
    for row, value in zip(ROWS, found, strict=True):
        loss = by_hand(base, tokenizer, row, row.factual, None)
        gradients = torch.autograd.grad(loss, [base.get_parameter(name) for name in tangents])
        expected = sum((g * t).sum().item() for g, t in zip(gradients, tangents.values(), strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_answers_are_shares_given_both_sides(base: Any, tokenizer: Any) -> None:
    objective, words = objective_of(base, tokenizer), ["he", "she", "they"]
    (answer,) = objective.complete(base, [ROWS[1].masked], hints=words, tokens=2)
    joint = torch.stack([-by_hand(base, tokenizer, ROWS[1], word, None) for word in words]).softmax(0)
    assert dict(answer.outputs) == pytest.approx(dict(zip(words, joint.tolist(), strict=True)), abs=1e-4)
    assert answer.outputs[0][0] == "they"  # "… were all at home" says so, on the right


def test_long_texts_keep_the_slot_and_half_for_the_left(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    row = TextRow(
        "The old man said so. " * 40 + "Then [MASK] went home." + " The old man said so." * 40, "he", "they", *CLASSES
    )
    sample = objective.sample(row, "he")
    assert len(sample.inputs["input_ids"]) == objective.max_length
    assert len(sample.labels) == objective.max_length // 2
    assert tokenizer.decode(sample.labels[:3]).strip() == "he went home"
    assert sample.inputs["input_ids"][0] == tokenizer.bos_token_id


def test_without_a_start_token_the_first_word_is_refused(base: Any, tokenizer: Any) -> None:
    tokenizer.add_bos_token = False
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="no start token"):
        objective_of(base, tokenizer).example(ROWS[2])


def test_other_tokens_are_none_of_the_words(base: Any, tokenizer: Any) -> None:
    objective, rng = objective_of(base, tokenizer, 2), random.Random(0)
    for _ in range(30):
        example = objective.other_example(ROWS[0], rng, ["she"])
        assert example is not None and len(example.factual.labels) <= 3
        assert tokenizer.decode(example.factual.labels[:1]).strip() not in ("he", "they", "she")


def test_it_is_asked_for_by_name_and_its_options_are_checked(base: Any, tokenizer: Any) -> None:
    columns = ["masked", "factual", "alternative", "factual_class", "alternative_class"]
    assert objective_name(base, columns=columns) == "causal_lm"
    for value in (-1, "some", 1.5, True):
        with pytest.raises(ConfigError, match="right_context"):
            objective_of(base, tokenizer, value)
    with pytest.raises(ConfigError, match="no option 'right'"):
        make_objective(base, tokenizer, name="cloze", options={"right": 3})
    assert objective_of(base, tokenizer, 3).key != objective_of(base, tokenizer, 4).key


def test_the_whole_way(causal_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, solver="closed_form", max_steps=-1, per_device_train_batch_size=8)
    config = GradiendConfig(feature_classes=CLASSES, objective="cloze", objective_options={"right_context": 4})
    trainer = GradiendTrainer(
        causal_path, config, args, train_dataset=pronouns["train"].select(range(64)),
        eval_dataset=pronouns["validation"].select(range(16)), neutral_dataset=neutral.select(range(8)),
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_correlation"] > 0.8
    trainer.save_model()
    model = GradiendModel.from_pretrained(tmp_path, strength=0.0)
    assert model.active_peft_config.objective_options == {"right_context": 4}
    assert model.verify().passed
    split = trainer.report.splits["eval"]
    assert split.at(1.0).reading("3SG", "3PL").value > split.at(0.0).reading("3SG", "3PL").value
    one = split.at(0.0).probability["3SG"]
    assert sum(one.values()) == pytest.approx(1, abs=1e-6)  # shares of the candidates
