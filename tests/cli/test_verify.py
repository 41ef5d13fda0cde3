"""The self-test of an artifact: it passes where nothing was touched, and fails at every kind of tampering."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    LORA_FILES,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.artifact.probes import TOLERANCES, Probes, content_digests
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards.card import write_card
from gradiend_hub.data.row import TextRow
from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.encoder import measure_encoder
from gradiend_hub.evaluation.selftest import write_probes
from gradiend_hub.objectives import make_objective
from tests.cli.conftest import Run, Trained
from tests.hub.conftest import TOLERATE_LFS_UPLOAD


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a published direction that a test may tamper with."""
    files = (CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REFERENCES_FILE, REPORT_FILE, PROBES_FILE)
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in files:
        shutil.copyfile(trained.folder / name, folder / name)
    return folder


def failures(folder: Path, **options: Any) -> list[str]:
    model = GradiendModel.from_pretrained(folder, strength=0.5, **options)
    before = model.receipt
    names = [check.name for check in model.verify().checks if not check.passed]
    assert model.strength == 0.5 and model.receipt == before  # the model is as it was
    return names


def test_it_passes_and_the_table_says_so(run: Run, trained: Trained) -> None:
    result = run("verify", trained.folder)
    assert result.exit_code == 0
    assert "all agree" in result.stdout and "DIFFERS" not in result.stdout
    assert re.search(r"base model +same +same +ok", result.stdout)
    assert re.search(r"P\(3PL\) on 3SG rows at -1 +\+0\.\d{4} +\+0\.\d{4} +ok", result.stdout)


def test_a_rounded_base_is_held_to_the_tolerance_of_its_type(run: Run, trained: Trained, copy: Path) -> None:
    result = run("verify", trained.folder, "--dtype", "bfloat16")
    assert result.exit_code == 0 and "all agree" in result.stdout
    tolerances = [re.search(r"may differ by (\S+):", text) for text in (result.stdout, run("verify", copy).stdout)]
    assert [float(found[1]) for found in tolerances if found] == [TOLERANCES["bfloat16"], TOLERANCES["float32"]]


def test_one_changed_value_of_the_decoder(run: Run, copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS_FILE)
    key = sorted(tensors)[0]
    tensors[key].view(-1)[3] *= -1
    save_file(tensors, copy / WEIGHTS_FILE, {"format": "pt"})
    assert failures(copy) == [WEIGHTS_FILE]
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "1 differ." in result.stdout


def test_a_decoder_of_other_sign_shows_in_what_it_does(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS_FILE)
    save_file({name: -value for name, value in tensors.items()}, copy / WEIGHTS_FILE, {"format": "pt"})
    replace(Probes.load(copy), sha256=content_digests(copy)).save(copy)
    found = failures(copy)  # the digests were forged, too
    assert found and all(name.startswith("P(") for name in found)


def test_an_encoder_of_other_gain_shows_in_what_it_reads(copy: Path) -> None:
    tensors = load_file(copy / ENCODER_FILE)
    doubled = {n: v * (2 if n.startswith("encoder.") else 1) for n, v in tensors.items()}
    save_file(doubled, copy / ENCODER_FILE)
    found = failures(copy)
    assert ENCODER_FILE in found and any(name.startswith("h: ") for name in found)


def test_an_edited_report(copy: Path) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    report["splits"]["test"]["encoder"]["correlation"] = 0.999
    (copy / REPORT_FILE).write_text(json.dumps(report))
    assert failures(copy) == [REPORT_FILE]


def test_an_edited_config(copy: Path) -> None:
    config = json.loads((copy / CONFIG_FILE).read_text())
    config["strength_unit"] *= 50
    (copy / CONFIG_FILE).write_text(json.dumps(config))
    assert failures(copy)[0] == CONFIG_FILE


def test_another_base_model(run: Run, copy: Path, masked_path: Path, tmp_path: Path) -> None:
    base = load_base_model(masked_path)
    for parameter in base.parameters():
        parameter.data += 0.05 * parameter.data.std() * torch.randn(parameter.shape)
    base.save_pretrained(tmp_path / "tuned")
    shutil.copytree(
        masked_path,
        tmp_path / "tuned",
        ignore=shutil.ignore_patterns("*.safetensors", "config.json"),
        dirs_exist_ok=True,
    )
    result = run("verify", copy, "--base", tmp_path / "tuned")
    assert result.exit_code == 1
    assert re.search(r"base model +same +related +DIFFERS", result.stdout)
    for parameter in base.parameters():
        parameter.data = torch.randn(parameter.shape)
    base.save_pretrained(tmp_path / "tuned")
    result = run("verify", copy, "--base", tmp_path / "tuned")
    assert result.exit_code == 1
    assert "is not the base model of the direction" in result.stderr


def test_no_or_a_damaged_self_test(run: Run, copy: Path, masked_path: Path) -> None:
    lines = (copy / PROBES_FILE).read_text().splitlines()
    for text in (
        "",
        "{}",
        "[1]\n",
        "\n".join([lines[0], '{"masked": 1}']),
        lines[0],
        "{" * 100_000,
        "\n".join([lines[0].replace('"float32"', '"int4"'), *lines[1:]]),
    ):
        (copy / PROBES_FILE).write_text(text)
        with pytest.raises(ArtifactError, match="is not a self-test of this library"):
            Probes.load(copy)
    (copy / PROBES_FILE).unlink()
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "has no gradiend_probes.jsonl" in result.stderr
    model = GradiendModel.from_pretrained(copy)
    unsaved = GradiendModel.from_direction(load_base_model(masked_path), model.direction, model.active_peft_config)
    with pytest.raises(ArtifactNotFoundError, match="was not loaded from files"):
        unsaved.verify()


def test_it_passes_after_saving_again(copy: Path, masked_path: Path, tmp_path: Path) -> None:
    model = GradiendModel.from_pretrained(copy)
    model.active_peft_config.dtype = "float16"
    model.save_pretrained(tmp_path / "half")
    assert (tmp_path / "half" / WEIGHTS_FILE).stat().st_size < 0.6 * (copy / WEIGHTS_FILE).stat().st_size
    assert failures(tmp_path / "half") == []
    plain = PeftModel.from_pretrained(load_base_model(masked_path), str(copy))
    plain.save_pretrained(str(tmp_path / "peft"))
    assert failures(tmp_path / "peft") == []


def test_a_damaged_self_test_does_not_stand_in_the_way_of_saving(copy: Path, tmp_path: Path) -> None:
    (copy / PROBES_FILE).write_text("{}")
    model = GradiendModel.from_pretrained(copy)
    with pytest.warns(UserWarning, match="saved without its self-test: .* is not a self-test of this library"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / PROBES_FILE).exists()
    assert (tmp_path / "saved" / WEIGHTS_FILE).is_file()


def edit_probes(folder: Path, **head: Any) -> None:
    """Replace fields of the self-test's first line."""
    first, *lines = (folder / PROBES_FILE).read_text().splitlines()
    (folder / PROBES_FILE).write_text("\n".join([json.dumps(json.loads(first) | head), *lines]))


def test_a_missing_encoder_and_files_cut_short_are_differences(run: Run, copy: Path) -> None:
    content = (copy / REPORT_FILE).read_bytes()
    (copy / REPORT_FILE).write_bytes(content[: len(content) // 2])
    result = run("verify", copy)
    assert result.exit_code == 1
    assert re.search(r"gradiend_report\.json +\w+ +\w+ +DIFFERS", result.stdout) and "1 differ." in result.stdout
    (copy / REPORT_FILE).write_bytes(content)
    (copy / ENCODER_FILE).unlink()
    found = failures(copy)
    assert found[0] == ENCODER_FILE and len(found) == 1 + len(Probes.load(copy).encodings)
    result = run("verify", copy)
    assert result.exit_code == 1 and re.search(r"h: .* +none +DIFFERS", result.stdout)
    (copy / BASE_FILE).unlink()
    result = run("verify", copy)
    assert result.exit_code == 1 and "Nothing in the direction tells whether this BertForMaskedLM is" in result.stderr
    assert failures(copy, allow_unverified_base=True)[:2] == [BASE_FILE, ENCODER_FILE]
    result = run("verify", copy, "--allow-unverified-base")
    assert result.exit_code == 1 and re.search(rf"{BASE_FILE} +\w+ +none +DIFFERS", result.stdout)


def test_a_self_test_must_claim_something_of_every_class_and_strength(copy: Path) -> None:
    lines = (copy / PROBES_FILE).read_text().splitlines()
    claimed = Probes.load(copy).probability
    without_h = [lines[0], *(re.sub(r', "h": [^}]+', "", line) for line in lines[1:])]
    one_class = [lines[0], *(line for line in lines[1:] if '"factual_class": "3SG"' in line)]
    for broken in (
        {},
        {s: of for s, of in claimed.items() if s != "1.0"},
        claimed | {"1.0": {"3SG": claimed["1.0"]["3SG"]}},
        claimed | {"1.0": {"3SG": claimed["1.0"]["3SG"], "3PL": {}}},
    ):
        (copy / PROBES_FILE).write_text("\n".join(lines))
        edit_probes(copy, probability=broken)
        with pytest.raises(ArtifactError, match="expected rows of 3SG and 3PL, and probabilities at strengths"):
            Probes.load(copy)
    for text, message in ((one_class, "expected rows of"), (without_h, "expected an encoding of every row")):
        (copy / PROBES_FILE).write_text("\n".join(text))
        with pytest.raises(ArtifactError, match=message):
            Probes.load(copy)


def test_a_self_test_does_not_choose_its_tolerance(run: Run, copy: Path) -> None:
    edit_probes(copy, dtype="bfloat16")
    result = run("verify", copy)
    assert result.exit_code == 1 and "may differ by 0.001:" in result.stdout
    assert re.search(r"weights \(see --dtype\) +bfloat16 +float32 +DIFFERS", result.stdout)
    config = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps(config | {"dtype": "bfloat16"}))
    result = run("verify", copy)
    assert result.exit_code == 1 and "to be BF16" in result.stderr  # the decoder is not stored so


@pytest.mark.slow
def test_it_passes_in_a_fresh_process(trained: Trained) -> None:
    command = [sys.executable, "-m", "gradiend_hub_cli", "verify", str(trained.folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "all agree" in result.stdout and re.search(r"rows at 0 +\+", result.stdout)


def test_whether_the_card_was_edited(run: Run, copy: Path) -> None:
    assert "card: none" in run("verify", copy).stdout
    path = write_card(copy)
    assert "card: as generated" in run("verify", copy).stdout
    path.write_text(path.read_text() + "Mine.\n")
    assert "card: written or edited by hand" in run("verify", copy).stdout


def test_a_summary_that_says_more_than_the_report(run: Run, copy: Path, trained: Trained) -> None:
    shutil.copyfile(trained.folder / SUMMARY_FILE, copy / SUMMARY_FILE)
    assert failures(copy) == []
    summary = json.loads((copy / SUMMARY_FILE).read_text())
    (copy / SUMMARY_FILE).write_text(json.dumps(summary | {"correlation": 0.999, "learned": True}))
    assert failures(copy) == [SUMMARY_FILE]
    result = run("verify", copy, "--json")
    checks = {check["name"]: check["claimed"] for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1 and "correlation: 0.999" in checks[SUMMARY_FILE]
    (copy / SUMMARY_FILE).write_text("{}")
    assert failures(copy) == [SUMMARY_FILE]


@pytest.mark.slow
def test_a_lora_that_is_not_the_direction(copy: Path) -> None:
    """Others load it without this library, so nothing else would tell."""
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    model.to_lora(copy / "lora")
    names = [name for name in LORA_FILES if name.endswith(WEIGHTS_FILE) and (copy / name).is_file()]
    checks = {check.name: check.passed for check in model.verify(full=True).checks}
    assert names and all(checks[name] for name in names)
    tensors = load_file(copy / names[0])
    save_file({name: 2 * value for name, value in tensors.items()}, copy / names[0])
    checks = {check.name: check.passed for check in model.verify(full=True).checks}
    assert [name for name in names if not checks[name]] == names[:1]
    save_file({"other": torch.ones(3)}, copy / names[0])
    (check,) = [check for check in model.verify(full=True).checks if check.name == names[0]]
    assert not check.passed and check.found == "none of it"


# ----------------------------------------------------------------------------------------------- what the report's rows say


def full(run: Run, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    """Whether each check of `verify --full` passes, and everything that it says."""
    replace(Probes.load(folder), sha256=content_digests(folder)).save(folder)  # a liar renews them
    result = json.loads(run("verify", folder, "--full", "--json").stdout)
    return {check["name"]: check["passed"] for check in result["checks"]}, result


def change_report(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    report = json.loads((folder / REPORT_FILE).read_text())
    change(report)
    (folder / REPORT_FILE).write_text(json.dumps(report))


def encoder_of(report: dict[str, Any]) -> dict[str, Any]:
    return dict(report["splits"]["test"]["encoder"])


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in report["splits"]["test"]["encoder"]["encodings"] if e["row"] is not None]


def test_values_of_rows_figures_of_the_encoder_and_probabilities_are_measured_again(run: Run, copy: Path) -> None:
    passed, result = full(run, copy)
    assert all(passed.values()), [name for name, ok in passed.items() if not ok]
    report = Report.load(copy)
    for split, measured in report.splits.items():
        assert measured.encoder is not None
        for kind, count in measured.encoder.rows.items():
            assert f"h of {count} rows of {kind}, {split}" in passed
        assert {f"correlation of h, {split}", f"auc of h, {split}", f"mean of h of 3SG, {split}"} <= passed.keys()
        for point in measured.curve:
            place = f"{point.strength:+g}" if point.strength else "0"
            assert f"P(3SG) on 3PL rows at {place}, {split}" in passed
    told = " ".join(result["unmeasured"])
    for reason in ("tokens within texts", "damage to texts that the report does not hold", "random directions"):
        assert reason in told
    counts = [int(line.split()[0].replace(",", "")) for line in result["unmeasured"]]
    assert result["figures_measured"] + sum(counts) >= 0.95 * result["figures"]
    assert "not measured: " in run("verify", copy, "--full").stdout


def shifted(values: dict[str, Any], by: float) -> None:
    for name in values:
        values[name] = values[name] + by if isinstance(values[name], float) else [v + by for v in values[name]]


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a value": (lambda r: rows_of(r)[0].update(h=rows_of(r)[0]["h"] * 0.9), r"h of \d+ rows of 3SG, test"),
    "a correlation": (
        lambda r: r["splits"]["test"]["encoder"].update(correlation=encoder_of(r)["correlation"] * 1.01),
        "correlation of h, test",
    ),
    "a spread": (lambda r: shifted(r["splits"]["test"]["encoder"]["class_stds"], 0.01), "standard deviation of h .*"),
    "a word": (
        lambda r: next(iter(r["splits"]["test"]["encoder"]["outputs"].values())).update(accuracy=0.123), "h of .*, test",
    ),
    "an effect": (
        lambda r: [
            (shifted(p["probability"]["3PL"], 0.1), shifted(p["intervals"], 0.1))
            for p in r["splits"]["test"]["curve"]
            if p["strength"] == 1
        ],
        r"P\((3SG|3PL)\) on 3PL rows at \+1, test",
    ),
    "a row of another class": (lambda r: rows_of(r)[0].update(kind="3PL"), "class of .*"),
    "no row at all": (lambda r: rows_of(r)[0].update(row={"masked": 3}), "rows of test"),
    "a row without a slot": (lambda r: rows_of(r)[0]["row"].update(masked="no slot"), "rows of test"),
    "a row of no end": (lambda r: rows_of(r)[0]["row"].update(masked="[MASK] " + "a " * 100_000), "rows of test"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_the_rows_shows(run: Run, copy: Path, lie: str) -> None:
    change, name = LIES[lie]
    change_report(copy, change)
    passed, _ = full(run, copy)
    wrong = [name for name, ok in passed.items() if not ok]
    assert any(re.fullmatch(name, found) for found in wrong), wrong
    if lie in ("a correlation", "a spread", "a word", "an effect"):
        assert all(re.fullmatch(name, found) for found in wrong), wrong


@pytest.mark.slow
def test_some_of_the_rows_and_none_of_them(run: Run, copy: Path) -> None:
    """As of a test split with more rows than a report holds, and of an earlier version."""
    change_report(copy, lambda r: [e.update(row=None) for e in rows_of(r)[::2]])
    passed, result = full(run, copy)
    assert all(passed.values())
    some = [name for name in passed if re.search(r"at \+1, test, \d+ of \d+ rows", name)]
    assert some and "correlation of h, test" not in passed
    assert any("of which the report holds a part" in line for line in result["unmeasured"])
    change_report(
        copy,
        lambda r: [
            p["probability"].update({"3PL": {"3SG": 0.9, "3PL": 0.05}})
            for p in r["splits"]["test"]["curve"]
            if p["strength"] == 1
        ],
    )
    passed, _ = full(run, copy)
    assert not all(passed[name] for name in some if name in passed)
    change_report(copy, lambda r: [[e.pop("row") for e in s["encoder"]["encodings"]] for s in r["splits"].values()])
    passed, result = full(run, copy)
    assert all(passed.values()) and not any(name.startswith("h of") for name in passed)
    assert any("of an earlier version" in line for line in result["unmeasured"])


def test_a_row_that_orders_about_the_terminal_is_not_in_the_self_test(copy: Path, tmp_path: Path) -> None:
    model = GradiendModel.from_pretrained(copy)
    probes = Probes.load(copy)
    rows = [TextRow.read(row) for row in probes.rows]
    bad = replace(rows[0], input="\x1b]0;owned\x07 [MASK] won")
    objective = make_objective(model.get_base_model(), model.tokenizer)
    write_probes(copy, model, [bad, *rows], objective)
    assert bad.record() not in Probes.load(copy).rows and len(Probes.load(copy).rows) == len(rows)
    report = measure_encoder(model, objective, [bad, *rows])
    assert [e.row is None for e in report.encodings if e.kind in ("3SG", "3PL")].count(True) == 1


@TOLERATE_LFS_UPLOAD
def test_a_published_direction_is_held_to_its_summary_and_its_lora(
    run: Run, copy: Path, trained: Trained, repo_id: str, masked_path: Path
) -> None:
    """Files that applying does not need, and others read."""
    shutil.copyfile(trained.folder / SUMMARY_FILE, copy / SUMMARY_FILE)
    GradiendModel.from_pretrained(copy, strength=0.0).to_lora(copy / "lora")
    (lora, *_) = [name for name in LORA_FILES if name.endswith(WEIGHTS_FILE) and (copy / name).is_file()]
    api = HfApi()
    api.create_repo(repo_id)
    command = ("verify", repo_id, "--base", masked_path, "--full", "--json")
    for lie in (False, True):
        if lie:
            summary = json.loads((copy / SUMMARY_FILE).read_text())
            (copy / SUMMARY_FILE).write_text(json.dumps(summary | {"correlation": 0.999}))
            save_file({name: 2 * value for name, value in load_file(copy / lora).items()}, copy / lora)
        api.upload_folder(repo_id=repo_id, folder_path=copy)
        checks = {check["name"]: check["passed"] for check in json.loads(run(*command).stdout)["checks"]}
        assert checks[SUMMARY_FILE] is checks[lora] is not lie
        assert [name for name, passed in checks.items() if not passed] == ([SUMMARY_FILE, lora] if lie else [])
    result = run("audit", repo_id, "--json")
    assert any(
        f"{SUMMARY_FILE} says correlation: 0.999" in one["text"] for one in json.loads(result.stdout)["findings"]
    )
