"""All that is rendered from a report: the card, its figures, and the interactive page."""

from __future__ import annotations

from pathlib import Path

from gradiend_hub.config import GradiendConfig
from gradiend_hub.constants import ASSETS_FOLDER, REPORT_FILE
from gradiend_hub.evaluation import Report
from gradiend_hub.plots import save_plots
from gradiend_hub.plots.style import shown_split

from .card import write_card
from .usage import run_usage

__all__ = ["write_receipts"]


def write_receipts(folder: str | Path, *, run: bool = False) -> None:
    """Write card and figures into the folder of a saved direction, from its config and report.

    Args:
        folder: a saved direction; one without a report gets a card that says that nothing was measured.
        run: first run the card's code on the folder, which loads the base model, and record in the report what it printed.

    Raises:
        ArtifactError: the report is damaged, or the card cannot be rendered.
    """
    folder = Path(folder)
    config = GradiendConfig.from_pretrained(str(folder))
    if (folder / REPORT_FILE).is_file():
        report = Report.load(folder)
        if run and report.splits:
            report.usage = run_usage(folder, config, shown_split(report)[1])
            report.save(folder)
        save_plots(report, folder / ASSETS_FOLDER, safe_band=config.safe_band)
    write_card(folder)
