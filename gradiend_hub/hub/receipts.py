"""All that is rendered from a report: the card, its figures, and the interactive page."""

from __future__ import annotations

from pathlib import Path

from gradiend_hub.config import GradiendConfig
from gradiend_hub.constants import ASSETS_FOLDER, REPORT_FILE
from gradiend_hub.evaluation import Report
from gradiend_hub.plots import save_plots

from .card import write_card

__all__ = ["write_receipts"]


def write_receipts(folder: str | Path) -> None:
    """Write card and figures into the folder of a saved direction, from its config and report.

    Raises:
        ArtifactError: the report is damaged, or the card cannot be rendered.
    """
    folder = Path(folder)
    if (folder / REPORT_FILE).is_file():
        config = GradiendConfig.from_pretrained(str(folder))
        save_plots(Report.load(folder), folder / ASSETS_FOLDER, safe_band=config.safe_band)
    write_card(folder)
