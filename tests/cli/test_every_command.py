"""What every command holds, whichever it is: common options, exit statuses, completion, one JSON object, a page."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gradiend_hub_cli import app

from .conftest import Run

ROOT = Path(__file__).parents[2]
ROOT_COMMAND: Any = typer.main.get_command(app)
GIVEN = {
    "demo": ["--examples", "no-such-folder"],
    "init": ["no-such-folder/a.yaml", "--model", "no-such-folder", "--words", "a=b c=d", "--text", "none"],
    "search": ["--author", "nobody-of-that-name"],
}
"""What a command without a required argument is given to fail on."""
FINDS_NOTHING = {"search"}
"""Where that is no error."""


def every_command(group: Any = ROOT_COMMAND, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*before, name))
        else:
            yield (*before, name)


def found(name: tuple[str, ...]) -> Any:
    command = ROOT_COMMAND
    for part in name:
        command = command.commands[part]
    return command


COMMANDS = [*every_command()]
each_command = pytest.mark.parametrize("name", COMMANDS, ids=" ".join)


def failing(name: tuple[str, ...]) -> list[str]:
    """Arguments that name what is not there."""
    given = list(GIVEN.get(name[-1], []))
    for parameter in found(name).params:
        if parameter.required:
            option = [parameter.opts[0]] if parameter.opts[0].startswith("-") else []
            given += [*option, "no-such-folder/no-such-file"]
    return given


def test_these_are_all() -> None:
    assert len(COMMANDS) >= 20
    assert {("train",), ("data", "build"), ("init",)} <= {*COMMANDS}


@each_command
def test_the_common_options(run: Run, name: tuple[str, ...]) -> None:
    options = {option for parameter in found(name).params for option in parameter.opts}
    assert {"--json", "--quiet", "-q", "--debug"} <= options
    shown = run(*name, "--help")
    assert shown.exit_code == run(*name, "-h").exit_code == 0
    assert shown.stdout == run(*name, "-h").stdout
    for parameter in found(name).params:
        if parameter.opts[0].startswith("--") and not getattr(parameter, "hidden", False):
            assert parameter.help, parameter.opts  # says what it is for
    assert re.search(r"\w\.(\s|$)", found(name).help)


@each_command
def test_a_mistake_in_the_command_is_2(run: Run, name: tuple[str, ...]) -> None:
    unknown = run(*name, "--no-such-option")
    assert unknown.exit_code == 2
    assert "--no-such-option" in unknown.stderr and unknown.stdout == ""
    if any(parameter.required for parameter in found(name).params):
        missing = run(*name)
        assert missing.exit_code == 2 and "Missing" in missing.stderr


@each_command
def test_an_error_is_1_one_message_and_one_object(
    run: Run, name: tuple[str, ...], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = 0 if name[-1] in FINDS_NOTHING else 1
    result = run(*name, *failing(name), "--json")
    assert result.exit_code == wanted, result.stderr
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    if wanted:
        assert {*content} == {"error"} and {*content["error"]} == {"type", "message"}
        assert result.stderr.endswith(f"Error: {content['error']['message']}\n")
        assert "Traceback" not in result.stderr
        quiet = run(*name, *failing(name), "--quiet")
        assert quiet.exit_code == 1 and quiet.stdout == ""
    assert not [*tmp_path.iterdir()]


def completed(*words: str, incomplete: str) -> set[str]:
    """What the shell is offered, as its script asks for it."""
    line = ["gradiend-hub", *words, incomplete]
    asked = {"_GRADIEND_HUB_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1)}
    return {*CliRunner().invoke(app, [], env=asked, prog_name="gradiend-hub").stdout.split()}


@each_command
def test_the_shell_completes_it(name: tuple[str, ...]) -> None:
    *before, last = name
    assert last in completed(*before, incomplete=last[:2])
    offered = completed(*name, incomplete="--")
    wanted = {o for parameter in found(name).params for o in parameter.opts if o.startswith("--")}
    assert wanted - {"--help"} <= offered


@each_command
def test_the_reference_has_it_and_the_exit_statuses(name: tuple[str, ...]) -> None:
    page = _reference()
    assert re.search(rf"^#+ `?{re.escape(' '.join(name))}`?$", page, re.MULTILINE)
    for status in (0, 1, 2, 130):
        assert re.search(rf"^\| {status} \|", page, re.MULTILINE)


def _reference() -> str:
    pages: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "scripts" / "reference.py"), run_name="x")["pages"]()
    return pages["reference/commands.md"]
