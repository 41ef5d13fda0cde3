"""Runs the reference package (gradiend 0.2.3) on given rows and prints what it took as one line of JSON.

Started by `bench_learner` and `bench_evaluation` with the interpreter of an environment that holds the reference; nothing of
this project is imported here. The job comes as a JSON file, the only argument:

    model, rows (JSON Lines of train/validation/test with our columns), neutral (JSON Lines with `text`), steps, batch_size,
    learning_rate, seeds, max_length (null: the package's own), evaluate ("none" | "encoder" | "decoder" | "all"),
    eval_rows, decoder_rows, neutral_texts, decoder_grid (null: the package's own), threads
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="agg", TOKENIZERS_PARALLELISM="false")

import pandas as pd  # type: ignore[import-not-found,import-untyped]
import torch
from gradiend import TextPredictionTrainer, TrainingArguments  # type: ignore[import-not-found]
from gradiend.trainer import TrainingCallback  # type: ignore[import-not-found]


class Clock(TrainingCallback):  # type: ignore[misc]
    """Process times at which steps began and ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, config: Any, **_: Any) -> None:
        self.ends.append(time.process_time())

    def on_step_end(self, step: int, loss: float, model: Any, config: Any, **_: Any) -> None:
        self.ends.append(time.process_time())

    def step_seconds(self) -> float:
        """Median of a step without the first, in which the optimizer allocates its state."""
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(steps[1:] or steps)


def table(job: dict[str, Any]) -> pd.DataFrame:
    """All rows in the columns that the package reads by default."""
    rows = pd.concat([pd.read_json(path, lines=True) for path in job["rows"]], ignore_index=True)
    return rows.rename(columns={"factual": "label", "factual_class": "label_class"})


def limit_length(longest: int) -> None:
    """Pad to `longest` in place of the 256 tokens that no argument of the package can change."""
    from gradiend.trainer.text.prediction.dataset import TextTrainingDataset  # type: ignore[import-not-found]

    original = TextTrainingDataset.__init__

    def limited(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"max_length": longest, **kwargs})

    TextTrainingDataset.__init__ = limited


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train, and evaluate as far as the job says; CPU seconds of each part."""
    torch.set_num_threads(job["threads"])
    if job["max_length"] is not None:
        limit_length(job["max_length"])
    arguments = TrainingArguments(
        experiment_dir=folder,
        train_batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        max_steps=job["steps"],
        num_train_epochs=1000,  # the package stops at whichever comes first
        max_seeds=job["seeds"],
        min_convergent_seeds=None,  # train them all
        do_eval=job["evaluate"] in ("encoder", "all"),
        eval_steps=job["steps"],
        encoder_eval_max_size=job["eval_rows"],
        decoder_eval_max_size_training_like=job["decoder_rows"],
        decoder_eval_max_size_neutral=job["neutral_texts"],
        decoder_eval_lrs=job["decoder_grid"],
    )
    neutral = pd.read_json(job["neutral"], lines=True).head(job["neutral_texts"])
    base_mib = peak_mib()
    trainer = TextPredictionTrainer(
        job["model"], data=table(job), target_classes=["3SG", "3PL"], eval_neutral_data=neutral, random_state=0,
        args=arguments,
    )  # fmt: skip
    clock = Clock()
    figures: dict[str, Any] = {}

    def timed(name: str, work: Any) -> Any:
        start = time.process_time(), time.perf_counter()
        result = work()
        figures[f"{name}_cpu_s"] = time.process_time() - start[0]
        figures[f"{name}_wall_s"] = time.perf_counter() - start[1]
        figures[f"{name}_peak_mib"] = peak_mib()
        return result

    timed("train", lambda: trainer.train(callbacks=[clock]))
    figures |= {"step_s": clock.step_seconds(), "steps": len(clock.ends) - job["seeds"], "imported_mib": base_mib}
    if job["evaluate"] in ("encoder", "all"):
        encoded = timed("encoder", lambda: trainer.evaluate_encoder(split="test", return_df=True))
        frame = encoded["encoder_df"]
        figures |= {"encoder_rows": len(frame), "correlation": encoded["correlation"]}
        figures["pair_rows"] = int((frame["type"] == "training").sum())
    if job["evaluate"] in ("decoder", "all"):
        decoded = timed("decoder", lambda: trainer.evaluate_decoder(target_class="3SG"))
        rows, texts = trainer._get_decoder_eval_dataframe(
            trainer.get_model().tokenizer
        )  # what it has just read at each point
        figures |= {"decoder_points": len(decoded["grid"]), "decoder_rows": len(rows), "decoder_texts": len(texts)}
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace, contextlib.redirect_stdout(sys.stderr):
        result = run(json.loads(Path(sys.argv[1]).read_text()), workspace)
    print(json.dumps(result))
