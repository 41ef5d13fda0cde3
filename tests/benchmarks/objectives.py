"""One table: objective × model × data, with what the encoder reads and what strength ±1 changes and costs.

    python -m tests.benchmarks.objectives [FOLDER_OF_A_CAUSAL_MODEL] [--quick] [--only BEGINNING_OF_AN_OBJECTIVE]

The pronoun set is read from the left alone (`causal_lm`), with some and with all of the right context (`cloze`), by the
bundled masked model and by the bundled encoder-decoder model; the preference sets with both reductions of their loss;
classifiers of images and sentences in both meanings of a direction, as in `examples/classifiers.py`; and one of words,
trained here for a moment. Each is learned a second time with its classes dealt out by coin, the null result.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.evaluation import SplitReport, StrengthPoint
from gradiend_hub.evaluation.damage import set_label
from tests.objectives.tagging import tagged, tagger_records, train_tagger

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = (
    "objective", "model", "data", "rows", "correlation (by chance)", "AUC", "neutral abs. h", "strength", "effect", "random",
    "lowest quality", "by coin", "CPU s",
)  # fmt: skip

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A direction to learn and measure.

    Attributes:
        objective: its name, and `options` of it.
        model: folder of the base model.
        data: how the table calls the data.
        config: fields of `GradiendConfig` beside classes and objective.
        arguments: of the training, beside the usual ones.
        spared: neutral rows to learn from.
    """

    objective: str
    model: Path
    data: str
    classes: tuple[str, str]
    train: Records
    held_out: Records
    neutral: Records
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    spared: Records | None = None

    def trainer(self, train: Records, held_out: Records, fillers: Any = None) -> GradiendTrainer:
        """Learn the direction."""
        config = {
            "objective": self.objective,
            "objective_options": self.options or None,
            "fillers": fillers,
            **self.config,
        }
        usual = {"solver": "closed_form", "decoder": "solver", "controls": 2, "use_cpu": True, "save_strategy": "no"}
        usual |= {"disable_tqdm": True, "logging_strategy": "no"}
        trainer = GradiendTrainer(
            self.model,
            GradiendConfig(feature_classes=list(self.classes), **config),
            GradiendTrainingArguments(tempfile.mkdtemp(), **{**usual, **self.arguments}),
            train_dataset=train,
            eval_dataset=held_out,
            neutral_dataset=self.neutral,
            neutral_train_dataset=self.spared,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer


def rows_of(path: Path) -> Records:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------------ what there is


def jobs(causal: Path, quick: bool, folder: Path) -> Iterator[Job]:
    """Every line of the table. `folder` is for a model that is made here."""
    models, rows = EXAMPLES / "base_models", 120 if quick else 320
    yield pronouns(models / "masked", "masked_lm", rows)
    for right in (None, 0, 2, "all") if quick else (None, 0, 1, 2, 4, 8, "all"):
        options = {} if right is None else {"right_context": right}
        yield pronouns(causal, "causal_lm" if right is None else "cloze", rows, options)
    for name in ("seq2seq", "t5"):
        yield pronouns(models / name, "seq2seq", rows)
    sets = sorted(path.name for path in (EXAMPLES / "data" / "preferences").iterdir())
    for name in sets[:2] if quick else sets:
        for per_token in (True, False):
            yield preferences(causal, name, {"per_token": per_token})
    yield from classifiers()
    yield words(folder)


def pronouns(model: Path, objective: str, rows: int, options: dict[str, Any] | None = None) -> Job:
    """Singular against plural of the third person."""
    place = EXAMPLES / "data" / "pronouns"
    train, held_out = (rows_of(place / f"{split}.jsonl") for split in ("train", "validation"))
    texts = [row for row in rows_of(place / "neutral.jsonl") if row["split"] == "validation"][:60]
    data = (train[:rows], held_out[: rows // 3], texts)
    return Job(objective, model, "pronouns", ("3SG", "3PL"), *data, options or {}, {"source": "alternative"})


def preferences(model: Path, name: str, options: dict[str, Any]) -> Job:
    """Two ways to answer."""
    place = EXAMPLES / "data" / "preferences" / name
    train, held_out = (rows_of(place / f"{split}.jsonl") for split in ("train", "validation"))
    texts = [row for row in rows_of(EXAMPLES / "data" / "pronouns" / "neutral.jsonl") if row["split"] == "validation"][
        :60
    ]
    first, second = (column for column in train[0] if column != "prompt")
    return Job("preference", model, name, (first, second), train, held_out, texts, options, {"source": "diff"})


def classifiers() -> Iterator[Job]:
    """The directions of `examples/classifiers.py`."""
    sys.path.insert(0, str(EXAMPLES))
    import classifiers as example

    for data, kind, task in (
        ("digits 3 / 8", "image_classification", example.digits_label()),
        ("bright / dim eights", "image_concept", example.digits_concept()),
        ("templates", "text_classification", example.sentences_label(None)),
        ("he / she", "text_concept", example.sentences_concept()),
    ):
        arguments = {"quality_floor": 0.9, "decoder": "damage_aware" if task.neutral_train else "solver"}
        yield Job(
            kind, EXAMPLES / "base_models" / task.model, data, task.classes, task.rows["train"], task.rows["test"],
            task.neutral, {}, {"source": task.source}, arguments, task.neutral_train,
        )  # fmt: skip


def words(folder: Path) -> Job:
    """Singular against plural nouns, by a classifier of words that is trained here."""
    sentences = tagged(240)
    train_tagger(EXAMPLES / "base_models" / "masked", folder, sentences)
    rows, neutral = tagger_records(sentences)
    data = (("SINGULAR", "PLURAL"), rows[:120], rows[160:240], neutral[160:240])
    return Job("token_classification", folder, "nouns", *data, arguments={"quality_floor": 0.9})


# ------------------------------------------------------------------------------------------------------------- its figures


def by_coin(records: Records, classes: Sequence[str], rng: random.Random) -> Records:
    """The same records, the classes of each dealt out by coin."""
    found = []
    for record in records:
        named = [
            record.get("factual_class", record.get("label")),
            record.get("alternative_class", record.get("alternative")),
        ]
        swap = rng.random() < 0.5
        if {*classes} <= record.keys():  # a pair of completions
            first, second = classes
            record = {**record, first: record[second], second: record[first]} if swap else record
        else:
            record = {
                **record,
                **dict(zip(("factual_class", "alternative_class"), named[::-1] if swap else named, strict=True)),
            }
        found.append(record)
    return found


def measured(job: Job) -> list[str]:
    """Learn and measure one direction: a line for each sign."""
    began = time.process_time()
    trainer = job.trainer(job.train, job.held_out)
    trainer.evaluate()
    seconds, split = time.process_time() - began, trainer.report.splits["eval"]
    rng, plain = random.Random(0), replace(job, arguments={**job.arguments, "decoder": "solver"}, spared=None)
    null = plain.trainer(
        by_coin(job.train, job.classes, rng), by_coin(job.held_out, job.classes, rng), trainer.gradiend_config.fillers
    )
    encoder, lines = split.encoder, []
    assert encoder is not None
    chance = " … ".join(f"{end:+.2f}" for end in encoder.null_correlation or ())
    same = [
        job.objective + "".join(f", {name} {value}" for name, value in job.options.items()), job.model.name, job.data,
        str(len(trainer.train_dataset)),
        f"{shown(encoder.correlation, encoder.intervals.get('correlation'))} ({chance})", f"{encoder.auc or 0:.3f}",
        shown(encoder.neutral_abs_mean, encoder.intervals.get("neutral_abs_mean")),
    ]  # fmt: skip
    assert null.direction.entries  # it is judged when it is made
    flagged = {False: "not learned", None: "not judged", True: "LEARNED"}[null.report.converged]
    for strength, wanted, other in ((1.0, *job.classes), (-1.0, *job.classes[::-1])):
        control, last = split.control_range(strength, wanted, other), [flagged, f"{seconds:.0f}"]
        own = [
            f"{strength:+g}", effect_of(split, strength, wanted, other),
            "–" if control is None else f"{control[0]:.2f} … {control[1]:.2f}", quality_of(split.at(strength)),
        ]  # fmt: skip
        cells = [*([""] * len(same) if lines else same), *own, *(["", ""] if lines else last)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def effect_of(split: SplitReport, strength: float, wanted: str, other: str) -> str:
    """The probability of a class on rows of the other one, before and at a strength."""
    point, before = split.at(strength), split.at(0.0).reading(wanted, other).value
    return f"P({wanted}) {before or 0:.2f} → {shown(point.effect, point.effect_interval, 2)}"


def quality_of(point: StrengthPoint) -> str:
    """The lowest quality of all damage sets with its interval, and which set that is."""
    found = point.worst(bound=False)
    if found is None:
        return "–"
    name, value = found
    damage = point.damage.get(name)
    bounds = None if damage is None else damage.intervals.get(damage.counted_as(name))
    return f"{shown(value, bounds)} ({set_label(name)})"


def shown(value: float | None, interval: Sequence[float] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (
        "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("causal", type=Path, nargs="?", default=EXAMPLES / "base_models" / "causal")
    parser.add_argument("--quick", action="store_true", help="fewer rows and lines")
    parser.add_argument("--only", default="", help="only lines whose objective begins so")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(args.causal, args.quick, Path(folder, "tagger")):
            if job.objective.startswith(args.only):
                print("\n".join(measured(job)), flush=True)


if __name__ == "__main__":
    main()
