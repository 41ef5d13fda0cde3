"""The frame of the command line: quick answers, exit codes, one message per error."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gradiend_hub import __version__
from gradiend_hub_cli.console import Story

from .conftest import Run

COMMANDS = ("demo", "train", "info", "apply", "verify", "evaluate", "merge", "export", "import", "push")
ROOT = Path(__file__).parents[2]


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from gradiend_hub_cli import app
overview = CliRunner().invoke(app, ["--help"])
assert overview.exit_code == 0 and all(name in overview.stdout for name in {COMMANDS}), overview.stdout
for name in {COMMANDS}:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
heavy = {{"torch", "transformers", "peft", "datasets", "gradiend_hub"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["gradiend_hub", "gradiend_hub_cli"])
def test_the_module_runs_as_the_console_script_does(module: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gradiend-hub {__version__}\n", "")
    assert run("no-such-command").returncode == 2
    refused = run("info", "/nowhere")
    assert refused.returncode == 1 and refused.stderr.startswith("Error: There is no folder /nowhere")


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("apply",), ("merge", "folder"), ("demo", "--base", "other"), ("demo", "--max-steps", "0")],
)
def test_a_mistake_in_the_command_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_error_is_one_message_without_a_traceback(run: Run, tmp_path: Path) -> None:
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: There is no direction in the folder {tmp_path}: adapter_config.json, adapter_model.safetensors is "
        "missing (found: nothing).\n"
    )


def test_debug_raises_the_error_itself(run: Run, tmp_path: Path) -> None:
    from gradiend_hub.errors import ArtifactNotFoundError

    with pytest.raises(ArtifactNotFoundError):
        run("--debug", "info", tmp_path)


def test_a_story_has_a_line_for_each_step_that_succeeded() -> None:
    story = Story()
    story.console = Console(file=io.StringIO(), width=60, markup=False)
    with story.step("Load") as step:
        step.outcome = "one [MASK] and some more words that do not fit into the line"
    with pytest.raises(ValueError, match="broken"), story.step("Learn"):
        raise ValueError("broken")
    lines = story.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("Load ") and "one [MASK] and" in lines[0] and lines[0].endswith(" s")
    assert len(lines) == 2 and "Learn" not in lines[1]
    assert list(story.seconds) == ["Load"]
