"""The commands that show, apply, measure and compare directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from .command import command
from .groups import app
from .options import Allowing, Base, Direction, Directions, Dtype, Overwrite, Private, Related, Revision, Unverified


@command(app, "info:show_directions")
def info(
    directions: Annotated[
        list[str], typer.Argument(metavar="DIRECTION...", help="Folders or ids; several are shown side by side.")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="Folder or id of a model: would they fit it? Exit status 1 if one does not."),
    ] = None,
    revision: Revision = None,
) -> None:
    """Show what a direction is and what was measured of it; of several, side by side. No model is loaded."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of `gradiend-hub search`, by the names that `search_directions` has."""

    base_model: Annotated[str | None, typer.Option("--base", help="Id of the base model.")] = None
    feature: Annotated[str | None, typer.Option(help="Name of a class, or part of one.")] = None
    task: Annotated[str | None, typer.Option(help="The Hub's name of a task, e.g. fill-mask.")] = None
    author: Annotated[str | None, typer.Option(help="User or organization.")] = None
    sort: Annotated[
        Literal["downloads", "likes", "last_modified", "created_at", "effect", "damage"],
        typer.Option(help="The best first; effect and damage are the authors' figures."),
    ] = "downloads"
    min_effect: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest probability of the wanted class at ±1.")
    ] = None
    max_damage: Annotated[float | None, typer.Option(min=0, max=1, help="Largest share of the quality lost at ±1.")] = (
        None
    )
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20


@command(app, "search:show_search")
def search(
    options: SearchOptions,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Part of the repository's id.")] = None,
) -> None:
    """Find directions that others have published. One small file of each is read; no model is loaded."""


@dataclass(frozen=True)
class ApplyOptions(Allowing):
    """Options of `gradiend-hub apply`."""

    base: Base = None
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Strengths to compare, with commas between them; default: -1,0,1 and the recommended one.",
        ),
    ] = None
    top: Annotated[int, typer.Option(min=1, max=50, help="How many guesses to show.")] = 5
    tokens: Annotated[int, typer.Option(min=1, max=500, help="Length of a causal model's completion.")] = 12
    allow_related: Related = False
    allow_unverified_base: Unverified = False
    revision: Revision = None


@command(app, "apply:show_texts")
def apply(
    direction: Direction,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="With [MASK] where the word is to be guessed.")],
    options: ApplyOptions,
) -> None:
    """Show what the model says at several strengths, side by side.

    A masked model guesses the word at [MASK]. A causal one guesses it, too, from the text before it, and completes that
    text; without [MASK] it completes the whole text.
    """


@dataclass(frozen=True)
class ExploreOptions(Allowing):
    """Options of `gradiend-hub explore`."""

    base: Base = None
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False
    space: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Publish the page as this Space instead; the directions are ids then."),
    ] = None
    private: Private = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a Space of something else.")] = False
    allow_related: Related = False
    allow_unverified_base: Unverified = False


@command(app, "explore:explore_directions", story=True)
def explore(directions: Directions, options: ExploreOptions) -> None:
    """Open a page with a slider for each direction, on which the model answers at the chosen strengths and at 0."""


@command(app, "audit:show_audit")
def audit(direction: Direction, revision: Revision = None) -> None:
    """Look for what is harmful, impossible or suspicious in a direction's files; exit status 1 if there is anything.

    No model is loaded, and nothing is measured.
    """


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `gradiend-hub verify`."""

    base: Base = None
    dtype: Dtype = None
    full: Annotated[
        bool, typer.Option("--full", help="Measure of its report, too, what needs no unpublished data.")
    ] = False
    allow_unverified_base: Unverified = False
    revision: Revision = None


@command(app, "verify:show_verification")
def verify(direction: Direction, options: VerifyOptions) -> None:
    """Measure a direction's self-test again and compare; exit status 1 if anything differs or is impossible.

    The self-test shows that files, base model and libraries are those of the author. It says nothing of the report, whose
    figures are the author's word; to measure them on data of your own, use evaluate.
    """


@dataclass(frozen=True)
class EvaluateOptions(Allowing):
    """Options of `gradiend-hub evaluate`."""

    data: Annotated[
        str, typer.Option(metavar="DATA[:CONFIG]", help="Rows to measure on: a folder, file, or id on the Hub.")
    ]
    split: Annotated[str | None, typer.Option(help="Of --data; default: test, or the only one.")] = None
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA[:CONFIG]", help="Sentences without the feature, to measure damage.")
    ] = None
    neutral_split: Annotated[str | None, typer.Option(help="Of --neutral; default: test, or the only one.")] = None
    damage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DATA[:CONFIG]",
            help="Further text (column text) or prompts (prompt, messages) to measure damage on. Repeatable.",
        ),
    ] = None
    base: Base = None
    allow_related: Related = False
    allow_unverified_base: Unverified = False
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--bench",
            metavar="NAME=SOURCE[,SOURCE]",
            help="Bias benchmark with its data, before and after: stereoset, crows-pairs, winobias, winogender, seat, "
            "weat. Repeatable.",
        ),
    ] = None
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Task of lm-evaluation-harness, before and after. Repeatable."),
    ] = None
    lm_eval_include: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder with task files (YAML) of your own.")
    ] = None
    strengths: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Strengths to measure, with commas between them.")
    ] = None
    controls: Annotated[int, typer.Option(min=0, help="Random directions to compare with.")] = 3
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 64
    dtype: Dtype = None
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="The report; default: in the folder `reports` of the direction."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report of an earlier evaluation.")] = False
    create_pr: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="Propose the report, which holds examples of the data, as a pull request there."
        ),
    ] = None
    revision: Revision = None


@command(app, "evaluate:run_evaluation", story=True)
def evaluate(direction: Direction, options: EvaluateOptions) -> None:
    """Measure somebody's direction again, on your own base model and data, and compare with what is claimed."""


@dataclass(frozen=True)
class CompareOptions:
    """Options of `gradiend-hub compare`."""

    base: Base = None
    checkpoint: Annotated[
        str | None,
        typer.Option("--with", metavar="CHECKPOINT", help="A fine-tune: how it has moved along the directions."),
    ] = None
    measure: Annotated[
        bool, typer.Option("--measure", help="Apply and encode, too, with the probes that travel with the directions.")
    ] = False
    top: Annotated[int, typer.Option(min=1, help="Largest entries whose overlap is told.")] = 1000
    allow_related: Annotated[
        bool, typer.Option("--allow-related", help="Accept directions of a fine-tune of the base model.")
    ] = False
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for a page and the tables as JSON.")] = None
    overwrite: Overwrite = False


@command(app, "compare:compare_directions", story=True)
def compare(directions: Directions, options: CompareOptions) -> None:
    """Show what directions share and what one does to another, from the artifacts alone."""
