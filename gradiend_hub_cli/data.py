"""`data`: build a feature data set from text, and look at what a tokenizer makes of its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gradiend_hub.data.builder import FeatureDatasetBuilder
from gradiend_hub.data.feature_data import FeatureData, check_folder
from gradiend_hub.data.spec import FeatureDataConfig
from gradiend_hub.errors import BaseModelError, first_line
from gradiend_hub.objectives.words import word_tokens

from .console import Story
from .quiet import quiet
from .recipes import read_yaml

__all__ = ["build_data", "show_fillers"]


def read_config(path: Path, overrides: list[str]) -> FeatureDataConfig:
    """The configuration of a YAML file; relative paths in it are relative to the current folder."""
    return FeatureDataConfig.from_dict(read_yaml(path, overrides, "examples/data.yaml"))


def build_data(path: Path, out: Path, overrides: list[str], repo_id: str | None, private: bool, story: Story) -> None:
    """Build the data set of a YAML file, save it, and publish it if a repository is named.

    Raises:
        GradiendError: the file, the source or a class cannot be used.
    """
    config = read_config(path, overrides)
    check_folder(out)
    with quiet():
        with story.step("Build") as step:
            data = FeatureDatasetBuilder(config).build()
            step.outcome = f"{sum(map(len, data.rows.values())):,} rows"
        with story.step("Save") as step:
            step.outcome = str(data.save(out))
        if repo_id:
            with story.step("Push") as step:
                step.outcome = data.push_to_hub(repo_id, private=private or None).commit_url
    story.console.print()
    story.console.print(_funnel_table(data))
    story.console.print(_class_table(data))


def show_fillers(path: Path, model: str, overrides: list[str], console: Console) -> None:
    """Print which words of a configuration the tokenizer of a model splits.

    Raises:
        GradiendError: the file cannot be used, or there is no tokenizer.
    """
    from transformers import AutoTokenizer

    from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective

    config = read_config(path, overrides)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"There is no tokenizer at {model!r}: expected a folder with a tokenizer.json or the id of a model on the Hub. "
            f"({first_line(error)})"
        ) from error
    objective = (CausalLMObjective if tokenizer.mask_token is None else MaskedLMObjective)(
        tokenizer, name_or_path=model
    )
    table = _table("class", "word", "tokens in a text", "tokens at its beginning")
    for name, spec in config.classes.items():
        for filler in word_tokens(objective, spec.words):
            tokens = ["unknown", ""] if filler.unknown else [" ".join(filler.inside), " ".join(filler.first)]
            table.add_row(name, filler.word, *tokens)
    console.print(table)


def _funnel_table(data: FeatureData) -> Table:
    table = _table("step", "left", "dropped")
    for row in data.funnel.rows():
        table.add_row(*row)
    return table


def _class_table(data: FeatureData) -> Table:
    table = _table("class", *data.rows)
    for name, counts in data.counts().items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    if data.neutral:
        table.add_row("neutral sentences", *(f"{count:,}" for count in data.neutral_counts))
    return table


def _table(*names: Any) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table
