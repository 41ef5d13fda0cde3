"""Classifiers the whole way: learn, measure, save, push, load, apply, verify and merge, on small real models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel, PeftModel
from PIL import Image
from sklearn.datasets import load_digits

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.artifact.files import CARD_FILE, HTML_FILE, PROBES_FILE
from gradiend_hub.data import Picture
from gradiend_hub.errors import ArtifactError, BaseModelError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.shift import shifts
from tests.conftest import BASE_MODELS
from tests.training import support

DIGITS, SENTIMENT = BASE_MODELS / "digits", BASE_MODELS / "sentiment"
WORDS = {
    "positive": "good great happy beautiful wonderful excellent nice pleasant brave strong rich glad kind better best",
    "negative": "bad terrible sad ugly awful horrible evil unpleasant cruel weak poor angry nasty worse worst",
}
FRAMES = ("The {} story was told again.", "We saw a {} film.", "The people there were {}.", "It was a {} day for us.")


def arguments(folder: Path, **changes: Any) -> GradiendTrainingArguments:
    return support.arguments(
        folder, **{"max_steps": -1, "solver": "closed_form", "per_device_train_batch_size": 16, **changes}
    )


def digit_rows(first: str, second: str, part: slice) -> list[dict[str, Any]]:
    found = load_digits()
    images = (found.images * (255 / 16)).astype(np.uint8)
    chosen = [
        (image, str(label)) for image, label in zip(images, found.target, strict=True) if str(label) in (first, second)
    ]
    return [
        {"image": i, "label": label, "alternative": second if label == first else first} for i, label in chosen[part]
    ]


def other_digits(first: str, second: str, count: int) -> list[dict[str, Any]]:
    found = load_digits()
    images = (found.images * (255 / 16)).astype(np.uint8)
    rows = [
        {"image": i, "label": int(n)}
        for i, n in zip(images, found.target, strict=True)
        if str(n) not in (first, second)
    ]
    return rows[-count:]


def sentences(part: slice) -> list[dict[str, Any]]:
    rows = [
        {"text": frame.format(word), "label": name, "alternative": "negative" if name == "positive" else "positive"}
        for name, words in WORDS.items()
        for word in words.split()
        for frame in FRAMES
    ]
    random.Random(0).shuffle(rows)
    return rows[part]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of the bundled classifier of digits, 3 against 8, saved whole."""
    folder = tmp_path_factory.mktemp("digits")
    trainer = GradiendTrainer(
        DIGITS,
        GradiendConfig(feature_classes=["3", "8"], source="diff"),
        arguments(folder, quality_floor=0.9),
        train_dataset=digit_rows("3", "8", slice(0, 160)),
        eval_dataset=digit_rows("3", "8", slice(160, 220)),
        neutral_dataset=other_digits("3", "8", 120),
    )
    assert trainer.objective.name == "image_classification"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of the bundled classifier of sentences, positive against negative, saved whole."""
    folder = tmp_path_factory.mktemp("sentiment")
    trainer = GradiendTrainer(
        SENTIMENT,
        GradiendConfig(feature_classes=["positive", "negative"]),
        arguments(folder, quality_floor=0.9),
        train_dataset=sentences(slice(0, 72)),
        eval_dataset=sentences(slice(72, 120)),
        neutral_dataset=[
            {"text": f"The {t} opens at nine.", "label": "neutral"} for t in ("shop", "bank", "school", "museum")
        ],
    )
    assert trainer.objective.name == "text_classification"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return folder


@pytest.fixture(params=["digits", "sentiment"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_both_signs_do_what_they_are_for(folder: Path) -> None:
    report = Report.load(folder)
    split = report.splits["eval"]
    assert split.encoder is not None and split.encoder.auc is not None and split.encoder.auc > 0.9
    zero = split.at(0.0)
    for strength, (wanted, other) in ((1.0, report.feature_classes), (-1.0, report.feature_classes[::-1])):
        point = split.at(strength)
        assert point.probability[other][wanted] > zero.probability[other][wanted]
        chance = split.control_range(strength, wanted, other)
        assert chance is not None and point.probability[other][wanted] > chance[1]
    assert {shift.outcome for shift in shifts(split, report.feature_classes)} <= {"works", "weak"}
    assert [d.strength for d in split.decisions] == [-1.0, 0.0, 1.0]
    assert split.decisions[1].changed == 0 and all(d.flipped is None for d in split.decisions)
    assert set(split.decisions[0].accuracy) == {*report.feature_classes}


def test_probabilities_of_the_report_are_the_edited_models(folder: Path) -> None:
    """W + Δ by hand, run by transformers alone, on the rows of the self-test."""
    report = Report.load(folder)
    head, *lines = (folder / PROBES_FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model = GradiendModel.from_pretrained(folder, strength=0.0)
    config, direction, processor = model.active_peft_config, model.direction, model.tokenizer
    plain = type(model.get_base_model()).from_pretrained(config.base_model_name_or_path, dtype=torch.float32).eval()
    c_w, c_b = config.coefficients(1.0)
    with torch.no_grad():
        for name, part in direction.parameters.items():
            plain.get_parameter(name).add_(part.dense(part.delta(c_w, c_b)))
        for of in report.feature_classes:
            own = [row for row in rows if row["factual_class"] == of]
            if "image" in own[0]:
                images = [Picture.read(row["image"]).open().convert("RGB") for row in own]
                inputs = dict(processor(images=images, return_tensors="pt"))
            else:
                inputs = dict(processor([row["text"] for row in own], return_tensors="pt", padding=True))
            chances = plain(**inputs).logits.softmax(-1).mean(0)
            for name, claimed in json.loads(head)["probability"]["1.0"][of].items():
                assert float(chances[plain.config.label2id[name]]) == pytest.approx(claimed, abs=1e-4)


def test_what_the_other_labels_lose_on_the_rows_own_inputs(digits: Path) -> None:
    """By hand: KL between what base and edited model make of the eight other labels, renormalised."""
    split = Report.load(digits).splits["eval"]
    model = GradiendModel.from_pretrained(digits, strength=0.0)
    images = [Image.fromarray(row["image"]).convert("RGB") for row in digit_rows("3", "8", slice(160, 220))]
    inputs, rest = dict(model.tokenizer(images, return_tensors="pt")), [i for i in range(10) if i not in (3, 8)]
    with torch.no_grad():
        before = model(**inputs).logits[:, rest].double().log_softmax(-1)
        for strength in (-1.0, 1.0):
            model.set_strength(strength)
            after = model(**inputs).logits[:, rest].double().log_softmax(-1)
            kl, point = (before.exp() * (before - after)).sum(-1), split.at(strength)
            assert point.slot["collateral"] == pytest.approx(float(kl.mean()), rel=0.02, abs=1e-4)
            low, high = point.intervals["slot collateral"]
            assert low < point.slot["collateral"] < high
            assert "own" not in point.damage  # a classifier's input has no other position


def test_loads_applies_verifies_and_merges(folder: Path) -> None:
    model = GradiendModel.from_pretrained(folder, strength=0.0)
    assert model.verify().passed
    again = AutoPeftModel.from_pretrained(folder)  # the class is found by `auto_mapping`
    assert type(again.get_base_model()) is type(model.get_base_model())
    rows = digit_rows("3", "8", slice(220, 236)) if folder.name.startswith("digits") else sentences(slice(100, 116))
    h = model.encode(rows)
    first = model.active_peft_config.feature_classes[0]
    assert (
        float(np.mean([(float(value) > 0) == (row["label"] == first) for value, row in zip(h, rows, strict=True)]))
        > 0.8
    )
    if "text" in rows[0]:
        inputs = dict(model.tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True))
    else:
        inputs = dict(
            model.tokenizer([Image.fromarray(row["image"]).convert("RGB") for row in rows], return_tensors="pt")
        )
    with torch.no_grad():
        strengths = [1.0, -1.0] * (len(rows) // 2)
        mixed = model(**inputs, strengths=strengths).logits
        for strength in (1.0, -1.0):
            model.set_strength(strength)
            chosen = [i for i, s in enumerate(strengths) if s == strength]
            part = model(**{name: value[chosen] for name, value in inputs.items()}).logits
            assert torch.allclose(mixed[chosen], part, atol=1e-5)

        merged = PeftModel.from_pretrained(model.unload(), folder).merge_and_unload()
        assert type(merged).__name__.endswith("Classification")


def test_card_says_what_the_model_is_for(digits: Path, sentiment: Path) -> None:
    pictured, texts = ((folder / CARD_FILE).read_text(encoding="utf-8") for folder in (digits, sentiment))
    assert ModelCard(pictured).data.pipeline_tag == "image-classification"
    assert ModelCard(texts).data.pipeline_tag == "text-classification"
    assert "pictures.png)" in pictured and (digits / "assets" / "pictures.png").is_file()
    for card in (pictured, texts):
        assert "## Decisions (eval split)" in card and "where the label is of" in card
        assert "Likeliest labels with their probabilities" in card
        assert "[MASK]" not in card
    assert "an image" in pictured and len(pictured) < 40_000
    assert "data:image/png;base64," in (digits / HTML_FILE).read_text(encoding="utf-8")
    split = Report.load(digits).splits["eval"]
    assert all(Picture.read(c.image).open().size == (8, 8) for c in split.completions if c.image)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_goes_to_the_hub_and_back(digits: Path, hub: Any, repo_id: str) -> None:
    model = GradiendModel.from_pretrained(digits, strength=0.0)
    model.push_to_hub(repo_id)
    again = GradiendModel.from_pretrained(repo_id, base_model=str(DIGITS), strength=0.0)
    rows = digit_rows("3", "8", slice(220, 228))
    assert torch.equal(again.encode(rows), model.encode(rows))


@pytest.mark.parametrize("image", ["/etc/passwd", "data:image/png;base64,AAAA", {"path": "/etc/passwd"}, [[1, 2], [3]]])
def test_a_strangers_self_test_opens_no_files(digits: Path, tmp_path: Path, image: Any) -> None:
    model = GradiendModel.from_pretrained(digits, strength=0.0)
    model.save_pretrained(tmp_path)
    head, first, *rest = (tmp_path / PROBES_FILE).read_text(encoding="utf-8").splitlines()
    changed = json.dumps({**json.loads(first), "image": image})
    (tmp_path / PROBES_FILE).write_text("\n".join([head, changed, *rest]) + "\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"self-test in .* is unusable"):
        GradiendModel.from_pretrained(tmp_path, strength=0.0).verify()


def test_large_photos_do_not_swell_the_self_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"image": rng.integers(0, 256, (200, 300, 3), np.uint8), "label": a, "alternative": b}
        for a, b in [("3", "8"), ("8", "3")] * 4
    ]
    trainer = GradiendTrainer(
        DIGITS, GradiendConfig(feature_classes=["3", "8"]), arguments(tmp_path), train_dataset=rows, eval_dataset=None
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / PROBES_FILE).stat().st_size < 2**20
    assert GradiendModel.from_pretrained(tmp_path, strength=0.0).verify().passed


def eights(part: slice) -> list[dict[str, Any]]:
    """Eights, bright and dim: the classifier knows the dim ones less."""
    rows, found = [], load_digits()
    for number, image in enumerate(found.images[found.target == 8]):
        inputs = {"bright": (image * (255 / 16)).astype(np.uint8), "dim": (image * (100 / 16)).astype(np.uint8)}
        own, other = ("bright", "dim") if number % 2 else ("dim", "bright")
        pair = {"image": inputs[own], "counterfactual": inputs[other], "label": 8}
        rows.append({**pair, "factual_class": own, "alternative_class": other})
    return rows[part]


def test_a_concept_direction_makes_a_classifier_nearly_indifferent(tmp_path: Path) -> None:
    """At -1 the decision hardly depends on how bright the image is, and other digits keep their labels."""
    trainer = GradiendTrainer(
        DIGITS,
        GradiendConfig(feature_classes=["bright", "dim"], source="diff"),
        arguments(tmp_path, quality_floor=0.9),
        train_dataset=eights(slice(0, 80)),
        eval_dataset=eights(slice(80, 160)),
        neutral_dataset=other_digits("8", "8", 160),
    )
    assert trainer.objective.name == "image_concept"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    split, strength = trainer.report.splits["eval"], -1.0
    assert split.encoder is not None and split.encoder.auc is not None and split.encoder.auc > 0.95

    def gap(at: float) -> float:
        return float(np.mean([of["bright"] - of["dim"] for of in split.at(at).probability.values()]))

    assert gap(0.0) > 0.2 and abs(gap(strength)) < gap(0.0) / 4
    assert gap(1.0) > gap(0.0)  # a positive strength makes the label likelier where the image is bright
    before, after = (next(d for d in split.decisions if d.strength == s) for s in (0.0, strength))
    assert before.flipped is not None and after.flipped is not None and after.flipped < before.flipped / 2
    assert after.accuracy["dim"] > before.accuracy["dim"] + 0.2 and after.accuracy["bright"] > 0.9
    assert split.at(strength).accuracy is not None and split.at(0.0).accuracy - split.at(strength).accuracy < 0.05

    model = GradiendModel.from_pretrained(tmp_path, strength=strength)
    with torch.no_grad():  # the same by hand
        chances = {
            name: [
                float(
                    model(**model.tokenizer(Image.fromarray(image).convert("RGB"), return_tensors="pt")).logits.softmax(
                        -1
                    )[0, 8]
                )
                for row in eights(slice(80, 160))
                for image in [np.stack([row["image" if row["factual_class"] == name else "counterfactual"]] * 3, -1)]
            ]
            for name in ("bright", "dim")
        }
    assert np.mean(chances["bright"]) - np.mean(chances["dim"]) == pytest.approx(gap(strength), abs=1e-3)
    assert model.verify().passed
    assert "counterfactuals decided otherwise" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["diff", "factual", "alternative"])
def test_signs_hold_for_every_target(tmp_path: Path, target: str) -> None:
    for source in ("factual", "alternative", "diff"):
        trainer = GradiendTrainer(
            DIGITS,
            GradiendConfig(feature_classes=["1", "7"], source=source, target=target),
            arguments(tmp_path / source, quality_floor=0.9, controls=0),
            train_dataset=digit_rows("1", "7", slice(0, 80)),
            eval_dataset=digit_rows("1", "7", slice(80, 120)),
        )
        trainer.train()
        trainer.evaluate()
        split = trainer.report.splits["eval"]
        for strength, wanted, other in ((1.0, "1", "7"), (-1.0, "7", "1")):
            assert split.at(strength).probability[other][wanted] > split.at(0.0).probability[other][wanted], source


def test_labels_by_coin_are_flagged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng, rows = random.Random(0), []
    for row in digit_rows("3", "8", slice(0, 200)):
        own, other = rng.choice([("3", "8"), ("8", "3")])
        rows.append({**row, "label": rng.choice("0124"), "alternative": rng.choice("5679"),
                     "factual_class": own, "alternative_class": other})  # fmt: skip
    trainer = GradiendTrainer(
        DIGITS,
        GradiendConfig(feature_classes=["3", "8"], fillers={"3": ["3"], "8": ["8"]}),
        arguments(tmp_path, controls=0),
        train_dataset=rows[:120],
        eval_dataset=rows[120:],
    )
    trainer.train()
    trainer.evaluate()
    assert trainer.report.converged is False
    assert "Not learned" in caplog.text


def test_data_that_cannot_be_learned_from(tmp_path: Path) -> None:
    good = digit_rows("3", "8", slice(0, 20))
    one_class = [row for row in good if row["label"] == "3"]
    cases = (
        (one_class, "class '8' has no rows"),
        ([{**good[0], "image": b"nothing"}], "row 0: this is no image that can be read: its format is unknown"),
        ([{**good[0], "label": "bear"}], r"train_dataset, row 0: 'label' must be a label of .*digits, found 'bear'"),
        ([{**good[0], "label": 11}], "found 11"),
        ([{**good[0], "alternative": good[0]["label"]}], "unknown class|no rows|same"),
        ([{"text": "a", "label": "3", "alternative": "8"}],
         r"column \['image'\] is missing.*are for a model of AutoModelForSequenceClassification, and .* was loaded with the "
         r"head of 'image_classification' \(AutoModelForImageClassification\)"),
        ([{"masked": "a [MASK]", "factual": "b", "alternative": "c", "factual_class": "3", "alternative_class": "8"}],
         r"column \['image', 'label'\] is missing.*are for a model of AutoModelForMaskedLM or AutoModelForCausalLM or"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], r"are for a model of AutoModelForCausalLM, and"),
        ([{**good[0], "factual_class": "8", "alternative_class": "8"}, *good], "row 0: .* both of the class '8'"),
    )  # fmt: skip
    for rows, message in cases:
        with pytest.raises(DataError, match=message):
            GradiendTrainer(DIGITS, GradiendConfig(feature_classes=["3", "8"]), arguments(tmp_path), train_dataset=rows)


def test_a_processor_that_makes_no_numbers(tmp_path: Path) -> None:
    base = shutil.copytree(DIGITS, tmp_path / "base")
    settings = json.loads((base / "preprocessor_config.json").read_text())
    (base / "preprocessor_config.json").write_text(json.dumps({**settings, "image_std": [0.0, 0.0, 0.0]}))
    trainer = GradiendTrainer(
        base, GradiendConfig(feature_classes=["3", "8"]), arguments(tmp_path / "out"),
        train_dataset=digit_rows("3", "8", slice(0, 20)),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"pixel values that are not finite\. Its image_std is .0\.0, 0\.0, 0\.0."):
        trainer.train()


def test_a_config_that_does_not_go_with_its_weights(tmp_path: Path) -> None:
    base = shutil.copytree(DIGITS, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"other shapes than its config\.json says.*id2label may be missing"):
        GradiendTrainer(base, GradiendConfig(feature_classes=["3", "8"]), arguments(tmp_path), train_dataset=[])
