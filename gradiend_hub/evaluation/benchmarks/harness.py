"""Tasks of lm-evaluation-harness, before and after an edit: its own figures, of the edited model in memory."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradiend_hub.errors import ConfigError, DataError, first_line
from gradiend_hub.evaluation.report import BenchmarkResult
from gradiend_hub.lazy import require

from .scoring import BenchmarkRun, unwrapped

BATCH = 16
"""Requests that the harness runs at a time."""
BOOTSTRAP = 1000
"""Samples for the errors of figures that are no means."""

SHARES = ("acc", "acc_norm", "exact_match", "f1")
"""Figures of the harness that lie between 0 and 1, and so do their intervals."""


@dataclass(frozen=True)
class HarnessTask:
    """A task, or a group of tasks, of lm-evaluation-harness.

    Attributes:
        name: Its name there.
        include: Folder with task files (YAML) of one's own.
    """

    name: str
    include: str | None = None

    def check(self) -> None:
        """Look the task up, and run nothing.

        Raises:
            MissingLibraryError: lm-eval is not installed.
            ConfigError: There is no such task, or no such folder.
        """
        self._manager()

    def _manager(self) -> Any:
        tasks = require("lm_eval.tasks", "Running tasks of lm-evaluation-harness")
        if self.include is not None and not Path(self.include).is_dir():
            raise ConfigError(f"--lm-eval-include {self.include}: expected a folder with task files (YAML).")
        manager = tasks.TaskManager(include_path=self.include, include_defaults=False) if self.include else None
        if manager is None or self.name not in manager.all_tasks:
            manager = tasks.TaskManager(include_path=self.include)
        if self.name not in manager.all_tasks:
            nearest = difflib.get_close_matches(self.name, manager.all_tasks, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`lm-eval ls tasks` lists them."
            raise ConfigError(f"lm-evaluation-harness has no task {self.name!r}: {hint}")
        return manager

    def run(self, model: Any, tokenizer: Any, *, strength: float = 0.0) -> BenchmarkRun:
        """Run the task on a causal model as it is; `strength` is only noted in the result.

        Raises:
            ConfigError: There is no such task, or the model is no causal language model.
            DataError: The task's data cannot be had.
        """
        manager = self._manager()
        base = unwrapped(model)
        if not base.can_generate() or getattr(base.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"lm-evaluation-harness reads causal language models, and this is {type(base).__name__}. Measure it with "
                "--bench instead."
            )
        harness = require("lm_eval.models.huggingface", "Running tasks of lm-evaluation-harness")
        lm_eval = require("lm_eval", "Running tasks of lm-evaluation-harness")
        read = harness.HFLM(pretrained=base, tokenizer=tokenizer, batch_size=BATCH)
        try:
            found = lm_eval.simple_evaluate(
                read, tasks=[self.name], task_manager=manager, bootstrap_iters=BOOTSTRAP, log_samples=False
            )
        except (OSError, ValueError, LookupError) as error:
            raise DataError(
                f"The task {self.name} of lm-evaluation-harness cannot be run: {first_line(error)}"
            ) from error
        return BenchmarkRun(_result(self.name, found, strength, lm_eval.__version__), [])


def _result(name: str, found: dict[str, Any], strength: float, version: str) -> BenchmarkResult:
    """The harness's figures as a result: `acc,none` of a group's member `m` is called "m acc"."""
    scores: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if metric.endswith("_stderr") or not filtered or not is_number:
                continue
            label = " ".join([*([] if task == name else [task]), metric, *([] if filtered == "none" else [filtered])])
            scores[label] = float(value)
            error = figures.get(f"{metric}_stderr,{filtered}")
            if isinstance(error, (int, float)):
                low, high = value - 1.96 * error, value + 1.96 * error
                intervals[label] = [max(low, 0.0), min(high, 1.0)] if metric in SHARES else [low, high]
    if not scores:
        raise DataError(f"The task {name} of lm-evaluation-harness gave no figure.")
    counts = found.get("n-samples", {}).values()
    tasks = ", ".join(f"{task} version {number}" for task, number in found.get("versions", {}).items())
    source = f"lm-evaluation-harness {version}: {tasks}"
    return BenchmarkResult(
        f"lm-eval {name}", strength, scores, intervals, sum(count["effective"] for count in counts), source
    )
