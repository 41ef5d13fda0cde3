"""Encoder-decoder models: the slot beside transformers' own loss of the same span, in T5's form and in BART's."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers as tf

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.data import TextRow
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.gradients import directional_derivatives
from gradiend_hub.hub.published import BASE_PLACE, REPO_PLACE
from gradiend_hub.objectives import Seq2SeqObjective, make_objective, objective_name
from gradiend_hub.scope import select_parameters
from tests.cards.test_usage import run_card
from tests.conftest import BASE_MODELS
from tests.training.support import arguments

from .tokenizers import LETTERS, WORDS, _byte_bpe

CLASSES = ["3SG", "3PL"]
ROWS = [
    TextRow("The dog barked because [MASK] was hungry.", "it", "they", "3SG", "3PL"),
    TextRow("I saw ([MASK]) there.", "they", "he", "3PL", "3SG"),
    TextRow("[MASK] ran home, too.", "They", "She", "3PL", "3SG"),
    TextRow("The children slept because [MASK] were tired.", "they", "zebu", "3PL", "3SG"),  # of several tokens
]
COLUMNS = ["masked", "factual", "alternative", "factual_class", "alternative_class"]


def t5_tokenizer() -> Any:
    pieces = dict.fromkeys(LETTERS, -12.0) | {f"▁{c}": -12.0 for c in LETTERS}
    pieces |= dict.fromkeys(WORDS, -6.0) | {f"▁{word}": -5.0 for word in WORDS} | {"▁": -8.0}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(8))]
    return tf.T5Tokenizer([*special, *pieces.items(), *extra], extra_ids=8, model_max_length=40)


def t5(tokenizer: Any, kind: str = "T5") -> Any:
    config = getattr(tf, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return getattr(tf, f"{kind}ForConditionalGeneration")(config)


def bart(tokenizer: Any, kind: str = "Bart") -> Any:
    config = getattr(tf, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, forced_eos_token_id=2,
        decoder_start_token_id=2 if kind == "Bart" else None,
    )  # fmt: skip
    return getattr(tf, f"{kind}ForConditionalGeneration")(config)


KINDS = ("t5", "mt5", "bart", "mbart")


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model with random weights, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer() if "t5" in request.param else _byte_bpe(mask=True, lstrip=False)
    maker = {"t5": t5, "mt5": lambda t: t5(t, "MT5"), "bart": bart, "mbart": lambda t: bart(t, "MBart")}[request.param]
    return maker(tokenizer).eval(), tokenizer


def by_hand(model: Any, tokenizer: Any, row: TextRow, word: str) -> torch.Tensor:
    """−log P of a word, from transformers' loss with labels: it makes the decoder's input of them by itself."""
    before, after = row.masked.split("[MASK]")
    whole = tokenizer(before + word + after)
    ids = whole.input_ids
    low, high = len(before), len(before) + len(word)
    span = [i for i in range(len(ids)) if whole.token_to_chars(i) and _overlap(whole.token_to_chars(i), low, high)]
    start, stop = span[0], span[-1] + 1
    if before.endswith(" ") and tuple(whole.token_to_chars(start - 1) or ()) == (low - 1, low):
        start -= 1  # a space of its own before the word's letters belongs to the word
    if tokenizer.mask_token_id is None:
        first, second = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
        source = [*ids[:start], first, *ids[stop:]]
        labels = [first, *ids[start:stop], second]
        at = range(1, 1 + stop - start)
    else:
        source = [*ids[:start], tokenizer.mask_token_id, *ids[stop:]]
        labels, at = ids, range(start, stop)
    logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).logits[0].log_softmax(-1)
    return -torch.stack([logits[i, labels[i]] for i in at]).sum()


def _overlap(chars: Any, low: int, high: int) -> bool:
    return bool(chars.start < high and chars.end > low and chars.start < chars.end)


def test_losses_are_those_of_transformers_labels(made: Any) -> None:
    model, tokenizer = made
    objective = make_objective(model, tokenizer)
    assert isinstance(objective, Seq2SeqObjective)
    factual, alternative = objective.losses(model, objective.collate_pairs([objective.example(row) for row in ROWS]))
    for i, row in enumerate(ROWS):
        for loss, word in ((factual[i], row.factual), (alternative[i], row.alternative)):
            assert loss.item() == pytest.approx(by_hand(model, tokenizer, row, word).item(), rel=1e-4)
    example = objective.example(ROWS[0])
    assert example.factual.inputs is example.alternative.inputs  # of one token each: one forward pass serves both


def test_encodings_are_plain_autograds(made: Any) -> None:
    model, tokenizer = made
    objective = make_objective(model, tokenizer)
    tangents = {name: torch.randn_like(p) for name, p in select_parameters(model).items()}
    assert any("decoder" in name for name in tangents) and any("encoder" in name for name in tangents)
    found = directional_derivatives(model, objective, [objective.example(row).factual for row in ROWS], tangents)
    for row, value in zip(ROWS, found, strict=True):
        loss = by_hand(model, tokenizer, row, row.factual)
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in tangents])
        expected = sum((g * t).sum().item() for g, t in zip(gradients, tangents.values(), strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_several_spans_of_neutral_text_are_read_at_once(made: Any) -> None:
    model, tokenizer = made
    objective = make_objective(model, tokenizer)
    text = "The dog barked because it was hungry and they left."
    samples = objective.quality_samples(text, Random(0), draws=3)
    taken = [token for sample in samples for token in sample.labels]
    whole = list(objective.encode(text).ids)
    assert samples and all(taken.count(token) <= whole.count(token) for token in taken)
    if objective.sentinels:  # T5's own form: text and target together are the text
        sample = objective.token_sample(objective.encode(text), [1, 2, 5])
        first, second = objective.sentinels[:2]
        assert list(sample.inputs["input_ids"]) == [whole[0], first, *whole[3:5], second, *whole[6:]]
        assert list(sample.inputs["decoder_input_ids"]) == [0, first, *whole[1:3], second]
        assert sample.positions == (1, 2, 4) and list(sample.labels) == [*whole[1:3], whole[5]]


def test_guesses_are_read_at_the_slot(made: Any) -> None:
    model, tokenizer = made
    objective = make_objective(model, tokenizer)
    (answer,) = objective.complete(model, [ROWS[0].masked], top=3, hints=["it"])
    with torch.no_grad():
        nll = by_hand(model, tokenizer, ROWS[0], "it").item()
    best = torch.tensor([chance for _, chance in answer.outputs])
    assert answer.continuation is None and (best[:-1] >= best[1:]).all()
    sample = objective.sample(ROWS[0], "it")
    with torch.no_grad():
        chances = objective.log_probs(model, objective.collate([sample]))[0, 0].exp()
    assert float(chances[sample.labels[0]]) == pytest.approx(torch.tensor(-nll).exp().item(), rel=1e-4)
    assert best[0] == pytest.approx(chances.max().item(), rel=1e-5)
    text, word = objective.describe(sample)
    assert text.replace(" ", "") == ROWS[0].masked.replace(" ", "") and word == "it"


def test_the_head_chooses_the_objective_and_others_are_refused(made: Any, causal_path: Path) -> None:
    model, tokenizer = made
    assert objective_name(model) == objective_name(model, columns=COLUMNS) == "seq2seq"
    causal = tf.AutoModelForCausalLM.from_pretrained(causal_path)
    with pytest.raises(BaseModelError, match="no encoder and decoder"):
        make_objective(causal, tokenizer, name="seq2seq")
    with pytest.raises(BaseModelError, match=r"neither sentinels .* nor a mask token"):
        make_objective(model, tf.AutoTokenizer.from_pretrained(causal_path))
    with pytest.raises(DataError, match="truncation could cut the slot off"):
        make_objective(model, tokenizer).example(TextRow("he ran " * 30 + "[MASK]", "it", "they", *CLASSES))


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_short_run_goes_the_whole_way(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: Any, repo_id: str
) -> None:
    model, tokenizer = made
    plain = copy.deepcopy(model)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    nouns = [("dog", "it"), ("children", "they")]
    rows = [
        {"masked": f"The {noun} {verb} because [MASK] {end}", "factual": word, "alternative": other,
         "factual_class": "3SG" if word == "it" else "3PL", "alternative_class": "3PL" if word == "it" else "3SG"}
        for (noun, word), other in zip(nouns, ("they", "it"), strict=True)
        for verb in ("barked", "slept", "ran", "left")
        for end in ("was hungry.", "were tired.", "ran home.")
    ]  # fmt: skip
    args = arguments(tmp_path / "out", solver="closed_form", max_steps=-1, per_device_train_batch_size=4)
    trainer = GradiendTrainer(
        tmp_path / "base", GradiendConfig(feature_classes=CLASSES), args, train_dataset=rows[::2], eval_dataset=rows[1::2],
        neutral_dataset=[{"text": "The dog barked."}, {"text": "I saw the children there."}],
    )  # fmt: skip
    assert trainer.objective.name == "seq2seq"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    card = (tmp_path / "out" / CARD_FILE).read_text("utf-8")
    assert "pipeline_tag: text2text-generation" in card
    assert 'tokens["decoder_input_ids"] = tokens["input_ids"]' in card
    code = card.replace(REPO_PLACE, str(tmp_path / "out")).replace(BASE_PLACE, str(tmp_path / "base"))
    assert run_card(code, capsys)["the recommended dose to the bit"] == "True"
    loaded = GradiendModel.from_pretrained(tmp_path / "out", strength=0.0)
    assert loaded.verify().passed
    loaded.push_to_hub(repo_id)
    again = GradiendModel.from_pretrained(repo_id, base_model=str(tmp_path / "base"), strength=0.0)
    assert torch.equal(again.encode(rows[:4]), loaded.encode(rows[:4]))
    assert loaded.encode(rows[:4]).shape == (4,)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 4]])}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, plain(**batch).logits)
        loaded.set_strength(1.0)
        for name, part in loaded.direction.parameters.items():
            plain.get_parameter(name).add_(part.dense(part.delta(*loaded.active_peft_config.coefficients(1.0))))
        assert torch.equal(loaded(**batch).logits, plain(**batch).logits)
    assert type(loaded.merge_and_unload()) is type(plain)


@pytest.mark.slow
def test_the_bundled_t5_goes_the_whole_way(tmp_path: Path, pronouns: Any, neutral: Any) -> None:
    """Sentinels on a model that knows the feature: learned, measured, loaded, applied and merged."""
    base = BASE_MODELS / "t5"
    args = arguments(tmp_path, solver="closed_form", max_steps=-1, per_device_train_batch_size=16)
    trainer = GradiendTrainer(
        base, GradiendConfig(feature_classes=CLASSES), args, train_dataset=pronouns["train"].select(range(320)),
        eval_dataset=pronouns["validation"].select(range(60)),
        neutral_dataset=neutral.select(range(60)),
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    split, report = trainer.report.splits["eval"], trainer.report
    assert report.converged is True and split.encoder is not None and split.encoder.correlation > 0.8
    for strength, wanted, other in ((1.0, *CLASSES), (-1.0, *CLASSES[::-1])):
        assert split.at(strength).effect > split.at(0.0).reading(wanted, other).value
    assert "pipeline_tag: text2text-generation" in (tmp_path / CARD_FILE).read_text("utf-8")
    model = GradiendModel.from_pretrained(tmp_path, strength=0.0)
    assert model.verify().passed
    objective = make_objective(model.get_base_model(), model.tokenizer)
    chances = {}
    for strength in (-1.0, 0.0, 1.0):
        with model.strength_at(strength), torch.inference_mode():
            (answer,) = objective.complete(
                model.get_base_model(), ["The old king said that [MASK] would come back."], hints=["he", "they"]
            )
            chances[strength] = dict(answer.outputs)["they"]
    assert chances[-1.0] > chances[0.0] > chances[1.0]
    model.set_strength(-1.0)
    assert type(model.merge_and_unload()) is tf.T5ForConditionalGeneration
