"""`data`: build a feature data set from text, publish it, and look at what a tokenizer makes of its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import AutoTokenizer

from gradiend_hub.data import FeatureDatasetBuilder
from gradiend_hub.data.builder.feature_data import FeatureData, check_folder, push_saved, remove_build
from gradiend_hub.data.builder.spec import FeatureDataConfig
from gradiend_hub.errors import BaseModelError, first_line
from gradiend_hub.folders import written_beside
from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective, TextObjective
from gradiend_hub.objectives.words import FillerTokens, word_tokens

from .console import Story
from .push import publish_by
from .quiet import quiet
from .tables import columns_table
from .yaml_files import read_yaml


def read_config(path: Path, overrides: Sequence[str] | None) -> FeatureDataConfig:
    """The configuration of a YAML file; relative paths in it are relative to the current folder."""
    return FeatureDataConfig.from_dict(read_yaml(path, overrides, "examples/data.yaml"))


def build_data(
    config: Path,
    out: Path,
    overrides: Sequence[str] | None,
    overwrite: bool,
    repo_id: str | None,
    private: bool,
    story: Story,
) -> dict[str, Any]:
    """Build the data set of a YAML file, save it, and publish it if a repository is named.

    Args:
        overwrite: replace a data set of an earlier build in `out`.
        repo_id: to publish to, if any; `private` makes a new one so.

    Raises:
        GradiendError: the file, the source, a class or the folder cannot be used.
    """
    read = read_config(config, overrides)
    check_folder(out, overwrite)
    url = None
    with quiet(story):
        with story.step("Build") as step:
            data = FeatureDatasetBuilder(read).build()
            step.outcome = f"{sum(map(len, data.rows.values())):,} rows"
        with story.step("Save") as step:
            with written_beside(out) as folder:
                data.save(folder)
                remove_build(out)
            step.outcome = str(out)
        if repo_id:
            with story.step("Push") as step:
                url = step.outcome = data.push_to_hub(repo_id, private=private or None).commit_url
    funnel = columns_table(["step"], ["left", "dropped"])
    for row in data.funnel.rows():
        funnel.add_row(*row)
    story.show()
    story.show(funnel)
    story.show(class_table(data))
    return {
        "folder": out,
        "published": url,
        "digest": data.digest,
        "rows": {split: len(rows) for split, rows in data.rows.items()},
        "classes": {name: dict(zip(data.rows, counts, strict=True)) for name, counts in data.counts().items()},
        "neutral": dict(zip(data.rows, data.neutral_counts, strict=False)),
        "funnel": [dict(zip(("step", "left", "dropped"), row, strict=True)) for row in data.funnel.rows()],
        "seconds": story.seconds,
    }


def push_data(
    folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str, story: Story
) -> dict[str, Any]:
    """Publish a data set that was built, in one commit, and print where it is.

    Raises:
        GradiendError: the folder is no data set, or the upload failed.
    """
    options = {"private": private or None, "revision": revision, "create_pr": create_pr, "commit_message": message}
    return publish_by(push_saved, folder, repo_id, options, story)


def show_fillers(config: Path, model: str, overrides: Sequence[str] | None, story: Story) -> dict[str, Any]:
    """Print how the tokenizer of a model writes the words of a configuration, and what that means for a direction.

    The exit code is 1 if a class has no word that the tokenizer can write.

    Raises:
        GradiendError: the file cannot be used, or there is no tokenizer.
    """
    read = read_config(config, overrides)
    with quiet(story), story.step("Read", told=False):
        objective = objective_of(model)
        classes = {name: word_tokens(objective, spec.words) for name, spec in read.classes.items()}
    story.show(word_table(classes))
    unusable = [name for name, words in classes.items() if not any(word.usable for word in words)]
    advice = _advice(classes, unusable, isinstance(objective, MaskedLMObjective))
    story.show(f"\n{advice}")
    return {
        "model": model,
        "objective": objective.name,
        "usable": not unusable,
        "advice": advice,
        "classes": {
            name: [asdict(word) | {"verdict": word.verdict} for word in words] for name, words in classes.items()
        },
        "exit_code": 1 if unusable else 0,
    }


def word_table(classes: Mapping[str, Sequence[FillerTokens]]) -> Table:
    """Return a table of the words of each class, their tokens and what these mean."""
    table = columns_table(["class"], ["word", "tokens in a text", "at its beginning", ""])
    for name, words in classes.items():
        for word in words:
            tokens = ["", ""] if word.unknown else [" ".join(word.inside), " ".join(word.first)]
            table.add_row(name, word.word, *tokens, word.verdict)
    return table


def objective_of(model: str) -> TextObjective:
    """Return what reads words with the tokenizer of a model.

    Raises:
        BaseModelError: There is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"There is no tokenizer at {model!r}: expected a folder with a tokenizer.json or the id of a model on the Hub. "
            f"({first_line(error)})"
        ) from error
    kind = MaskedLMObjective if tokenizer.mask_token is not None else CausalLMObjective
    return kind(tokenizer, name_or_path=model)


def _advice(classes: Mapping[str, Sequence[FillerTokens]], unusable: Sequence[str], masked: bool) -> str:
    """Say whether a direction can be learned from these words, and what they cost."""
    if unusable:
        return (
            f"Not usable: no word of {', '.join(unusable)} can be read in a text. Choose other words, or another model."
        )
    words = [word for found in classes.values() for word in found]
    unknown = [word.word for word in words if not word.usable]
    split = [word.word for word in words if word.split]
    lost = f" Leave out {', '.join(unknown)}, which cannot be read in a text." if unknown else ""
    if not split:
        return f"Usable: every other word is one token.{lost}" if unknown else "Usable: every word is one token."
    several = "as many masks, and is guessed at all of them at once" if masked else "token after token"
    return (
        f"Usable, but {', '.join(split[:5])}{', …' if len(split) > 5 else ''} "
        f"{'take' if len(split) > 1 else 'takes'} several tokens: such a word is read {several}, at the cost of a forward "
        f"pass of its own. Lists of guesses show its pieces, P(class) counts it whole.{lost}"
    )


def class_table(data: FeatureData) -> Table:
    """Return a table of the rows of each class, and of neutral sentences, by split."""
    table = columns_table(["class"], [*map(str, data.rows)])
    for name, counts in data.counts().items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    if data.neutral:
        table.add_row("neutral sentences", *(f"{count:,}" for count in data.neutral_counts))
    return table
