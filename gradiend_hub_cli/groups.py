"""The command line's groups of commands, which the commands join, and the options before a command."""

from __future__ import annotations

from typing import Annotated

import typer

from .command import EXIT_CODES, Commands, Debug

app = typer.Typer(
    name="gradiend-hub",
    cls=Commands,
    help="Learn feature directions of language models, publish them, apply them at a strength, merge them.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Build feature data sets from text.", no_args_is_help=True, cls=Commands)
app.add_typer(data_app, name="data")
collection_app = typer.Typer(help="Put directions on the Hub together.", no_args_is_help=True, cls=Commands)
app.add_typer(collection_app, name="collection")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gradiend-hub {version('gradiend_hub')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Debug = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Options of every command."""
