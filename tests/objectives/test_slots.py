"""Slot-only logits and losses, compared with ordinary forward passes of single, unpadded rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForPreTraining

from gradiend_hub.objectives import IGNORED, CausalLMObjective, Example, MaskedLMObjective, Sample, position_logits
from tests.models import BUILDERS, TEXT, VOCABULARY, build
from tests.objectives.support import ids_of, objective, plain_logits, sample_of, samples, text_row

LANGUAGE_MODELS = [
    a for a in BUILDERS if a not in ("bert_classifier", "vit", "convnet", "clip_text", "mamba", "t5", "bart")
]
READS_PAST_ITS_BACKBONE = "opt"


def widths_of_the_head(model: nn.Module) -> list[int]:
    """Filled by forward passes: how many positions per row the vocabulary head was given."""
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_logits_of_the_slots_of_a_padded_batch(architecture: str) -> None:
    model = build(architecture)
    rows = samples(lengths=(7, 4, 12), slots=(2, 1, 3))
    batch = objective(architecture).collate(rows)
    head = widths_of_the_head(model)
    with torch.no_grad():
        logits = position_logits(model, batch)
        assert head == [12 if architecture == READS_PAST_ITS_BACKBONE else 3]
        for i, row in enumerate(rows):
            expected = plain_logits(model, row)
            torch.testing.assert_close(logits[i, : len(row.positions)], expected, rtol=1e-5, atol=1e-6)
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 3, VOCABULARY)


def test_soft_capping_is_part_of_the_logits() -> None:
    model = build("gemma2")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e3)
        assert float(position_logits(model, objective("gemma2").collate(samples())).abs().max()) == pytest.approx(
            30, 0.01
        )


def test_a_model_for_pre_training_has_a_second_head() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**TEXT)).eval()
    rows = samples()
    with torch.no_grad():
        found = position_logits(model, objective("bert").collate(rows))
        for i, row in enumerate(rows):
            whole = model(torch.tensor([ids_of(row)])).prediction_logits[0, list(row.positions)]
            torch.testing.assert_close(found[i, : len(row.positions)], whole, rtol=1e-5, atol=1e-6)


def test_half_precision_is_widened_and_double_is_kept() -> None:
    rows = objective("bert").collate(samples())
    with torch.no_grad():
        half = position_logits(build("bert", torch.bfloat16), rows)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, position_logits(build("bert"), rows), rtol=0.1, atol=0.1)
        assert position_logits(build("bert").double(), rows).dtype == torch.float64


def test_the_model_is_as_before_afterwards() -> None:
    model = build("bert")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    position_logits(model, objective("bert").collate(samples()))
    assert torch.equal(model(ids).logits, before)
    model.bert.encoder.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        position_logits(model, objective("bert").collate(samples()))
    assert not model.bert._forward_hooks


@pytest.mark.parametrize("architecture", ["bert", "llama", "opt"])
def test_losses_are_summed_cross_entropies_of_single_rows(architecture: str) -> None:
    model, how = build(architecture), objective(architecture)
    factual = samples(slots=(2, 1, 3))
    alternative = [Sample(s.inputs, s.positions, tuple(label + 1 for label in s.labels), s.cost) for s in factual]
    with torch.no_grad():
        batch = how.collate_pairs([Example(f, a) for f, a in zip(factual, alternative, strict=True)])
        assert batch.shared
        losses = how.losses(model, batch)
        for loss, rows in zip(losses, (factual, alternative), strict=True):
            expected = [
                cross_entropy(plain_logits(model, row), torch.tensor(row.labels), reduction="sum") for row in rows
            ]
            torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["input_ids", "positions"])
def test_different_inputs_are_not_shared(change: str) -> None:
    model, how = build("bert"), objective("bert")
    factual, alternative = samples(seed=1), samples(seed=1)
    other = samples(seed=2)[0]
    alternative[0] = sample_of(
        ids_of(other if change == "input_ids" else factual[0]),
        tuple((p + 1) % 7 for p in factual[0].positions),
        other.labels,
    )
    batch = how.collate_pairs([Example(f, a) for f, a in zip(factual, alternative, strict=True)])
    assert not batch.shared
    with torch.no_grad():
        losses = how.losses(model, batch)
        for loss, rows in zip(losses, (factual, alternative), strict=True):
            expected = [
                cross_entropy(plain_logits(model, row), torch.tensor(row.labels), reduction="sum") for row in rows
            ]
            torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_one_forward_for_shared_inputs_and_two_for_others() -> None:
    model, how = build("bert"), objective("bert")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    same, other = samples(seed=1), samples(seed=2)
    how.losses(model, how.collate_pairs([Example(s, s) for s in same]))
    assert len(calls) == 1
    how.losses(model, how.collate_pairs([Example(s, o) for s, o in zip(same, other, strict=True)]))
    assert len(calls) == 3


def test_collate_pads_with_what_is_ignored() -> None:
    batch = objective("bert").collate(samples(lengths=(5, 3), slots=(2, 1)))
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.inputs["input_ids"][1, 3:].tolist() == [0, 0]
    assert batch.labels[1].tolist()[1:] == [IGNORED]
    assert batch.positions.shape == batch.labels.shape == (2, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_of_the_tokenizer_does_not_matter(masked_path: object, causal_path: object, side: str) -> None:
    """Rows of real text, at the probabilities that an ordinary forward pass of each row alone gives."""
    texts = (
        "Because the girls were tired, [MASK] slept.",
        "He saw that [MASK]",
        "The dog barked because of the cat, but [MASK] left.",
    )
    for path, auto, kind in (
        (masked_path, AutoModelForMaskedLM, MaskedLMObjective),
        (causal_path, AutoModelForCausalLM, CausalLMObjective),
    ):
        model = auto.from_pretrained(path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side=side)
        how = kind(tokenizer)
        rows = [how.example(text_row(text, "it", "they")).factual for text in texts]
        with torch.no_grad():
            together = how.log_probs(model, how.collate(rows))
            for i, text in enumerate(texts):
                before, after = text.split("[MASK]")
                if kind is MaskedLMObjective:
                    encoded = tokenizer(before + "[MASK]" + after, return_tensors="pt")
                    at = encoded.input_ids[0].tolist().index(tokenizer.mask_token_id)
                else:
                    encoded, at = tokenizer(before.rstrip(), return_tensors="pt"), -1
                alone = model(**encoded).logits[0, at].log_softmax(-1)
                torch.testing.assert_close(together[i, 0], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_causal_word_of_several_tokens_has_the_probability_of_the_continuation(causal_path: object) -> None:
    """exp(−loss) is the chain of next-token probabilities, read from one ordinary forward pass over the whole text."""
    model = AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(causal_path)
    how = CausalLMObjective(tokenizer)
    words = ("themselves", "ourselves", "it")
    rows = [how.example(text_row("The boys washed [MASK] and left.", word, "it")) for word in words]
    (losses, _) = how.losses(model, how.collate_pairs(rows))
    for loss, word in zip(losses, words, strict=True):
        prefix = tokenizer("The boys washed").input_ids
        ids = tokenizer(f"The boys washed {word}", return_tensors="pt").input_ids
        steps = model(ids).logits[0].log_softmax(-1)[len(prefix) - 1 : -1]
        chain = steps.gather(1, ids[0, len(prefix) :, None]).sum()
        torch.testing.assert_close(loss, -chain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_masked_word_of_several_tokens_has_the_product_over_its_masks(masked_path: object) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(masked_path)
    how = MaskedLMObjective(tokenizer)
    ids = tokenizer("unhelpful", add_special_tokens=False).input_ids
    assert len(ids) > 1
    (loss,), _ = how.losses(model, how.collate_pairs([how.example(text_row("He was [MASK] then.", "unhelpful", "it"))]))
    encoded = tokenizer("He was " + "[MASK]" * len(ids) + " then.", return_tensors="pt")
    at = encoded.input_ids[0] == tokenizer.mask_token_id
    expected = model(**encoded).logits[0, at].log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
    torch.testing.assert_close(loss, -expected, rtol=1e-4, atol=1e-4)
