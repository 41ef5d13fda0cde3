"""What holds for every kind of objective: it is found, so is its class, the card says it, and its self-test can fail."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import CARD_FILE, WEIGHTS_FILE
from gradiend_hub.data import Picture
from gradiend_hub.errors import GradiendError
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.published import BASE_PLACE, REPO_PLACE
from gradiend_hub.objectives import OBJECTIVES
from tests.cards.test_usage import run_card
from tests.conftest import BASE_MODELS, ROOT
from tests.training.support import arguments
from tests.training.test_classifiers import digit_rows, eights, other_digits, sentences

EXAMPLES = ROOT / "examples" / "data"


@dataclass(frozen=True)
class Kind:
    """A base model with data of one kind; `named` only where the columns are those of another objective, too."""

    base: Path
    classes: list[str]
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    neutral: list[dict[str, Any]]
    named: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pronoun_kind(base: str, named: str | None = None) -> Kind:
    folder = EXAMPLES / "pronouns"
    parts = (
        lines(folder / "train.jsonl")[:48],
        lines(folder / "validation.jsonl")[:12],
        lines(folder / "neutral.jsonl")[:8],
    )
    return Kind(BASE_MODELS / base, ["3SG", "3PL"], *parts, named)


def preference_kind() -> Kind:
    folder = EXAMPLES / "preferences" / "cheerful"
    parts = (lines(folder / "train.jsonl")[:24], lines(folder / "validation.jsonl")[:6])
    return Kind(
        BASE_MODELS / "causal", ["cheerful", "gloomy"], *parts, lines(EXAMPLES / "pronouns" / "neutral.jsonl")[:8]
    )


def text_concepts() -> list[dict[str, Any]]:
    return [
        {"text": f"{a} had a {word} day.", "counterfactual": f"{b} had a {word} day.", "label": "negative",
         "factual_class": a.lower(), "alternative_class": b.lower()}
        for word in ("bad", "sad", "awful", "horrible", "cruel", "poor", "angry", "nasty", "ugly", "evil", "weak", "worst")
        for a, b in (("He", "She"), ("She", "He"))
    ]  # fmt: skip


def kind_of(name: str, request: pytest.FixtureRequest) -> Kind:
    plain = [
        {"text": f"The {place} opens at nine.", "label": "neutral"} for place in ("shop", "bank", "school", "port")
    ]
    match name:
        case "masked_lm":
            return pronoun_kind("masked")
        case "causal_lm":
            return pronoun_kind("causal")
        case "cloze":
            return pronoun_kind("causal", named="cloze")
        case "seq2seq":
            return pronoun_kind("seq2seq")
        case "preference":
            return preference_kind()
        case "text_classification":
            parts = (sentences(slice(0, 48)), sentences(slice(60, 72)), plain)
            return Kind(BASE_MODELS / "sentiment", ["positive", "negative"], *parts)
        case "text_concept":
            rows = text_concepts()
            return Kind(BASE_MODELS / "sentiment", ["he", "she"], rows[:16], rows[16:], plain)
        case "image_classification":
            parts = (
                digit_rows("3", "8", slice(0, 60)),
                digit_rows("3", "8", slice(60, 76)),
                other_digits("3", "8", 20),
            )
            return Kind(BASE_MODELS / "digits", ["3", "8"], *parts)
        case "image_concept":
            parts = (eights(slice(0, 40)), eights(slice(40, 52)), other_digits("8", "8", 20))
            return Kind(BASE_MODELS / "digits", ["bright", "dim"], *parts)
        case "token_classification":
            base, rows, neutral = request.getfixturevalue("tagger")
            return Kind(base, ["SINGULAR", "PLURAL"], rows[:48], rows[200:212], neutral[200:212])
    raise AssertionError(f"no data for the objective {name!r}: every kind that ships is tested here")


OWN = [name for name, of in OBJECTIVES.items() if of.__module__.startswith("gradiend_hub.")]


# the whole way of these is gone by the default tests elsewhere: test_trainer.py, test_cloze.py and test_seq2seq.py
ELSEWHERE = {"masked_lm", "causal_lm", "cloze", "seq2seq"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ELSEWHERE else ()) for name in OWN]
)
def test_every_kind_is_found_shown_and_verified(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, folder = kind_of(name, request), tmp_path / "out"
    args = arguments(folder, solver="closed_form", max_steps=-1, controls=0, quality_tokens=100,
                     per_device_train_batch_size=8)  # fmt: skip
    trainer = GradiendTrainer(
        kind.base, GradiendConfig(feature_classes=kind.classes, objective=kind.named), args, train_dataset=kind.train,
        eval_dataset=kind.held_out, neutral_dataset=kind.neutral,
    )  # fmt: skip
    assert trainer.objective.name == name == trainer.gradiend_config.objective
    trainer.train()
    trainer.evaluate()
    trainer.save_model()

    # the class of the base model is found again, by PEFT's own means
    fields = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    base_class = type(trainer.base_model)
    assert fields["auto_mapping"]["base_model_class"] == base_class.__name__ and fields["objective"] == name
    assert type(AutoPeftModel.from_pretrained(folder).get_base_model()) is base_class
    assert type(OBJECTIVES[name].auto_class.from_pretrained(kind.base)) is base_class

    # card and widget
    data = ModelCard((folder / CARD_FILE).read_text("utf-8")).data
    assert data.pipeline_tag == OBJECTIVES[name].task
    completions = {c.text: c for split in Report.load(folder).splits.values() for c in split.completions}
    if data.pipeline_tag in ("image-classification", "token-classification"):
        assert data.to_dict().get("widget") is None  # the one wants addresses of pictures, the other spans
    elif any(c.text.isprintable() and c.by_strength["1.0"] for c in completions.values()):
        assert data.to_dict()["widget"]
    for shown in data.to_dict().get("widget") or []:
        said = completions[shown["text"]].by_strength["1.0"]
        best = shown["output"]["text"] if "text" in shown["output"] else shown["output"][0]["label"]
        assert best == (" ".join(said.split()) if isinstance(said, str) else said[0][0])

    # its lines run as they stand there
    card = (folder / CARD_FILE).read_text("utf-8").replace(REPO_PLACE, str(folder)).replace(BASE_PLACE, str(kind.base))
    if "IMAGE.png" in card:
        Picture.read(kind.train[0]["image"]).open().save(tmp_path / "IMAGE.png")
    printed = run_card(card.replace("IMAGE.png", str(tmp_path / "IMAGE.png")), capsys)
    assert printed["undone to the bit"] == printed["the recommended dose to the bit"] == "True"
    assert "strength" in printed["shell"]
    if "feature value" in printed:
        assert 0 < abs(float(printed["feature value"])) <= 1
    # the self-test has rows of the kind, passes, and fails for other weights
    model = GradiendModel.from_pretrained(folder, strength=0.0)
    found = model.verify()
    assert found.passed and found.rows
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / WEIGHTS_FILE)
    save_file({key: value * 1.5 if value.is_floating_point() else value for key, value in tensors.items()},
              other / WEIGHTS_FILE, metadata=_metadata(other / WEIGHTS_FILE))  # fmt: skip
    try:
        changed = GradiendModel.from_pretrained(other, strength=0.0).verify()
    except GradiendError:
        return
    assert not changed.passed


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("masked_lm", "causal_lm")])
def test_every_kind_is_learned_by_factors(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A direction of rank 4 that was never a whole vector, beside the whole one cut to that rank; and what it reads."""
    kind, found = kind_of(name, request), {}
    for rank in (None, 4):
        args = arguments(tmp_path / str(rank), solver="closed_form", max_steps=-1, controls=0, rank=rank, comparable=False,
                         per_device_train_batch_size=8)  # fmt: skip
        config = GradiendConfig(feature_classes=kind.classes, objective=kind.named)
        trainer = GradiendTrainer(kind.base, config, args, train_dataset=kind.train)
        trainer.train()
        found[rank] = trainer.direction
    matrices = [part for part in found[4].parameters.values() if len(part.shape) > 1]
    assert matrices and all(part.rank is not None and part.rank <= 4 for part in matrices)
    whole = found[None].to_rank(4)
    cosine = whole.inner(found[4], 1.0, 0.0) / (whole.norm(1.0, 0.0) * found[4].norm(1.0, 0.0))
    assert cosine > (0.5 if name == "preference" else 0.9)  # whole completions have gradients of high rank
    dense = Direction(
        {n: _whole(p) for n, p in found[4].parameters.items()}, found[4].encoder_bias, found[4].fingerprint
    )
    h = []
    for direction in (found[4], dense):
        model = GradiendModel.from_direction(trainer.base_model, direction, copy.deepcopy(trainer.gradiend_config),
                                             processing_class=trainer.processing_class)  # fmt: skip
        h.append(model.encode(kind.train[:6]))
        model.unload()
    torch.testing.assert_close(h[0], h[1], rtol=1e-3, atol=1e-4)


def _whole(part: ParameterDirection) -> ParameterDirection:
    """The part with all of its entries, by which encoding takes another way."""
    decoder, bias, encoder = (
        None if values is None else part.dense(values).flatten()
        for values in (part.decoder, part.decoder_bias, part.encoder)
    )
    return ParameterDirection(part.shape, decoder, bias, encoder)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})
