"""The summary of a direction, from its config and its report."""

from __future__ import annotations

from pathlib import Path

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.fields import require_classes
from gradiend_hub.artifact.files import WEIGHTS_FILE
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.artifact.summary import Summary
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.control import above_control
from gradiend_hub.evaluation.measurements import find_measurements
from gradiend_hub.evaluation.shift import shifts
from gradiend_hub.hub.resolve import ResolvedRepo
from gradiend_hub.plots.style import shown_split

from .metadata import task_of


def summarize(folder: str | Path, config: GradiendConfig, report: Report | None) -> Summary:
    """The figures of a saved direction that a search shows; those of the split that the card shows."""
    classes = require_classes(config.feature_classes)
    name, split = shown_split(report) if report and report.splits else (None, None)
    found = [s for s in shifts(split, classes) if s.after is not None and s.before is not None] if split else []
    points = {str(p.strength): p for p in (split.curve if split else []) if abs(p.strength) == 1}
    worst = {strength: point.worst(bound=False) for strength, point in points.items()}
    return Summary(
        feature_classes=list(classes),
        base_model=hub_id(config.base_model_name_or_path),
        base_revision=config.revision,
        objective=config.objective,
        task=task_of(config),
        form=_form(config),
        size=(Path(folder) / WEIGHTS_FILE).stat().st_size,
        split=name,
        correlation=split.encoder.correlation if split and split.encoder else None,
        before={str(s.strength): s.before for s in found if s.before is not None},
        effect={str(s.strength): s.after for s in found if s.after is not None},
        quality={
            strength: min(max(quality[1], 0.0), 2.0) for strength, quality in worst.items() if quality is not None
        },
        above_control=above_control(split.curve, split.control) if split else None,
        learned=report.converged if report else None,
        others=len(find_measurements(ResolvedRepo(Path(folder), None, None), config).reports),
    )


def _form(config: GradiendConfig) -> str:
    specs = (config.parameters or {}).values()
    ranks = [spec["rank"] for spec in specs if spec.get("rank")]
    if ranks:
        return f"rank {max(ranks)}"
    return "sparse" if any(spec.get("entries") is not None for spec in specs) else "dense"
