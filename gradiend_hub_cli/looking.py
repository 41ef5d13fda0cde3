"""The commands that show, apply, measure and compare directions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .command import command
from .console import Story
from .groups import app
from .options import Allowing, Base, Direction, Directions, Dtype, Overwrite, Private, Related, Revision, Unverified


@command(app, "info")
def info(
    story: Story,
    directions: Annotated[
        list[str], typer.Argument(metavar="DIRECTION...", help="Folders or ids; several are shown side by side.")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="Folder or id of a model: would they fit it? Exit status 1 if one does not."),
    ] = None,
    revision: Revision = None,
) -> dict[str, Any]:
    """Show what a direction is and what was measured of it; of several, side by side. No model is loaded."""
    from .info import show_directions

    return show_directions(directions, revision, base, story)


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


@command(app, "search")
def search(
    story: Story,
    options: SearchOptions,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Part of the repository's id.")] = None,
) -> dict[str, Any]:
    """Find directions that others have published. One small file of each is read; no model is loaded."""
    from .search import show_search

    return show_search(text, asdict(options), story)


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


@command(app, "apply")
def apply(
    story: Story,
    direction: Direction,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="With [MASK] where the word is to be guessed.")],
    options: ApplyOptions,
) -> dict[str, Any]:
    """Show what the model says at several strengths, side by side.

    A masked model guesses the word at [MASK]. A causal one guesses it, too, from the text before it, and completes that
    text; without [MASK] it completes the whole text.
    """
    from .apply import show_texts

    return show_texts(direction, texts, options, story)


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


@command(app, "explore", story=True)
def explore(story: Story, directions: Directions, options: ExploreOptions) -> dict[str, Any]:
    """Open a page with a slider for each direction, on which the model answers at the chosen strengths and at 0."""
    from .explore import explore_directions

    return explore_directions(directions, options, story)


@command(app, "audit")
def audit(story: Story, direction: Direction, revision: Revision = None) -> dict[str, Any]:
    """Look for what is harmful, impossible or suspicious in a direction's files; exit status 1 if there is anything.

    No model is loaded, and nothing is measured.
    """
    from .audit import show_audit

    return show_audit(direction, revision, story)


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


@command(app, "verify")
def verify(story: Story, direction: Direction, options: VerifyOptions) -> dict[str, Any]:
    """Measure a direction's self-test again and compare; exit status 1 if anything differs or is impossible.

    The self-test shows that files, base model and libraries are those of the author. It says nothing of the report, whose
    figures are the author's word; to measure them on data of your own, use evaluate.
    """
    from .verify import show_verification

    return show_verification(direction, options, story)


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


@command(app, "evaluate", story=True)
def evaluate(story: Story, direction: Direction, options: EvaluateOptions) -> dict[str, Any]:
    """Measure somebody's direction again, on your own base model and data, and compare with what is claimed."""
    from .evaluate import run_evaluation

    return run_evaluation(direction, options, story)


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


@command(app, "compare", story=True)
def compare(story: Story, directions: Directions, options: CompareOptions) -> dict[str, Any]:
    """Show what directions share and what one does to another, from the artifacts alone."""
    from .compare import compare_directions

    return compare_directions(directions, options, story)
