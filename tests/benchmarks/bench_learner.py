"""The learner: a training step, an encoding, a whole job and its memory, against the bare work and the reference package.

The reference (gradiend 0.2.3 on PyPI) is measured where `GRADIEND_REFERENCE_PYTHON` names the interpreter of an
environment of its own that has it (see the README here). Both sides read the same rows of examples/data/pronouns, with one
thread each, and CPU time is compared.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.gradients import directional_derivatives

from .learner_job import CLASSES, Clock, bare_pair
from .measure import EXAMPLES, MODELS, interleaved, line, plain_and_slots, read_jsonl, skipped

ROOT = Path(__file__).parents[2]
DATA = EXAMPLES / "data" / "pronouns"
REFERENCE_PYTHON = os.environ.get("GRADIEND_REFERENCE_PYTHON")


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    lines: list[dict[str, Any]] = []
    for name, path in MODELS.items():
        if not path.exists():
            lines.append(skipped("step, encoding", f"there is no {path.name} in {path.parent}", model=name))
        elif not (quick and name == "minilm"):
            lines += against_bare(name, path, quick)
    return lines + against_reference(quick)


# ---------------------------------------------------------------------------------------------- against the bare work


class TimedTrainer(GradiendTrainer):
    """Runs the bare passes over each batch before the step itself, and keeps the CPU seconds of both."""

    bare: list[float]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        batch = self.objective.collate_pairs([self.train_dataset.examples[i] for i in inputs["rows"]])
        start = time.process_time()
        bare_pair(self, batch)
        self.bare.append(time.process_time() - start)
        return super().training_step(model, inputs, num_items_in_batch)


def timed_steps(path: Path, steps: int, runs: int = 1, density: float = 1.0) -> tuple[list[float], list[float]]:
    """CPU seconds of each step (all that happens between two steps, too) and of the bare passes over its batch."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = GradiendTrainingArguments(
            folder,
            solver="autoencoder",
            max_steps=steps,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            num_runs=runs,
        )
        trainer = TimedTrainer(
            load_base_model(path), GradiendConfig(feature_classes=CLASSES, density=density), arguments,
            train_dataset=read_jsonl(DATA / "train.jsonl"), callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.bare = []
        trainer.train()
    between = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    return [whole - bare for whole, bare in zip(between, trainer.bare, strict=True)][2:], trainer.bare[2:]


def against_bare(name: str, path: Path, quick: bool) -> list[dict[str, Any]]:
    """A step and an encoding beside the passes of the base model that they need."""
    step, bare = timed_steps(path, 14 if quick else 42)
    ratio = statistics.median(a / b for a, b in zip(step, bare, strict=True))
    lines = [
        line("training step / bare forward and two backward passes", ratio, "×", "≤ 1.15", model=name,
             ours=milliseconds(step), other=milliseconds(bare), note="dense, 16 rows, whole Trainer step")
    ]  # fmt: skip
    one, bare = timed_steps(path, 14 if quick else 42, runs=1, density=0.01)
    eight, bare8 = timed_steps(path, 14 if quick else 42, runs=8, density=0.01)
    relative = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in ((eight, bare8), (one, bare))]
    lines.append(
        line("8 runs / 1 run at 1 % density", relative[0] / relative[1], "×", "≤ 1.3", model=name,
             ours=milliseconds(eight), other=milliseconds(one), note="each relative to the bare passes beside it")
    )  # fmt: skip
    return lines + encoding(name, path, quick)


def encoding(name: str, path: Path, quick: bool) -> list[dict[str, Any]]:
    """Encodings beside plain forward passes over the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = GradiendTrainer(
            load_base_model(path), GradiendConfig(feature_classes=CLASSES),
            GradiendTrainingArguments(folder, solver="autoencoder", use_cpu=True),
            train_dataset=read_jsonl(DATA / "train.jsonl"),
        )  # fmt: skip
    shown = padding(name, trainer)
    base, objective = trainer.base_model.eval(), trainer.objective
    samples = [e.alternative for e in random.Random(0).sample(trainer.train_dataset.examples, 128 if quick else 256)]
    encoder = trainer.scope.dense_tensors(torch.randn(trainer.scope.size, generator=torch.Generator().manual_seed(0)))
    by_length = sorted(samples, key=lambda s: s.cost)
    batches = [objective.collate(by_length[i : i + 64]) for i in range(0, len(by_length), 64)]

    works = plain_and_slots(base, objective, batches)
    works["ours"] = lambda: directional_derivatives(base, objective, samples, encoder, batch_size=64)
    times = interleaved(works, 3 if quick else 9)
    per_row = {n: f"{seconds / len(samples) * 1e3:.2f} ms/row" for n, seconds in times.medians.items()}
    return [
        line("encoding / plain batched forward", times.ratios["ours"], "×", "≤ 3", model=name, ours=per_row["ours"],
             other=per_row["plain"], note="same batches of 64, by length; model(**inputs) with all its logits"),
        line("encoding / forward with logits at slots only", times.medians["ours"] / times.medians["slots"], "×", model=name,
             ours=per_row["ours"], other=per_row["slots"], note="≥ 3 matrix products where the forward has 1"),
        shown,
    ]  # fmt: skip


def padding(name: str, trainer: GradiendTrainer) -> dict[str, Any]:
    """Tokens that an epoch's batches are padded to, beside those that their rows have."""
    examples, batches = trainer.train_dataset.examples, trainer.get_train_dataloader().batch_sampler
    lengths = [[examples[i].cost for i in rows] for rows in batches]
    padded, real = sum(len(rows) * max(rows) for rows in lengths), sum(map(sum, lengths))
    return line("tokens of an epoch, padded / real", padded / real, "×", model=name, ours=f"{padded:,}", other=f"{real:,}",
                note="the bare passes above read the padded batches, too")  # fmt: skip


def milliseconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f} ms"


# ---------------------------------------------------------------------------------------------- against the reference


def against_reference(quick: bool) -> list[dict[str, Any]]:
    """The same jobs for both packages, each in a process of its own."""
    if not REFERENCE_PYTHON:
        return [
            skipped("against the reference", "GRADIEND_REFERENCE_PYTHON is not set; see tests/benchmarks/README.md")
        ]
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace)
        for name in [n for n, path in MODELS.items() if n != "masked" and path.exists()]:
            if name != "minilm" or not quick:
                lines += short_jobs(name, folder, steps=8 if name == "causal" and not quick else 4)
        if "causal" in MODELS and not quick:
            lines += whole_job("causal", folder)
    return lines


def short_jobs(name: str, folder: Path, steps: int) -> list[dict[str, Any]]:
    """Training steps of one seed, at the reference's defaults and with its longest input cut down to our longest."""
    job = make_job(name, folder, steps=steps, seeds=1, evaluate="encoder", eval_rows=8)
    ours, stock = ours_on(job, folder), reference_on(job, folder)
    longest = reference_on({**job, "max_length": LONGEST, "evaluate": "none"}, folder)
    state = 48 * ours["kept"] / 2**20
    allowed = ours["base_mib"] + ours["activations_mib"] + state
    rows = [figures["encoder_cpu_s"] / figures["encoder_rows"] for figures in (stock, ours)]
    return [
        line("step: reference / ours", stock["step_s"] / ours["step_s"], "×", "≥ 8", model=name,
             ours=seconds(ours["step_s"]), other=seconds(stock["step_s"]), note="its defaults, 16 rows, dense"),
        line("step: reference at our length / ours", longest["step_s"] / ours["step_s"], "×", "> 1", model=name,
             ours=seconds(ours["step_s"]), other=seconds(longest["step_s"]), note=f"padded to {LONGEST} tokens, not 256"),
        line("encoder evaluation per row: reference / ours", rows[0] / rows[1], "×", "≥ 10", model=name,
             ours=seconds(rows[1]), other=seconds(rows[0]), note="its defaults"),
        line("peak memory: ours / base + activations + 12 floats per weight", ours["train_peak_mib"] / allowed, "×", "≤ 1",
             model=name, ours=mebibytes(ours["train_peak_mib"]), other=mebibytes(allowed),
             note=f"resident set; {mebibytes(ours['base_mib'])} with torch, transformers and the base loaded"),
        line("peak memory: reference / ours", stock["train_peak_mib"] / ours["train_peak_mib"], "×", model=name,
             ours=mebibytes(ours["train_peak_mib"]), other=mebibytes(stock["train_peak_mib"]), note="resident set"),
    ]  # fmt: skip


def whole_job(name: str, folder: Path) -> list[dict[str, Any]]:
    """Three seeds, encoder and decoder, on the same rows."""
    job = make_job(name, folder, steps=12, seeds=3, evaluate="all", eval_rows=20)
    job |= {"our_batch_size": 8, "controls": 0}  # the reference compares with no random direction
    ours, reference = ours_on(job, folder), reference_on(job, folder)
    total = {
        "ours": sum(ours[f"{part}_cpu_s"] for part in ("train", "evaluate", "encoder")),
        "reference": sum(reference[f"{part}_cpu_s"] for part in ("train", "encoder", "decoder")),
    }
    return [
        line("whole job: reference / ours", total["reference"] / total["ours"], "×", "≥ 10", model=name,
             ours=seconds(total["ours"]), other=seconds(total["reference"]),
             note="3 seeds of 192 rows (12 steps of 16; ours 24 of 8), encoder on test rows, decoder evaluation (ours both "
             "signs, on validation rows; no random controls)"),
        line("whole job: held-out correlation", ours["correlation"], "", f"≥ {max(0, reference['correlation']):.3f}",
             model=name, ours=f"{ours['correlation']:.3f}", other=f"{reference['correlation']:.3f}",
             note="the reference at its README's learning rate of 1e-3"),
    ]  # fmt: skip


LONGEST = 96
"""Tokens of an input in the reference when it is told to use our length: no row of the data is longer."""


def make_job(name: str, folder: Path, *, steps: int, seeds: int, evaluate: str, eval_rows: int) -> dict[str, Any]:
    """A job whose validation and test rows are the first `eval_rows` of each class."""
    rows = read_jsonl(DATA / "train.jsonl")
    for split in ("validation", "test"):
        given = read_jsonl(DATA / f"{split}.jsonl")
        rows += [r for c in CLASSES for r in [r for r in given if r["factual_class"] == c][:eval_rows]]
    path = folder / f"rows-{eval_rows}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": str(MODELS[name].resolve()), "rows": [str(path)], "neutral": str(DATA / "neutral.jsonl"), "steps": steps,
        "batch_size": 16, "learning_rate": 1e-3, "seeds": seeds, "max_length": None, "evaluate": evaluate,
        "eval_rows": eval_rows, "decoder_rows": eval_rows, "neutral_texts": 2 * eval_rows,
        "decoder_grid": None, "threads": 1,
    }  # fmt: skip


def ours_on(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return _subprocess([sys.executable, "-m", "tests.benchmarks.learner_job"], job, folder, dict(os.environ))


def reference_on(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # nothing of this project is importable
    script = str(Path(__file__).with_name("reference.py"))
    return _subprocess([str(REFERENCE_PYTHON), script], job, folder, environment)


def _subprocess(command: list[str], job: dict[str, Any], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    environment["OMP_NUM_THREADS"] = str(job["threads"])
    done = subprocess.run([*command, str(file)], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} {command[-1]} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def seconds(value: float) -> str:
    return f"{value:.3g} s"


def mebibytes(value: float) -> str:
    return f"{value:,.0f} MiB"
