"""Benchmark results in the Hub's own form, `.eval_results/*.yaml`, which lists them beside other models' results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import EVAL_RESULTS_FOLDER
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.evaluation import BenchmarkResult, Report

_SOURCE: Final = re.compile(r"(?P<id>[^:@\s]+/[^:@\s]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w.-]+))?")
"""A data set of the Hub, as a benchmark names its source."""


def write_eval_results(folder: str | Path, config: GradiendConfig, report: Report | None) -> list[Path]:
    """Write a file for each benchmark that was run on a data set of the Hub; those of a former report are removed.

    The results are those at the recommended strength (at 1, if it is 0), and the notes have the base model's. A benchmark
    that was run on a local file has no place there.

    Args:
        folder: of the saved direction.
        config: of the direction.
        report: what was measured of it.

    Returns:
        The files, by name.
    """
    place = Path(folder, EVAL_RESULTS_FOLDER)
    for stale in place.glob("gradiend-*.yaml"):
        stale.unlink()
    by_name: dict[str, list[BenchmarkResult]] = {}
    for result in report.side_effects if report else []:
        by_name.setdefault(result.name, []).append(result)
    written = []
    for name, results in sorted(by_name.items()):
        if entries := _entries(results, config.strength or 1.0):
            place.mkdir(exist_ok=True)
            path = place / f"gradiend-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.yaml"
            path.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
            written.append(path)
    return written


def _entries(results: list[BenchmarkResult], strength: float) -> list[dict[str, Any]]:
    """Results of one benchmark as `huggingface_hub.EvalResultEntry` reads them; none for data that are not on the Hub."""
    edited = next((one for one in results if one.strength == strength), None)
    base = next((one for one in results if one.strength == 0), None)
    source = _SOURCE.fullmatch(edited.source) if edited is not None else None
    if edited is None or source is None or hub_id(source["id"]) is None:
        return []
    found = []
    for score, value in edited.scores.items():
        dataset = {"id": source["id"], "task_id": f"{source['config'] or 'default'}_{score}"}
        dataset |= {"revision": source["revision"]} if source["revision"] else {}
        notes = f"{edited.name}, {score}, at strength {strength:+g} on {edited.rows} items"
        notes += f"; {base.scores[score]:g} for the base model" if base is not None and score in base.scores else ""
        found.append({"dataset": dataset, "value": value, "notes": notes})
    return found
