"""What README and CONTRIBUTING say is so: blocks run and print what stands below them, commands and options exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gradiend_hub_cli import app
from tests.cli.conftest import Trained, trained  # noqa: F401
from tests.pages import check_runs, ours, publish, run_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("GRADIEND_HUB_PYTHON", sys.executable)
"""Runs what README says: this interpreter, or one that has a wheel installed and no checkout (`make package`)."""


@pytest.mark.slow
def test_the_first_screen_prints_what_stands_below_it(tmp_path: Path, masked_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines, output = re.findall(r"```bash\n(.*?)```\n.*?```text\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        command = [PYTHON, "-m", "gradiend_hub_cli", *words[1:]]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
    for found, expected in zip(run.stdout.strip().splitlines(), output.strip().splitlines(), strict=True):
        shown, stated = ({w: float(p) for p, w in re.findall(r"(\d+\.\d) % (\w+)", line)} for line in (found, expected))
        assert bool(shown) == bool(stated)
        for word in shown.keys() & stated.keys():
            assert shown[word] == pytest.approx(stated[word], abs=30)


EXAMPLES = re.findall(
    r"```bash\npython (examples/\S+) --offline\n```\n\n```text\n(.*?)```",
    (ROOT / "examples" / "README.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
"""Scripts, and what the page shows of their output."""


def test_the_page_of_the_examples_shows_their_output() -> None:
    assert len(EXAMPLES) >= 5 and {*IN_CI} <= {script for script, _ in EXAMPLES}


IN_CI = ("examples/english_pronouns.py",)
"""Those that CI runs, too; the others differ from them in their data."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "output"),
    [
        pytest.param(script, output, id=script, marks=() if script in IN_CI else pytest.mark.release)
        for script, output in EXAMPLES
    ],
)
def test_an_example_prints_what_stands_below_it(script: str, output: str) -> None:
    command = [sys.executable, script, "--offline"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for found, expected in zip(run.stdout.strip().splitlines(), output.strip().splitlines(), strict=True):
        figures = [[float(x) for x in re.findall(r"[-+]?\d+\.\d+", line)] for line in (found, expected)]
        assert figures[0] == pytest.approx(figures[1], abs=0.3)
        assert re.sub(r"[-+]?\d+\.\d+", "", found) == re.sub(r"[-+]?\d+\.\d+", "", expected)


@pytest.mark.slow
def test_the_first_block_prints_what_stands_below_it(tmp_path: Path, masked_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block, output = re.findall(r"```python\n(.*?)```\n.*?```text\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run(
        [PYTHON, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert run.returncode == 0, run.stderr[-2000:]
    printed = [line for line in run.stdout.splitlines() if not line.startswith("{'loss'")]
    wanted = output.splitlines()
    printed = printed[-len(wanted) :]
    # training on another number of threads or another processor rounds differently, so figures may move
    for found, expected in zip(printed, wanted, strict=True):
        assert found.split(": ")[0] == expected.split(": ")[0]
        assert _figures(found).keys() & _figures(expected).keys()
        for name in _figures(found).keys() & _figures(expected).keys():
            assert _figures(found)[name] == pytest.approx(_figures(expected)[name], abs=0.3)
    assert (tmp_path / "out/plural/model.safetensors").is_file()


def _figures(line: str) -> dict[str, float]:
    """`… -1: they 0.60 he 0.38` and `{'correlation': 0.982}` → figures by name."""
    return {name: float(value) for name, value in re.findall(r"(\w+)'?:? (\d\.\d+)", line)}


STANDS_FOR = {"OUT_DIR": "out/rows", "MODEL": "examples/base_models/masked"}
MORE = {
    "evaluate": ["--split", "test[:64]", "--controls", "0"],
    "build": ["--set", "source=out/text.txt", "--set", "neutral.max_texts=100"],  # that of the file is on the Hub
}
"""Options with which a line of README takes seconds, and no network."""


@pytest.mark.slow
def test_the_lines_of_the_command_line_run_in_their_order(
    tmp_path: Path, masked_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/text.txt").write_text("\n".join(_sentences()), encoding="utf-8")
    publish(masked_path)
    readme = ours((ROOT / "README.md").read_text(encoding="utf-8"))
    (block,) = re.findall(r"## On the command line\n+```bash\n(.*?)```", readme, re.DOTALL)
    for line in block.splitlines():
        words = [STANDS_FOR.get(word, word) for word in shlex.split(line, comments=True)]
        if words[1] == "init":
            answers = "examples/base_models/masked\nSG=he,she,it PL=they\nout/text.txt\n"
            done = CliRunner().invoke(app, words[1:], input=answers)
            assert done.exit_code == 0, done.stderr
        elif words[1] != "explore":  # which tests/explorer/test_page.py starts
            run_line([*words, *MORE.get(words[1], MORE.get(words[2], []))], tmp_path)
    for written in ("mine.yaml", "out/mine/README.md", "out/rewritten/model.safetensors", "out/rows/README.md"):
        assert (tmp_path / written).is_file(), written


def _sentences() -> list[str]:
    rows = (ROOT / "examples/data/pronouns/train.jsonl").read_text(encoding="utf-8").splitlines()
    neutral = (ROOT / "examples/data/pronouns/neutral.jsonl").read_text(encoding="utf-8").splitlines()
    filled = [row["masked"].replace("[MASK]", row["factual"]) for row in map(json.loads, rows[:600])]
    return filled + [json.loads(line)["text"] for line in neutral[:200]]


BEFORE = """
from datasets import load_dataset
rows = load_dataset("examples/data/pronouns", split="test[:8]")
h, labels = [0.9, -0.8, 0.7, -0.9], [1, -1, 1, -1]
edited, base = [0.5, 0.6, 0.4], [0.1, 0.2, 0.1]
"""
"""What the text says or an earlier block has made, in few rows."""


@pytest.mark.slow
def test_the_blocks_below_the_first_run(
    tmp_path: Path,
    trained: Trained,  # noqa: F811
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "out").mkdir()
    for name in ("number", "gender"):
        (tmp_path / "out" / name).symlink_to(trained.folder)
    publish(trained.folder, alice="bert-3sg-3pl")
    publish(trained.folder, alice="bert-tense")
    _, *blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    check_runs([sys.executable, "-c", BEFORE + ours("\n".join(blocks))], tmp_path)
    assert (tmp_path / "out/both/adapter_model.safetensors").is_file()


def commands(page: str) -> list[list[str]]:
    """The lines of a page that run the command line, without comments."""
    lines = re.findall(r"(?:^|`)(gradiend-hub [a-z][^`\n]*)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def require_command(words: list[str]) -> None:
    """Raise if a line names a command, an option or an argument that is not there."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(" ".join(words), rest)


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_the_commands_of_a_page_exist_with_their_options(page: str) -> None:
    found = commands(page)
    assert found
    for words in found:
        require_command(words)


@pytest.mark.skipif(tomllib is None, reason="the standard library reads TOML from 3.11 on")
def test_contributing_states_the_order_of_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    stated = re.search(r"^  (\w+ ←.*?)\n\Z", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S | re.M)
    assert stated
    names = [{*part.split(", ")} for part in " ".join(stated[1].split()).split(" ← ")]
    assert names[-1] == {"gradiend_hub_cli"}
    assert names[:-1] == [{*layer.split(" | ")} for layer in reversed(layers)]
