"""The seam holds for more than words: an objective of images and labels, written here, goes the whole way."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.artifact.files import CARD_FILE, PROBES_FILE, REPORT_FILE
from gradiend_hub.data import Row
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.objectives import OBJECTIVES, Batch, Example, Objective, Sample, objective_name, register_objective
from gradiend_hub.scope import select_parameters
from tests.training.support import arguments

LABELS = ("bright", "dark", "striped")
Image = tuple[tuple[float, ...], ...]


class ToyImages(Objective):
    """Images of 8 x 8 pixels with one of three labels: one position, three outputs."""

    name = "toy_images"
    task = "image-classification"
    auto_class = tf.AutoModelForImageClassification

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        return architecture == "ViTForImageClassification"

    @property
    def width(self) -> int:
        return len(LABELS)

    def read(self, record: Mapping[str, Any]) -> Row:
        if record.get("label") not in LABELS:
            raise DataError(f"label must be one of {LABELS}, found {record.get('label')!r}.")
        image = tuple(tuple(map(float, line)) for line in record["image"])
        return Row(image, record["label"], record["alternative"], record["label"], record["alternative"])

    def record(self, row: Row) -> dict[str, Any]:
        classes = {"factual_class": row.factual_class, "alternative_class": row.alternative_class}
        return {"image": row.input, "label": row.factual, "alternative": row.alternative, **classes}

    def read_neutral(self, record: Mapping[str, Any]) -> Image:
        return tuple(tuple(map(float, line)) for line in record["image"])

    def _sample(self, image: Image, label: str) -> Sample:
        return Sample({"pixel_values": torch.tensor(image).expand(3, 8, 8)}, (0,), (LABELS.index(label),), 1)

    def sample(self, row: Row, output: str) -> Sample:
        return self._sample(row.input, output)

    def neutral_example(self, item: Image, rng: random.Random) -> Example | None:
        sample = self._sample(item, "striped")
        return Example(sample, sample)

    def quality_samples(self, item: Image, rng: random.Random, draws: int = 1) -> list[Sample]:
        return [self._sample(item, "striped")]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        pixels = torch.stack([sample.inputs["pixel_values"] for sample in samples])
        labels = torch.tensor([sample.labels for sample in samples])
        return Batch({"pixel_values": pixels}, torch.zeros_like(labels), labels, tuple(samples))

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits
        return logits.float().log_softmax(-1).unsqueeze(1)

    def describe(self, sample: Sample) -> tuple[str, str]:
        return f"image of mean {float(sample.inputs['pixel_values'].mean()):.2f}: [MASK]", LABELS[sample.labels[0]]

    def show(self, row: Row) -> str:
        return f"image of mean {sum(map(sum, row.input)) / 64:.2f}: [{row.factual}]"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_objective(ToyImages)
    yield
    del OBJECTIVES[ToyImages.name]


def image(label: str, rng: random.Random) -> list[list[float]]:
    level = {"bright": 0.8, "dark": -0.8, "striped": 0.0}[label]
    wave = 0.8 if label == "striped" else 0.0
    return [[level + wave * (-1) ** x + rng.gauss(0, 0.2) for x in range(8)] for _ in range(8)]


def records(number: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    kinds = [("bright", "dark"), ("dark", "bright")] * (number // 2)
    return [{"image": image(own, rng), "label": own, "alternative": other} for own, other in kinds]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT that has learned the three labels, as a folder."""
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=3, initializer_range=0.2,
    )  # fmt: skip
    model, rng = tf.ViTForImageClassification(config), random.Random(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        chosen = [rng.randrange(3) for _ in range(32)]
        pixels = torch.tensor([image(LABELS[i], rng) for i in chosen]).unsqueeze(1).expand(-1, 3, -1, -1)
        loss = model(pixel_values=pixels, labels=torch.tensor(chosen)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder


def test_an_objective_that_is_not_text_trains_evaluates_saves_and_loads(base: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    args = arguments(tmp_path, solver="closed_form", max_steps=-1, per_device_train_batch_size=4)
    trainer = GradiendTrainer(
        base,
        GradiendConfig(feature_classes=["bright", "dark"]),
        args,
        train_dataset=records(64, 2),
        eval_dataset=records(32, 3),
        neutral_dataset=[{"image": image("striped", rng)} for _ in range(30)],
    )
    assert trainer.objective.name == "toy_images"
    assert all(".layers." in name or ".layer." in name for name in trainer.scope.parameters)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_correlation"] > 0.9
    trainer.save_model()

    report = Report.load(tmp_path)
    split = report.splits["eval"]
    zero, up, down = (split.at(s) for s in (0.0, 1.0, -1.0))
    assert up.probability["dark"]["bright"] > zero.probability["dark"]["bright"]
    assert down.probability["bright"]["dark"] > zero.probability["bright"]["dark"]
    assert split.scored == 30
    assert (tmp_path / REPORT_FILE).is_file()
    assert "bright" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    head, *lines = (tmp_path / PROBES_FILE).read_text(encoding="utf-8").splitlines()
    assert json.loads(head)["reads"] == "input"
    assert {json.loads(line)["label"] for line in lines} == {"bright", "dark"}

    model = GradiendModel.from_pretrained(tmp_path, strength=0.0)
    plain = tf.AutoModelForImageClassification.from_pretrained(base).eval()
    rows = records(8, 4)
    pixels = torch.tensor([row["image"] for row in rows]).unsqueeze(1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels).logits, plain(pixel_values=pixels).logits)
        model.set_strength(1.0)
        direction, config = model.direction, model.active_peft_config
        c_w, c_b = config.coefficients(1.0)
        for name, part in direction.parameters.items():  # W + σΔ by hand
            weight = plain.get_parameter(name)
            weight.add_(part.dense(part.delta(c_w, c_b)))
        assert torch.equal(model(pixel_values=pixels).logits, plain(pixel_values=pixels).logits)
    h = model.encode(rows)
    assert [float(value) > 0 for value in h] == [row["label"] == "bright" for row in rows]
    assert model.verify().passed
    merged = model.merge_and_unload()
    assert type(merged) is tf.ViTForImageClassification


def test_encodings_of_it_are_plain_autograds(base: Path) -> None:
    from gradiend_hub.gradients import directional_derivatives

    model = tf.AutoModelForImageClassification.from_pretrained(base).eval()
    objective = ToyImages.of_model(model, None)
    rows = [objective.read(record) for record in records(4, 6)]
    tangents = {name: torch.randn_like(p) / p.numel() for name, p in select_parameters(model).items()}
    found = directional_derivatives(model, objective, [objective.example(row).factual for row in rows], tangents)
    for row, value in zip(rows, found, strict=True):
        logits = model(pixel_values=torch.tensor([row.input]).unsqueeze(1).expand(-1, 3, -1, -1)).logits
        loss = nn.functional.cross_entropy(logits, torch.tensor([LABELS.index(row.factual)]))
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in tangents])
        expected = sum(float((g * t).sum()) for g, t in zip(gradients, tangents.values(), strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_what_is_not_registered_or_twice(base: Path) -> None:
    model = tf.AutoModelForImageClassification.from_pretrained(base)
    assert objective_name(model) == "toy_images"

    class Other(ToyImages):
        pass

    with pytest.raises(ConfigError, match="There is an objective 'toy_images' already"):
        register_objective(Other)
    with pytest.raises(ConfigError, match=r"Unknown objective 'nope'.*has to be imported"):
        objective_name(model, "nope")
    with pytest.raises(DataError, match="label must be one of"):
        ToyImages(None).read({"image": [], "label": "blue"})
