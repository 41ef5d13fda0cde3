"""All that is rendered from a report: the card, its figures, and the interactive page."""

from __future__ import annotations

from pathlib import Path

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import ASSETS_FOLDER, HTML_FILE, REPORT_FILE
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.names import shown_name
from gradiend_hub.plots import save_html, save_plots

from .card import write_card

__all__ = ["write_receipts"]


def write_receipts(folder: str | Path) -> None:
    """Write card, figures and the HTML page into the folder of a saved direction, from its config and report.

    Raises:
        ArtifactError: the report is damaged, or the card cannot be rendered.
    """
    folder = Path(folder)
    report = Report.load(folder) if (folder / REPORT_FILE).is_file() else None
    if report is not None:
        config = GradiendConfig.from_pretrained(str(folder))
        save_plots(report, folder / ASSETS_FOLDER, safe_band=config.safe_band)
        if report.splits:
            save_html(report, folder, base=shown_name(config.base_model_name_or_path), safe_band=config.safe_band)
    if report is None or not report.splits:
        (folder / HTML_FILE).unlink(missing_ok=True)
    write_card(folder)
