"""The commands that make directions, and the data that they are learned from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from .command import command
from .groups import app, data_app
from .options import Branch, DataOverrides, Overrides, Private, PullRequest


@dataclass(frozen=True)
class DemoOptions:
    """Options of `gradiend-hub demo`."""

    base: Annotated[Literal["masked", "causal"], typer.Option(help="Which of the bundled models to use.")] = "masked"
    examples: Annotated[
        Path | None, typer.Option(help="The repository's folder `examples`, if it is not found.", show_default=False)
    ] = None
    repo_id: Annotated[str | None, typer.Option(help="Push to this repository, and go on with what is pulled.")] = None
    out: Annotated[Path | None, typer.Option(help="New folder for the results; default: below ./out.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop learning after this many steps.")] = None
    share: Annotated[
        float, typer.Option(min=0.02, max=1.0, help="Share of the data to read; 1 is what trainings read by default.")
    ] = 0.35


@command(app, "demo:run_demo", story=True)
def demo(options: DemoOptions) -> None:
    """See everything once: learn a direction from a small real model, measure, publish, apply and merge it."""


@dataclass(frozen=True)
class InitOptions:
    """Answers to what `gradiend-hub init` asks; `None` is asked for."""

    model: Annotated[str | None, typer.Option(help="Folder or id of a masked or a causal language model.")] = None
    words: Annotated[str | None, typer.Option(help='Two classes with their words, e.g. "SG=he,she,it PL=they".')] = None
    text: Annotated[
        str | None,
        typer.Option(help="Text with these words: a file (text, CSV, JSON lines, Parquet), or a data set's id."),
    ] = None
    text_column: Annotated[str, typer.Option(help="Column of the text, if it is a table.")] = "text"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, if it exists.")] = False


@command(app, "init:write_feature")
def init(
    options: InitOptions,
    file: Annotated[Path, typer.Argument(metavar="[FILE.yaml]", help="File to write.")] = Path("feature.yaml"),
) -> None:
    """Write a commented YAML file for a feature of your own, for `gradiend-hub train`.

    What no option says is asked: the model, the words, the text. The words are tried with the model's tokenizer, and
    the rows that the text has are counted.
    """


@command(app, "train:run_recipe", story=True)
def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to learn from what; see examples/train.yaml.")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, its time and memory, and stop.")
    ] = False,
) -> None:
    """Learn the direction that a YAML file describes, measure and save it; push it if the file says so."""


@command(app, "suite:run_suite", story=True)
def suite(
    recipe: Annotated[
        Path, typer.Argument(metavar="SUITE.yaml", help="Classes, pairs and data; see examples/suite.yaml.")
    ],
    overrides: Overrides = None,
) -> None:
    """Learn many directions between many classes from one stream of gradients; the same command goes on."""


DataConfig = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="Classes, source, filters; see examples/data.yaml.")
]


@command(data_app, "data:build_data", story=True)
def build(
    config: DataConfig,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder for the rows, neutral text and card.")],
    overrides: DataOverrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of an earlier build.")] = False,
    repo_id: Annotated[str | None, typer.Option("--push-to", help="Publish as this data set, in one commit.")] = None,
    private: Private = False,
) -> None:
    """Turn text into rows with a slot; every text that is left out is counted."""


@command(data_app, "data:push_data")
def push_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `data build` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    private: Private = False,
    revision: Branch = None,
    create_pr: PullRequest = False,
    message: Annotated[str, typer.Option(help="First line of the commit message.")] = "Upload feature data",
) -> None:
    """Publish a data set that was built, in one commit. To repeat a push that failed is safe."""


@command(data_app, "data:show_fillers")
def words(
    config: DataConfig,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or id of a base model.")],
    overrides: DataOverrides = None,
) -> None:
    """Show how a model's tokenizer writes the words of the classes, and what that means for a direction."""
