"""The commands of `gradiend-hub` with their arguments. No module that needs torch is imported before a command runs."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .console import Story, output, show_error

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Ends a command that fails with one message and an exit status, not with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            show_error("Interrupted", str(interrupt) or "Nothing is kept; run the command again to start over.")
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug") or not _on_purpose(error):
                raise
            show_error("Error", str(error))
            raise typer.Exit(1) from None


def _on_purpose(error: Exception) -> bool:
    """Whether it is an error of gradiend_hub; a process that has not imported that has none."""
    errors = sys.modules.get("gradiend_hub.errors")
    return errors is not None and isinstance(error, errors.GradiendError)


app = typer.Typer(
    name="gradiend-hub",
    cls=_Commands,
    help="Learn feature directions of language models, publish them, apply them at a strength, merge them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
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


def _numbers(text: str) -> list[float]:
    return [_number(part) for part in text.split(",")]


Direction = Annotated[str, typer.Argument(metavar="DIRECTION", help="Folder of a direction, or its id on the Hub.")]
Base = Annotated[
    str | None, typer.Option("--base", help="Folder or id of the base model, if not the one that the direction names.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the direction.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"] | None,
    typer.Option(help="Type of the base model's weights; auto is the checkpoint's. Default: float32 on a CPU."),
]


@app.command()
def demo(
    base: Annotated[Literal["masked", "causal"], typer.Option(help="Which of the bundled models to use.")] = "masked",
    examples: Annotated[
        Path | None, typer.Option(help="The repository's folder `examples`, if it is not found.", show_default=False)
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Push to this repository, and go on with what is pulled.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the results; default: below ./out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop learning after this many steps.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=8, help="Use only this many rows of each split.")] = None,
) -> None:
    """See everything once: learn a direction from a small real model, measure, publish, apply and merge it."""
    story = Story()
    with story.step("Import") as step:
        from .demo import DemoOptions, library_versions, run_demo

        step.outcome = library_versions()
    run_demo(DemoOptions(base, examples, repo_id, out, seed, max_steps, max_rows), story)


@app.command()
def train(
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
) -> None:
    """Learn the direction that a YAML file describes, measure and save it; push it if the file says so."""
    story = Story()
    with story.step("Import") as step:
        from .demo import library_versions
        from .train import predict_recipe, run_recipe

        step.outcome = library_versions()
    if dry_run:
        predict_recipe(recipe, overrides or [], story)
    else:
        run_recipe(recipe, overrides or [], resume, story)


@app.command()
def info(
    direction: Direction,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show what a direction is and what was measured of it. No model is loaded."""
    from .info import describe, show_description

    description = describe(direction, revision=revision)
    if as_json:
        typer.echo(description.to_json())
    else:
        show_description(description, output())


@app.command()
def apply(
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
    revision: Revision = None,
) -> None:
    """Show what the model says at several strengths, side by side.

    A masked model guesses the word at [MASK]. A causal one guesses it, too, from the text before it, and completes that
    text; without [MASK] it completes the whole text.
    """
    wanted = None if strengths is None else _numbers(strengths)
    from .fillings import show_texts

    show_texts(
        direction, texts, base=base, revision=revision, strengths=wanted, top=top, tokens=tokens, console=output()
    )


@app.command()
def verify(direction: Direction, base: Base = None, dtype: Dtype = None, revision: Revision = None) -> None:
    """Measure a direction's self-test again and compare; exit status 1 if anything differs."""
    from .verify import show_verification

    if not show_verification(direction, base=base, dtype=dtype, revision=revision, console=output()):
        raise typer.Exit(1)


@app.command()
def evaluate(
    direction: Direction,
    data: Annotated[
        str, typer.Option(metavar="DATA[:CONFIG]", help="Rows to measure on: a folder, file, or id on the Hub.")
    ],
    split: Annotated[str | None, typer.Option(help="Of --data; default: test, or the only one.")] = None,
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA[:CONFIG]", help="Sentences without the feature, to measure damage.")
    ] = None,
    neutral_split: Annotated[str | None, typer.Option(help="Of --neutral; default: test, or the only one.")] = None,
    base: Base = None,
    allow_related: Annotated[
        bool, typer.Option("--allow-related", help="Accept a fine-tune of the base model.")
    ] = False,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE[,SOURCE]",
            help="Bias benchmark with its data, before and after: stereoset, crows-pairs, winobias, winogender, seat, "
            "weat. Repeatable.",
        ),
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
) -> None:
    """Measure somebody's direction again, on your own base model and data, and compare with what is claimed."""
    wanted = None if strengths is None else _numbers(strengths)
    story = Story()
    with story.step("Import") as step:
        from gradiend_hub.evaluation import EvaluationSettings

        from .demo import library_versions
        from .evaluate import Request, run_evaluation

        step.outcome = library_versions()
    request = Request(
        direction, revision, base, allow_related, (data, split), (neutral, neutral_split) if neutral else None,
        tuple(bench or ()), EvaluationSettings(strengths=wanted, controls=controls, batch_size=batch_size), dtype, out,
        overwrite, create_pr,
    )  # fmt: skip
    run_evaluation(request, story)


@app.command()
def merge(
    direction: Direction,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the model.")],
    base: Base = None,
    strength: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Default: the recommended one of the direction.")
    ] = None,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    revision: Revision = None,
) -> None:
    """Write the rewritten model as a plain transformers checkpoint with its tokenizer."""
    wanted = None if strength is None else _number(strength)
    from .merge import merge_into

    merge_into(
        out,
        direction,
        base=base,
        revision=revision,
        strength=wanted,
        dtype=dtype,
        overwrite=overwrite,
        console=output(),
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved direction.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="First line of the commit message.")] = "Upload direction",
) -> None:
    """Publish a saved direction in one commit. To repeat a push that failed is safe."""
    from gradiend_hub.hub.publish import publish_folder

    commit = publish_folder(
        folder, repo_id, private=private or None, revision=revision, create_pr=create_pr, commit_message=message
    )
    typer.echo(f"Published {folder}: {commit.pr_url or commit.commit_url}")


data_app = typer.Typer(help="Build feature data sets from text.", no_args_is_help=True, cls=TyperGroup)
app.add_typer(data_app, name="data")

DataConfig = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="Classes, source, filters; see examples/data.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, e.g. seed=1. Repeatable.")
]


@data_app.command()
def build(
    config: DataConfig,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for the rows, neutral text and card.")],
    overrides: Overrides = None,
    repo_id: Annotated[str | None, typer.Option("--push-to", help="Publish as this data set, in one commit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Turn text into rows with a slot; every text that is left out is counted."""
    story = Story()
    with story.step("Import") as step:
        from .data import build_data
        from .demo import library_versions

        step.outcome = library_versions()
    build_data(config, out, overrides or [], repo_id, private, story)


@data_app.command()
def words(
    config: DataConfig,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or id of a base model.")],
    overrides: Overrides = None,
) -> None:
    """Show which words of the classes the tokenizer of a model splits."""
    from .data import show_fillers

    show_fillers(config, model, overrides or [], output())
