"""Options that several commands have, and how the numbers in them are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def number(text: str) -> float:
    """Read a finite number from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, found {text.strip()!r}.")
    return value


def numbers(text: str | None) -> list[float] | None:
    """Read finite numbers with commas between them; `None` stays `None`."""
    return None if text is None else [number(part) for part in text.split(",")]


def require_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or is in use and not to be written into, before anything is loaded.

    Raises:
        ConfigError: It is one.
    """
    from gradiend_hub.folders import require_empty, require_writable

    if overwrite:
        require_writable(out)
    else:
        require_empty(out, "another folder, or --overwrite to write into it")


Direction = Annotated[str, typer.Argument(metavar="DIRECTION", help="Folder of a direction, or its id on the Hub.")]
Base = Annotated[
    str | None, typer.Option("--base", help="Folder or id of the base model, if not the one that the direction names.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the direction.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"] | None,
    typer.Option(help="Type of the base model's weights; auto is the checkpoint's. Default: float32 on a CPU."),
]
Unverified = Annotated[
    bool,
    typer.Option("--allow-unverified-base", help="Accept a direction that nothing ties to this base model."),
]
Related = Annotated[bool, typer.Option("--allow-related", help="Accept a fine-tune of the base model.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]
Branch = Annotated[str | None, typer.Option(help="Branch to push to; made if there is none.")]
PullRequest = Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")]
Directions = Annotated[list[str], typer.Argument(metavar="DIRECTION...", help="Folders or ids, all of one base model.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. args.rank=4. Repeatable."),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. seed=1. Repeatable."),
]


class Allowing:
    """A mixin for the options of commands that load a direction onto a base model."""

    allow_related: bool
    allow_unverified_base: bool

    @property
    def allowed(self) -> dict[str, Any]:
        """Both options, as the library's loaders take them."""
        return {"allow_related": self.allow_related, "allow_unverified_base": self.allow_unverified_base}
