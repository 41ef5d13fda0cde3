"""What every command holds, whichever it is: common options, exit statuses, completion, one JSON object, a page."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from datasets import Dataset, DatasetDict
from typer.testing import CliRunner

from gradiend_hub_cli import app
from tests.pages import publish

from .conftest import Run, Trained, invoke

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
@pytest.mark.parametrize("width", [40, 60])
def test_the_help_fits_a_narrow_terminal_without_colours(name: tuple[str, ...], width: int) -> None:
    shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": str(width), "NO_COLOR": "1"}).stdout
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown


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


SUCCEEDS: dict[str, list[str]] = {
    "apply": ["DIRECTION", "The boys ran home because [MASK] felt ill.", "--strengths", "1"],
    "audit": ["alice/every-command"],  # of a base model that others find, too
    "collection add": ["Every command", "alice/every-command"],
    "combine": ["DIRECTION=0.5", "OTHER=-0.5", "--out", "OUT"],
    "compare": ["DIRECTION", "OTHER"],
    "data build": ["DATA.yaml", "OUT"],
    "data push": ["ROWS", "alice/every-command-rows"],
    "data words": ["DATA.yaml", "MODEL"],
    "demo": ["--examples", "EXAMPLES", "--out", "OUT", "--max-steps", "2", "--share", "0.04"],
    "evaluate": ["DIRECTION", "--data", "ROWS/test.jsonl", "--strengths=-1,1", "--controls", "0", "--out", "OUT.json"],
    "explore": ["alice/every-command", "--space", "alice/every-command-page"],
    "export": ["DIRECTION", "OUT", "--format", "task-vector"],
    "info": ["DIRECTION"],
    "init": ["OUT.yaml", "--model", "MODEL", "--words", "SG=he,she,it PL=they", "--text", "TEXT.txt"],
    "merge": ["DIRECTION", "OUT"],
    "push": ["DIRECTION", "alice/every-command-again", "--base-id", "alice/BASE"],
    "refresh": ["alice/every-command"],
    "search": ["every-command"],
    "suite": ["SUITE.yaml"],
    "train": ["RECIPE.yaml", "--set", "args.output_dir=OUT", "--set", "args.max_steps=2"],
    "verify": ["DIRECTION"],
}
"""What each command is given to succeed on; words in capitals are made by `material`."""
LONG = {"demo", "evaluate", "suite", "train"}
OTHERWISE = {"import": "tests/export/test_gradiend_package.py has a folder of the package gradiend"}


@pytest.fixture(scope="module")
def material(
    tmp_path_factory: pytest.TempPathFactory,
    trained: Trained,
    masked_path: Path,
    pronouns: DatasetDict,
    neutral: Dataset,
) -> dict[str, str]:
    """Files for every command, by the word that stands for them."""
    folder = tmp_path_factory.mktemp("material")
    other = folder / "other"
    shutil.copytree(trained.folder, other, ignore=shutil.ignore_patterns("checkpoint*"))
    rows = [row["masked"].replace("[MASK]", row["factual"]) for row in pronouns["train"].select(range(0, 1200, 8))]
    (folder / "text.txt").write_text("\n".join([*rows, *neutral["text"][:40]]), encoding="utf-8")
    data = {"source": str(folder / "text.txt"), "classes": {"3SG": ["he", "she", "it"], "3PL": ["they"]}}
    built = folder / "rows"
    suite = {
        "model": str(masked_path),
        "train_dataset": str(built / "train.jsonl"),
        "eval_dataset": str(built / "test.jsonl"),
        "args": {"output_dir": str(folder / "suite"), "max_steps": 2},
    }
    for name, content in (("data", data), ("suite", suite), ("recipe", trained.recipe)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert invoke("data", "build", folder / "data.yaml", built).exit_code == 0
    publish(trained.folder, alice="every-command")
    return {
        "DIRECTION": str(trained.folder), "OTHER": str(other), "MODEL": str(masked_path), "ROWS": str(built),
        "EXAMPLES": str(masked_path.parents[1]), "TEXT.txt": str(folder / "text.txt"),
        **{f"{name.upper()}.yaml": str(folder / f"{name}.yaml") for name in ("data", "suite", "recipe")},
    }  # fmt: skip


def test_every_command_is_seen_to_succeed() -> None:
    assert {*SUCCEEDS} ^ {*OTHERWISE} == {" ".join(name) for name in COMMANDS}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.release] if name in LONG else ()) for name in SUCCEEDS],
)
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_the_result_alone_is_on_standard_output(
    run: Run, name: str, option: str, material: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    """With `--json` one object; with `--quiet` no step."""
    if option == "--quiet" and name in LONG:
        pytest.skip("takes long, and tells its story as the others do")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    words = [re.sub(r"^[A-Z]+(\.yaml|\.txt)?(?=$|[/=])", lambda m: material.get(m[0], m[0]), w) for w in SUCCEEDS[name]]
    words = [word.replace("OUT", f"{tmp_path}/out") for word in words]
    result = run(*name.split(), *words, option)
    assert result.exit_code == 0, result.stderr
    if option == "--json":
        content = json.loads(result.stdout)
        assert isinstance(content, dict) and content and "error" not in content
    else:
        assert not re.search(r"^\w.*\d\.\d s$", result.stdout, re.MULTILINE)  # the line of a step
        assert all(line.startswith("Warning: ") for line in result.stderr.splitlines())
        # a path, an address and a command stay whole, so that they can be copied
        assert [line for line in result.stdout.splitlines() if len(line) > 60 and "/" not in line] == []


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
