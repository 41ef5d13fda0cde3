"""Draw the pictures of the documentation: `python docs/scripts/pictures.py`.

The curve is that of the measured direction in `examples/reports/masked`; the other is a drawing of the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradiend_hub.evaluation import Report
from gradiend_hub.plots import plot_strength

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
INK, FIRST, SECOND, PALE = "#22303c", "#00609c", "#b3480a", "#f2f5f7"
SIZE = 11


def box(axes: Any, x: float, y: float, text: str, colour: str = INK) -> None:
    """Draw a text in a box around (x, y)."""
    shape = {"boxstyle": "round,pad=0.55", "facecolor": PALE, "edgecolor": colour, "linewidth": 1.3}
    axes.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=colour, bbox=shape)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """Draw an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 2})


def direction() -> Figure:
    """Draw how a row becomes a feature value and a change of the weights."""
    figure = Figure(figsize=(9.6, 3.2), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9.6), ylim=(0, 3.2))
    axes.axis("off")
    box(axes, 1.3, 1.6, "a row\nThe boys left when\n[MASK] were tired.")
    box(axes, 4.2, 2.5, "gradient of the other\nclass's word, he", FIRST)
    box(axes, 4.2, 0.7, "gradient of its own\nword, they", SECOND)
    box(axes, 7.7, 2.5, "encoder: h = tanh(⟨w, gradient⟩ + b)\nfeature value of the row: near −1")
    box(axes, 7.7, 0.7, "decoder: Δ, from many rows\nW′ = W + strength · σ · Δ")
    arrow(axes, (2.25, 1.9), (3.1, 2.35), FIRST)
    arrow(axes, (2.25, 1.3), (3.1, 0.85), SECOND)
    arrow(axes, (5.25, 2.5), (5.95, 2.5), FIRST)
    arrow(axes, (5.25, 2.15), (6.3, 1.1), FIRST)
    arrow(axes, (5.25, 0.7), (6.25, 0.7), SECOND)
    return figure


def strength() -> Figure:
    """Draw the strength curve of the example report."""
    return plot_strength(Report.load(ROOT / "examples" / "reports" / "masked" / "gradiend_report.json"))


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, drawing in (("direction", direction()), ("strength", strength())):
        drawing.savefig(PICTURES / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", facecolor="white")
