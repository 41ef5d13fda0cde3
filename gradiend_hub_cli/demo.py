"""`demo`: the whole way of a direction on the bundled material, every claim checked."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from datasets import Dataset, load_dataset
from huggingface_hub import constants
from rich.text import Text
from torch import Tensor, nn

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, read_rows
from gradiend_hub.errors import ArtifactError, ConfigError, EditError
from gradiend_hub.evaluation.damage import set_label
from gradiend_hub.evaluation.probe import SCORED_TOKENS
from gradiend_hub.folders import require_empty
from gradiend_hub.hub.publish import publish_folder
from gradiend_hub.objectives import Batch

from .apply import class_styles, guesses, guesses_tables
from .console import Story, command_lines, on_interrupt, program
from .follower import follow
from .learning import DemoOptions
from .quiet import quiet
from .tables import curve_table, encoder_line, folder_size, megabytes, pairs_table

CLASSES = ["3SG", "3PL"]
SENTENCES = (
    "The players ran home because [MASK] wanted to eat.",
    "The girl opened the door when [MASK] heard the bell.",
    "We bought the lamp because [MASK] looked beautiful.",
)
INTRODUCTION = (
    "The feature of this demo is the number of a pronoun. Its two classes are 3SG (he, she, it) and 3PL (they); a "
    "positive strength makes the first one likelier, a negative strength the second."
)
TRY_IT = "The cats slept because [MASK] were tired."
STRENGTHS = (-1.0, 0.0, 1.0)
CHECKED_ROWS = 8


@dataclass(frozen=True)
class _Material:
    """Base model and data of the repository."""

    base: Path
    rows: dict[str, Dataset]
    neutral: dict[str, Dataset]


def run_demo(options: DemoOptions, story: Story) -> dict[str, Any]:
    """Tell the whole story, and end with a table.

    Raises:
        ConfigError: the material is not found, or the output folder is in use.
        EditError, ArtifactError: a check failed.
        HubPushError: the push failed.
    """
    examples = _find_examples(options)
    out = options.out or Path("out", f"demo-{options.base}-{datetime.now():%Y%m%d-%H%M%S}")
    require_empty(out, "another --out")
    story.say(f"\n{INTRODUCTION}\n", style="italic")
    with on_interrupt("The demo keeps no checkpoints; run it again to start over."), quiet(story):
        material = _load(examples, options, story)
        trainer = _learn(material, out / "direction", options, story)
        _measure(trainer, material, story)
        url = _save(trainer, options.repo_id, story)
        model = _load_again(trainer, material, options.repo_id, story)
        _rewrite(model, trainer, story)
        _merge(model, trainer, material, out / "merged", story)
    return _summary(trainer, material, out, url, story)


def _find_examples(options: DemoOptions) -> Path:
    places = [options.examples] if options.examples else [Path("examples"), Path(__file__).parents[1] / "examples"]
    for place in places:
        if (place / "base_models" / options.base / "config.json").is_file() and (place / "data" / "pronouns").is_dir():
            return place
    raise ConfigError(
        f"The demo's small model and sentences are not in {' or '.join(map(str, places))}: they come with the repository, "
        "not with the installed package. Run the demo in a clone of the repository, or name the folder: --examples DIR"
    )


def _load(examples: Path, options: DemoOptions, story: Story) -> _Material:
    def some(data: Dataset) -> Dataset:
        count = math.ceil(options.share * len(data))
        return data.select([number * len(data) // count for number in range(count)])

    with story.step("Load") as step:
        folder = str(examples / "data" / "pronouns")
        rows = load_dataset(folder)
        sentences = load_dataset(folder, "neutral", split="neutral")
        neutral = {name: sentences.filter(lambda row, n=name: row["split"] == n) for name in ("validation", "test")}
        material = _Material(
            examples / "base_models" / options.base,
            {name: some(data) for name, data in rows.items()},
            {name: some(data) for name, data in neutral.items()},
        )
        counts = ", ".join(f"{len(data):,} {name}" for name, data in material.rows.items())
        step.outcome = f"sentences with a slot for he, she, it (3SG) or they (3PL): {counts}"
    return material


def _learn(material: _Material, folder: Path, options: DemoOptions, story: Story) -> GradiendTrainer:
    with story.step("Learn") as step:
        args = GradiendTrainingArguments(
            output_dir=str(folder),
            seed=options.seed,
            max_steps=options.max_steps or -1,
            save_strategy="no",
            quality_tokens=math.ceil(options.share * SCORED_TOKENS),
            controls=1,
            disable_tqdm=True,
        )
        trainer = GradiendTrainer(
            material.base,
            GradiendConfig(feature_classes=list(CLASSES)),
            args,
            train_dataset=material.rows["train"],
            eval_dataset=material.rows["validation"],
            neutral_dataset=material.neutral["validation"],
        )
        follow(trainer, story)
        trainer.train()
        size = sum(p.numel() for p in trainer.base_model.parameters())
        step.outcome = (
            f"{trainer.state.global_step} steps on the gradients of {type(trainer.base_model).__name__} "
            f"({size / 1e6:.1f}M parameters, {trainer.scope.size / 1e6:.1f}M in scope); its weights stay as they are"
        )
    return trainer


def _measure(trainer: GradiendTrainer, material: _Material, story: Story) -> None:
    with story.step("Calibrate") as step:
        trainer.evaluate()
        split = trainer.report.splits["eval"]
        limit = f"; it is limited by {set_label(split.unit_limit)}" if split.unit_limit else ""
        step.outcome = (
            f"{len(split.search)} doses tried on the validation split; strength 1 is the one that rewrites best while the "
            f"model keeps {trainer.args.quality_floor:.0%} of its quality on all text that is read{limit}"
        )
    with story.step("Test") as step:
        trainer.evaluate(material.rows["test"], metric_key_prefix="test", neutral_dataset=material.neutral["test"])
        step.outcome = encoder_line(trainer.report.splits["test"])


def _save(trainer: GradiendTrainer, repo_id: str | None, story: Story) -> str | None:
    """Save the artifact and push it; the repository's address."""
    folder = Path(trainer.args.output_dir)
    with story.step("Save") as step:
        trainer.save_model()
        step.outcome = f"{folder} ({megabytes(folder_size(folder))})"
    if repo_id is None:
        return None
    with story.step("Push") as step:
        commit = publish_folder(folder, repo_id, commit_message="Demo: 3SG / 3PL direction")
        url = f"{constants.ENDPOINT}/{commit.repo_url.repo_id}"
        step.outcome = f"one commit, {commit.oid[:8]}, to {url}"
    return url


def _load_again(trainer: GradiendTrainer, material: _Material, repo_id: str | None, story: Story) -> GradiendModel:
    """The direction as everybody else gets it: from the Hub or from the folder, on a fresh base model."""
    rows = material.rows["test"].select(range(CHECKED_ROWS))
    before = GradiendModel.from_direction(trainer.base_model, trainer.direction, trainer.gradiend_config)
    expected = before.encode(rows)
    before.unload()
    where = repo_id or trainer.args.output_dir
    with story.step("Pull" if repo_id else "Load again") as step:
        model = GradiendModel.from_pretrained(where, base_model=str(material.base), strength=1.0)
        if not torch.equal(model.encode(rows), expected):
            raise ArtifactError(
                f"The direction from {where} encodes {CHECKED_ROWS} rows differently than the learned one."
            )
        step.outcome = f"from {where}; it encodes {CHECKED_ROWS} test rows to the same bits as before"
    return model


def _rewrite(model: GradiendModel, trainer: GradiendTrainer, story: Story) -> None:
    with story.step("Rewrite") as step:
        found = {text: {s: guesses(model, trainer.objective, text, s, top=3) for s in STRENGTHS} for text in SENTENCES}
        step.outcome = "the model's three best guesses, at three strengths:"
    styles = class_styles(model)
    for text, at_strength in found.items():
        story.show(Text(f"\n{text}", style="bold"))
        for table in guesses_tables(at_strength, styles, width=story.console.width):
            story.show(table)
    story.show()


def _merge(model: GradiendModel, trainer: GradiendTrainer, material: _Material, folder: Path, story: Story) -> None:
    """Merge at strength 1 and hold the plain checkpoint, and strength 0, to the bits of what they must equal."""
    slots = _slots(trainer, material)
    auto = trainer.objective.auto_class
    with story.step("Undo") as step:
        base = load_base_model(material.base, objective=trainer.objective.name)
        with model.strength_at(0.0):
            at_zero = _logits(model, slots)
        if not torch.equal(at_zero, _logits(base, slots)):
            raise EditError("Strength 0 does not give the base model's logits to the bit.")
        step.outcome = "strength 0 gives the base model's logits to the bit"
    with story.step("Merge") as step:
        live = _logits(model, slots)
        tokenizer = model.tokenizer
        merged = model.merge_and_unload()
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if not torch.equal(_logits(auto.from_pretrained(folder).eval(), slots), live):
            raise EditError(f"The merged model in {folder} does not give the edited model's logits to the bit.")
        step.outcome = f"{auto.__name__} reads {folder} and gives the edited model's logits to the bit"


def _slots(trainer: GradiendTrainer, material: _Material) -> Batch:
    rows: list[Row] = read_rows(material.rows["test"].select(range(CHECKED_ROWS)), CLASSES, need_both=False)
    return trainer.objective.collate([trainer.objective.example(row).factual for row in rows])


def _logits(model: nn.Module, slots: Batch) -> Tensor:
    """Logits at every position: [rows, tokens, vocabulary]."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits: Tensor = model(**slots.to(device).inputs).logits
    return logits.cpu()


def _summary(trainer: GradiendTrainer, material: _Material, out: Path, url: str | None, story: Story) -> dict[str, Any]:
    """Print the figures of the demo, and how to go on; return them."""
    folder, split = Path(trainer.args.output_dir), trainer.report.splits["test"]
    story.show(Text("\nIn figures (test split)\n", style="bold"))
    story.show(curve_table(split, CLASSES, STRENGTHS))
    story.show()
    table = pairs_table()
    table.add_row("encoder", encoder_line(split))
    base, merged = (megabytes(folder_size(path, "*.safetensors")) for path in (material.base, out / "merged"))
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    weights = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    table.add_row("sizes", f"{weights}; base model {base} (stored in half precision), merged {merged}")
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in story.seconds.items())
    table.add_row("seconds", f"{sum(story.seconds.values()):.1f} in all: {parts}")
    table.add_row("card", str(folder / CARD_FILE))
    if url:
        here = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        table.add_row("repository", "on a Hub server on this machine, which ends with `make demo`" if here else url)
    story.show(table)
    attempts = [[*program(), "apply", str(folder), TRY_IT], [*program(), "info", str(folder)]]
    story.show("\nGo on with")
    for words in attempts:
        story.show(command_lines(words, story.console.width), soft_wrap=True)
    return {
        "folder": folder,
        "merged": out / "merged",
        "repository": url,
        "report": asdict(split),
        "sizes": sizes,
        "seconds": story.seconds,
        "try": [shlex.join(words) for words in attempts],
    }
