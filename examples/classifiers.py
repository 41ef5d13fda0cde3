"""Directions of classifiers, of images and of sentences, in both meanings: what moves the decision, and what it depends on.

python examples/classifiers.py                                  # the bundled classifiers, in a few minutes
python examples/classifiers.py --ratings vaderSentiment-3.3.2.tar.gz    # sentences that people rated, instead of templates
python examples/classifiers.py --animals animal_mnist-0.4-py3-none-any.whl   # silhouettes of animals, too
python examples/classifiers.py --only "digits, label" --save out/classifiers

The source distribution is that of `pip download --no-deps --no-binary :all: vaderSentiment==3.3.2`, the wheel that of
`pip download --no-deps animal-mnist==0.4`. Nothing of either is run or unpickled.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "base_models"))
from labelled import animals, digits, sentiments

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A direction to learn: base model, classes, the rows of three splits, and rows without the feature, to measure on and,
    where the decoder is to spare them, to learn from."""

    model: str
    classes: tuple[str, str]
    rows: dict[str, Records]
    neutral: Records
    source: str = "factual"
    goal: str = "strengthen"
    neutral_train: Records | None = None


def parts(records: Records, train: int, held_out: int) -> dict[str, Records]:
    """Divide records: the first ones to learn from, as many to choose the strength unit on, and as many to measure."""
    ends = (0, train, train + held_out, train + 2 * held_out)
    return {n: records[a:b] for n, a, b in zip(("train", "validation", "test"), ends, ends[1:], strict=False)}


def digits_label() -> Task:
    """Return 3 against 8: the same image, the other label."""
    other, images = {"3": "8", "8": "3"}, digits()
    rows = [{"image": r.input, "label": r.label, "alternative": other[r.label]} for r in images if r.label in other]
    rest = [{"image": r.input, "label": r.label} for r in images if r.label not in other and r.split != "train"]
    spared = [{"image": r.input, "label": r.label} for r in images if r.label not in other and r.split == "train"]
    return Task("digits", ("3", "8"), parts(rows, 200, 78), rest, source="diff", neutral_train=spared[:400])


def animals_label(wheel: Path) -> Task:
    """Return cats against dogs, of silhouettes that the classifier has not seen."""
    other, unseen = {"cat": "dog", "dog": "cat"}, [row for row in animals(wheel) if row.split != "train"]
    rows = [{"image": r.input, "label": r.label, "alternative": other[r.label]} for r in unseen if r.label in other]
    rest = [{"image": r.input, "label": r.label} for r in unseen if r.label not in other]
    random.Random(0).shuffle(rows)
    random.Random(0).shuffle(rest)
    return Task("animals", ("cat", "dog"), parts(rows, 180, 90), rest[:400], source="diff", neutral_train=rest[400:800])


def digits_concept() -> Task:
    """Return bright against dim eights: the image at less than half its brightness, the same label."""
    rows, images = [], digits()
    for number, image in enumerate(row.input for row in images if row.label == "8"):
        inputs = {"bright": image, "dim": (image * 0.4).astype(np.uint8)}
        own, other = ("bright", "dim") if number % 2 else ("dim", "bright")
        pair = {"image": inputs[own], "counterfactual": inputs[other], "label": "8"}
        rows.append({**pair, "factual_class": own, "alternative_class": other})
    neutral = [{"image": r.input, "label": r.label} for r in images if r.label != "8" and r.split != "train"]
    return Task("digits", ("bright", "dim"), parts(rows, 80, 46), neutral, source="diff")


ADJECTIVES = {
    "positive": "good great happy beautiful wonderful excellent nice pleasant brave strong rich glad kind better best",
    "negative": "bad terrible sad ugly awful horrible evil unpleasant cruel weak poor angry nasty worse worst",
}
FRAMES = (
    "The {} {} was told again.",
    "We saw a {} {}.",
    "It was a {} {} for us.",
    "They had a {} {} there.",
    "I remember that {} {}.",
    "What a {} {}!",
)
THINGS = ("story", "film", "day", "house", "teacher", "song", "meal", "letter")
PLACES = ("shop", "bank", "school", "museum", "station", "library", "office", "market", "port", "church")
PLAIN = ("The {} opens at nine.", "The {} is on the left.", "There is a {} in the town.", "He works in the {}.")


def sentences_label(ratings: Path | None) -> Task:
    """Return positive against negative: the same sentence, the other label."""
    other, rng = {"positive": "negative", "negative": "positive"}, random.Random(0)
    if ratings is None:
        words = [(word, name) for name, found in ADJECTIVES.items() for word in found.split()]
        found = [(frame.format(word, thing), name) for word, name in words for frame in FRAMES for thing in THINGS]
        neutral = [{"text": frame.format(place), "label": "neutral"} for frame in PLAIN for place in PLACES]
    else:
        rated = [row for row in sentiments(ratings) if row.split != "train"]  # that the classifier has not seen
        found = [(row.input, row.label) for row in rated if row.label in other]
        neutral = [{"text": row.input, "label": row.label} for row in rated if row.label not in other]
    rng.shuffle(found)
    rows = [{"text": text, "label": label, "alternative": other[label]} for text, label in found]
    return Task("sentiment", ("positive", "negative"), parts(rows, 300, 150), neutral[::2], neutral_train=neutral[1::2])


def sentences_concept() -> Task:
    """Return he against she in negative sentences: the pronoun exchanged, the same label."""
    frames = ("{} felt {} again.", "I think {} is {}.", "{} had a {} day.", "They said that {} was {}.")
    found = []
    for number, (word, frame) in enumerate((w, f) for w in ADJECTIVES["negative"].split() for f in frames):
        own, other = ("he", "she") if number % 2 else ("she", "he")
        texts = [frame.format(who.capitalize() if frame.startswith("{}") else who, word) for who in (own, other)]
        classes = {"factual_class": own, "alternative_class": other}
        found.append({"text": texts[0], "counterfactual": texts[1], "label": "negative", **classes})
    random.Random(0).shuffle(found)
    neutral = [{"text": frame.format(place), "label": "neutral"} for frame in PLAIN[:3] for place in PLACES]
    return Task("sentiment", ("he", "she"), parts(found, 28, 16), neutral, source="diff", goal="debias")


def learned(task: Task, folder: Path) -> tuple[GradiendTrainer, float]:
    """Learn, measure and save a direction. Returns the trainer and its CPU seconds."""
    start = time.process_time()
    trainer = GradiendTrainer(
        HERE / "base_models" / task.model,
        GradiendConfig(feature_classes=list(task.classes), source=task.source),
        GradiendTrainingArguments(
            str(folder),
            solver="closed_form",
            decoder="damage_aware" if task.neutral_train else "solver",
            quality_floor=0.9,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            goal=task.goal,
            seed=0,
        ),
        train_dataset=task.rows["train"],
        eval_dataset=task.rows["validation"],
        test_dataset=task.rows["test"],
        neutral_dataset=task.neutral,
        neutral_train_dataset=task.neutral_train,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate_test()
    trainer.save_model()
    return trainer, time.process_time() - start


COLUMNS = (
    "direction", "test rows", "correlation (by chance)", "AUC", "neutral abs. h", "strength", "effect [95 %]", "random",
    "KL on neutral rows", "accuracy on them", "CPU s",
)  # fmt: skip


def table_rows(name: str, trainer: GradiendTrainer, seconds: float) -> list[str]:
    """Two lines of the table: what the direction does at +1 and at -1 on the test rows."""
    report = trainer.report
    split, (first, second) = report.splits["test"], report.feature_classes
    encoder, zero = split.encoder, split.at(0.0)
    assert encoder is not None
    lines = []
    for strength, wanted, other in ((1.0, first, second), (-1.0, second, first)):
        point, control = split.at(strength), split.control_range(strength, wanted, other)
        low, high = point.effect_interval or (float("nan"), float("nan"))
        chance = ", ".join(f"{end:+.2f}" for end in encoder.null_correlation or ())
        cells = [
            name,
            str(sum(encoder.rows.values())),
            f"{encoder.correlation:.3f} ({chance})",
            f"{encoder.auc:.3f}",
            f"{encoder.neutral_abs_mean:.3f}",
            f"{strength:+g}",
            f"P({wanted}) {zero.probability[other][wanted]:.3f} → {point.effect:.3f} [{low:.3f}, {high:.3f}]",
            "–" if control is None else f"{control[0]:.3f} … {control[1]:.3f}",
            f"{point.kl:.4f}",
            f"{zero.accuracy:.3f} → {point.accuracy:.3f}",
            f"{seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Learn the directions, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=Path, help="source distribution of vaderSentiment")
    parser.add_argument("--animals", type=Path, help="wheel of animal-mnist")
    parser.add_argument("--only", help="name of one of the directions")
    parser.add_argument("--save", type=Path, help="folder for the directions and their cards")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tasks: dict[str, Callable[[], Task]] = {
        "digits, label": digits_label,
        "digits, concept": digits_concept,
        "sentences, label": lambda: sentences_label(args.ratings),
        "sentences, concept": sentences_concept,
    }
    if args.animals is not None:
        tasks["animals, label"] = lambda: animals_label(args.animals)
    if args.only is not None and args.only not in tasks:
        parser.error(f"--only: expected one of {', '.join(tasks)}")
    folder = args.save or Path(tempfile.mkdtemp())
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    decided = []
    for name in [args.only] if args.only else tasks:
        trainer, seconds = learned(tasks[name](), folder / name.replace(", ", "-"))
        print("\n".join(table_rows(name, trainer, seconds)), flush=True)
        for d in trainer.report.splits["test"].decisions:
            right = ", ".join(f"{of} {share:.3f}" for of, share in d.accuracy.items())
            flips = "" if d.flipped is None else f"; counterfactuals decided otherwise {d.flipped:.3f}"
            at = f"{d.strength:+g}" if d.strength else "0"
            decided.append(f"{name} at {at}: accuracy on {right}; changed {d.changed:.3f}{flips}")
    print("\n" + "\n".join(decided))


if __name__ == "__main__":
    main()
