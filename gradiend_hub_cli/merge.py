"""`merge`: the rewritten model as a plain checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradiend_hub import GradiendModel
from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import base_name
from gradiend_hub.cards.rewritten import write_rewritten_card
from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.evaluation import EvaluationSettings, Report, reevaluate
from gradiend_hub.export.merge_files import merge_files
from gradiend_hub.folders import written_beside
from gradiend_hub.hub.push import refusal
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .evaluate import read_data
from .options import require_out
from .push import push_direction
from .quiet import quiet
from .sharing import MergeOptions
from .tables import beyond_band, folder_size, megabytes, pairs_table, strength_text


def merge_into(out: Path, direction: str, options: MergeOptions, story: Story) -> dict[str, Any]:
    """Merge a direction into its base model, write the model with its card, and print the receipt.

    Raises:
        GradiendError: the folder is in use, something cannot be loaded, or the edit is impossible.
    """
    require_out(out, options.overwrite)
    if _same(out, direction):
        raise ConfigError(f"{out} is the folder of the direction itself. Give another folder.")
    if options.neutral and not options.measure:
        raise ConfigError("--neutral is read by --measure DATA. Give both, or neither.")
    if options.push_to and (reason := refusal(options.push_to)):
        raise HubPushError(f"Nothing was merged, since it could not be pushed to {options.push_to}: {reason}.")
    with quiet(story):
        merged = (
            _streamed(out, direction, options, story) if options.stream else _merged(out, direction, options, story)
        )
    config, applied, receipt = merged.config, merged.strength, merged.receipt
    warning = beyond_band(config, [applied])
    table = pairs_table()
    table.add_row("merged", f"{direction} at strength {strength_text(applied)}")
    table.add_row("changed", f"{receipt.entries:,} weights in {receipt.tensors} tensors")
    table.add_row("‖Δ‖ / ‖W‖", f"{receipt.relative_norm:.3g}")
    lost = f"{receipt.swallowed:.2%} of the changes are below the spacing of torch.{merged.dtype} numbers"
    table.add_row("lost to dtype", lost)
    table.add_row("written", f"{out} ({merged.model_class} with tokenizer, {megabytes(folder_size(out))})")
    if warning:
        table.add_row("beware", warning)
    story.show(table)
    pushed = None
    if options.push_to:
        pushed = push_direction(out, options.push_to, {"private": options.private or None}, story)
    return {
        "direction": direction,
        "strength": applied,
        "out": out,
        "model_class": merged.model_class,
        "dtype": merged.dtype,
        "bytes": folder_size(out),
        "receipt": asdict(receipt),
        "warning": warning,
        "pushed": pushed,
    }


@dataclass(frozen=True)
class _Merged:
    """Record of a merge, and of what it changed."""

    config: GradiendConfig
    strength: float
    receipt: EditReceipt
    model_class: str
    dtype: str


def _merged(out: Path, direction: str, options: MergeOptions, story: Story) -> _Merged:
    """Merge in memory, and write the model with its tokenizer."""
    with story.step("Load", told=False):
        model = _model(out, direction, options)
    applied, receipt, tokenizer, config = model.strength, model.receipt, model.tokenizer, model.active_peft_config
    measured = None
    if options.measure:
        with story.step("Measure") as step:
            rows, texts = read_data(
                model, (options.measure, None), (options.neutral, None) if options.neutral else None
            )
            settings = EvaluationSettings(strengths=[0.0, applied], controls=0)
            measured = reevaluate(model, rows, texts, settings)
            step.outcome = f"{len(rows):,} rows, {len(texts):,} neutral sentences"
    with story.step("Merge", told=False), written_beside(out) as folder:
        merged = model.merge_and_unload()
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        dtype = str(merged.dtype).removeprefix("torch.")
        record = _Merged(config, applied, receipt, type(merged).__name__, dtype)
        _write_card(folder, direction, options, record, measured)
    return record


def _streamed(out: Path, direction: str, options: MergeOptions, story: Story) -> _Merged:
    """Merge file by file, without a model."""
    if options.measure is not None:
        raise ConfigError("--measure needs the model in memory. Leave it out, or --stream.")
    if options.dtype is not None:
        raise ConfigError("--stream keeps the type that the base model's files have. Leave --dtype out, or --stream.")
    artifact = resolve_folder(direction, revision=options.revision, required=(CONFIG_FILE, WEIGHTS_FILE)).folder
    config = GradiendConfig.from_pretrained(str(artifact))
    if options.strength is None:
        config.require_supported_strength()
    applied = config.strength if options.strength is None else options.strength
    if _same(out, options.base or config.base_model_name_or_path):
        raise ConfigError(f"{out} is the folder of the base model itself. Give another folder.")
    with story.step("Merge", told=False):
        streamed = Direction.stream(artifact, config, encoder=False)
        receipt = merge_files(streamed, config, out, strength=applied, base=options.base, **options.allowed)
        fields = json.loads((out / "config.json").read_text(encoding="utf-8"))
        dtype = str(fields.get("dtype") or fields.get("torch_dtype") or "float32")
        model_class = (config.auto_mapping or {}).get("base_model_class", "model")
        record = _Merged(config, applied, receipt, model_class, dtype)
        _write_card(out, direction, options, record)
    return record


def _write_card(
    folder: Path, direction: str, options: MergeOptions, merged: _Merged, measured: Report | None = None
) -> None:
    # as it was loaded a moment ago
    found = resolve_folder(direction, revision=options.revision, required=(CONFIG_FILE,))
    write_rewritten_card(
        folder,
        merged.config,
        direction=direction,
        commit=found.commit,
        strength=merged.strength,
        receipt=merged.receipt,
        dtype=merged.dtype,
        report=Report.find(found.folder),
        measured=measured,
    )


def _model(out: Path, direction: str, options: MergeOptions) -> GradiendModel:
    given: dict[str, Any] = {} if options.dtype is None else {"dtype": options.dtype}
    model = GradiendModel.from_pretrained(
        direction,
        base_model=options.base,
        revision=options.revision,
        strength=options.strength,
        **options.allowed,
        **given,
    )
    if _same(out, base_name(model.get_base_model())):
        raise ConfigError(f"{out} is the folder of the base model itself. Give another folder.")
    if model.strength == 0:
        raise ConfigError("Strength 0 is the base model itself: there is nothing to merge. Give another --strength.")
    return model


def _same(out: Path, other: str | None) -> bool:
    return other is not None and out.exists() and Path(other).exists() and out.samefile(other)
