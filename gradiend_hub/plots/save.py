"""The figures of a report as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradiend_hub.errors import MissingLibraryError
from gradiend_hub.evaluation import Report
from gradiend_hub.lazy import require
from gradiend_hub.objectives import OBJECTIVES, Objective

from .encoder import plot_encodings, plot_outputs
from .pictures import pictured, plot_pictures
from .strength import plot_strength
from .style import quiet_glyphs, shown_split
from .training import plot_layers, plot_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FIGURES = ("strength", "pictures", "encodings", "fillers", "training", "layers")
"""Names of the figures; each is saved as `NAME.png`."""

_DPI = 130


def can_draw() -> bool:
    """Return whether the libraries that figures and page are drawn with are installed; if not, log what is left out."""
    try:
        for library in ("matplotlib", "PIL"):
            require(library, "Drawing figures")
    except MissingLibraryError as error:
        logger.warning(f"Figures and page are left out. {error}")
        return False
    return True


def save_plots(
    report: Report, folder: str | Path, *, safe_band: Sequence[float] | None = None, objective: str | None = None
) -> list[str]:
    """Write the figures that the report has measurements for, and remove those of a former report.

    Args:
        folder: created if missing.
        safe_band: `GradiendConfig.safe_band`.
        objective: `GradiendConfig.objective`, whose words titles have.

    Returns:
        Names of the figures written, a subset of `FIGURES`.
    """
    drawn = _drawable(report, safe_band, OBJECTIVES.get(objective or "", Objective).output_name)
    folder = Path(folder)
    for name in FIGURES:
        path = folder / f"{name}.png"
        if name not in drawn:
            path.unlink(missing_ok=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_glyphs():
            _save(drawn[name](), path)
    return list(drawn)


def _save(drawing: Figure, path: Path) -> None:
    """As a PNG of few colours, a third of the size; the same figure gives the same bytes on every day."""
    image = require("PIL.Image", "Drawing figures")
    canvas: Any = drawing.canvas  # Agg's
    drawing.set_dpi(_DPI)
    canvas.draw()  # `savefig` would draw twice, and write a PNG that is read again
    image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128).save(path, optimize=True)


def _drawable(report: Report, safe_band: Sequence[float] | None, output: str) -> dict[str, Callable[[], Figure]]:
    figures: dict[str, Callable[[], Figure]] = {}
    if report.splits:
        split = shown_split(report)[1]
        if split.curve:
            figures["strength"] = partial(plot_strength, report, safe_band=safe_band)
        if pictured(split):
            figures["pictures"] = partial(plot_pictures, report)
        if split.encoder and split.encoder.encodings:
            figures["encodings"] = partial(plot_encodings, report)
        if split.encoder and split.encoder.outputs:
            figures["fillers"] = partial(plot_outputs, report, output=output)
    if any("loss" in record for record in report.history):
        figures["training"] = partial(plot_training, report)
    if report.layers:
        figures["layers"] = partial(plot_layers, report)
    return figures
