"""Classifiers of words: where a word's label is read, and the whole way of a direction between two labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub import ModelCard

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.objectives import TokenClassificationObjective, Word, make_objective, objective_name
from tests.models import TEXT
from tests.objectives.tokenizers import causal_tokenizer, masked_tokenizer
from tests.training.support import arguments


@pytest.fixture
def objective() -> Any:
    torch.manual_seed(0)
    model = tf.BertForTokenClassification(tf.BertConfig(**TEXT, num_labels=3)).eval()
    return model, make_objective(model, masked_tokenizer("word_piece"))


def record(**changes: Any) -> dict[str, Any]:
    return {"tokens": ["The", "zebus", "ran", "home", "."], "index": 1, "label": 1, "alternative": 2, **changes}


def test_the_label_is_read_at_the_first_token_of_the_word(objective: Any) -> None:
    model, found = objective
    assert isinstance(found, TokenClassificationObjective)
    assert objective_name(model, columns=["tokens", "index", "label"]) == "token_classification"
    rows = [found.read(record(index=i)) for i in range(5)]
    samples = [found.sample(row, "LABEL_2") for row in rows]
    tokenizer = found.processor
    pieces = [tokenizer.tokenize(word) for word in rows[0].input.tokens]
    assert len(pieces[1]) > 1  # a word of several tokens
    assert [s.positions[0] for s in samples] == [1 + sum(map(len, pieces[:i])) for i in range(5)]
    with torch.no_grad():
        read = found.log_probs(model, found.collate(samples))
        ids = torch.tensor([samples[0].inputs["input_ids"]])
        whole = model(input_ids=ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(read[:, 0], whole[[s.positions[0] for s in samples]], rtol=1e-4, atol=1e-6)
    pair = found.collate_pairs([found.example(row) for row in rows])
    assert pair.shared  # one forward serves both labels


def test_rows_and_marked_texts_are_the_same_words(objective: Any) -> None:
    _, found = objective
    row = found.read(record())
    assert found.read(json.loads(json.dumps(found.record(row)))) == row
    assert found.show(row) == "The [zebus] ran home . [LABEL_1]"
    assert found.read_input("The [zebus] ran home .") == row.input == Word(("The", "zebus", "ran", "home", "."), 1)
    assert found.read_input("They saw the [zebus].") == Word(("They", "saw", "the", "zebus", "."), 3)
    assert "[z" in found.describe(found.sample(row, "LABEL_1"))[0]
    neutral = found.read_neutral(record(index=3, label="LABEL_0"))
    assert neutral.input.index == 3 and found.quality_samples(neutral, random.Random(0))[0].labels == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": 5}, "from 0 to 4, found 5"),
        ({"index": -1}, "found -1"),
        ({"index": "1"}, "found '1'"),
        ({"index": None}, "found None"),
        ({"tokens": "The zebus"}, "must be a list of the text's words"),
        ({"tokens": ["a", " "]}, "non-empty words, found ' '"),
        ({"tokens": ["a", 3]}, "non-empty words, found 3"),
        ({"tokens": []}, "must be the number of a word"),
        ({"tokens": None}, r"column \['tokens'\] is missing"),
        ({"label": 7}, "must be a label of"),
        ({"label": None}, r"column \['label'\] is missing"),
    ],
)
def test_records_that_cannot_be_read(objective: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        objective[1].read(record(**changes))


@pytest.mark.parametrize("text", ["The zebus ran.", "The [zebus] [ran].", "[a] and [b]", "", 3, "x[1]"])
def test_a_text_has_one_word_in_brackets(objective: Any, text: Any) -> None:
    with pytest.raises(DataError, match="one word in brackets"):
        objective[1].read_input(text)


def test_a_word_that_is_cut_off_is_named(objective: Any) -> None:
    row = objective[1].read(record(tokens=["and"] * 100, index=90))
    with pytest.raises(DataError, match=r"'and' of .* has no token within the 40"):
        objective[1].example(row)


def test_tokenizers_that_do_not_read_words_are_refused() -> None:
    model = tf.BertForTokenClassification(tf.BertConfig(**TEXT, num_labels=3))
    with pytest.raises(BaseModelError, match="does not say which word a token is of"):
        make_objective(model, object())
    tokenizer = causal_tokenizer("byte_bpe")
    assert make_objective(model, tokenizer, name="token_classification").max_length == 40


# -- the whole way --------------------------------------------------------------------------------------------------------


def test_a_direction_between_two_labels_goes_the_whole_way(tagger: Any, tmp_path: Path) -> None:
    base, rows, neutral = tagger
    args = arguments(tmp_path, solver="closed_form", max_steps=-1)
    trainer = GradiendTrainer(
        base, GradiendConfig(feature_classes=["SINGULAR", "PLURAL"]), args, train_dataset=rows[:120],
        eval_dataset=rows[160:220], neutral_dataset=neutral[160:220],
    )  # fmt: skip
    assert trainer.objective.name == "token_classification"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    split = Report.load(tmp_path).splits["eval"]
    assert split.encoder is not None and split.encoder.auc is not None and split.encoder.auc > 0.9
    zero = split.at(0.0)
    assert zero.accuracy is not None and zero.accuracy > 0.9  # it had learned to tag
    assert min(split.decisions[1].accuracy.values()) > 0.8
    for strength, wanted, other in ((1.0, "SINGULAR", "PLURAL"), (-1.0, "PLURAL", "SINGULAR")):
        assert split.at(strength).probability[other][wanted] > zero.probability[other][wanted]
    card = (tmp_path / CARD_FILE).read_text("utf-8")
    assert ModelCard(card).data.pipeline_tag == "token-classification" and "where the label of the word is of" in card
    model = GradiendModel.from_pretrained(tmp_path, strength=0.0)
    assert model.verify().passed
    text = " ".join(f"[{t}]" if i == rows[200]["index"] else t for i, t in enumerate(rows[200]["tokens"]))
    (answer,) = trainer.objective.complete(model.get_base_model(), [text])
    assert answer.outputs[0][0] == rows[200]["label"]
    plain = tf.AutoModelForTokenClassification.from_pretrained(base, dtype=torch.float32).eval()
    model.set_strength(1.0)
    inputs = dict(model.tokenizer([rows[200]["tokens"]], is_split_into_words=True, return_tensors="pt"))
    with torch.no_grad():
        for name, part in model.direction.parameters.items():
            plain.get_parameter(name).add_(part.dense(part.delta(*model.active_peft_config.coefficients(1.0))))
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert type(model.merge_and_unload()) is type(plain)
