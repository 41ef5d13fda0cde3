"""Making and measuring the bundled encoder-decoder models: they begin as the masked one, and fill in what was left out."""

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
    for name in {"evaluate", "train", "corpus", "seq2seq", "t5", "pronoun_templates"} - before:
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


# ------------------------------------------------------------------------------------------------------------- the T5


TEXTS = [TEXT, "They saw him there, and she saw them.", "The old king said that he would come back to the town."]


@pytest.fixture
def begun(scripts: Any) -> tuple[Any, Any, Any, Any]:
    """The T5 as its training begins, the map to the masked model's states, its tokenizer, and texts with gaps."""
    _, train = scripts
    t5, masked = importlib.import_module("t5"), AutoModelForMaskedLM.from_pretrained(BASE_MODELS / "masked")
    torch.manual_seed(0)
    tokenizer = t5.with_sentinels(AutoTokenizer.from_pretrained(BASE_MODELS / "masked"))
    rows = tokenizer(TEXTS).input_ids
    gaps = t5.with_gaps(rows, tokenizer, train.pronoun_ids(tokenizer), random.Random(1), 1.0)
    return *t5.from_masked(masked.float().eval(), tokenizer, gaps), tokenizer, gaps


def test_what_a_t5_reads_and_writes_is_the_text(begun: Any) -> None:
    _, _, tokenizer, gaps = begun
    assert len(gaps.source) == len(TEXTS)
    for text, source, labels, masked in zip(TEXTS, gaps.source, gaps.labels, gaps.masked, strict=True):
        row = tokenizer(text).input_ids
        spans: dict[int, list[int]] = {}
        for token in labels[labels >= 0].tolist()[:-1]:
            if token >= 6000:
                spans[token] = []
            else:
                spans[[*spans][-1]].append(token)
        read = [i for i in source.tolist() if i != tokenizer.pad_token_id]
        assert spans and [t for i in read for t in (spans[i] if i >= 6000 else [i])] == row
        hidden = [gone == tokenizer.mask_token_id for gone in masked.tolist()[: len(row)]]
        assert sum(hidden) == sum(map(len, spans.values()))
        assert [i for i, gone in zip(row, hidden, strict=True) if not gone] == [i for i in read if i < 6000]


def test_a_t5_begins_with_the_masked_models_weights(begun: Any) -> None:
    """Its decoder looks at its own sentinel, and its embeddings are the masked model's but for a scale and a mean."""
    model, _, _, gaps = begun
    masked = AutoModelForMaskedLM.from_pretrained(BASE_MODELS / "masked", dtype=torch.float32)
    words = masked.get_input_embeddings().weight
    own, centred = model.shared.weight[:6000] - 1, words - words.mean(-1, keepdim=True)
    assert F.cosine_similarity(own.flatten(), centred.flatten(), dim=0) > 0.9999
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = {"attention_mask": (gaps.source != 0).long(), "decoder_input_ids": gaps.written}
        weights = model(input_ids=gaps.source, **given, output_attentions=True).cross_attentions[0]
    rows, places = gaps.firsts.nonzero(as_tuple=True)
    own_place = gaps.source[rows] == gaps.written[rows, places][:, None]
    found = weights[rows, :, places].mean(1)[own_place]
    assert len(found) == len(rows) and found.mean() > 0.4  # of about a dozen places


def test_a_t5s_loss_of_words_is_that_of_transformers_labels(begun: Any) -> None:
    model, to_masked, tokenizer, gaps = begun
    t5 = importlib.import_module("t5")
    masked = AutoModelForMaskedLM.from_pretrained(BASE_MODELS / "masked", dtype=torch.float32).eval()
    with torch.no_grad():
        _, parts = t5.t5_loss(model, to_masked, masked, gaps)
        mask = (gaps.source != tokenizer.pad_token_id).long()
        labels = torch.where((gaps.labels < 6000) & (gaps.labels != tokenizer.eos_token_id), gaps.labels, -100)
        written = torch.where(gaps.labels >= 0, gaps.labels, tokenizer.pad_token_id)
        shifted = torch.cat([torch.zeros_like(written[:, :1]), written[:, :-1]], 1)
        found = model(input_ids=gaps.source, attention_mask=mask, decoder_input_ids=shifted, labels=labels).loss
    assert parts["words"] == pytest.approx(float(found), rel=1e-4)


def test_a_t5s_slot_is_read_behind_its_sentinel(scripts: Any) -> None:
    evaluate, _ = scripts
    subject = evaluate.Subject.load(BASE_MODELS / "t5")
    assert subject.kind == "seq2seq" and subject.has_sentinels
    with torch.no_grad():
        found = evaluate.slot_probabilities(subject, "The dogs barked because [MASK] were hungry.")
        inputs = subject.tokenizer("The dogs barked because <extra_id_0> were hungry.", return_tensors="pt")
        labels = subject.tokenizer("<extra_id_0> they", add_special_tokens=False, return_tensors="pt").input_ids
        expected = subject.model(**inputs, labels=labels).logits[0, 1].softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    they, it = subject.tokenizer.convert_tokens_to_ids(["they", "it"])
    assert found[they] > found[it]
