"""A published direction, measured again by somebody else: on another base, on other rows, with bias benchmarks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from gradiend_hub.artifact.names import shown_name
from gradiend_hub.base_model import base_commit, base_name
from gradiend_hub.data import Row, require_classes, rows_digest
from gradiend_hub.model import GradiendModel

from .benchmarks import Benchmark, HarnessTask, side_effects
from .edit import edit_account
from .measure import EvaluationSettings, compared_strengths, evaluate_direction
from .report import Report

SPLIT = "test"
"""Where a report holds what was measured with a unit that was chosen on other rows."""

_EXAMPLES = 3


def reevaluate(
    model: GradiendModel,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    settings: EvaluationSettings | None = None,
    *,
    damage_sets: Mapping[str, Sequence[Any]] | None = None,
    benchmarks: Sequence[Benchmark | HarnessTask] = (),
    tokenizer: Any = None,
) -> Report:
    """Measure the active direction of `model` on rows that it may never have seen; its strength unit stays as it is.

    Benchmarks are run at the strengths −1, 0 and 1, and at the recommended one; their data is read before anything is
    measured. The model is left as it was.

    Args:
        rows: of the direction's feature classes, one class at least; they become the report's "test" split.
        texts: neutral sentences; without any, damage on them is not measured.
        damage_sets: further sets that damage is read on, by name; see `evaluate_direction`.
        benchmarks: what else the edit may change.
        tokenizer: of the base model, if it is not to be loaded from the base model's path.

    Raises:
        DataError: no rows, a word that cannot be read at a row's slot, or a benchmark's data.
        NotFiniteError: the base model, or the edited one within strengths ±1, computes NaN.
    """
    for benchmark in benchmarks:
        benchmark.check()
    config, base = model.active_peft_config, model.get_base_model()
    classes = require_classes(config.feature_classes)
    tokenizer = tokenizer or model.tokenizer
    objective = model.make_objective(tokenizer)
    counts = Counter(row.factual_class for row in rows)
    report = Report(
        feature_classes=list(classes),
        base_model=shown_name(base_name(base) or config.base_model_name_or_path),
        base_revision=base_commit(base),
        data={
            "test_rows": {name: counts[name] for name in classes},
            "test_neutral_texts": len(texts),
            "test_sha256": rows_digest(rows),
        },
        versions={name: version(name) for name in ("gradiend_hub", "torch", "transformers", "peft")},
        examples=[asdict(row) for row in rows[:_EXAMPLES]],
    )
    with _timed(report, f"evaluate {SPLIT}"):
        report.splits[SPLIT] = evaluate_direction(model, objective, rows, texts, settings, damage_sets=damage_sets)
        report.layers, report.dtype_loss = edit_account(model)
    if benchmarks:
        with _timed(report, "benchmarks"):
            report.side_effects = side_effects(model, tokenizer, benchmarks, compared_strengths(config))
    return report


@contextmanager
def _timed(report: Report, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report.seconds[phase] = time.perf_counter() - start
