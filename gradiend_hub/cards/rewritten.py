"""The card of a model that was rewritten by a direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import REWRITTEN_TAGS
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.names import hub_id
from gradiend_hub.plots.style import shown_split

from .filling import fill, names_of, save_card
from .metadata import task_of

__all__ = ["render_rewritten_card", "write_rewritten_card"]


def write_rewritten_card(folder: str | Path, config: GradiendConfig, **options: Any) -> Path:
    """Write `README.md` beside a merged model; a card that a person wrote or edited is left alone.

    Args:
        folder: where the merged model was saved.
        config: of the direction that was merged.
        **options: the others of `render_rewritten_card`.

    Raises:
        ArtifactError: the template cannot be filled.
    """
    return save_card(Path(folder), render_rewritten_card(config, **options))


def render_rewritten_card(
    config: GradiendConfig,
    *,
    direction: str,
    strength: float,
    receipt: EditReceipt,
    dtype: str,
    report: Report | None = None,
) -> ModelCard:
    """The card of a merged model.

    Args:
        config: of the direction that was merged.
        direction: its repository id, or a local path, of which only the last part is shown.
        strength: at which it was merged.
        receipt: what that changed in the weights (`GradiendModel.receipt` before the merge).
        dtype: of the written weights, e.g. "float32".
        report: what was measured of the direction, if there is a report.

    Raises:
        ArtifactError: the template cannot be filled.
    """
    name, split = shown_split(report) if report and report.splits else (None, None)
    points = [p for p in split.curve if p.strength in (0.0, strength)] if split else []
    base = hub_id(config.base_model_name_or_path)
    extra: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    task = task_of(config)
    return fill(
        "rewritten.md.jinja",
        ModelCardData(library_name="transformers", base_model=base, pipeline_tag=task, tags=[*REWRITTEN_TAGS], **extra),
        config=config,
        report=report,
        direction=Path(direction).name or direction,
        direction_id=hub_id(direction),
        strength=strength,
        receipt=receipt,
        dtype=dtype,
        split_name=name,
        split=split,
        points=points if any(p.strength == strength for p in points) else [],
        **names_of(config, split),
    )
