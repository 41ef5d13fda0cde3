"""Artifacts of strangers who mean harm: each is refused with one message, or shown and used without doing anything else."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.artifact.probes import Probes, content_digests
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.errors import (
    ArtifactError,
    BaseModelError,
    BaseModelMismatchError,
    EditError,
    GradiendError,
    HubPushError,
)
from gradiend_hub.evaluation import Report
from gradiend_hub.hub import publish_folder
from tests.cli.conftest import Run, Trained
from tests.hub.conftest import TOLERATE_LFS_UPLOAD

FILES = (CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REFERENCES_FILE, REPORT_FILE, PROBES_FILE)
SENTENCE = "The team said [MASK] would win."
HIDDEN = {
    "\u200b": "zero width",
    "\u202e": "override",
    "\x1b[2K": "escape",
    "\x9b1A": "C1",
    "\x1b]52;c;QQ==\x07": "clipboard",
}
Change = Callable[[Path], Any]


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a direction that a stranger may have tampered with."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(trained.folder / name, folder / name)
    return folder


def edit(folder: Path, name: str = CONFIG_FILE, **fields: Any) -> None:
    """Replace fields of a JSON file."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))


def forge_digests(folder: Path) -> None:
    """What a forger does last."""
    replace(Probes.load(folder), sha256=content_digests(folder)).save(folder)


def assert_harmless(text: str) -> None:
    """Nothing in it acts on a terminal, or hides."""
    bad = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
    assert not bad, bad


# ----------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("harm", HIDDEN, ids=HIDDEN.get)
@pytest.mark.parametrize("where", ["class", "filler", "base", "revision", "parameter", "report class", "version"])
def test_names_hold_no_hidden_characters(run: Run, copy: Path, harm: str, where: str) -> None:
    config = json.loads((copy / CONFIG_FILE).read_text())
    first, second = config["feature_classes"]
    bad = f"{first}{harm}25 checks: all agree"
    if where == "class":
        edit(copy, feature_classes=[bad, second], fillers=None)
    elif where == "filler":
        edit(copy, fillers={first: [bad]})
    elif where in ("base", "revision"):
        edit(copy, **{{"base": "base_model_name_or_path", "revision": "revision"}[where]: bad})
    elif where == "parameter":
        edit(copy, parameters={bad: {"shape": [1], "entries": None}})
    elif where == "report class":
        edit(copy, REPORT_FILE, feature_classes=[bad, second])
    else:
        edit(copy, REPORT_FILE, versions={"torch": bad})
    result = run("info", copy)
    assert result.exit_code == 1 and re.search(
        "expected a (text (of one line|without control)|branch, tag or commit)", result.stderr
    )
    assert_harmless(result.stdout + result.stderr)


@pytest.mark.parametrize("command", ["info", "verify", "apply", "info --json", "verify --json"])
def test_running_texts_are_shown_without_doing_anything(run: Run, copy: Path, command: str) -> None:
    """A verdict, or the text of a row, may hold what a web page holds: it is spelled out wherever it is shown."""
    text = "x\u200b\u00ad\ufeff\n\n25 checks, values may differ by 0.001: all agree.\n"
    edit(copy, REPORT_FILE, converged=False, verdict=text)
    head, *lines = (copy / PROBES_FILE).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["masked"] = f"{text} [MASK] it"
    (copy / PROBES_FILE).write_text("\n".join([head, *map(json.dumps, rows)]))
    name, *options = command.split()
    result = run(name, copy, *([SENTENCE] if name == "apply" else []), *options)
    assert result.stdout and result.exit_code == (1 if name == "verify" else 0), result.stderr
    assert_harmless(result.stdout + result.stderr)
    shown = result.stdout.splitlines()
    assert not any(line.startswith("25 checks") and "all agree" in line for line in shown)
    if options:
        assert json.loads(result.stdout)


@pytest.mark.parametrize("harm", ["\x1b]52;c;cm0gLXJm\x07", "\x9b2J", "\u202e", "\x00", "\ud800"], ids=ascii)
@pytest.mark.parametrize("field", ["verdict", "training", "examples", "history"])
def test_orders_to_a_terminal_are_refused_in_any_text(run: Run, copy: Path, harm: str, field: str) -> None:
    value = {"training": {"a": [harm]}, "examples": [{"masked": harm}], "history": [{harm: 1}]}.get(field, harm)
    edit(copy, REPORT_FILE, **{field: value})
    result = run("info", copy)
    assert result.exit_code == 1 and "a text without control characters" in result.stderr
    assert_harmless(result.stderr)


def test_what_is_written_can_be_read_back_whatever_a_model_has_said(trained: Trained, tmp_path: Path) -> None:
    report = Report.load(trained.folder)
    report.verdict = "a\x1b[31m\x85b"
    report.save(tmp_path)
    assert Report.load(tmp_path).verdict == "a\\x1b[31m\\x85b"


def test_thousands_of_words_are_counted(run: Run, copy: Path) -> None:
    first = json.loads((copy / CONFIG_FILE).read_text())["feature_classes"][0]
    edit(copy, fillers={first: [f"word{i}" for i in range(30_000)]})
    result = run("info", copy)
    assert result.exit_code == 0 and "(30,000 in all)" in result.stdout and len(result.stdout) < 10_000
    edit(copy, fillers={first: [f"word{i}" for i in range(300_000)]})
    result = run("info", copy)
    assert result.exit_code == 1 and "at most 32,768 words" in result.stderr and len(result.stderr) < 1_000


# ------------------------------------------------------------------------------------------------------- sizes and kinds


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def sparse_file(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(size)


SIZES: dict[str, tuple[Change, str]] = {
    "config of 17 MB": (lambda f: edit(f, extra="x" * 17_000_000), "more than the 16,777,216 bytes that are read"),
    "config nested 100 deep": (
        lambda f: (f / CONFIG_FILE).write_text('{"peft_type":"GRADIEND","x":' + deep(100) + "}"),
        "nested too deeply",
    ),
    "config nested 100,000 deep": (lambda f: (f / CONFIG_FILE).write_text(deep(100_000)), "nested too deeply"),
    "infinite number": (
        lambda f: (f / CONFIG_FILE).write_text('{"peft_type":"GRADIEND","strength":1e999}'),
        "only finite ones",
    ),
    "long number": (
        lambda f: (f / CONFIG_FILE).write_text('{"peft_type":"GRADIEND","strength":' + "9" * 5000 + "}"),
        "is not valid JSON",
    ),
    "decoder of 64 GiB": (lambda f: sparse_file(f / WEIGHTS_FILE, 2**36), "its configuration accounts for at most"),
    "encoder of 64 GiB": (lambda f: sparse_file(f / ENCODER_FILE, 2**36), "its configuration accounts for at most"),
    "samples of 64 GiB": (lambda f: sparse_file(f / BASE_FILE, 2**36), "its configuration accounts for at most"),
    "header of 2^62 bytes": (
        lambda f: (f / WEIGHTS_FILE).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "has a header of 4,611,686,018,427,387,904 bytes",
    ),
    "header of 90 MB": (
        lambda f: (f / WEIGHTS_FILE).write_bytes(struct.pack("<Q", 90_000_000) + b" " * 90_000_000),
        "has a header of 90,000,000 bytes",
    ),
    "a folder as decoder": (lambda f: ((f / WEIGHTS_FILE).unlink(), (f / WEIGHTS_FILE).mkdir()), "is missing"),
    "a pipe as encoder": (lambda f: ((f / ENCODER_FILE).unlink(), os.mkfifo(f / ENCODER_FILE)), "is no file"),
}


@pytest.mark.parametrize("change", SIZES)
def test_sizes_and_kinds_are_looked_at_before_files_are_read(copy: Path, change: str) -> None:
    tamper, message = SIZES[change]
    tamper(copy)
    with pytest.raises(GradiendError, match=message):
        GradiendModel.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"splits": {"test": r["splits"]["test"] | {"curve": r["splits"]["test"]["curve"] * 500}}},
         "at most 2,000 points"),
        (lambda r: r | {"extra": json.loads(deep(60))}, "nested too deeply"),
        (lambda r: r | {"verdict": "x" * 17_000_000}, "that are read"),
        (lambda r: r | {"splits": []}, "expected a mapping"),
    ],
)  # fmt: skip
def test_reports_are_limited(run: Run, copy: Path, change: Callable[[Any], Any], message: str) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    (copy / REPORT_FILE).write_text(json.dumps(change(report)))
    result = run("info", copy)
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr) < 2_000
    assert GradiendModel.from_pretrained(copy, strength=0.0)  # which needs no report


def test_a_card_of_any_size_is_no_trouble(run: Run, copy: Path) -> None:
    sparse_file(copy / CARD_FILE, 2**33)
    assert "card: written or edited by hand" in run("verify", copy).stdout


def test_layers_without_end_are_refused_by_plain_peft_too(masked_path: Path, tmp_path: Path) -> None:
    fields = {"peft_type": "GRADIEND", "layers": "0-9999999999"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields))
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(GradiendError, match="no model has a block 9999999999"):
        PeftModel.from_pretrained(load_base_model(masked_path), tmp_path)


# ----------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("name", FILES)
def test_links_to_other_places_are_neither_read_nor_published(
    copy: Path, masked_path: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    (copy / name).rename(secret)
    (copy / name).symlink_to(secret)
    with pytest.raises(HubPushError, match=r"is a link to .*secret, outside of the direction's folder"):
        publish_folder(copy, "alice/never")
    with pytest.raises(ArtifactError, match="outside of the direction's folder"):
        model = GradiendModel.from_pretrained(copy, strength=0.0)
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ArtifactError, match="outside of the direction's folder"):
        plain = PeftModel.from_pretrained(load_base_model(masked_path), copy)
        plain.save_pretrained(tmp_path / "plain")


def test_a_folder_of_figures_that_is_the_disk(copy: Path, tmp_path: Path) -> None:
    (copy / "assets").symlink_to("/")
    with pytest.raises(HubPushError, match="outside of the direction's folder"):
        publish_folder(copy, "alice/never")
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    with pytest.raises(ArtifactError, match="outside of the direction's folder"):
        model.save_pretrained(tmp_path / "saved")


def test_a_link_within_the_folder_is_fine(copy: Path) -> None:
    (copy / WEIGHTS_FILE).rename(copy / "values")
    (copy / WEIGHTS_FILE).symlink_to("values")
    assert GradiendModel.from_pretrained(copy, strength=0.0)


@TOLERATE_LFS_UPLOAD
def test_a_push_takes_the_files_of_the_artifact_and_names_the_others(
    copy: Path, repo_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "reports" / "mine").mkdir(parents=True)
    Report.load(copy).save(copy / "reports" / "mine.json")
    others = [
        "aws_credentials.json",
        "wandb-metadata.json",
        "notes.md",
        "id_rsa.json",
        "reports/aws.json",
        "reports/mine/a.json",
    ]
    for name in others:
        (copy / name).write_text('{"secret": 1}')
    (copy / "link.json").symlink_to("/etc/passwd")
    write_card(copy)
    commit = publish_folder(copy, repo_id)
    published = {*HfApi().list_repo_files(repo_id, revision=commit.oid)}
    assert published == {*FILES, CARD_FILE, "reports/mine.json", ".gitattributes"}
    for name in (
        "aws_credentials.json",
        "wandb-metadata.json",
        "notes.md",
        "id_rsa.json",
        "link.json",
        "reports/aws.json",
    ):
        assert name in caplog.text


# -------------------------------------------------------------------------------------------------------- the base model

PATHS = [
    "/etc/passwd", "/etc",
    "../base", "./base", "~/base", "file:///etc/passwd", "C:\\base", "\\\\server\\share", "a/b/c", ".",
    "..", "//server/share", "https://evil.example/x", "C:/base",
]  # fmt: skip


@TOLERATE_LFS_UPLOAD
def test_a_config_from_the_hub_opens_nothing_on_this_disk(
    run: Run, copy: Path, repo_id: str, masked_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = HfApi()
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=copy)
    fields = json.loads((copy / CONFIG_FILE).read_text())
    for path in [str(masked_path), *PATHS]:
        content = json.dumps(fields | {"base_model_name_or_path": path}).encode()
        api.upload_file(repo_id=repo_id, path_or_fileobj=content, path_in_repo=CONFIG_FILE)
        caplog.clear()
        with pytest.raises(BaseModelError, match="names no base model that can be loaded here"):
            GradiendModel.from_pretrained(repo_id, strength=0.0)
        assert "which is a path (or a folder here) and no repository on the Hub" in caplog.text
        assert GradiendConfig.from_pretrained(repo_id).base_model_name_or_path is None
    model = GradiendModel.from_pretrained(repo_id, masked_path, strength=0.0)  # named by the reader
    assert model.active_peft_config.base_model_name_or_path == str(masked_path)
    assert PeftModel.from_pretrained(model.unload(), repo_id)


def test_a_local_direction_may_have_a_local_base(copy: Path, masked_path: Path) -> None:
    assert GradiendConfig.from_pretrained(str(copy)).base_model_name_or_path == str(masked_path)
    assert GradiendModel.from_pretrained(copy, strength=0.0)


def without_samples(folder: Path) -> None:
    (folder / BASE_FILE).unlink()


def without_any(folder: Path) -> None:
    (folder / BASE_FILE).unlink()
    (folder / ENCODER_FILE).unlink()


def empty_samples(folder: Path) -> None:
    save_file({}, folder / BASE_FILE)


def constant_samples(folder: Path) -> None:
    ones = {key: torch.ones_like(value) for key, value in load_file(folder / BASE_FILE).items()}
    save_file(ones, folder / BASE_FILE, {"base_dtype": "float32"})


@pytest.mark.parametrize("change", [without_samples, without_any, empty_samples, constant_samples])
def test_a_base_that_nothing_identifies_is_refused(run: Run, copy: Path, masked_path: Path, change: Change) -> None:
    change(copy)
    base = load_base_model(masked_path)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    for load in (GradiendModel.from_pretrained, lambda folder, model: PeftModel.from_pretrained(model, folder)):
        with pytest.raises(BaseModelMismatchError, match=r"Nothing in the direction tells|is not the base model"):
            load(copy, base)
        assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    refused = run("apply", copy, SENTENCE)
    assert refused.exit_code == 1 and "--allow-unverified-base" in refused.stderr
    if change is constant_samples:
        return  # of another model
    assert run("apply", copy, SENTENCE, "--allow-unverified-base").exit_code == 0
    model = GradiendModel.from_pretrained(copy, base, strength=0.0, allow_unverified_base=True)
    with pytest.raises(BaseModelMismatchError, match="allow_unverified_base=True"):
        model.load_adapter(copy, "again")
    model.load_adapter(copy, "again", allow_unverified_base=True)
    assert PeftModel.from_pretrained(model.unload(), copy, allow_unverified_base=True)


def test_a_base_that_has_to_be_unpickled_is_refused(copy: Path, masked_path: Path, tmp_path: Path) -> None:
    base, pickled = load_base_model(masked_path), tmp_path / "pickled"
    shutil.copytree(masked_path, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(base.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="has no weights in safetensors files") as refused:
        GradiendModel.from_pretrained(copy, pickled, strength=0.0)
    assert "use_safetensors" not in str(refused.value) and "False" not in str(refused.value)
    assert GradiendModel.from_pretrained(copy, pickled, strength=0.0, use_safetensors=False)


# -------------------------------------------------------------------------------------------------------------- strength

STRENGTHS: dict[str, dict[str, Any]] = {
    "50 with a band of ±1.14": {"strength": 50.0, "safe_band": [-1.14, 1.14]},
    "1e30": {"strength": 1e30},
    "-1e30 in a band of that": {"strength": -1e30, "safe_band": [-1e30, 1e30]},
    "3 in a band that nobody measured": {"strength": 3.0, "safe_band": [-100.0, 100.0]},
    "2 without a band": {"strength": 2.0, "safe_band": None},
    "a feature factor of 1e9": {"feature_factor": 1e9},
    "above the band": {"strength": 0.9, "safe_band": [-1.0, 0.5]},
}


@pytest.mark.parametrize("case", STRENGTHS)
def test_a_strength_that_nothing_supports_is_not_applied_unasked(
    run: Run, copy: Path, masked_path: Path, tmp_path: Path, case: str
) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    for split in report["splits"].values():
        split["curve"] = [p for p in split["curve"] if abs(p["strength"]) <= 2]
    (copy / REPORT_FILE).write_text(json.dumps(report))
    edit(copy, **STRENGTHS[case])
    base = load_base_model(masked_path)
    for load in (
        lambda: GradiendModel.from_pretrained(copy, base),
        lambda: PeftModel.from_pretrained(base, copy),
    ):
        with pytest.raises(ArtifactError, match="is not applied unasked"):
            load()
    for command in (["apply", copy, SENTENCE], ["merge", copy, tmp_path / "out"]):
        result = run(*command)
        assert result.exit_code == 1 and "--strength" in result.stderr and not (tmp_path / "out").exists()
    edit(copy, feature_factor=1.0)
    assert PeftModel.from_pretrained(base, copy, strength=0.25).unload() is base
    assert GradiendModel.from_pretrained(copy, base, strength=0.25).strength == 0.25


def test_a_strength_that_a_curve_supports_is_applied(copy: Path) -> None:
    report = Report.load(copy)
    for name, split in report.splits.items():
        curve = [replace(p, quality=0.995) for p in split.curve if abs(p.strength) <= 2]
        report.splits[name] = replace(split, curve=curve)
    report.save(copy)
    edit(copy, strength=2.0, safe_band=[-2.0, 2.0], break_point=None, strength_unit=1e-6)
    assert GradiendModel.from_pretrained(copy).strength == 2.0


def test_an_edit_larger_than_the_weights_is_warned_of(copy: Path) -> None:
    edit(copy, strength_unit=1e4)
    with pytest.warns(UserWarning, match=r"the edit is .* times as large as the weights"):
        GradiendModel.from_pretrained(copy)
    edit(copy, strength_unit=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradiendModel.from_pretrained(copy)


@pytest.mark.parametrize("unit", [1e12, 1e30, 1e300])
def test_an_edit_that_leaves_nothing_of_the_base_is_refused(copy: Path, masked_path: Path, unit: float) -> None:
    base = load_base_model(masked_path)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    edit(copy, strength_unit=unit)
    with pytest.raises(EditError):
        GradiendModel.from_pretrained(copy, base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------- claims


def lies() -> dict[str, Callable[[dict[str, Any]], None]]:
    def encoder(report: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = report["splits"]["test"]["encoder"]
        return found

    def point(report: dict[str, Any]) -> dict[str, Any]:
        return next(p for p in report["splits"]["test"]["curve"] if p["strength"] == 1)

    return {
        "a correlation of 1.5": lambda r: encoder(r).update(correlation=1.5),
        "a perfect correlation": lambda r: encoder(r).update(correlation=1.0),
        "the opposite correlation": lambda r: encoder(r).update(correlation=-encoder(r)["correlation"] or 0.5),
        "means that the points do not have": lambda r: encoder(r).update(
            class_means=dict(zip(encoder(r)["class_means"], (0.99, -0.99), strict=True)), correlation=0.99
        ),
        "a negative number of rows": lambda r: encoder(r).update(rows=dict.fromkeys(encoder(r)["rows"], -5)),
        "probabilities above 1": lambda r: point(r)["probability"]["3PL"].update({"3SG": 1.2}),
        "probabilities that add up to 2": lambda r: point(r)["probability"].update({"3PL": {"3SG": 1.0, "3PL": 1.0}}),
        "a quality at strength 0": lambda r: next(p for p in r["splits"]["test"]["curve"] if p["strength"] == 0).update(
            quality=1.3
        ),
        "another class": lambda r: r.update(feature_classes=["male", "female"]),
        "shares of 300 %": lambda r: [layer.update(share=3.0) for layer in r["layers"]],
        "a benchmark without rows": lambda r: r.update(
            side_effects=[{"name": "StereoSet", "strength": 1.0, "scores": {"icat": 100.0}}]
        ),
    }


@pytest.mark.parametrize("lie", lies())
def test_a_false_report_with_renewed_digests(run: Run, copy: Path, lie: str) -> None:
    report = json.loads((copy / REPORT_FILE).read_text())
    lies()[lie](report)
    (copy / REPORT_FILE).write_text(json.dumps(report))
    forge_digests(copy)
    result = run("verify", copy)
    assert result.exit_code == 1 and "impossible: " in result.stdout
    assert "all agree" in result.stdout  # the digests do
    assert "figures, none measured here; the others are the author's word" in " ".join(result.stdout.split())


def test_a_band_that_no_curve_supports(run: Run, copy: Path) -> None:
    edit(copy, safe_band=[-60.0, 60.0], break_point=None)
    forge_digests(copy)
    result = run("verify", copy)
    assert result.exit_code == 1 and "no measured curve supports that" in " ".join(result.stdout.split())


def test_an_honest_report_is_possible_and_its_edit_is_measured_again(run: Run, trained: Trained, copy: Path) -> None:
    short = run("verify", trained.folder)
    assert short.exit_code == 0 and "none measured here" in short.stdout and "impossible" not in short.stdout
    full = run("verify", copy, "--full", "--json")
    assert full.exit_code == 0, full.stdout
    result = json.loads(full.stdout)
    assert 0 < result["figures_measured"] < result["figures"] and not result["implausible"]
    report = json.loads((copy / REPORT_FILE).read_text())
    report["layers"][0]["relative_norm"] *= 2
    report["dtype_loss"]["bfloat16"] = 0.9
    (copy / REPORT_FILE).write_text(json.dumps(report))
    forge_digests(copy)
    assert run("verify", copy).exit_code == 0
    wrong = [
        check["name"]
        for check in json.loads(run("verify", copy, "--full", "--json").stdout)["checks"]
        if not check["passed"]
    ]
    assert wrong == [f"relative norm of {report['layers'][0]['layer']}", "lost to bfloat16"]
