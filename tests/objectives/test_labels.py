"""Objectives of classifiers: rows, gradients and bad input, for texts and images and both meanings of a direction."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from packaging.version import Version
from PIL import Image
from torch import nn

try:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
except ImportError:  # before transformers 5.20 the only variant without torchvision
    from transformers import ViTImageProcessor as ViTImageProcessorPil


from gradiend_hub.data import CounterfactualRow, LabelRow, rows_digest
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.gradients import GradientReader, Scope, directional_derivatives, read_pair, select_parameters
from gradiend_hub.objectives import (
    OBJECTIVES,
    ImageClassificationObjective,
    ImageConceptObjective,
    TextClassificationObjective,
    TextConceptObjective,
    examples_of,
    fitting_objectives,
    make_objective,
    require_readable,
)
from gradiend_hub.objectives.labels import LabelObjective
from tests.models import DECODER, TEXT, build
from tests.objectives.tokenizers import causal_tokenizer, masked_tokenizer

TEXTS = ("They ran home.", "The dog slept because it was hungry and they left.", "She slept.", "it was, he said")
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


@dataclass(frozen=True)
class Kind:
    """One kind of classifier: its model, processor, column, some inputs, and what the model is given for one of them."""

    model: nn.Module
    processor: Any
    column: str
    inputs: list[Any]
    arguments: Callable[[Any], dict[str, torch.Tensor]]

    def logits(self, value: Any) -> torch.Tensor:
        found: torch.Tensor = self.model(**self.arguments(value)).logits[0]
        return found

    def objective(self, name: str) -> Any:
        return make_objective(self.model, self.processor, name=f"{self.column}_{name}")


def text_kind() -> Kind:
    tokenizer = masked_tokenizer("word_piece")
    return Kind(
        build("bert_classifier"),
        tokenizer,
        "text",
        list(TEXTS),
        lambda text: dict(tokenizer(text, return_tensors="pt", return_token_type_ids=False)),
    )


def image_kind() -> Kind:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, size, np.uint8)) for size in ((8, 8), (12, 9, 3), (5, 20), (16, 16))]
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3)

    def arguments(image: Any) -> dict[str, torch.Tensor]:
        pixels = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR), np.float32)
        return {"pixel_values": torch.tensor((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1).unsqueeze(0)}

    return Kind(build("vit"), processor, "image", list(images), arguments)


@pytest.fixture(params=[text_kind, image_kind], ids=["text", "image"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param()  # type: ignore[no-any-return]


def label_record(kind: Kind, number: int, label: Any, alternative: Any) -> dict[str, Any]:
    return {kind.column: kind.inputs[number], "label": label, "alternative": alternative}


def concept_record(kind: Kind, first: int, second: int, label: Any = 1) -> dict[str, Any]:
    inputs = {kind.column: kind.inputs[first], "counterfactual": kind.inputs[second]}
    return {**inputs, "label": label, "factual_class": "a", "alternative_class": "b"}


def gradient(kind: Kind, value: Any, label: int, scope: Scope) -> torch.Tensor:
    """∇ −log P(label | input) by plain autograd, flat."""
    loss = nn.functional.cross_entropy(kind.logits(value).unsqueeze(0), torch.tensor([label]))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(scope.parameters.values()))])


def test_gradients_of_a_label_direction_are_plain_autograds(kind: Kind) -> None:
    """One forward serves both labels, and the difference of the gradients is that of two logits."""
    objective = kind.objective("classification")
    rows = [objective.read(label_record(kind, n, n % 3, LABELS[(n + 1) % 3])) for n in range(4)]
    examples = examples_of(objective, rows)
    assert objective.collate_pairs(examples).shared
    scope = Scope.dense(select_parameters(kind.model))
    with GradientReader(kind.model, scope) as reader:
        pairs = [objective.collate_pairs([example]) for example in examples]
        found = [read_pair(reader, objective, pair, source="factual") for pair in pairs]
    for parameter in scope.parameters.values():
        parameter.requires_grad_(True)
    for number, (source, target) in enumerate(found):
        value, own, other = kind.inputs[number], number % 3, (number + 1) % 3
        torch.testing.assert_close(source, gradient(kind, value, own, scope), rtol=1e-4, atol=1e-7)
        z = kind.logits(value)
        of_logits = torch.autograd.grad(z[other] - z[own], list(scope.parameters.values()))
        torch.testing.assert_close(target, torch.cat([g.flatten() for g in of_logits]), rtol=1e-4, atol=1e-6)


def test_gradients_of_a_concept_direction_are_plain_autograds(kind: Kind) -> None:
    """Two inputs, one label: the difference is that of two losses of one label."""
    objective = kind.objective("concept")
    examples = examples_of(
        objective, [objective.read(concept_record(kind, 0, 1, 2)), objective.read(concept_record(kind, 3, 2))]
    )
    assert not objective.collate_pairs(examples).shared
    scope = Scope.dense(select_parameters(kind.model))
    tangents = {name: torch.randn(p.shape) for name, p in scope.parameters.items()}
    encoded = directional_derivatives(kind.model, objective, [e.factual for e in examples], tangents)
    with GradientReader(kind.model, scope) as reader:
        source, target = read_pair(reader, objective, objective.collate_pairs(examples[:1]), source="alternative")
    for parameter in scope.parameters.values():
        parameter.requires_grad_(True)
    own, other = gradient(kind, kind.inputs[0], 2, scope), gradient(kind, kind.inputs[1], 2, scope)
    torch.testing.assert_close(source, other, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(target, own - other, rtol=1e-4, atol=1e-6)
    flat = torch.cat([tangent.flatten() for tangent in tangents.values()])
    assert float(encoded[0]) == pytest.approx(float(flat @ own), rel=1e-3, abs=1e-5)


def test_readings_are_the_models_own_probabilities(kind: Kind) -> None:
    label, concept = kind.objective("classification"), kind.objective("concept")
    row = label.read(label_record(kind, 1, 0, 2))
    (reading,) = label.readings(row, {"a": ["LABEL_0", "LABEL_1"], "b": ["LABEL_2"]})
    assert reading.outputs == [[(0,), (1,)], [(2,)]]
    with torch.no_grad():
        found = label.log_probs(kind.model, label.collate([reading.sample]))[0, 0]
        torch.testing.assert_close(found, kind.logits(kind.inputs[1]).log_softmax(-1))
        pair = concept.read(concept_record(kind, 1, 3, "LABEL_2"))
        own, other = concept.readings(pair, {"a": ["a"], "b": ["b"]})  # P(a) is P(label) on the input of class a
        assert (own.outputs, other.outputs) == ([[(2,)], []], [[], [(2,)]])
        for reading, number in ((own, 1), (other, 3)):
            found = concept.log_probs(kind.model, concept.collate([reading.sample]))[0, 0]
            torch.testing.assert_close(found, kind.logits(kind.inputs[number]).log_softmax(-1))
    require_readable(concept, [pair], {"a": ["a"], "b": ["b"]})
    require_readable(label, [row], {"a": ["LABEL_0"], "b": ["LABEL_2"]})
    with pytest.raises(DataError, match="is no label of"):
        require_readable(label, [row], {"a": ["nope"], "b": ["LABEL_2"]})


def test_rows_survive_as_records_of_json(kind: Kind) -> None:
    label, concept = kind.objective("classification"), kind.objective("concept")
    row, pair = label.read(label_record(kind, 0, 1, 2)), concept.read(concept_record(kind, 0, 2, 1))
    assert type(row) is LabelRow and type(pair) is CounterfactualRow
    for objective, one in ((label, row), (concept, pair)):
        again = objective.read(json.loads(json.dumps(objective.record(one))))
        assert objective.example(again).factual.content() == objective.example(one).factual.content()
        assert rows_digest([again]) == rows_digest([one])
    other = concept.read(concept_record(kind, 0, 3, 1))
    assert rows_digest([other]) != rows_digest([pair])  # the counterfactual counts
    named = label.read({**label_record(kind, 0, 0, 1), "factual_class": "pets", "alternative_class": "birds"})
    assert (named.factual_class, named.alternative_class, named.factual) == ("pets", "birds", "LABEL_0")


def test_neutral_items_have_their_own_label(kind: Kind) -> None:
    objective, rng = kind.objective("classification"), random.Random(0)
    item = objective.read_neutral({kind.column: kind.inputs[2], "label": 1})
    (sample,) = objective.quality_samples(item, rng)
    example = objective.neutral_example(item, rng)
    assert sample.labels == (1,) and example.factual is example.alternative
    assert [i.unit for i in objective.quality_items([item, item], labels=9)] == [1, 1]
    row = objective.read(label_record(kind, 0, 0, 1))
    assert objective.other_example(row, rng).factual.labels == (2,)  # the label that the row does not name
    assert objective.other_example(row, rng, ("LABEL_2",)) is None
    with pytest.raises(DataError, match=r"column \['label'\] is missing"):
        objective.read_neutral({kind.column: kind.inputs[2]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "LABEL_9"}, "'label' must be a label of .* found 'LABEL_9'. Expected one of LABEL_0, LABEL_1, LABEL_2"),
        ({"label": 3}, "found 3"),
        ({"label": -1}, "found -1"),
        ({"label": True}, "found True"),
        ({"label": 1.5}, "found 1.5"),
        ({"label": "1"}, "found '1'"),
        ({"label": [0, 2]}, "holds several labels"),
        ({"label": None}, r"column \['label'\] is missing or empty"),
        ({"alternative": "other"}, "'alternative' must be a label"),
        ({"alternative": None}, r"column \['alternative'\] is missing"),
        ({"factual_class": " "}, "a class must be a non-empty text"),
    ],
)  # fmt: skip
def test_labels_that_are_none(kind: Kind, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind.objective("classification").read({**label_record(kind, 0, 0, 1), **changes})


def test_inputs_that_are_none(kind: Kind) -> None:
    label, concept = kind.objective("classification"), kind.objective("concept")
    for value in ("", 3, b"no image", "/etc/passwd" if kind.column == "image" else " "):
        with pytest.raises(DataError, match=r"expected|no image that can be read"):
            label.read({kind.column: value, "label": 0, "alternative": 1})
    with pytest.raises(DataError, match=r"reads .* and 'counterfactual' alike"):
        concept.read(concept_record(kind, 0, 0))
    with pytest.raises(DataError, match="both inputs are of the class 'a'"):
        concept.read({**concept_record(kind, 0, 1), "alternative_class": "a"})
    with pytest.raises(DataError, match=r"column \['counterfactual'\] is missing"):
        concept.read(label_record(kind, 0, 0, 1) | {"factual_class": "a", "alternative_class": "b"})
    with pytest.raises(DataError, match="unknown input 'c'"):
        concept.sample(concept.read(concept_record(kind, 0, 1)), "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "has a multi-label head"),
        ({"problem_type": "regression"}, "has a regression head"),
        ({"num_labels": 1}, "has a regression head"),
        ({"id2label": {0: "same", 1: "same", 2: "other"}}, "some have one name"),
        ({"id2label": {1: "a", 2: "b", 3: "c"}}, "names none of the number 0.*id2label has the numbers"),
    ],
)
def test_heads_that_give_no_one_label(changes: dict[str, Any], message: str) -> None:
    text = tf.BertForSequenceClassification(tf.BertConfig(**{**TEXT, "num_labels": 3, **changes}))
    image = tf.ViTForImageClassification(
        tf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                     patch_size=4, **{"num_labels": 3, **changes})
    )  # fmt: skip
    for objective, model, processor in (
        (TextClassificationObjective, text, masked_tokenizer("word_piece")),
        (TextConceptObjective, text, masked_tokenizer("word_piece")),
        (ImageClassificationObjective, image, None),
        (ImageConceptObjective, image, None),
    ):
        with pytest.raises(BaseModelError, match=message):
            objective.of_model(model, processor)


@pytest.mark.parametrize("name", [name for name, of in OBJECTIVES.items() if issubclass(of, LabelObjective)])
@pytest.mark.parametrize("architecture", ["bert", "bert_classifier", "vit", "llama"])
def test_heads_of_another_kind_are_refused(name: str, architecture: str) -> None:
    model, objective = build(architecture), OBJECTIVES[name]
    if name in fitting_objectives(type(model).__name__, model.config):
        return
    processor = None if name.startswith("image") else masked_tokenizer("word_piece")
    with pytest.raises(BaseModelError, match=f"no head for the objective '{name}': expected a model of AutoModelFor"):
        objective.of_model(model, processor)


def test_a_class_of_ones_own_has_the_head_of_its_parent() -> None:
    class Mine(tf.BertForSequenceClassification):
        pass

    model = Mine(tf.BertConfig(**TEXT, num_labels=3)).eval()
    assert make_objective(model, masked_tokenizer("word_piece"), name="text_classification").width == 3


def test_two_labels_need_no_alternative() -> None:
    model = tf.BertForSequenceClassification(tf.BertConfig(**TEXT, num_labels=2, id2label={0: "no", 1: "yes"}))
    objective = make_objective(model, masked_tokenizer("word_piece"))
    rows = [objective.read({"text": "They ran.", "label": label}) for label in ("yes", 0)]
    assert [(row.factual, row.alternative) for row in rows] == [("yes", "no"), ("no", "yes")]


def causal_classifier(**changes: Any) -> nn.Module:
    size = {"vocab_size": len(causal_tokenizer("byte_bpe")), "num_labels": 3}
    return tf.LlamaForSequenceClassification(tf.LlamaConfig(**{**DECODER, **size, **changes})).eval()


def test_long_texts_are_cut_and_rows_do_not_depend_on_their_batch() -> None:
    for model, tokenizer in (
        (build("bert_classifier"), masked_tokenizer("word_piece")),
        (causal_classifier(), causal_tokenizer("byte_bpe")),
    ):
        objective = make_objective(model, tokenizer)
        texts = [*TEXTS, "They ran home. " * 30]
        samples = [objective.example(objective.read({"text": t, "label": 0, "alternative": 1})).factual for t in texts]
        assert samples[-1].cost == 40 == objective.max_length
        with torch.no_grad():
            together = objective.log_probs(model, objective.collate(samples))
            alone = torch.cat([objective.log_probs(model, objective.collate([sample])) for sample in samples])
            by_hand = model(input_ids=torch.tensor([samples[0].inputs["input_ids"]])).logits.log_softmax(-1)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[:1, 0], by_hand, rtol=1e-4, atol=1e-5)


def test_a_model_whose_rows_depend_on_padding_runs_them_apart() -> None:
    config = tf.FNetConfig(vocab_size=200, hidden_size=16, num_hidden_layers=1, intermediate_size=16, num_labels=3,
                           max_position_embeddings=40, tpu_short_seq_length=40)  # fmt: skip
    model = tf.FNetForSequenceClassification(config).eval()
    model.forward = _without_mask(model.forward)  # type: ignore[method-assign]
    objective = make_objective(model, masked_tokenizer("word_piece"))
    assert objective.padding_matters
    samples = [objective.sample(objective.read({"text": t, "label": 0, "alternative": 1}), "LABEL_0") for t in TEXTS]
    with torch.no_grad():
        together = objective.log_probs(model, objective.collate(samples))
        alone = torch.cat([objective.log_probs(model, objective.collate([sample])) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def _without_mask(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attention_mask=None, **inputs: forward(**inputs)


def test_a_causal_classifier_without_padding_is_refused() -> None:
    with pytest.raises(BaseModelError, match=r"pad_token_id = tokenizer\.pad_token_id"):
        make_objective(causal_classifier(pad_token_id=None), causal_tokenizer("byte_bpe"))


@pytest.mark.skipif(Version(tf.__version__) < Version("5.20"), reason="its processor takes no images of one channel")
def test_images_become_what_the_processor_makes_of_them() -> None:
    """Modes are converted, sizes differ, and a model of one channel gets one."""
    grey = tf.ViTForImageClassification(
        tf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                     patch_size=4, num_channels=1, num_labels=3)
    ).eval()  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    objective = make_objective(grey, processor)
    buffer = io.BytesIO()
    Image.new("RGBA", (9, 9), (255, 0, 0, 128)).save(buffer, "PNG")
    rows = [
        objective.read({"image": image, "label": 0, "alternative": 1})
        for image in (buffer.getvalue(), Image.new("1", (4, 4), 1))
    ]
    batch = objective.collate([objective.sample(row, row.factual) for row in rows])
    assert batch.inputs["pixel_values"].shape == (2, 1, 8, 8)
    assert float(batch.inputs["pixel_values"][1].mean()) == pytest.approx(1.0)
    keeps_sizes = make_objective(grey, ViTImageProcessorPil(do_resize=False, image_mean=[0.5], image_std=[0.5]))
    with pytest.raises(DataError, match=r"cannot make one batch of 2 images of the sizes \[\(4, 4\), \(9, 9\)\]"):
        keeps_sizes.collate([keeps_sizes.sample(row, row.factual) for row in rows])


def test_half_precision_models_read_images() -> None:
    kind = image_kind()
    exact = kind.objective("classification")
    samples = [exact.sample(exact.read(label_record(kind, n, 0, 1)), "LABEL_0") for n in range(3)]
    with torch.no_grad():
        expected = exact.log_probs(kind.model, exact.collate(samples))
        found = exact.log_probs(kind.model.bfloat16(), exact.collate(samples))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_answers_are_the_likeliest_labels(kind: Kind) -> None:
    objective = kind.objective("classification")
    rows = [objective.read(label_record(kind, n, n % 2, (n + 1) % 2)) for n in range(4)]
    prompts = objective.prompts(rows)
    assert len(prompts) == 4
    with torch.no_grad():
        answers = objective.complete(kind.model, prompts, top=2)
        expected = kind.logits(kind.inputs[0]).softmax(-1).topk(2)
    assert [name for name, _ in answers[0].outputs] == [LABELS[i] for i in expected.indices.tolist()]
    assert [chance for _, chance in answers[0].outputs] == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert objective.describe(objective.sample(rows[1], "LABEL_1"))[1] == "LABEL_1"
    assert objective.show(rows[1]).endswith("[LABEL_1]")
