"""The commands of `gradiend-hub` with their arguments. What does their work needs torch, and is imported when they run."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .command import EXIT_CODES, Commands, command
from .console import Story

__all__ = ["app", "main"]

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


def main() -> None:
    """Run the command line that this process was started with."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old terminal gets a "?" and no traceback
    app(prog_name="gradiend-hub")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gradiend-hub {version('gradiend_hub')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Options of every command."""


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, found {text.strip()!r}.")
    return value


def _numbers(text: str | None) -> list[float] | None:
    return None if text is None else [_number(part) for part in text.split(",")]


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


@command(app, "demo", story=True)
def demo(
    story: Story,
    base: Annotated[Literal["masked", "causal"], typer.Option(help="Which of the bundled models to use.")] = "masked",
    examples: Annotated[
        Path | None, typer.Option(help="The repository's folder `examples`, if it is not found.", show_default=False)
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Push to this repository, and go on with what is pulled.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the results; default: below ./out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop learning after this many steps.")] = None,
    share: Annotated[
        float, typer.Option(min=0.02, max=1.0, help="Share of the data to read; 1 is what trainings read by default.")
    ] = 0.5,
) -> dict[str, Any]:
    """See everything once: learn a direction from a small real model, measure, publish, apply and merge it."""
    from .demo import DemoOptions, run_demo

    return run_demo(DemoOptions(base, examples, repo_id, out, seed, max_steps, share), story)


@command(app, "init")
def init(
    story: Story,
    file: Annotated[Path, typer.Argument(metavar="[FILE.yaml]", help="File to write.")] = Path("feature.yaml"),
    model: Annotated[str | None, typer.Option(help="Folder or id of a masked or a causal language model.")] = None,
    words: Annotated[
        str | None, typer.Option(help='Two classes with their words, e.g. "SG=he,she,it PL=they".')
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text with these words: a file (text, CSV, JSON lines, Parquet), or a data set's id."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text, if it is a table.")] = "text",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, if it exists.")] = False,
) -> dict[str, Any]:
    """Write a commented YAML file for a feature of your own, for `gradiend-hub train`.

    What no option says is asked: the model, the words, the text. The words are tried with the model's tokenizer, and
    the rows that the text has are counted.
    """
    from .init import InitOptions, write_feature

    return write_feature(file, InitOptions(model, words, text, text_column, overwrite), story)


@command(app, "train", story=True)
def train(
    story: Story,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to learn from what; see examples/train.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. args.learning_rate=0.05. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, its time and memory, and stop.")
    ] = False,
) -> dict[str, Any]:
    """Learn the direction that a YAML file describes, measure and save it; push it if the file says so."""
    from .train import predict_recipe, run_recipe

    if dry_run:
        return predict_recipe(recipe, overrides or [], story)
    return run_recipe(recipe, overrides or [], resume, story)


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


@command(app, "search")
def search(
    story: Story,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Part of the repository's id.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Id of the base model.")] = None,
    feature: Annotated[str | None, typer.Option(help="Name of a class, or part of one.")] = None,
    task: Annotated[str | None, typer.Option(help="The Hub's name of a task, e.g. fill-mask.")] = None,
    author: Annotated[str | None, typer.Option(help="User or organization.")] = None,
    sort: Annotated[
        Literal["downloads", "likes", "last_modified", "created_at", "effect", "damage"],
        typer.Option(help="The best first; effect and damage are the authors' figures."),
    ] = "downloads",
    min_effect: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest probability of the wanted class at ±1.")
    ] = None,
    max_damage: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest share of the quality lost at ±1.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
) -> dict[str, Any]:
    """Find directions that others have published. One small file of each is read; no model is loaded."""
    from .search import show_search

    options = {
        "base_model": base, "feature": feature, "task": task, "author": author, "sort": sort,
        "min_effect": min_effect, "max_damage": max_damage, "limit": limit,
    }  # fmt: skip
    return show_search(text, options, story)


@command(app, "apply")
def apply(
    story: Story,
    direction: Direction,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="With [MASK] where the word is to be guessed.")],
    base: Base = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Strengths to compare, with commas between them; default: -1,0,1 and the recommended one.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="How many guesses to show.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, max=500, help="Length of a causal model's completion.")] = 12,
    allow_related: Related = False,
    allow_unverified_base: Unverified = False,
    revision: Revision = None,
) -> dict[str, Any]:
    """Show what the model says at several strengths, side by side.

    A masked model guesses the word at [MASK]. A causal one guesses it, too, from the text before it, and completes that
    text; without [MASK] it completes the whole text.
    """
    from .apply import ApplyOptions, show_texts

    allowed = {"allow_related": allow_related, "allow_unverified_base": allow_unverified_base}
    options = ApplyOptions(base, revision, _numbers(strengths), top, tokens, allowed)
    return show_texts(direction, texts, options, story)


@command(app, "explore", story=True)
def explore(
    story: Story,
    directions: Annotated[
        list[str], typer.Argument(metavar="DIRECTION...", help="Folders or ids, all of one base model.")
    ],
    base: Base = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    space: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Publish the page as this Space instead; the directions are ids then."),
    ] = None,
    private: Private = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a Space of something else.")] = False,
    allow_related: Related = False,
    allow_unverified_base: Unverified = False,
) -> dict[str, Any]:
    """Open a page with a slider for each direction, on which the model answers at the chosen strengths and at 0."""
    from .explore import ExploreOptions, explore_directions

    allowed = {"allow_related": allow_related, "allow_unverified_base": allow_unverified_base}
    options = ExploreOptions(base, host, port, browser, space, private, overwrite, allowed)
    return explore_directions(directions, options, story)


@command(app, "audit")
def audit(story: Story, direction: Direction, revision: Revision = None) -> dict[str, Any]:
    """Look for what is harmful, impossible or suspicious in a direction's files; exit status 1 if there is anything.

    No model is loaded, and nothing is measured.
    """
    from .audit import show_audit

    return show_audit(direction, revision, story)


@command(app, "verify")
def verify(
    story: Story,
    direction: Direction,
    base: Base = None,
    dtype: Dtype = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Measure of its report, too, what needs no unpublished data."),
    ] = False,
    allow_unverified_base: Unverified = False,
    revision: Revision = None,
) -> dict[str, Any]:
    """Measure a direction's self-test again and compare; exit status 1 if anything differs or is impossible.

    The self-test shows that files, base model and libraries are those of the author. It says nothing of the report, whose
    figures are the author's word; to measure them on data of your own, use evaluate.
    """
    from .verify import VerifyOptions, show_verification

    return show_verification(direction, VerifyOptions(base, dtype, revision, allow_unverified_base, full), story)


@command(app, "evaluate", story=True)
def evaluate(
    story: Story,
    direction: Direction,
    data: Annotated[
        str, typer.Option(metavar="DATA[:CONFIG]", help="Rows to measure on: a folder, file, or id on the Hub.")
    ],
    split: Annotated[str | None, typer.Option(help="Of --data; default: test, or the only one.")] = None,
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA[:CONFIG]", help="Sentences without the feature, to measure damage.")
    ] = None,
    neutral_split: Annotated[str | None, typer.Option(help="Of --neutral; default: test, or the only one.")] = None,
    damage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DATA[:CONFIG]",
            help="Further text (column text) or prompts (prompt, messages) to measure damage on. Repeatable.",
        ),
    ] = None,
    base: Base = None,
    allow_related: Related = False,
    allow_unverified_base: Unverified = False,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE[,SOURCE]",
            help="Bias benchmark with its data, before and after: stereoset, crows-pairs, winobias, winogender, seat, "
            "weat. Repeatable.",
        ),
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Task of lm-evaluation-harness, before and after. Repeatable."),
    ] = None,
    lm_eval_include: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder with task files (YAML) of your own.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Strengths to measure, with commas between them.")
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Random directions to compare with.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 64,
    dtype: Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="The report; default: in the folder `reports` of the direction."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report of an earlier evaluation.")] = False,
    create_pr: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="Propose the report, which holds examples of the data, as a pull request there."
        ),
    ] = None,
    revision: Revision = None,
) -> dict[str, Any]:
    """Measure somebody's direction again, on your own base model and data, and compare with what is claimed."""
    from gradiend_hub.evaluation import EvaluationSettings

    from .evaluate import Request, run_evaluation

    request = Request(
        direction=direction,
        revision=revision,
        base=base,
        allowed={"allow_related": allow_related, "allow_unverified_base": allow_unverified_base},
        data=(data, split),
        neutral=(neutral, neutral_split) if neutral else None,
        damage=tuple(damage or ()),
        benchmarks=tuple(bench or ()),
        tasks=tuple(lm_eval or ()),
        task_folder=lm_eval_include,
        settings=EvaluationSettings(strengths=_numbers(strengths), controls=controls, batch_size=batch_size),
        dtype=dtype,
        out=out,
        overwrite=overwrite,
        create_pr=create_pr,
    )
    return run_evaluation(request, story)


@command(app, "compare", story=True)
def compare(
    story: Story,
    directions: Annotated[
        list[str], typer.Argument(metavar="DIRECTION...", help="Folders or ids, all of one base model.")
    ],
    base: Base = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--with", metavar="CHECKPOINT", help="A fine-tune: how it has moved along the directions."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Apply and encode, too, with the probes that travel with the directions.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Largest entries whose overlap is told.")] = 1000,
    allow_related: Annotated[
        bool, typer.Option("--allow-related", help="Accept directions of a fine-tune of the base model.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for a page and the tables as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> dict[str, Any]:
    """Show what directions share and what one does to another, from the artifacts alone."""
    from .compare import CompareOptions, compare_directions

    options = CompareOptions(base, checkpoint, measure, top, allow_related, out, overwrite)
    return compare_directions(directions, options, story)


@command(app, "suite", story=True)
def suite(
    story: Story,
    recipe: Annotated[
        Path, typer.Argument(metavar="SUITE.yaml", help="Classes, pairs and data; see examples/suite.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. args.output_dir=out. Repeatable."),
    ] = None,
) -> dict[str, Any]:
    """Learn many directions between many classes from one stream of gradients; the same command goes on."""
    from .suite import run_suite

    return run_suite(recipe, overrides or [], story)


@command(app, "compare")
def combine(
    story: Story,
    parts: Annotated[
        list[str], typer.Argument(metavar="DIRECTION=STRENGTH...", help="What to add; without a number, at strength 1.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the sum.")],
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Take from each part what moves the features of the others.")
    ] = False,
    density: Annotated[float | None, typer.Option(help="Share of the entries to keep of the sum.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of the matrices of the sum.")] = None,
    base: Base = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> dict[str, Any]:
    """Add directions to a new one, and show what its parts do to each other before anything is applied."""
    from .compare import combine_directions

    return combine_directions(
        parts, out, orthogonal=orthogonal, density=density, rank=rank, base=base, overwrite=overwrite, story=story
    )


@command(app, "merge")
def merge(
    story: Story,
    direction: Direction,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the model.")],
    base: Base = None,
    strength: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Default: the recommended one of the direction.")
    ] = None,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    allow_related: Related = False,
    allow_unverified_base: Unverified = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Merge into the files of the base model, one tensor in memory at a time; goes on where it was interrupted.",
        ),
    ] = False,
    push_to: Annotated[
        str | None, typer.Option("--push-to", metavar="REPO_ID", help="Publish the model there when it is written.")
    ] = None,
    private: Private = False,
    measure: Annotated[
        str | None,
        typer.Option(metavar="DATA[:CONFIG]", help="Rows to measure on before and after, for the model's card."),
    ] = None,
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA[:CONFIG]", help="Sentences without the feature, for --measure.")
    ] = None,
    revision: Revision = None,
) -> dict[str, Any]:
    """Write the rewritten model as a plain transformers checkpoint with its tokenizer."""
    from .merge import MergeOptions, merge_into

    wanted = None if strength is None else _number(strength)
    allowed = {"allow_related": allow_related, "allow_unverified_base": allow_unverified_base}
    options = MergeOptions(
        base, revision, wanted, dtype, overwrite, allowed, stream, push_to, private, measure, neutral
    )
    return merge_into(out, direction, options, story)


@command(app, "export")
def export(
    story: Story,
    direction: Direction,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for what is written.")],
    form: Annotated[
        Literal["lora", "gguf-lora", "shira", "task-vector"],
        typer.Option(
            "--format",
            help="What to write: a LoRA, one for llama.cpp (GGUF), single entries (SHiRA), or all that changes.",
        ),
    ] = "lora",
    rank: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Largest rank of a LoRA. Default: the direction's own, or 8."),
    ] = None,
    strength: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Strength that the scale 1 stands for. Default: 1.")
    ] = None,
    base: Base = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    revision: Revision = None,
) -> dict[str, Any]:
    """Write a direction in a form that others read without this package: for PEFT, vLLM, llama.cpp, or as a task vector."""
    from .export import ExportOptions, export_direction

    wanted = 1.0 if strength is None else _number(strength)
    return export_direction(out, direction, ExportOptions(form, base, revision, rank, wanted, overwrite), story)


@command(app, "importing")
def import_(
    story: Story,
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
) -> dict[str, Any]:
    """Read a direction that the package gradiend has saved, and write it as one of ours."""
    from .importing import import_direction

    return import_direction(folder, out, base, classes, dtype, story)


@command(app, "push")
def push(
    story: Story,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved direction, a merged model, or a suite.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    private: Private = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="First line of the commit message.")] = None,
    base_id: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="The base model on the Hub, if it was a folder of yours when you trained."
        ),
    ] = None,
    subfolder: Annotated[
        str | None, typer.Option(help="Folder of the repository; one can hold several directions.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Name for the commit, e.g. v1.")] = None,
    allow_unmeasured: Annotated[
        bool, typer.Option("--allow-unmeasured", help="Publish it without a report or a card, too.")
    ] = False,
    collection: Annotated[
        str | None,
        typer.Option(
            help="Of a suite: a repository for each, REPO_ID-NAME, in this collection; else one with subfolders."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card that was edited on the Hub, and add to foreign files.")
    ] = False,
) -> dict[str, Any]:
    """Publish a saved direction, a merged model, or each direction of a suite, in one commit each.

    To repeat a push that failed is safe.
    """
    from .push import directions_in, push_direction, push_directions

    options = {
        "private": private or None,
        "revision": revision,
        "create_pr": create_pr,
        "commit_message": message,
        "base_id": base_id,
        "subfolder": subfolder,
        "tag": tag,
        "allow_unmeasured": allow_unmeasured,
        "overwrite": overwrite,
    }
    if collection is not None or directions_in(folder):
        return push_directions(folder, repo_id, collection, options, story)
    return push_direction(folder, repo_id, options, story)


DataConfig = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="Classes, source, filters; see examples/data.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. seed=1. Repeatable.")
]


@command(data_app, "data", story=True)
def build(
    story: Story,
    config: DataConfig,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the rows, neutral text and card.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of an earlier build.")] = False,
    repo_id: Annotated[str | None, typer.Option("--push-to", help="Publish as this data set, in one commit.")] = None,
    private: Private = False,
) -> dict[str, Any]:
    """Turn text into rows with a slot; every text that is left out is counted."""
    from .data import build_data

    return build_data(config, out, overrides or [], overwrite, (repo_id, private), story)


@command(data_app, "data")
def push_(
    story: Story,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `data build` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    private: Private = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="First line of the commit message.")] = "Upload feature data",
) -> dict[str, Any]:
    """Publish a data set that was built, in one commit. To repeat a push that failed is safe."""
    from .data import push_data

    options = {"private": private or None, "revision": revision, "create_pr": create_pr, "commit_message": message}
    return push_data(folder, repo_id, options, story)


@command(data_app, "data")
def words(
    story: Story,
    config: DataConfig,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or id of a base model.")],
    overrides: Overrides = None,
) -> dict[str, Any]:
    """Show how a model's tokenizer writes the words of the classes, and what that means for a direction."""
    from .data import show_fillers

    return show_fillers(config, model, overrides or [], story)


@command(collection_app, "collection")
def add(
    story: Story,
    collection: Annotated[
        str,
        typer.Argument(metavar="COLLECTION", help="Slug of a collection, or a title; made if there is none."),
    ],
    repo_ids: Annotated[list[str], typer.Argument(metavar="REPO_ID...", help="Ids on the Hub.")],
    note: Annotated[str | None, typer.Option(help="What to say beside each of them.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new collection private.")] = False,
) -> dict[str, Any]:
    """Add directions to a collection of the Hub; what it has already stays as it is."""
    from .collection import extend_collection

    return extend_collection(collection, repo_ids, note, private, story)
