"""What all benchmarks share: interleaved repetitions, medians, and the lines of the table."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradiend_hub.objectives import Batch, Objective

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "masked": EXAMPLES / "base_models" / "masked",
    "causal": EXAMPLES / "base_models" / "causal",
    "minilm": EXAMPLES.parents[1] / "shared" / "models" / "minilm-mlm",  # where it is kept beside the repository
}
"""Base models that benchmarks measure; not all of them are everywhere."""

MORE_TEXT = EXAMPLES.parents[1] / "shared" / "text" / "sentences.jsonl.gz"
"""Sentences of another source than the bundled ones; not everywhere either."""


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in Path(path).read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Times:
    """CPU seconds of works that took turns; the first one is what the others are compared with."""

    medians: dict[str, float]
    ratios: dict[str, float]


def interleaved(works: Mapping[str, Callable[[], Any]], repetitions: int, *, warm_up: bool = True) -> Times:
    """Run works in turn, `repetitions` times after one warm-up.

    Returns:
        Medians of the CPU time of each, and medians of its ratio to the first work of the same turn. CPU time and not
        wall time, and ratios within a turn: both hold on a machine that others use at the same time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    if warm_up:
        for work in works.values():
            work()
    for _ in range(repetitions):
        gc.collect()
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    first = next(iter(seconds.values()))
    return Times(
        {name: statistics.median(values) for name, values in seconds.items()},
        {n: statistics.median(a / b for a, b in zip(v, first, strict=True)) for n, v in seconds.items()},
    )


def plain_and_slots(base: nn.Module, objective: Objective, batches: Sequence[Batch]) -> dict[str, Callable[[], None]]:
    """Forward passes that an evaluation of the same batches consists of: with all logits, and with those at slots only."""

    @torch.inference_mode()
    def plain() -> None:
        for batch in batches:
            base(**batch.inputs)

    @torch.inference_mode()
    def slots_only() -> None:
        for batch in batches:
            objective.log_probs(base, batch)

    return {"plain": plain, "slots": slots_only}


def line(what: str, value: float, unit: str, target: str = "", **details: Any) -> dict[str, Any]:
    """A line of the table.

    Args:
        target: such as "≤ 1.15"; empty for a figure without one.
        **details: `model`, `ours`, `other` (what it is compared with), `note`, …
    """
    return {"what": what, "value": value, "unit": unit, "target": target, **details}


def skipped(what: str, reason: str, **details: Any) -> dict[str, Any]:
    """A line that could not be measured here."""
    return {"what": what, "value": None, "unit": "", "target": "", "skipped": reason, **details}


def peak_growth(work: Callable[[], Any]) -> float:
    """MiB that the process grew at most while the work ran (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(text.split()[1]) for text in lines if text.startswith(field))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kept = work()
    peak = status("VmHWM") - before
    del kept
    return peak / 1024
