"""Write the pages of the reference: every public name by its module, the artifact's fields, the commands.

mkdocs runs it (`make docs`). A name is public if it stands in the `__all__` of the package, of a room, or of a module that
`MODULES` names.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Iterator
from types import ModuleType

import gradiend_hub

LOOSE = ("gradiend_hub.errors", "gradiend_hub.scope", "gradiend_hub.evaluation.metrics")
"""Modules that are public beside the rooms."""


def public_modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield the package, its rooms and the loose modules that have public names."""
    yield "gradiend_hub", gradiend_hub
    rooms = [m.name for m in pkgutil.iter_modules(gradiend_hub.__path__, "gradiend_hub.") if m.ispkg]
    for name in sorted([*rooms, *LOOSE]):
        module = importlib.import_module(name)
        if getattr(module, "__all__", None):
            yield name, module


def public_names() -> dict[str, list[str]]:
    """Return the public names by module; a name that two modules have is listed where it is first."""
    seen: set[int] = set()
    found: dict[str, list[str]] = {}
    for name, module in public_modules():
        for public in module.__all__:
            value = getattr(module, public)
            if public.startswith("__") or (callable(value) and id(value) in seen):
                continue
            seen.add(id(value))
            found.setdefault(name, []).append(public)
    return found


def page_of(module: str) -> str:
    """Return the address of a module's page below `docs`."""
    return f"reference/{module.removeprefix('gradiend_hub.').replace('.', '-')}.md"


def module_page(module: str, names: list[str]) -> str:
    """Return a page with the docstring of a module and of each of its names."""
    summary = (importlib.import_module(module).__doc__ or "").strip()
    parts = [f"# `{module}`", summary]
    parts += [f"::: {module}.{name}" for name in names]
    return "\n\n".join(parts) + "\n"


def fields_table(kind: type) -> str:
    """Return a table of the fields of a dataclass: name, type and default."""
    rows = ["| field | type | default |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        shown = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        if field.default is not dataclasses.MISSING:
            default = f"`{field.default!r}`"
        elif field.default_factory is not dataclasses.MISSING:
            default = f"`{field.default_factory()!r}`"
        else:
            default = "required"
        escaped = shown.replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{escaped}` | {default.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def schema_page() -> str:
    """Return the page of the artifact's files and of the fields of its configuration and report."""
    from gradiend_hub.artifact import files
    from gradiend_hub.artifact.config import GradiendConfig
    from gradiend_hub.evaluation import continuations, damage, records, report

    nested = [
        value
        for module in (report, records, damage, continuations)
        for _, value in sorted(vars(module).items())
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    ]
    parts = [
        "# The artifact's schema",
        "Made from the code. An artifact of a newer minor schema may have more fields: a reader keeps or ignores those it "
        "does not know.",
        "## Files",
        (files.__doc__ or "").strip(),
        "\n".join(
            ["| file | name in `gradiend_hub.artifact.files` |", "|---|---|"]
            + [f"| `{v}` | `{k}` |" for k, v in vars(files).items() if k.isupper() and isinstance(v, str)]
        ),
        "## `adapter_config.json`",
        "Fields of [`GradiendConfig`](index.md); PEFT's own are described in PEFT's documentation.",
        fields_table(GradiendConfig),
        "## `gradiend_report.json`",
        "Fields of [`Report`](evaluation.md), and of the objects in it.",
    ]
    for kind in nested:
        parts += [f"### {kind.__name__}", (kind.__doc__ or "").strip().splitlines()[0], fields_table(kind)]
    return "\n\n".join(parts) + "\n"


_COMMANDS = """# Commands

The help of each command, as `gradiend-hub COMMAND --help` prints it. `python -m gradiend_hub` is the same program.

Every command has `--json` (standard output holds one JSON object and nothing else; after an error its only key is `error`,
with `type` and `message`), `--quiet` (the result without the steps before it), and `--debug` (the traceback of an error).
`gradiend-hub --install-completion` completes commands and options in your shell.

| exit status | |
|---|---|
| 0 | all went well |
| 1 | an error, or a check that failed (`verify`, `audit`, `data words`) |
| 2 | a mistake in the command itself: an unknown option, a missing argument |
| 130 | interrupted with Ctrl-C |"""


def commands_page() -> str:
    """Return the page of all commands, from the command line's own help."""
    import typer
    from typer.testing import CliRunner

    from gradiend_hub_cli import app

    parts = [_COMMANDS]
    runner = CliRunner()
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}

    def walk(command: typing.Any, words: list[str]) -> None:
        for name in sorted(getattr(command, "commands", {})):
            inner = command.commands[name]
            if hasattr(inner, "commands"):
                walk(inner, [*words, name])
                continue
            output = runner.invoke(app, [*words, name, "--help"], env=environment).output
            lines = [line.rstrip() for line in output.strip("\n").splitlines()]
            parts.append(f"## {' '.join([*words, name])}")
            parts.append("```text\n" + "\n".join(lines) + "\n```")

    walk(typer.main.get_command(app), [])
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Return the text of every generated page by its address."""
    names = public_names()
    found = {page_of(module): module_page(module, public) for module, public in names.items()}
    listed = [f"* [`{module}`]({page_of(module).removeprefix('reference/')})" for module in names]
    found["reference/index.md"] = "\n".join(
        ["# Reference", "", "Every public name, from its docstring.", "", *listed, "* [Commands](commands.md)",
         "* [The artifact's schema](schema.md)", ""]
    )  # fmt: skip
    found["reference/schema.md"] = schema_page().replace("(index.md)", "(gradiend_hub.md)")
    found["reference/commands.md"] = commands_page()
    return found


if __name__ in {"__main__", "<run_path>"}:  # the plugin runs scripts by their path
    import mkdocs_gen_files

    for path, text in pages().items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)
