"""The YAML head of a direction's card: what the Hub lists, filters and compares."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import HUB_TAGS
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.hub.names import hub_id
from gradiend_hub.objectives import OBJECTIVES

from .widget import widget

__all__ = ["feature_tags", "metadata_of", "task_of"]

_LONGEST_TAG = 60


def metadata_of(config: GradiendConfig, report: Report | None) -> ModelCardData:
    """The YAML head. Only measured values get into `model-index`."""
    base_id = hub_id(config.base_model_name_or_path)
    results = [
        result
        for name, split in (report.splits if report else {}).items()
        for result in _results(config, name, split, _listed(report.data.get("datasets") if report else None))
    ]
    extra: dict[str, Any] = {"base_model_relation": "adapter"} if base_id else {}
    known = report.data if report else {}
    datasets = _listed(known.get("datasets"))
    parents = [name for parent in (report.parents if report else []) if (name := hub_id(parent.direction))]
    return ModelCardData(
        library_name="peft",
        base_model=[base_id, *parents] if base_id and parents else base_id,
        datasets=[name.partition("@")[0] for name in datasets] or None,
        language=known.get("language"),
        license=known.get("license"),
        pipeline_tag=task_of(config),
        tags=[
            *HUB_TAGS,
            *feature_tags(config),
            "peft",
            *(tag for tag in known.get("tags", ()) if isinstance(tag, str)),
        ],
        model_name=known.get("model_name", "-".join(config.feature_classes or ["direction"])) if results else None,
        eval_results=results or None,
        widget=widget(config, report, task_of(config)),
        **extra,
    )


def _listed(names: Any) -> list[str]:
    """Data sets of a report, each as `ID` or `ID@COMMIT`."""
    return [names] if isinstance(names, str) else [name for name in names or () if isinstance(name, str)]


def _results(config: GradiendConfig, name: str, split: SplitReport, datasets: list[str]) -> list[EvalResult]:
    encoder = split.encoder
    measured = [
        ("feature-extraction", "pearsonr", "Encoder correlation", encoder.correlation if encoder else None),
        ("feature-extraction", "accuracy", "Encoder accuracy", encoder.accuracy if encoder else None),
    ]
    for point in split.curve:
        if abs(point.strength) == 1 or (point.strength == config.strength != 0):
            at = f"at strength {point.strength:+g}"
            task = task_of(config) or "other"
            measured.append((task, "probability", f"Probability of the wanted class {at}", point.effect))
            measured.append((task, "quality", f"Quality relative to the base model {at}", point.quality))
    classes = " / ".join(config.feature_classes or [])
    only, _, revision = datasets[0].partition("@") if len(datasets) == 1 else ("feature-rows", "", "")
    return [
        EvalResult(
            task_type=task,
            dataset_type=only,
            dataset_name=f"{classes} rows",
            dataset_revision=revision or None,
            dataset_split=name,
            metric_type=metric,
            metric_name=label,
            metric_value=round(value, 4),
        )
        for task, metric, label, value in measured
        if value is not None
    ]


def feature_tags(config: GradiendConfig) -> list[str]:
    """A tag for each class, by which the Hub's own filters find it: "feature:3sg"."""
    names = (
        re.sub(r"[^\w]+", "-", name.casefold())[:_LONGEST_TAG].strip("-_") for name in config.feature_classes or ()
    )
    return [f"feature:{name}" for name in dict.fromkeys(names) if name]


def task_of(config: GradiendConfig) -> str | None:
    """The Hub's name of what a model of the direction's objective does; `None` for an objective that is not known here."""
    objective = OBJECTIVES.get(config.objective or "")
    return objective.task if objective else None
