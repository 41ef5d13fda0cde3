"""The card of a model that was rewritten by a direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard, ModelCardData

from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import REWRITTEN_TAGS
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.in_memory import push_written
from gradiend_hub.hub.publish import publish_rewritten
from gradiend_hub.model import load_processing_class
from gradiend_hub.objectives import OBJECTIVES
from gradiend_hub.plots.style import shown_split
from gradiend_hub.stored_model import MergedDirection

from .filling import fill, names_of, save_card
from .metadata import feature_tags, task_of


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
    commit: str | None = None,
    measured: Report | None = None,
) -> ModelCard:
    """The card of a merged model.

    Args:
        config: of the direction that was merged.
        direction: its repository id, or a local path, of which only the last part is shown.
        strength: at which it was merged.
        receipt: what that changed in the weights (`GradiendModel.receipt` before the merge).
        dtype: of the written weights, e.g. "float32".
        report: what was measured of the direction, if there is a report.
        commit: of the direction's repository.
        measured: what was measured of this very merge, at strength 0 and at `strength`, if it was.

    Raises:
        ArtifactError: the template cannot be filled.
    """
    name, split = shown_split(report) if report and report.splits else (None, None)
    shown = shown_split(measured)[1] if measured and measured.splits else split
    points = [p for p in shown.curve if p.strength in (0.0, strength)] if shown else []
    base, parent, task = hub_id(config.base_model_name_or_path), hub_id(direction), task_of(config)
    objective = OBJECTIVES.get(config.objective or "")
    # the Hub calls what has several parents a merge
    extra: dict[str, Any] = {"base_model_relation": "merge" if parent else "finetune"} if base else {}
    return fill(
        "rewritten.md.jinja",
        ModelCardData(
            library_name="transformers",
            base_model=[base, parent] if base and parent else base,
            pipeline_tag=task,
            tags=[*REWRITTEN_TAGS, *feature_tags(config)],
            **extra,
        ),
        config=config,
        report=report,
        direction=Path(direction).name or direction,
        direction_id=parent,
        commit=commit,
        strength=strength,
        receipt=receipt,
        dtype=dtype,
        split_name=name,
        split=split,
        measured_here=shown is not split,
        points=points if any(p.strength == strength for p in points) else [],
        auto_class=objective.auto_class.__name__ if objective else "AutoModel",
        **names_of(config, split),
    )


def push_rewritten(model: Any, merged: MergedDirection, repo_id: str, **options: Any) -> CommitInfo:
    """Publish a merged model that is in memory, with its tokenizer and card, in one commit.

    Args:
        model: the merged transformers model.
        merged: what was merged into it.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        **options: those of `publish_rewritten`; and `max_shard_size` of transformers' `save_pretrained`.

    Raises:
        HubPushError: nothing was committed. The message names the folder that holds the model.
    """
    saving = {name: options.pop(name) for name in ("max_shard_size",) if name in options}
    processing_class = merged.processing_class or load_processing_class(model, merged.config, merged.hub)

    def write(folder: Path) -> Path:
        model.save_pretrained(folder, **saving)
        processing_class.save_pretrained(folder)
        write_rewritten_card(
            folder,
            merged.config,
            direction=merged.direction,
            commit=merged.commit,
            strength=merged.strength,
            receipt=merged.receipt,
            dtype=str(model.dtype).removeprefix("torch."),
            report=Report.find(merged.folder) if merged.folder else None,
        )
        return folder

    return push_written(write, repo_id, publish=publish_rewritten, **options)
