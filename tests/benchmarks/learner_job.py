"""Our half of a comparison with the reference: the job of `reference.py`, done by this package in a process of its own.

    python -m tests.benchmarks.learner_job JOB.json

Beside what the reference reads, `our_batch_size` may say that its steps × batch_size rows are read in other portions, and
`controls` how many random directions an evaluation compares with. One line of JSON with the same names of figures; and,
for the memory that a run may need, `base_mib` (with the base model loaded) and `activations_mib` (peak growth in a bare
forward and backward pass over the longest batch).
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.objectives import PairBatch

from .measure import peak_growth, read_jsonl

CLASSES = ["3SG", "3PL"]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Process times at which steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())

    def step_seconds(self) -> float:
        """Median of a step without the first, in which the optimizer allocates its state."""
        return statistics.median(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))


def bare_pair(trainer: GradiendTrainer, batch: PairBatch) -> None:
    """What a step needs at least: one forward pass, logits at the slots, and two backward passes."""
    parameters = list(trainer.scope.parameters.values())
    factual, alternative = trainer.objective.losses(trainer.base_model, batch)
    torch.autograd.grad(alternative.mean(), parameters, retain_graph=True)
    torch.autograd.grad((factual - alternative).mean(), parameters)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train, and evaluate as far as the job says; CPU seconds of each part."""
    torch.set_num_threads(job["threads"])
    transformers_logging.disable_progress_bar()
    rows = [row for path in job["rows"] for row in read_jsonl(path)]
    splits = {name: [r for r in rows if r["split"] == name] for name in ("train", "validation", "test")}
    texts = read_jsonl(job["neutral"])[: job["neutral_texts"]]
    figures: dict[str, Any] = {"imported_mib": peak_mib()}
    base = load_base_model(job["model"]).eval()
    figures["base_mib"] = peak_mib()

    def timed(name: str, work: Any) -> Any:
        start = time.process_time(), time.perf_counter()
        result = work()
        figures[f"{name}_cpu_s"] = time.process_time() - start[0]
        figures[f"{name}_wall_s"] = time.perf_counter() - start[1]
        figures[f"{name}_peak_mib"] = peak_mib()
        return result

    clock = Clock()

    def train() -> GradiendTrainer:
        portion = job.get("our_batch_size", job["batch_size"])
        arguments = GradiendTrainingArguments(
            folder, solver="autoencoder",
            max_steps=job["steps"] * job["batch_size"] // portion, per_device_train_batch_size=portion, seed=0,
            num_runs=job["seeds"], controls=job.get("controls", 3), use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = GradiendTrainer(
            base, GradiendConfig(feature_classes=CLASSES), arguments, train_dataset=splits["train"],
            eval_dataset=splits["validation"], neutral_dataset=texts, callbacks=[clock],
        )  # fmt: skip
        if "activations_mib" not in figures:  # before memory is at hand that training has freed
            figures["activations_mib"] = _activations(trainer)
        trainer.train()
        return trainer

    trainer = timed("train", train)  # all seeds on one stream of gradients; the best one is evaluated
    figures |= {
        "step_s": clock.step_seconds(),
        "kept": trainer.scope.size,
        "steps": job["seeds"] * (len(clock.ends) - 1),
    }
    if job["evaluate"] != "none":
        timed("evaluate", trainer.evaluate)
        model = GradiendModel.from_direction(base, trainer.direction, trainer.gradiend_config)
        h = timed("encoder", lambda: model.encode(splits["test"]))
        signs = torch.tensor([1.0 if row["alternative_class"] == CLASSES[0] else -1.0 for row in splits["test"]])
        figures |= {"encoder_rows": len(h), "correlation": float(torch.corrcoef(torch.stack([h, signs]))[0, 1])}
        model.unload()
    return figures


def _activations(trainer: GradiendTrainer) -> float:
    """Peak growth in the bare passes over the longest batch, with gradients freed as they arrive."""
    longest = sorted(trainer.train_dataset.examples, key=lambda e: e.cost)[-trainer.args.train_batch_size :]
    batch = trainer.objective.collate_pairs(longest)
    parameters = list(trainer.scope.parameters.values())

    def free(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(free) for parameter in parameters]

    def passes() -> None:
        factual, alternative = trainer.objective.losses(trainer.base_model, batch)
        alternative.mean().backward(retain_graph=True, inputs=parameters)
        (factual - alternative).mean().backward(inputs=parameters)

    growth = peak_growth(passes)
    for handle in handles:
        handle.remove()
    return growth


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace, contextlib.redirect_stdout(sys.stderr):
        result = run(json.loads(Path(sys.argv[1]).read_text()), workspace)
    print(json.dumps(result))
