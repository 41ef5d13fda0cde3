"""Options that several commands have, and how the numbers in them are read."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer

__all__ = ["Base", "Direction", "Dtype", "Private", "Related", "Revision", "Unverified", "number", "numbers"]


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
