"""Examples of a card's widget: inputs with what the edited model says to them, since no service runs the method."""

from __future__ import annotations

from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.evaluation import Report
from gradiend_hub.plots.style import shown_split

MOST = 3
"""Examples of a card."""

STRENGTH = 1.0

SCORED = frozenset({"fill-mask", "text-classification"})
WRITTEN = frozenset({"text-generation", "text2text-generation"})
"""Tasks whose widget shows an output that a card brings along. That of images needs addresses of pictures."""


def widget(config: GradiendConfig, report: Report | None, task: str | None) -> list[dict[str, Any]] | None:
    """Return the metadata field `widget`: a few texts with the model's answer at strength +1; `None` where there are none.

    Args:
        config: Of the direction.
        report: What was measured, with `completions`.
        task: The Hub's name of what the model does.
    """
    if task not in SCORED | WRITTEN or report is None or not report.splits:
        return None
    _, split = shown_split(report)
    said = {c.text: c.by_strength.get(str(STRENGTH)) for c in split.completions if c.text.isprintable()}
    answers = {text: _output(of, task) for text, of in said.items() if of}
    shown = [(text, output) for text, output in answers.items() if output is not None]
    first = (config.feature_classes or ["the first class"])[0]
    return [
        {"text": text, "example_title": f"{first} at +1, example {i}", "output": output}
        for i, (text, output) in enumerate(shown[:MOST], 1)
    ] or None


def _output(said: str | list[list[str | float]], task: str) -> Any:
    """Return an answer as the task's widget shows it; `None` for a text where it shows scores."""
    if task in WRITTEN:
        return {"text": " ".join(said.split()) if isinstance(said, str) else str(said[0][0])}
    return None if isinstance(said, str) else [{"label": str(name), "score": float(chance)} for name, chance in said]
