"""The YAML head of a direction's card: what the Hub lists, filters and compares."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import HUB_TAGS
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.objectives import OBJECTIVES
from gradiend_hub.plots.style import shown_split

_LONGEST_TAG = 60

_MOST_EXAMPLES = 3
"""Examples of the widget."""

_SCORED = frozenset({"fill-mask", "text-classification"})
_WRITTEN = frozenset({"text-generation", "text2text-generation"})
"""Tasks whose widget shows an output that a card brings along. That of images needs addresses of pictures."""


def metadata_of(config: GradiendConfig, report: Report | None) -> ModelCardData:
    """The YAML head. Only measured values get into `model-index`."""
    base_id = hub_id(config.base_model_name_or_path)
    known = report.data if report else {}
    datasets = _listed(known.get("datasets"))
    splits = report.splits.items() if report else ()
    results = [result for name, split in splits for result in _results(config, name, split, datasets)]
    extra: dict[str, Any] = {"base_model_relation": "adapter"} if base_id else {}
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
        widget=_widget(config, report, task_of(config)),
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


def _widget(config: GradiendConfig, report: Report | None, task: str | None) -> list[dict[str, Any]] | None:
    """Return the metadata field `widget`: a few texts with the model's answer at strength +1; `None` where there are none.

    Args:
        config: Of the direction.
        report: What was measured, with `completions`.
        task: The Hub's name of what the model does.
    """
    if task not in _SCORED | _WRITTEN or report is None or not report.splits:
        return None
    _, split = shown_split(report)
    said = {c.text: c.by_strength.get("1.0") for c in split.completions if c.text.isprintable()}
    answers = {text: _output(of, task) for text, of in said.items() if of}
    shown = [(text, output) for text, output in answers.items() if output is not None]
    first = (config.feature_classes or ["the first class"])[0]
    return [
        {"text": text, "example_title": f"{first} at +1, example {i}", "output": output}
        for i, (text, output) in enumerate(shown[:_MOST_EXAMPLES], 1)
    ] or None


def _output(said: str | list[list[str | float]], task: str) -> Any:
    """Return an answer as the task's widget shows it; `None` for a text where it shows scores."""
    if task in _WRITTEN:
        return {"text": " ".join(said.split()) if isinstance(said, str) else str(said[0][0])}
    return None if isinstance(said, str) else [{"label": str(name), "score": float(chance)} for name, chance in said]
