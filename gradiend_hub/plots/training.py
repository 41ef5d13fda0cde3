"""Figures of the training, and of where in the base model the edit falls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import LayerShare, Report

from .style import FIRST, NEUTRAL, SECOND, figure, label, legend, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(report: Report) -> Figure:
    """The solver's loss at every logged step, and the encoder's figures where they were evaluated on the way.

    Raises:
        ConfigError: the report has no training log.
    """
    losses = _logged(report.history, "loss")
    read = {name: _logged(report.history, f"eval_{name}") for name in ("correlation", "accuracy")}
    if not losses:
        raise ConfigError("The report has no training log with a loss.")
    drawing, axes = figure(7.0, 3.6)
    tidy(axes, x="step", y="loss", title="Training")
    steps, values = zip(*losses, strict=True)
    marker = "." if len(steps) < 80 else ""
    axes.plot(steps, values, color="black", linewidth=1.3, marker=marker, label="loss (left axis)")
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, *values) if len(values) > 1 else None)
    if any(read.values()):
        twin = axes.twinx()
        for (name, points), look in zip(read.items(), (FIRST, SECOND), strict=True):
            if points:
                x, y = zip(*points, strict=True)
                twin.plot(x, y, "--", color=look.colour, label=f"{name} (right axis)", **look.marks())
        twin.set_ylim(-0.05, 1.05)
        twin.spines[["top", "left"]].set_visible(False)
        twin.set_ylabel("on the evaluation rows")
        legend(drawing, columns=3)
    return drawing


def _logged(history: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Step and value of every record that has this figure."""
    return [(float(r["step"]), float(r[name])) for r in history if name in r and "step" in r]


def plot_layers(report: Report) -> Figure:
    """Share of the squared norm of the edit in each layer (bars), and its size relative to the layer's weights (marks).

    Raises:
        ConfigError: the layers were not measured.
    """
    if not report.layers:
        raise ConfigError("The report does not say how the edit is spread over the layers.")
    names = [short_layer(layer, report.layers) for layer in report.layers]
    drawing, axes = figure(min(12.0, 4.2 + 0.3 * len(names)), 3.6)
    tidy(axes, x="layer", y="share of ‖Δ‖², %", title="Where the edit falls (strength 1)")
    x, shares = range(len(names)), [100 * layer.share for layer in report.layers]
    axes.bar(x, shares, color="#b9d3e6", edgecolor=FIRST.colour, linewidth=0.8, label="share of ‖Δ‖² (left axis)")
    twin = axes.twinx()
    norms, text = [100 * layer.relative_norm for layer in report.layers], "‖Δ‖ / ‖W‖ of the layer (right axis)"
    twin.plot(x, norms, NEUTRAL.dash, color="black", linewidth=1.2, label=text, **NEUTRAL.marks())
    twin.set_ylabel("‖Δ‖ / ‖W‖, %")
    twin.set_ylim(bottom=0)
    twin.spines[["top", "left"]].set_visible(False)
    turn = any(len(name) > 4 for name in names)
    axes.set_xticks(range(len(names)), names, rotation=45 if turn else 0, ha="right" if turn else "center")
    legend(drawing)
    return drawing


def short_layer(layer: LayerShare, layers: list[LayerShare]) -> str:
    """`bert.encoder.layer.3` → `3` where the layers of a model are the only ones of their kind, else the last two parts."""
    stem, _, number = layer.layer.rpartition(".")
    stacks = {name.rpartition(".")[0] for name in (other.layer for other in layers) if re.search(r"\.\d+$", name)}
    if number.isdigit() and stacks == {stem}:
        return number
    return label(".".join(layer.layer.split(".")[-2:]))
