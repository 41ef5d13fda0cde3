"""`init`: a commented recipe for a feature of one's own, from three answers."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gradiend_hub import GradiendConfig
from gradiend_hub.data import FeatureDatasetBuilder
from gradiend_hub.data.builder.feature_data import FeatureData
from gradiend_hub.data.builder.spec import FeatureDataConfig
from gradiend_hub.errors import ConfigError, GradiendError
from gradiend_hub.folders import require_writable
from gradiend_hub.objectives import CausalLMObjective, TextObjective
from gradiend_hub.objectives.words import word_tokens

from .console import Story, program, show_error
from .data import class_table, objective_of, word_table
from .learning import InitOptions
from .quiet import quiet
from .yaml_files import parse_yaml

FEW_ROWS = 100
"""Training rows of a class below which a direction is seldom found."""

_MOST_TEXTS, _MOST_ROWS, _MOST_NEUTRAL = 100_000, 1000, 400

_QUESTIONS = {
    "model": "Which model? A folder, or the id of one on the Hub",
    "words": "Which words? Two classes, e.g. SG=he,she,it PL=they",
    "text": "Which text has them? A file (text, CSV, JSON lines, Parquet), or the id of a data set on the Hub",
}

_RECIPE = """\
# Learn a direction: gradiend-hub train {file}
# Any value can be replaced on the command line: --set args.rank=4 --set data.max_per_class=200

# Folder or Hub id of the base model.
model: {model}

# Rows are made of this text: each sentence with one of the words becomes a sentence with a slot.
# Keys are the fields of gradiend_hub.data.FeatureDataConfig; paths are relative to the current folder.
data:
  source: {source}
  text_column: {column} # of a table; a text file has lines
  max_texts: {most_texts} # stop reading after this many
  # Words of each class. A word that is ambiguous can be told apart by what stands before or after it (regular expressions):
  #   NAME: {{words: [it], after: " (was|is)\\\\b"}}
  classes:
{classes}
  filters:
    unit: sentence # each text is divided into sentences
    min_words: 4
    max_words: 60
    min_left_words: {left} # a causal model reads only what stands before the slot
    mixed: false # leave out sentences with words of both classes
  max_per_class: {most_rows} # more rows seldom help
  counterfactual: sampled # the word that replaces another one is drawn by frequency; paired needs `pairs: [[he, they]]`
  # The strength is chosen on the validation rows; what the card states is measured on the test rows.
  splits: {{train: 0.7, validation: 0.15, test: 0.15}}
  split_by: random # word holds words out, so that the test says more; group needs group_column
{neutral}
  seed: 0

# A positive strength makes the first class likelier, a negative one the second. Fields of gradiend_hub.GradiendConfig.
direction:
  feature_classes: {order}
  # density: 0.01 # keep few coordinates
  # exclude: ["*.bias", "type:LayerNorm"] # then a plain LoRA holds it, too

# Fields of GradiendTrainingArguments, which has all of transformers' TrainingArguments.
args:
  output_dir: {out}
  num_train_epochs: 1
  # solver: autoencoder # the papers', which is trained; the default, closed_form, takes class means
  seed: 0
  save_steps: 50 # a run that is interrupted goes on with --resume
  push_to_hub: false # true publishes the result as hub_model_id
  # hub_model_id: USER/NAME
"""

_NEUTRAL = """\
  # Sentences without these words show what the direction damages. Exclude further forms of the words,
  # e.g. exclude_words: [him, their]
  neutral: {{max_texts: {most}, exclude_words: []}}"""

_NO_NEUTRAL = """\
  # The text has no sentence without these words, so damage cannot be measured beside them. With more text:
  # neutral: {{max_texts: {most}, exclude_words: []}}"""

Checked = TypeVar("Checked")


def write_feature(file: Path, options: InitOptions, story: Story) -> dict[str, Any]:
    """Write a recipe that `gradiend-hub train` runs, after its words and its text have been tried.

    Args:
        file: To write.
        options: Answers; what is missing is asked for on standard error, and asked again if it cannot be used.

    Raises:
        GradiendError: An answer that was given cannot be used, there are no more answers, or `file` is in use.
    """
    _require_free(file, options.overwrite)
    with quiet(story):
        objective = _answered("model", options.model, _objective)
        left = 3 if isinstance(objective, CausalLMObjective) else 1
        classes = _answered("words", options.words, partial(_usable_classes, objective=objective))

        def recipe_of(answer: str) -> tuple[str, FeatureData]:
            fields = {"text": answer, "column": options.text_column, "left": left}
            with story.step("Read", told=False):
                return _tried(file, objective.name_or_path, classes, fields)

        content, data = _answered("text", options.text, recipe_of)
    found = {name: word_tokens(objective, words) for name, words in classes.items()}
    story.show(word_table(found))
    story.show()
    story.show(class_table(data))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    counts = {name: dict(zip(data.rows, of, strict=True)) for name, of in data.counts().items()}
    advice = _advice(counts, data)
    for line in advice:
        story.warn(line)
    command = shlex.join([*program(), "train", str(file)])
    story.show(f"\nwrote {file}\nnext  {command} --dry-run   (time and memory)\n      {command}", soft_wrap=True)
    return {
        "file": file,
        "model": objective.name_or_path,
        "objective": objective.name,
        "classes": {n: [asdict(word) | {"verdict": word.verdict} for word in words] for n, words in found.items()},
        "rows": counts,
        "neutral": dict(zip(data.rows, data.neutral_counts, strict=False)),
        "advice": advice,
        "next": command,
    }


def _require_free(file: Path, overwrite: bool) -> None:
    """Refuse a place that cannot be written to, before anything is asked."""
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: name the file to write, e.g. {file / 'feature.yaml'}.")
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already: name another file, or add --overwrite.")
    require_writable(file.parent)


def _answered(what: str, given: str | None, check: Callable[[str], Checked]) -> Checked:
    """Return what a checked answer stands for; ask for it, and again, where none was given.

    Raises:
        GradiendError: The given answer cannot be used, or standard input has ended.
    """
    if given is not None:
        return check(given.strip())
    while True:
        sys.stderr.write(f"{_QUESTIONS[what]}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            sys.stderr.write("\n")
            raise ConfigError(f"There was no answer. Give it as --{what}, or run the command in a terminal.")
        try:
            return check(line.strip())
        except GradiendError as error:
            show_error("Not usable", str(error))


def _objective(model: str) -> TextObjective:
    if not model:
        raise ConfigError("A model is needed: a folder, or an id such as google-bert/bert-base-cased.")
    return objective_of(model)


def _usable_classes(answer: str, objective: TextObjective) -> dict[str, list[str]]:
    """Read `SG=he,she PL=they`, and require of each class a word that the model can read."""
    expected = "expected two classes with their words, e.g. SG=he,she,it PL=they"
    before, *parts = re.split(r"(\S+?)\s*=", answer)
    if before.strip() or len(parts) != 4:
        raise ConfigError(f"{expected}, found {answer!r}.")
    names = parts[::2]
    lists = [[word.strip() for word in part.split(",") if word.strip()] for part in parts[1::2]]
    if not all(lists) or names[0] == names[1]:
        raise ConfigError(f"{expected}, found {answer!r}.")
    classes = dict(zip(names, lists, strict=True))
    FeatureDataConfig(classes)  # says which words both have
    GradiendConfig(feature_classes=names)  # and whether they can be names
    for name, words in classes.items():
        found = word_tokens(objective, words)
        if not any(word.usable for word in found):
            why = ", ".join(f"{word.word} ({word.verdict})" for word in found)
            raise ConfigError(f"The model reads no word of {name}: {why}. Choose other words, or another model.")
    return classes


def _tried(
    file: Path, model: str, classes: Mapping[str, list[str]], fields: Mapping[str, Any]
) -> tuple[str, FeatureData]:
    """Return the text of a recipe, and the rows that it makes; without a neutral set where the text has none."""
    if not fields["text"]:
        raise ConfigError("A text is needed: a file, or the id of a data set.")
    content = _written(file, model, classes, fields, _NEUTRAL)
    data = _built(content)
    if all(data.neutral_counts) and data.neutral_counts:
        return content, data
    content = _written(file, model, classes, fields, _NO_NEUTRAL)
    return content, _built(content)


def _built(content: str) -> FeatureData:
    return FeatureDatasetBuilder(FeatureDataConfig.from_dict(parse_yaml(content)["data"])).build()


def _written(file: Path, model: str, classes: Mapping[str, list[str]], fields: Mapping[str, Any], neutral: str) -> str:
    source = fields["text"] if Path(fields["text"]).exists() else {"path": fields["text"], "split": "train"}
    return _RECIPE.format(
        file=_one_line(str(file)),
        model=_one_line(model),
        source=_one_line(source),
        column=_one_line(fields["column"]),
        classes="\n".join(f"    {_one_line(name)}: {_one_line(words)}" for name, words in classes.items()),
        order=_one_line([*classes]),
        left=fields["left"],
        out=_one_line(f"out/{file.stem}"),
        neutral=neutral.format(most=_MOST_NEUTRAL),
        most_texts=_MOST_TEXTS,
        most_rows=_MOST_ROWS,
    )


def _one_line(value: Any) -> str:
    """Return a value as YAML, on one line, that reads as itself; with quotes where it would be read otherwise."""
    for style in (None, '"'):
        text = yaml.safe_dump(value, default_flow_style=True, default_style=style, allow_unicode=True, width=math.inf)
        text = text.removesuffix("...\n").strip()
        if "\n" not in text and parse_yaml(text) == value:
            break
    return text


def _advice(counts: Mapping[str, Mapping[str, int]], data: FeatureData) -> list[str]:
    """Return what should be known before a training: few rows, unused words, nothing to measure damage on."""
    few = [f"{of['train']} of {name}" for name, of in counts.items() if of["train"] < FEW_ROWS]
    seen = {row for part in data.rows.values() for row in part.unique("factual")}
    unseen = [word for spec in data.config.classes.values() for word in spec.words if word not in seen]
    said = [f"No sentence of the text is a row of {', '.join(unseen)}."] if unseen else []
    if few:
        said.append(f"Few training rows ({', '.join(few)}; a few hundred of each class are advisable): give more text.")
    if not data.neutral_counts:
        said.append(
            "No neutral sentences, so damage is measured on the rows' own text alone: name a neutral_dataset, or give more "
            "text."
        )
    return said
