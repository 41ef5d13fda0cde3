"""Measuring the bundled kinds of base models: an encoder-decoder model is scored on the tokens that were left out."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import ROOT
from tests.objectives.test_seq2seq import t5, t5_tokenizer


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "data"))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "base_models"))
    for name in ("evaluate", "train"):  # the library of that name
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = {*sys.modules}
    yield importlib.import_module("evaluate"), importlib.import_module("train")
    for name in {"evaluate", "train", "corpus", "pronoun_templates"} - before:
        sys.modules.pop(name, None)


def test_an_encoder_decoder_model_is_scored_on_what_was_left_out(scripts: Any, monkeypatch: Any) -> None:
    evaluate, train = scripts
    monkeypatch.setattr(train, "SENTINELS", 8)
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    subject = evaluate.Subject("seq2seq", t5(tokenizer).eval(), tokenizer)
    text = "The dog barked because it was hungry and ran home."
    with torch.no_grad():
        logits, labels = evaluate.scored(subject, text, evaluate.Draws())
        # by hand: every token that is in the decoder's text and no sentinel, from transformers' own shift of the labels
        pronouns, sentinels = train.seq2seq_pieces(tokenizer)
        source, written = train.corrupt(tokenizer(text).input_ids, pronouns, sentinels, random.Random(0))
        own = [i for i, token in enumerate(written) if token not in {*sentinels, tokenizer.eos_token_id}]
        before = torch.tensor([[subject.model.config.decoder_start_token_id, *written[:-1]]])
        expected = subject.model(input_ids=torch.tensor([source]), decoder_input_ids=before).logits[0, own]
    assert labels.tolist() == [written[i] for i in own] and own
    assert F.cross_entropy(logits, labels) == pytest.approx(float(F.cross_entropy(expected, labels)), rel=1e-5)


def test_the_slot_is_read_behind_the_first_sentinel(scripts: Any) -> None:
    evaluate, _ = scripts
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    subject = evaluate.Subject("seq2seq", t5(tokenizer).eval(), tokenizer)
    with torch.no_grad():
        found = evaluate.slot_probabilities(subject, "The dog barked because [MASK] was hungry.")
        ids = tokenizer("The dog barked because <extra_id_0> was hungry.", return_tensors="pt").input_ids
        gap = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        expected = subject.model(input_ids=ids, decoder_input_ids=torch.tensor([[0, gap]])).logits[0, -1].softmax(-1)
    assert torch.equal(found, expected)
