"""Common to all commands: `--json`, `--quiet`, exit codes, completion, and one message for every error."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import pytest
import typer
import yaml
from huggingface_hub import HfApi, hf_hub_download
from typer.testing import CliRunner

import gradiend_hub_cli.command as command
from gradiend_hub import GradiendModel
from gradiend_hub.hub.resolve import resolve_folder
from gradiend_hub_cli import groups, tables
from gradiend_hub_cli.console import Story
from gradiend_hub_cli.options import number
from tests.hub_server import HubServer

from .conftest import Run, Trained, write_recipe

BASE = "base_model_name_or_path"
SENTENCE = "The players ran home because [MASK] were hungry."
ROOT = Path(__file__).parents[2]


def printed(result: Any) -> dict[str, Any]:
    """The one JSON object that a command wrote on standard output, and nothing else."""
    content = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(content, dict)
    return content


@dataclass(frozen=True)
class Options:
    """Of the command in the test below."""

    colour: Annotated[str, typer.Option(help="One.")]
    strength: Annotated[float | None, typer.Option("--at", parser=number)] = None
    words: Annotated[list[str] | None, typer.Option()] = None


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["x", "--colour", "red"], Options("red")),
        (["x", "--colour", "red", "--at", "-1.5", "--words", "a", "--words", "b"], Options("red", -1.5, ["a", "b"])),
        (["x"], "Missing option '--colour'"),
        (["x", "--colour", "red", "--at", "inf"], "expected a finite number, found 'inf'"),
        (["x", "--colour", "red", "--options", "y"], "No such option"),
    ],
)
def test_a_dataclass_stands_for_its_options(
    arguments: list[str], expected: Options | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, got = typer.Typer(), []

    def paint(what: str, options: Options, story: Story) -> dict[str, Any]:
        got.append((what, options))
        return {}

    monkeypatch.setattr(tables, "paint", paint, raising=False)

    @command.command(app, "tables:paint")
    def declared(what: Annotated[str, typer.Argument()], options: Options) -> None:
        """Paint."""

    result = CliRunner().invoke(app, arguments)
    if isinstance(expected, Options):
        assert result.exit_code == 0 and got == [("x", expected)]
    else:
        assert result.exit_code == 2 and not got and expected in " ".join(result.output.split())


@pytest.mark.parametrize("group", [groups.app, groups.data_app, groups.collection_app])
def test_what_is_declared_is_what_the_work_takes(group: typer.Typer) -> None:
    assert group.registered_commands
    for registered in group.registered_commands:
        run: Any = registered.callback
        work = resolve_name(f"gradiend_hub_cli.{run.work}")
        assert {*inspect.signature(work).parameters} == {*inspect.signature(run.__wrapped__).parameters, "story"}


class TestJson:
    """Standard output holds one object, whatever a command tells people."""

    def test_apply(self, run: Run, trained: Trained) -> None:
        result = run("apply", trained.folder, SENTENCE, "--strengths", "-1,0", "--top", "2", "--json")
        (text,) = printed(result)["texts"]
        assert result.exit_code == 0 and result.stderr == "" and text["text"] == SENTENCE
        assert [at["strength"] for at in text["at"]] == [-1, 0]
        people = run("apply", trained.folder, SENTENCE, "--strengths", "-1,0", "--top", "2").stdout
        for at in text["at"]:
            assert len(at["guesses"]) == 2
            for guess in at["guesses"]:
                assert f"{100 * guess['probability']:.1f} % {guess['word']}" in people

    def test_a_causal_completion(self, run: Run, causal_direction: Path) -> None:
        result = run("apply", causal_direction, "The king went to the", "--strengths", "0", "--tokens", "3", "--json")
        (at,) = printed(result)["texts"][0]["at"]
        assert at["completion"] and "guesses" not in at

    def test_verify(self, run: Run, trained: Trained, tmp_path: Path) -> None:
        found = printed(run("verify", trained.folder, "--json"))
        assert found["passed"] is True and found["differ"] == 0
        assert {"name": "base model", "claimed": "same", "found": "same", "passed": True, "figures": 1} in found[
            "checks"
        ]
        copy = shutil.copytree(trained.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
        report = json.loads((copy / "gradiend_report.json").read_text())
        (copy / "gradiend_report.json").write_text(json.dumps(report | {"steps": 7}))
        result = run("verify", copy, "--json")
        assert result.exit_code == 1 and printed(result)["differ"] == 1

    def test_merge(self, run: Run, trained: Trained, tmp_path: Path) -> None:
        found = printed(run("merge", trained.folder, tmp_path / "merged", "--strength", "-1", "--json"))
        receipt = GradiendModel.from_pretrained(trained.folder, strength=-1.0).receipt
        assert found["receipt"]["entries"] == receipt.entries and found["strength"] == -1
        assert Path(found["out"], "model.safetensors").is_file()

    def test_evaluate(self, run: Run, trained: Trained, masked_path: Path, tmp_path: Path) -> None:
        out, pronouns = tmp_path / "mine.json", masked_path.parents[1] / "data" / "pronouns"
        options = ("--data", pronouns, "--split", "test[:4]", "--strengths", "-1,0,1", "--controls", "0", "--out", out)
        result = run("evaluate", trained.folder, *options, "--json")
        found = printed(result)
        assert found["report"] == str(out) and out.is_file()
        assert {"encoder correlation", "P(3SG) on 3PL rows at +1"} <= {figure["name"] for figure in found["figures"]}
        assert re.search(r"^Measure ", result.stderr, re.M)  # the steps are told elsewhere

    def test_train_and_its_dry_run(self, run: Run, trained: Trained, tmp_path: Path) -> None:
        fields = {name: trained.recipe[name] for name in ("model", "train_dataset", "direction")}
        args = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "save_strategy": "no"}
        path = write_recipe(tmp_path, {**fields, "args": args})
        predicted = printed(run("train", path, "--dry-run", "--json"))
        assert predicted["train_rows"] == 64 and predicted["estimate"]["steps"] == 2
        assert predicted["estimate"]["peak_bytes"] > 4 * predicted["scope"]["weights"]
        assert not (tmp_path / "out").exists()
        result = run("train", path, "--json", "--quiet")
        assert printed(result)["steps"] == 2 and "Learn" not in result.stderr
        assert Path(printed(result)["folder"], "adapter_model.safetensors").is_file()

    def test_push(self, run: Run, trained: Trained, hub: HubServer, repo_id: str) -> None:
        found = printed(run("push", trained.folder, repo_id, "--json"))
        assert found["commit"] == HfApi().repo_info(repo_id).sha and found["pull_request"] is None
        assert json.loads(Path(hf_hub_download(repo_id, "adapter_config.json")).read_text())[BASE] is None
        HfApi().create_repo(f"{repo_id}-base")
        again = run("push", trained.folder, repo_id, "--base-id", f"{repo_id}-base")
        assert again.exit_code == 0, again.stderr
        assert json.loads(Path(hf_hub_download(repo_id, "adapter_config.json")).read_text())[BASE] == f"{repo_id}-base"

    def test_data(self, run: Run, tmp_path: Path, masked_path: Path) -> None:
        path = data_config(tmp_path)
        found = printed(run("data", "build", path, tmp_path / "set", "--json"))
        lines = {file.stem: len(file.read_text().splitlines()) for file in (tmp_path / "set").glob("*.jsonl")}
        assert found["rows"] == lines and found["funnel"][0]["step"] == "read"
        words = printed(run("data", "words", path, masked_path, "--json"))
        assert words["usable"] is True and words["classes"]["3PL"][0]["word"] == "they"

    def test_words_have_a_verdict_beforehand(self, run: Run, tmp_path: Path, masked_path: Path) -> None:
        path = data_config(tmp_path)
        some = run("data", "words", path, masked_path, "--set", "classes.3PL=[they, themselfs, 丕]", "--json")
        found = {word["word"]: word["verdict"] for word in printed(some)["classes"]["3PL"]}
        assert found == {"they": "one token", "themselfs": "3 tokens", "丕": "unknown to the tokenizer"}
        assert some.exit_code == 0 and printed(some)["advice"].startswith("Usable, but themselfs takes several tokens")
        assert "Leave out 丕" in printed(some)["advice"]
        none = run("data", "words", path, masked_path, "--set", "classes.3PL=[丕]", "--json")
        assert none.exit_code == 1 and "no word of 3PL" in printed(none)["advice"]

    def test_an_error(self, run: Run, tmp_path: Path) -> None:
        result = run("info", tmp_path, "--json")
        error = printed(result)["error"]
        assert result.exit_code == 1 and error["type"] == "ArtifactNotFoundError"
        assert result.stderr == f"Error: {error['message']}\n"

    def test_numbers_that_json_has_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        command.write_json({"a": float("nan"), "b": [float("-inf"), 1.5], "c": Path("x"), "d": {1: None}})
        assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x", "d": {"1": None}}


def data_config(folder: Path) -> Path:
    """A configuration that builds twelve rows in no time."""
    towns = ["town", "village", "forest", "garden", "castle", "market"]
    lines = [
        f"On day {n} in the {town} we saw that {word} had gone there again."
        for word in ("he", "they")
        for n, town in enumerate(towns)
    ]
    (folder / "text.txt").write_text("\n".join(lines))
    content = {
        "source": str(folder / "text.txt"),
        "classes": {"3SG": ["he"], "3PL": ["they"]},
        "language": None,
        "splits": {"train": 0.5, "test": 0.5},
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_quiet_tells_no_steps(run: Run, tmp_path: Path) -> None:
    path = data_config(tmp_path)
    told = run("data", "build", path, tmp_path / "told").stdout
    quiet = run("data", "build", path, tmp_path / "quiet", "--quiet")
    assert told.startswith("Import ") and "\nBuild " in told
    assert quiet.stderr == "" and "Build" not in quiet.stdout and told.endswith(quiet.stdout)


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TypeError("'<' not supported"), "TypeError: '<' not supported. Add --debug"),
        (ValueError(), "ValueError. Add --debug"),
        (RuntimeError("\n"), "RuntimeError. Add --debug"),
        (KeyError("missing"), "KeyError: 'missing'. Add --debug"),
        (EOFError(), "EOFError. Add --debug"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            "No space left on device (out/x). The disk is full",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied (/x). You have no permission"),
        (OSError("something else"), "OSError: something else. Add --debug"),
        (MemoryError(), "Memory ran out"),
    ],
)
def test_whatever_goes_wrong_is_one_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("gradiend_hub_cli.info.resolve_folder", broken)
    result = run("info", tmp_path)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith(f"Error: {expected}") and "Traceback" not in result.stderr
    for arguments in (("--debug", "info", tmp_path), ("info", tmp_path, "--debug")):
        with pytest.raises(type(error) if not isinstance(error, EOFError) else RuntimeError) as raised:
            run(*arguments)
        assert error in (raised.value, raised.value.__cause__)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_and_told_once(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*arguments: Any, **options: Any) -> Any:
        for _ in range(2):
            warnings.warn("the base is a relative", UserWarning, stacklevel=1)
            warnings.warn("a library will change", FutureWarning, stacklevel=1)
            logging.getLogger("gradiend_hub.somewhere").warning("%d rows were skipped", 3)
        return resolve_folder(*arguments, **options)

    monkeypatch.setattr("gradiend_hub_cli.info.resolve_folder", warned)
    monkeypatch.setattr(logging.getLogger("gradiend_hub"), "propagate", False)  # pytest has handlers above
    result = run("info", trained.folder, "--json")
    assert result.stderr == "Warning: the base is a relative\nWarning: 3 rows were skipped\n"
    assert printed(result)["measured"] == "test"


@pytest.mark.parametrize("module", ["info.resolve_folder", "apply.compared_strengths", "verify.resolve_folder"])
def test_ctrl_c_ends_with_130(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"gradiend_hub_cli.{module}", interrupted)
    name = module.split(".")[0]
    result = run(name, trained.folder, *([SENTENCE] if name == "apply" else []))
    assert result.exit_code == 130 and result.stderr == "Interrupted: Nothing was written.\n"


def test_a_reader_that_has_left_is_no_error(trained: Trained) -> None:
    """`gradiend-hub info FOLDER | head -0`: click's own answer to it is status 1 without a word."""
    program = [sys.executable, "-m", "gradiend_hub_cli", "info", str(trained.folder)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(program, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


# ------------------------------------------------------------------------------------------------------------- completion


def test_the_shell_completes_commands_and_options() -> None:
    script = shell("--show-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1", arguments=("bash",))
    assert "complete -o default -F" in script and "gradiend-hub" in script
    found = shell(_GRADIEND_HUB_COMPLETE="complete_bash", COMP_WORDS="gradiend-hub ap", COMP_CWORD="1")
    assert found.split() == ["apply"]
    found = shell(_GRADIEND_HUB_COMPLETE="complete_bash", COMP_WORDS="gradiend-hub train --dr", COMP_CWORD="2")
    assert found.split() == ["--dry-run"]


def shell(*options: str, arguments: tuple[str, ...] = (), **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gradiend_hub_cli", *options, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_switches_have_no_type_in_the_help(run: Run) -> None:
    for arguments in ((), ("train",), ("evaluate",), ("data", "build")):
        assert "bool" not in run(*arguments, "--help").stdout


def test_the_help_states_the_exit_codes(run: Run) -> None:
    shown = " ".join(run("--help").stdout.split())
    for code in (0, 1, 2, 130):
        assert re.search(rf"\b{code},", shown)


def test_the_bar_counts_the_phases_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, standard error is a terminal then
    monkeypatch.setenv("TERM", "xterm")
    story = Story()
    with story.step("Calibrate") as step:
        (task,) = step.bars.tasks
        assert not step.bars.disable and task.description == "Calibrate …"
        story.count("encoding", 2, 2)
        assert (task.description, task.completed, task.total) == ("Calibrate: encoding", 2, 2) and task.finished
        story.count("strengths", 3, 12)
        assert task.fields["of"] == "3 of 12" and not task.finished
        story.count("strengths", 1200, None)
        assert task.fields["of"] == "1,200"
    story.count("strengths", 4, 12)  # no step, nothing to show
    assert Story(quiet=True).seconds == {}
    with Story(quiet=True).step("Calibrate") as step:
        assert step.bars.disable


def test_a_new_process_looks_for_garbage_again_after_its_imports() -> None:
    program = """
import gc
from gradiend_hub_cli import app
try:
    app(["audit", "/nowhere"])
except SystemExit:
    pass
assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
before = gc.get_freeze_count()
try:
    app(["verify", "/nowhere"])  # imports little more: what a running program holds is no import's
except SystemExit:
    pass
assert gc.isenabled() and gc.get_freeze_count() <= before
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
