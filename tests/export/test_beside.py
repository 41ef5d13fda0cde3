"""The LoRA that is saved and pushed beside a direction, and the card's code for those who have no gradiend_hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForMaskedLM, AutoTokenizer

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE, LORA_FOLDER, WEIGHTS_FILE
from gradiend_hub.data import read_rows
from gradiend_hub.evaluation import Report, StrengthProbe, lora
from gradiend_hub.hub import publish_folder
from gradiend_hub.hub.published import BASE_PLACE, REPO_PLACE
from gradiend_hub.objectives import make_objective
from tests.hub_server import HubServer
from tests.training.support import arguments, trainer_of

TEXTS = ["the boys left because [MASK] were tired.", "the girl slept since [MASK] was ill."]

STRANGER = """
import json, sys, warnings
sys.modules["gradiend_hub"] = None
warnings.simplefilter("ignore")
import torch
from transformers import AutoTokenizer
codes, base, texts, out = json.loads(sys.argv[1])
tokens = AutoTokenizer.from_pretrained(base)(texts, return_tensors="pt", padding=True)
found = []
for code in codes:
    space = {}
    exec(code, space)
    with torch.no_grad():
        found.append(space["model"].float().eval()(**tokens).logits.softmax(-1).tolist())
json.dump(found, open(out, "w"))
"""


@pytest.fixture(scope="module")
def saved(masked_path: Path, pronouns: object, neutral: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direction")
    args = arguments(folder, solver="closed_form", rank=4, max_steps=20, controls=1)
    matrices = {"exclude": ["*.bias", "type:LayerNorm"]}  # a LoRA has no place for vectors
    trainer = trainer_of(str(masked_path), folder, pronouns, neutral, args=args, **matrices)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return folder


def probabilities(model: torch.nn.Module, base: Path) -> torch.Tensor:
    texts = [text.replace("[MASK]", AutoTokenizer.from_pretrained(base).mask_token) for text in TEXTS]
    tokens = AutoTokenizer.from_pretrained(base)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**tokens).logits.softmax(-1)


def test_what_it_holds_is_measured(saved: Path) -> None:
    report = Report.load(saved)
    assert report.lora is not None and report.lora.holds
    assert report.lora.effect.keys() == report.lora.quality.keys() == {"-1.0", "1.0"}
    assert report.lora.energy == pytest.approx(1, abs=1e-3) and not report.lora.left_out
    assert min(report.lora.quality.values()) > 0.97


def test_what_holds_everything_is_the_direction_and_is_not_read_again(
    saved: Path, masked_path: Path, pronouns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GradiendModel.from_pretrained(saved, base_model=str(masked_path))
    objective = make_objective(model.get_base_model(), model.tokenizer)
    classes = model.active_peft_config.feature_classes
    rows = read_rows(pronouns["test"].select(range(20)), classes, read=objective.read, what="rows")
    probe = StrengthProbe(model, objective, rows, ["The dogs ran home.", "It was late."])
    read = lora._read(probe, lora.as_loras(model.direction, model.active_peft_config, model.get_base_model()))
    monkeypatch.setattr(lora, "_read", lambda *_: pytest.fail("what is the direction itself was read"))
    found = lora.measure_lora(probe)
    assert found is not None and found.effect == {"-1.0": 1.0, "1.0": 1.0}
    for sign, point in read.items():
        assert point.effect == pytest.approx(probe.measure(sign).effect, rel=1e-4)
    model.unload()


def test_the_cards_first_code_works_without_this_package(saved: Path, masked_path: Path, tmp_path: Path) -> None:
    card = (saved / CARD_FILE).read_text()
    code = re.findall(r"(?ms)^```python\n(.*?)\n```$", card)[0]
    assert "gradiend" not in code and "lora/plus" in code  # this solver's decoder has a bias: a LoRA for each sign
    code = code.replace(REPO_PLACE, str(saved)).replace(BASE_PLACE, str(masked_path))
    model = GradiendModel.from_pretrained(saved, base_model=str(masked_path))
    base = probabilities(AutoModelForMaskedLM.from_pretrained(masked_path).float().eval(), masked_path)
    texts, out = [text.replace("[MASK]", model.tokenizer.mask_token) for text in TEXTS], tmp_path / "found.json"
    given = json.dumps([[code, code.replace("lora/plus", "lora/minus")], str(masked_path), texts, str(out)])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", STRANGER, given], check=True, env=environment, cwd=tmp_path)
    for strength, found in zip((1.0, -1.0), torch.tensor(json.loads(out.read_text())), strict=True):
        with model.strength_at(strength):
            expected = probabilities(model.get_base_model(), masked_path)
        changed = (expected - base).abs().max()
        assert float((found - expected).abs().max()) < 0.01 * changed


def test_it_is_pushed_without_a_path_of_this_machine(saved: Path, hub: HubServer, repo_id: str) -> None:
    publish_folder(saved, repo_id, base_id="us/base")
    files = HfApi().list_repo_files(repo_id)
    names = [f"{LORA_FOLDER}/{sign}/{name}" for sign in ("plus", "minus") for name in (CONFIG_FILE, WEIGHTS_FILE)]
    assert {*names} <= {*files}
    path = HfApi().hf_hub_download(repo_id, names[0])
    assert json.loads(Path(path).read_text())["base_model_name_or_path"] == "us/base"


def test_one_that_holds_too_little_is_not_saved(
    saved: Path, masked_path: Path, pronouns: object, neutral: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradiend_hub.evaluation.records.HELD_EFFECT", 1.5)
    (tmp_path / "out" / LORA_FOLDER).mkdir(parents=True)
    (tmp_path / "out" / LORA_FOLDER / CONFIG_FILE).write_text("{}")  # of a former direction
    args = arguments(tmp_path / "out", solver="closed_form", rank=4, max_steps=4, controls=0, overwrite_output_dir=True,
                     quality_tokens=100)  # fmt: skip
    few = pronouns["validation"].select(range(12))  # type: ignore[index]
    trainer = trainer_of(str(masked_path), tmp_path / "out", pronouns, neutral, args=args, eval_dataset=few, layers="3")
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert not (tmp_path / "out" / LORA_FOLDER).exists()
    assert "With PEFT alone" not in (tmp_path / "out" / CARD_FILE).read_text()
