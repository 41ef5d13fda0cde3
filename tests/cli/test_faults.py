"""Folders in use, full disks and interruptions: one message, nothing half written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import gradiend_hub.training.publishing as publishing
from gradiend_hub import GradiendModel, GradiendTrainer
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.folders import require_writable, written_beside
from gradiend_hub_cli.console import command_lines, program

from .conftest import Run, Trained, write_recipe
from .test_command import ROOT, data_config

WEIGHTS = "adapter_model.safetensors"


def quick_recipe(trained: Trained, folder: Path, *, measured: bool = False, **args: Any) -> Path:
    """Two steps, of which nothing is measured, unless that is asked for."""
    names = ["model", "train_dataset", "direction", *(["eval_dataset", "test_dataset"] if measured else [])]
    options = {"output_dir": str(folder / "out"), "max_steps": 2, "save_strategy": "no", "controls": 0,
               "quality_tokens": 60, **args}  # fmt: skip
    return write_recipe(folder, {name: trained.recipe[name] for name in names} | {"args": options})


# --------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    run: Run, trained: Trained, tmp_path: Path, masked_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    recipe, data = quick_recipe(trained, tmp_path), data_config(tmp_path)
    pronouns = masked_path.parents[1] / "data" / "pronouns"
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nowhere")):
        for command in (
            ("train", recipe, "--set", f"args.output_dir={place}"),
            ("merge", trained.folder, place),
            ("data", "build", data, place),
            ("evaluate", trained.folder, "--data", pronouns, "--out", place / "report.json"),
            ("demo", "--examples", masked_path.parents[1], "--out", place),
        ):
            result = run(*command)
            assert result.exit_code == 1 and "Traceback" not in result.stderr
            assert re.search(rf"^Error: .*{place}.*(is a file|No such file|not permitted)", result.stderr), (
                result.stderr
            )
            assert not re.search("^(Learn|Build|Measure)", result.stdout, re.M)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        require_writable(tmp_path / "new")


def test_what_is_written_beside_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with pytest.raises(OSError), written_beside(out) as folder:
        (folder / "half").write_text("a")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [*tmp_path.iterdir()] == []
    with written_beside(out) as folder:
        (folder / "a").write_text("new")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("new")
        assert not out.exists()
    assert (out / "deep" / "b").read_text() == "new" and [*out.parent.iterdir()] == [out]
    (out / "mine").write_text("mine")
    with written_beside(out) as folder:
        (folder / "a").write_text("newer")
        (folder / "deep").mkdir()
        (folder / "deep" / "c").write_text("newer")
    assert {path.name: path.read_text() for path in out.rglob("*") if path.is_file()} == {
        "a": "newer",
        "b": "new",
        "c": "newer",
        "mine": "mine",
    }


def test_an_output_folder_in_use_is_answered_with_commands(run: Run, trained: Trained, tmp_path: Path) -> None:
    path = quick_recipe(trained, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    assert run("train", path).exit_code == 0
    options = ("--set", "args.max_steps=3")
    refused = run("train", path, *options)
    assert refused.exit_code == 1 and "Load" not in refused.stdout
    assert "resume_from_checkpoint=" not in refused.stderr and "overwrite_output_dir=True" not in refused.stderr
    commands = [
        line.split("   ")[0].split()[1:] for line in refused.stderr.splitlines() if "gradiend-hub train" in line
    ]
    assert len(commands) == 2 + any("--resume" in line for line in commands)
    for command in commands:
        if "OTHER_FOLDER" not in command[-1]:
            assert run(*command).exit_code == 0


def test_a_build_replaces_only_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    path, out = data_config(tmp_path), tmp_path / "set"
    assert run("data", "build", path, out).exit_code == 0
    content = {file.name: file.read_bytes() for file in out.iterdir()}
    refused = run("data", "build", path, out, "--set", "seed=1")
    assert refused.exit_code == 1 and "(--overwrite) to replace that data set" in refused.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == content
    (out / "old.jsonl").write_text("{}")
    (out / "notes.txt").write_text("mine")
    again = run("data", "build", path, out, "--overwrite")
    assert again.exit_code == 0, again.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == content | {"notes.txt": b"mine"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text("{}")
    foreign = run("data", "build", path, tmp_path / "other", "--overwrite")
    assert foreign.exit_code == 1 and "is no data set of an earlier build" in foreign.stderr
    assert (tmp_path / "other" / "train.jsonl").read_text() == "{}"


# ------------------------------------------------------------------------------------------------------------- full disks


def test_a_merge_that_cannot_be_written_leaves_nothing(trained: Trained, tmp_path: Path) -> None:
    """Files may be of one megabyte at most there, so the weights do not fit."""
    limit = (1_000_000, 1_000_000)
    done = subprocess.run(
        [sys.executable, "-m", "gradiend_hub_cli", "merge", str(trained.folder), str(tmp_path / "merged")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"^Error: .*File too large", done.stderr, re.M), done.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_direction_that_cannot_be_saved_is_kept_elsewhere(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save = publishing.save_artifact

    def full(folder: Path, *arguments: Any) -> None:
        if folder.is_relative_to(tmp_path / "out"):
            raise error
        save(folder, *arguments)

    monkeypatch.setattr(publishing, "save_artifact", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = run("train", quick_recipe(trained, tmp_path))
    assert result.exit_code == 1
    assert "could not be saved in" in result.stderr and "No space left" in result.stderr
    copy = re.search(r"When there is room: (cp -r .*)$", result.stderr, re.M)
    assert copy
    monkeypatch.undo()
    subprocess.run(shlex.split(copy[1]), check=True)
    assert GradiendModel.from_pretrained(tmp_path / "out").direction.has_encoder


# ---------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    ("split", "error"), [("eval", KeyboardInterrupt()), ("eval", ValueError()), ("test", RuntimeError("a fault"))]
)
def test_what_was_learned_is_kept_when_the_measurement_ends_early(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, error: BaseException
) -> None:
    measure = GradiendTrainer._measure

    def stopped(trainer: GradiendTrainer, *arguments: Any) -> Any:
        if arguments[-1] == split:
            raise error
        return measure(trainer, *arguments)

    monkeypatch.setattr(GradiendTrainer, "_measure", stopped)
    result = run("train", quick_recipe(trained, tmp_path, measured=True))
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert f"The direction as far as it was measured is in {tmp_path / 'out'}" in result.stderr
    assert set(Report.load(tmp_path / "out").splits) == {"eval", "test"} - {"test", split}
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_a_fault_in_the_training_says_how_to_go_on(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GradiendTrainer.training_step

    def broken(trainer: GradiendTrainer, *arguments: Any, **options: Any) -> Any:
        if trainer.state.global_step == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return step(trainer, *arguments, **options)

    path = quick_recipe(trained, tmp_path, save_strategy="steps", save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(GradiendTrainer, "training_step", broken)
        result = run("train", path)
    assert result.exit_code == 1 and "No space left" in result.stderr
    go_on = re.search(r"To go on from there: gradiend-hub (.*)$", result.stderr, re.M)
    assert go_on and run(*shlex.split(go_on[1])).exit_code == 0


# --------------------------------------------------------------------------------------------------- commands to be typed


def test_a_printed_command_can_be_typed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, in a shell that does not find the program."""
    program_file = tmp_path / "my env" / "bin" / "gradiend-hub"
    program_file.parent.mkdir(parents=True)
    program_file.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    program_file.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program_file), "demo"])
    words = ["apply", "out/a folder", "The cats' [MASK] slept."]
    for width in (20, 60, 200):
        lines = command_lines([*program(), *words], width)
        done = subprocess.run(["/bin/sh", "-c", lines], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.splitlines() == words
    monkeypatch.setenv("PATH", str(program_file.parent))
    assert program() == ["gradiend-hub"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "gradiend_hub_cli" / "__main__.py"), "demo"])
    assert program()[1:] == ["-m", "gradiend_hub_cli"]


def test_the_dry_run_finds_a_fault_of_the_test_data(run: Run, trained: Trained, tmp_path: Path) -> None:
    row = {
        "masked": "A [MASK].",
        "factual": "he",
        "alternative": "they",
        "factual_class": "x",
        "alternative_class": "y",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    path = quick_recipe(trained, tmp_path)
    for options in (("--dry-run",), ()):
        for source in (tmp_path / "rows.jsonl", "/nowhere"):
            result = run("train", path, "--set", f"test_dataset={source}", *options)
            assert result.exit_code == 1 and "test_dataset" in result.stderr
            assert "Learn" not in result.stdout and not any((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("args.resume_from_checkpoint=true", "a run is resumed with `gradiend-hub train … --resume`"),
        ("args.max_steps=true", "args.max_steps: expected an integer, found True"),
        ("args.bf16=1", "args.bf16: expected true or false, found 1"),
        ("args.num_train_epochs=[1]", "args.num_train_epochs: expected a number"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(
    run: Run, trained: Trained, tmp_path: Path, override: str, message: str
) -> None:
    result = run("train", quick_recipe(trained, tmp_path), "--set", override)
    assert result.exit_code == 1 and message in result.stderr


@pytest.mark.parametrize("value", ["true", "yes", "1"])
def test_resume_is_a_switch(run: Run, trained: Trained, tmp_path: Path, value: str) -> None:
    result = run("train", quick_recipe(trained, tmp_path), "--resume", value)
    assert result.exit_code == 2 and f"({value})" in result.stderr
