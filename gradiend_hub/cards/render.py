"""Render an artifact for people: the card, its figures, the interactive page, and what a search shows of it."""

from __future__ import annotations

from pathlib import Path

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import ASSETS_FOLDER, HTML_FILE
from gradiend_hub.artifact.names import shown_name
from gradiend_hub.evaluation import Report
from gradiend_hub.plots import can_draw, save_html, save_plots

from .card import write_card
from .eval_results import write_eval_results
from .summary import summarize


def render_artifact(folder: str | Path, config: GradiendConfig, report: Report | None) -> None:
    """Write card, summary, benchmark results, figures and the HTML page into the folder of a saved direction.

    Args:
        config: of the direction, with its stored tensors.
        report: what was measured of it, if anything was. Without the extra "plots" there are neither figures nor page.

    Raises:
        ArtifactError: the card cannot be rendered.
    """
    folder = Path(folder)
    drawable = report is not None and can_draw()
    if report is not None and drawable:
        save_plots(report, folder / ASSETS_FOLDER, safe_band=config.safe_band, objective=config.objective)
    if report is not None and report.splits and drawable:
        base = shown_name(config.base_model_name_or_path)
        save_html(report, folder, base=base, safe_band=config.safe_band, objective=config.objective)
    else:
        (folder / HTML_FILE).unlink(missing_ok=True)
    write_card(folder, config, report)
    summarize(folder, config, report).save(folder)
    write_eval_results(folder, config, report)
