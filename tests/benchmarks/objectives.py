"""One table: objective × model × data, with what the encoder reads and what strength ±1 changes and costs.

    python -m tests.benchmarks.objectives [FOLDER_OF_A_CAUSAL_MODEL] [--quick]

The pronoun set is read from the left alone (`causal_lm`), with some and with all of the right context (`cloze`), and by the
bundled encoder-decoder model where there is one; the preference sets with both reductions of their loss.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = (
    "objective",
    "data",
    "rows",
    "correlation",
    "AUC",
    "neutral abs. h",
    "P before",
    "P at −1, +1",
    "random",
    "quality",
    "CPU s",
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def jobs(causal: Path, quick: bool) -> Iterator[tuple[Path, str, dict[str, Any], str]]:
    """Model, objective, its options, and folder of the data."""
    for right in (None, 0, 2, "all") if quick else (None, 0, 1, 2, 4, 8, "all"):
        yield (
            causal,
            "causal_lm" if right is None else "cloze",
            {} if right is None else {"right_context": right},
            "pronouns",
        )
    if (seq2seq := EXAMPLES / "base_models" / "seq2seq").is_dir():
        yield seq2seq, "seq2seq", {}, "pronouns"
    sets = sorted(path.name for path in (EXAMPLES / "data" / "preferences").iterdir())
    for name in sets[:1] if quick else sets:
        for per_token in (True, False):
            yield causal, "preference", {"per_token": per_token}, f"preferences/{name}"


def measured(model: Path, objective: str, options: dict[str, Any], data: str, rows: int) -> list[str]:
    """Learn and measure one direction: the cells of its line."""
    began, folder = time.process_time(), EXAMPLES / "data" / data
    train, held_out = (rows_of(folder / f"{split}.jsonl") for split in ("train", "validation"))
    texts = [row for row in rows_of(EXAMPLES / "data" / "pronouns" / "neutral.jsonl") if row["split"] == "validation"]
    classes = [name for name in train[0] if name != "prompt"] if "prompt" in train[0] else ["3SG", "3PL"]
    with tempfile.TemporaryDirectory() as out:
        trainer = GradiendTrainer(
            model,
            GradiendConfig(feature_classes=classes, objective=objective, objective_options=options or None,
                source="diff" if objective == "preference" else "alternative",
            ),
            GradiendTrainingArguments(
                out, solver="closed_form", controls=2, disable_tqdm=True, logging_strategy="no", save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=train[:rows], eval_dataset=held_out[: rows // 3], neutral_dataset=texts[:60],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.evaluate()
    split = trainer.report.splits["eval"]
    encoder, (down, zero, up) = split.encoder, (split.at(s) for s in (-1.0, 0.0, 1.0))
    assert encoder is not None
    first, second = classes

    def random(strength: float, wanted: str, other: str) -> str:
        found = split.control_range(strength, wanted, other)
        return "–" if found is None else f"{found[1]:.2f}"

    name = objective + "".join(f", {k} {v}" for k, v in options.items())
    before = (zero.reading(second, first).value or 0, zero.reading(first, second).value or 0)
    return [
        name, data, str(len(trainer.train_dataset)), f"{encoder.correlation or 0:.3f}", f"{encoder.auc or 0:.3f}",
        f"{encoder.neutral_abs_mean or 0:.3f}", f"{before[0]:.2f}, {before[1]:.2f}",
        f"{down.effect or 0:.2f}, {up.effect or 0:.2f}", f"{random(-1.0, second, first)}, {random(1.0, first, second)}",
        f"{down.quality or 0:.3f}, {up.quality or 0:.3f}", f"{time.process_time() - began:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("causal", type=Path, nargs="?", default=EXAMPLES / "base_models" / "causal")
    parser.add_argument("--quick", action="store_true", help="fewer rows and lines")
    parser.add_argument("--only", help="only lines whose objective begins so")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    for job in jobs(args.causal, args.quick):
        if job[1].startswith(args.only or ""):
            print("| " + " | ".join(measured(*job, rows=120 if args.quick else 320)) + " |", flush=True)


if __name__ == "__main__":
    main()
