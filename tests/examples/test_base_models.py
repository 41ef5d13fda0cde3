"""Making and measuring the bundled encoder-decoder model: it begins as the masked one, and fills in what was left out."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.conftest import BASE_MODELS, ROOT

TEXT = "The dog barked because it was hungry and ran home."


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "data"))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "base_models"))
    for name in ("evaluate", "train"):  # the library of that name
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = {*sys.modules}
    yield importlib.import_module("evaluate"), importlib.import_module("train")
    for name in {"evaluate", "train", "corpus", "seq2seq", "pronoun_templates"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def subject(scripts: Any) -> Any:
    """The encoder-decoder model as its training begins."""
    evaluate, train = scripts
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODELS / "masked")
    return evaluate.Subject("seq2seq", train.new_model("seq2seq", tokenizer).eval(), tokenizer)


def test_its_encoder_begins_as_the_masked_models(subject: Any) -> None:
    masked = AutoModelForMaskedLM.from_pretrained(BASE_MODELS / "masked", dtype=torch.float32).eval()
    inputs = subject.tokenizer([TEXT, "She slept."], return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        expected = masked.bert(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        found = subject.model.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # their layer norms differ by 1e-5 in epsilon
    assert torch.equal(subject.model.lm_head.weight, masked.get_input_embeddings().weight)
    assert torch.equal(subject.model.final_logits_bias[0], masked.cls.predictions.bias)


def test_spans_that_are_left_out_are_one_mask_each(scripts: Any, subject: Any) -> None:
    evaluate, train = scripts
    row, mask = subject.tokenizer(TEXT).input_ids, subject.tokenizer.mask_token_id
    pronouns = train.pronoun_ids(subject.tokenizer)
    lengths = set()
    for seed in range(200):
        source, hidden = evaluate.corrupt(row, pronouns, mask, random.Random(seed), 1.0)
        assert len(hidden) == len(row) and not hidden[0] and not hidden[-1]
        assert [i for i in source if i != mask] == [i for i, gone in zip(row, hidden, strict=True) if not gone]
        assert all(gone for i, gone in zip(row, hidden, strict=True) if i in pronouns)
        lengths.add(len(row) - len(source))
    assert len(lengths) > 2


def test_its_loss_is_that_of_what_was_left_out_and_a_share_of_the_rest(scripts: Any, subject: Any) -> None:
    evaluate, train = scripts
    rows = subject.tokenizer([TEXT, "They saw him there, and she saw them."]).input_ids
    pronouns = train.pronoun_ids(subject.tokenizer)
    with torch.no_grad():
        loss = train.seq2seq_loss(subject.model, subject.tokenizer, rows, pronouns, random.Random(3), 0.5)
        rng, parts = random.Random(3), {True: [], False: []}
        for row in rows:
            source, hidden = evaluate.corrupt(row, pronouns, subject.tokenizer.mask_token_id, rng, 0.5)
            logits = subject.model(input_ids=torch.tensor([source]), labels=torch.tensor([row])).logits[0]
            for each, gone in zip(F.cross_entropy(logits, torch.tensor(row), reduction="none"), hidden, strict=True):
                parts[gone].append(each)
    assert parts[True] and parts[False]
    expected = torch.stack(parts[True]).mean() + 0.3 * torch.stack(parts[False]).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_an_encoder_decoder_model_is_scored_on_what_was_left_out(scripts: Any, subject: Any) -> None:
    evaluate, train = scripts
    row, mask = subject.tokenizer(TEXT).input_ids, subject.tokenizer.mask_token_id
    with torch.no_grad():
        logits, labels = evaluate.scored(subject, TEXT, evaluate.Draws())
        source, hidden = evaluate.corrupt(row, train.pronoun_ids(subject.tokenizer), mask, random.Random(0), 0.5)
        places = [i for i, gone in enumerate(hidden) if gone]
        expected = subject.model(input_ids=torch.tensor([source]), labels=torch.tensor([row])).logits[0, places]
    assert labels.tolist() == [row[i] for i in places] and places
    assert F.cross_entropy(logits, labels) == pytest.approx(float(F.cross_entropy(expected, labels)), rel=1e-5)


def test_the_slot_is_read_where_the_decoder_writes_it(scripts: Any, subject: Any) -> None:
    evaluate, _ = scripts
    with torch.no_grad():
        found = evaluate.slot_probabilities(subject, "The dog barked because [MASK] was hungry.")
        ids = subject.tokenizer("The dog barked because [MASK] was hungry.", return_tensors="pt").input_ids
        place = ids[0].tolist().index(subject.tokenizer.mask_token_id)
        expected = subject.model(input_ids=ids, labels=ids).logits[0, place].softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
