"""Shared by the feature examples: options, text, and learning directions from a set that was built."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import FeatureData

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Learned:
    """A direction and the correlation of its encodings with the classes, on rows that were not learned from."""

    feature: str
    pair: tuple[str, str]
    train_rows: int
    test_rows: int
    correlation: float
    held_out: str
    trainer: GradiendTrainer


def options(description: str, model: str) -> argparse.Namespace:
    """Options of every example."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=model, help="folder or Hub id of the base model")
    parser.add_argument("--text", help="text file (txt, CSV, Parquet, JSON lines), or Hub id, to build the set from")
    parser.add_argument("--offline", action="store_true", help="the bundled model and text instead of the Hub's")
    parser.add_argument("--max-rows", type=int, default=400, help="rows of each class")
    parser.add_argument("--save", type=Path, help="folder for the set and its card")
    args = parser.parse_args()
    if args.offline and args.model == model:
        args.model = str(HERE / "base_models" / "masked")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    return args


def english_text(args: argparse.Namespace, online: object) -> object:
    """Return the source that is named, else that of the Hub or, offline, the sentences of the bundled set."""
    return args.text or (list(bundled_sentences()) if args.offline else online)


def bundled_sentences() -> Iterator[str]:
    """Yield the bundled rows with their slots filled, and the bundled neutral sentences."""
    for path in sorted((HERE / "data" / "pronouns").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["text"] if "text" in row else row["masked"].replace("[MASK]", row["factual"])


def show(data: FeatureData, args: argparse.Namespace) -> None:
    """Print what became of the text, and the classes that came of it."""
    print(data.funnel)
    for name in data.config.classes:
        counts = {split: part["factual_class"][:].count(name) for split, part in data.rows.items()}
        print(f"  {name}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    if args.save:
        print("saved in", data.save(args.save, overwrite=True))


def learn(
    feature: str,
    rows: DatasetDict,
    pair: tuple[str, str],
    args: argparse.Namespace,
    *,
    neutral: Dataset | None = None,
    held_out: str = "texts",
) -> Learned:
    """Learn the direction between two classes, and encode the test rows."""
    of_pair = DatasetDict(
        {
            name: part.filter(lambda row: {row["factual_class"], row["alternative_class"]} == {*pair})
            for name, part in rows.items()
        }
    )
    trainer = GradiendTrainer(
        load_base_model(args.model),
        GradiendConfig(feature_classes=list(pair)),
        GradiendTrainingArguments(
            tempfile.mkdtemp(),
            solver="autoencoder",  # the papers'
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            use_cpu=args.offline,
            seed=0,
        ),
        train_dataset=of_pair["train"],
        eval_dataset=of_pair["validation"],
        neutral_dataset=neutral,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model = GradiendModel.from_direction(trainer.base_model, trainer.direction, trainer.gradiend_config)
    encoded = np.asarray(model.encode(of_pair["test"]), dtype=float)
    model.unload()
    labels = np.array([1.0 if row["factual_class"] == pair[0] else -1.0 for row in of_pair["test"]])
    correlation = float(np.corrcoef(encoded, labels)[0, 1])
    return Learned(feature, pair, len(of_pair["train"]), len(labels), correlation, held_out, trainer)


def learn_pairs(
    feature: str, rows: DatasetDict, classes: Iterable[str], args: argparse.Namespace, held_out: str = "texts"
) -> list[Learned]:
    """A direction for every pair of classes."""
    return [learn(feature, rows, pair, args, held_out=held_out) for pair in combinations(classes, 2)]


def table(results: Iterable[Learned], args: argparse.Namespace) -> str:
    """The directions, as Markdown."""
    lines = [
        f"Base model: {Path(args.model).name}",
        "",
        "| feature | classes | training rows | test rows | held out | correlation |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        names, rows = f"{r.pair[0]} / {r.pair[1]}", f"{r.train_rows} | {r.test_rows}"
        lines.append(f"| {r.feature} | {names} | {rows} | {r.held_out} | {r.correlation:.3f} |")
    return "\n".join(lines)


def from_templates(templates: Sequence[str], words: Iterable[str]) -> dict[str, list[str]]:
    """Every word in every template, and which template a text is of."""
    pairs = [(frame.format(word), f"template {number}") for number, frame in enumerate(templates) for word in words]
    return {"text": [text for text, _ in pairs], "template": [name for _, name in pairs]}
