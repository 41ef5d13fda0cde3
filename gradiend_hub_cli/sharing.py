"""The commands that write, publish and bring together what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from .command import command
from .groups import app, collection_app
from .options import (
    Allowing,
    Base,
    Branch,
    Direction,
    Dtype,
    Overwrite,
    Private,
    PullRequest,
    Related,
    Revision,
    Unverified,
    number,
)


@dataclass(frozen=True)
class CombineOptions:
    """Options of `gradiend-hub combine`."""

    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the sum.")]
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Take from each part what moves the features of the others.")
    ] = False
    density: Annotated[float | None, typer.Option(help="Share of the entries to keep of the sum.")] = None
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of the matrices of the sum.")] = None
    base: Base = None
    overwrite: Overwrite = False


@command(app, "compare:combine_directions")
def combine(
    parts: Annotated[
        list[str], typer.Argument(metavar="DIRECTION=STRENGTH...", help="What to add; without a number, at strength 1.")
    ],
    options: CombineOptions,
) -> None:
    """Add directions to a new one, and show what its parts do to each other before anything is applied."""


@dataclass(frozen=True)
class MergeOptions(Allowing):
    """Options of `gradiend-hub merge`."""

    base: Base = None
    strength: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", parser=number, help="Default: the recommended one of the direction."),
    ] = None
    dtype: Dtype = None
    overwrite: Overwrite = False
    allow_related: Related = False
    allow_unverified_base: Unverified = False
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Merge into the files of the base model, one tensor in memory at a time; goes on where it was interrupted.",
        ),
    ] = False
    push_to: Annotated[
        str | None, typer.Option("--push-to", metavar="REPO_ID", help="Publish the model there when it is written.")
    ] = None
    private: Private = False
    measure: Annotated[
        str | None,
        typer.Option(metavar="DATA[:CONFIG]", help="Rows to measure on before and after, for the model's card."),
    ] = None
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA[:CONFIG]", help="Sentences without the feature, for --measure.")
    ] = None
    revision: Revision = None


@command(app, "merge:merge_into")
def merge(
    direction: Direction,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the model.")],
    options: MergeOptions,
) -> None:
    """Write the rewritten model as a plain transformers checkpoint with its tokenizer."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `gradiend-hub export`."""

    form: Annotated[
        Literal["lora", "gguf-lora", "shira", "task-vector"],
        typer.Option(
            "--format",
            help="What to write: a LoRA, one for llama.cpp (GGUF), single entries (SHiRA), or all that changes.",
        ),
    ] = "lora"
    rank: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Largest rank of a LoRA. Default: the direction's own, or 8."),
    ] = None
    strength: Annotated[
        float, typer.Option(metavar="NUMBER", parser=number, help="Strength that the scale 1 stands for.")
    ] = 1.0
    base: Base = None
    overwrite: Overwrite = False
    revision: Revision = None


@command(app, "export:export_direction")
def export(
    direction: Direction,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for what is written.")],
    options: ExportOptions,
) -> None:
    """Write a direction in a form that others read without this package: for PEFT, vLLM, llama.cpp, or as a task vector."""


@command(app, "importing:import_direction")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What the package gradiend (0.2) has saved.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the direction.")],
    base: Annotated[str, typer.Option("--base", help="Folder or id of the base model that it was trained on.")],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Its two classes, the one that is read as +1 first, if the folder does not tell."
        ),
    ] = None,
    dtype: Dtype = None,
) -> None:
    """Read a direction that the package gradiend has saved, and write it as one of ours."""


@dataclass(frozen=True)
class PushOptions:
    """Options of `gradiend-hub push`, by the names that `publish_folder` has."""

    private: Private = False
    revision: Branch = None
    create_pr: PullRequest = False
    commit_message: Annotated[str | None, typer.Option("--message", help="First line of the commit message.")] = None
    base_id: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="The base model on the Hub, if it was a folder of yours when you trained."
        ),
    ] = None
    subfolder: Annotated[
        str | None, typer.Option(help="Folder of the repository; one can hold several directions.")
    ] = None
    tag: Annotated[str | None, typer.Option(help="Name for the commit, e.g. v1.")] = None
    allow_unmeasured: Annotated[
        bool, typer.Option("--allow-unmeasured", help="Publish it without a report or a card, too.")
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card that was edited on the Hub, and add to foreign files.")
    ] = False


@command(app, "push:push_any")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved direction, a merged model, or a suite.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    options: PushOptions,
    collection: Annotated[
        str | None,
        typer.Option(
            help="Of a suite: a repository for each, REPO_ID-NAME, in this collection; else one with subfolders."
        ),
    ] = None,
) -> None:
    """Publish a saved direction, a merged model, or each direction of a suite, in one commit each.

    To repeat a push that failed is safe.
    """


@command(app, "refresh:refresh_published")
def refresh(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME of a published direction.")],
    revision: Annotated[str | None, typer.Option(help="Branch, if not main.")] = None,
    create_pr: PullRequest = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card that was written or changed by hand.")
    ] = False,
) -> None:
    """Show on the card of a published direction what others have measured, once their reports are merged."""


@command(collection_app, "push:extend_collection")
def add(
    collection: Annotated[
        str,
        typer.Argument(metavar="COLLECTION", help="Slug of a collection, or a title; made if there is none."),
    ],
    repo_ids: Annotated[list[str], typer.Argument(metavar="REPO_ID...", help="Ids on the Hub.")],
    note: Annotated[str | None, typer.Option(help="What to say beside each of them.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new collection private.")] = False,
) -> None:
    """Add directions to a collection of the Hub; what it has already stays as it is."""
