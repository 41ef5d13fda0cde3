"""Figures of a report. Each function takes a `Report` and returns a matplotlib figure.

matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

from .encoder import plot_encodings, plot_outputs
from .html import render_html, save_html
from .pictures import plot_pictures
from .save import FIGURES, can_draw, save_plots
from .strength import plot_strength
from .training import plot_layers, plot_training

__all__ = [
    "FIGURES",
    "can_draw",
    "plot_encodings",
    "plot_layers",
    "plot_outputs",
    "plot_pictures",
    "plot_strength",
    "plot_training",
    "render_html",
    "save_html",
    "save_plots",
]
