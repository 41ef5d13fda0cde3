"""`gradiend-hub audit`: nothing to say of an honest direction but its local base, and something of every odd one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, PROBES_FILE, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from tests.cli.conftest import Run, Trained
from tests.cli.test_strangers import edit, forge_digests, lies, sparse_file


def findings(run: Run, folder: Path) -> list[tuple[str, str]]:
    """Level and text of what an audit finds; the exit status says whether there is any."""
    result = run("audit", folder, "--json")
    found = [(finding["level"], finding["text"]) for finding in json.loads(result.stdout)["findings"]]
    assert result.exit_code == (1 if found else 0)
    return found


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint*", "runs"))
    return folder


def test_an_honest_direction(run: Run, copy: Path) -> None:
    found = findings(run, copy)
    assert [level for level, _ in found] == ["suspicious"] and "is no repository on the Hub, but a path" in found[0][1]
    edit(copy, base_model_name_or_path="alice/base", revision="c0ffee")
    forge_digests(copy)
    assert findings(run, copy) == []
    shown = run("audit", copy)
    assert (
        "Nothing harmful, impossible or suspicious" in shown.stdout and "figures are the author's word" in shown.stdout
    )


def spiked(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    key = next(k for k in sorted(tensors) if k.endswith("gradiend_weight") and tensors[k].numel() > 5000)
    tensors[key][7] = 1e4
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


ODD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "hidden characters": (lambda f: edit(f, revision="a\u202eb"), "refused", "revision"),
    "a strength of 50": (lambda f: edit(f, strength=50.0), "refused", "not applied unasked"),
    "no samples": (lambda f: (f / BASE_FILE).unlink(), "refused", "allow_unverified_base"),
    "a file of 64 GiB": (lambda f: sparse_file(f / WEIGHTS_FILE, 2**36), "refused", "accounts for at most"),
    "a link": (
        lambda f: ((f / REPORT_FILE).unlink(), (f / REPORT_FILE).symlink_to("/etc/hostname")), "refused", "is a link to",
    ),
    "another file": (lambda f: edit(f, REPORT_FILE, steps=7), "impossible", "gradiend_report.json is not the file"),
    "a wide band": (lambda f: edit(f, safe_band=[-90.0, 90.0], break_point=None), "impossible", "wider than any"),
    "a spike": (spiked, "suspicious", "of the edit's squared norm is in 16 of"),
    "code": (lambda f: (f / "modeling.py").write_text("import os"), "suspicious", "may run code"),
    "secrets": (lambda f: (f / "aws_credentials.json").write_text("{}"), "suspicious", "no part of a direction"),
    "no report": (lambda f: (f / REPORT_FILE).unlink(), "suspicious", "There is no report"),
    "no self-test": (lambda f: (f / PROBES_FILE).unlink(), "suspicious", "There is no self-test"),
    "no base": (lambda f: edit(f, base_model_name_or_path=None), "suspicious", "names no base model"),
    "a strange class": (
        lambda f: edit(f, auto_mapping={"base_model_class": "os.system"}), "suspicious", "is none of transformers",
    ),
    "a large edit": (lambda f: edit(f, strength_unit=1e6), "suspicious", "times as large as the weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_directions(run: Run, copy: Path, case: str) -> None:
    tamper, level, text = ODD[case]
    tamper(copy)
    assert any(one == level and text in said for one, said in findings(run, copy)), findings(run, copy)


@pytest.mark.parametrize("lie", lies())
def test_false_reports(run: Run, copy: Path, lie: str) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    lies()[lie](report)
    (copy / REPORT_FILE).write_text(json.dumps(report))
    forge_digests(copy)
    assert any(level == "impossible" for level, _ in findings(run, copy))


def test_claims_without_data_and_effects_without_control(run: Run, copy: Path) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    report["data"], report["examples"], report["usage"] = {}, [], {"code": "print(1)", "output": "100 %"}
    for split in report["splits"].values():
        split["control"] = []
        split["encoder"]["encodings"] = []
    (copy / REPORT_FILE).write_text(json.dumps(report))
    texts = " ".join(text for _, text in findings(run, copy))
    for part in ("nothing is said of the data", "no random direction beside it", "no point is shown", "usage"):
        assert part in texts


def test_an_edit_of_one_token(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, values = torch.randn(2000, 8), 1e-4 * torch.randn(2000, 8)
    values[1234] = 1.0
    name = "bert.embeddings.word_embeddings.weight"
    part = ParameterDirection((2000, 8), values.flatten(), encoder=values.flatten())
    direction = Direction({name: part}, fingerprint=Fingerprint.of({name: weight}))
    fields: dict[str, Any] = {"feature_classes": ["a", "b"], "parameters": direction.spec()}
    GradiendConfig(**fields).save_pretrained(str(tmp_path))
    direction.save(tmp_path)
    assert any(f"is in row 1234 of {name}" in text for _, text in findings(run, tmp_path))


def test_what_is_no_direction(run: Run, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('{"peft_type": "LORA"}')
    result = run("audit", tmp_path)
    assert result.exit_code == 1 and "There is no direction in" in result.stderr
