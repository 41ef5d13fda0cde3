"""`merge`: the rewritten model as a plain checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CONFIG_FILE, REPORT_FILE
from gradiend_hub.base_model import base_name
from gradiend_hub.cards.card import write_rewritten_card
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.folders import require_empty, require_writable, written_beside
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .quiet import quiet
from .tables import beyond_band, folder_size, megabytes, pairs_table, strength_text

__all__ = ["MergeOptions", "merge_into"]


@dataclass(frozen=True)
class MergeOptions:
    """Options of `gradiend-hub merge`."""

    base: str | None
    revision: str | None
    strength: float | None
    dtype: str | None
    overwrite: bool
    allowed: dict[str, Any]


def merge_into(out: Path, direction: str, options: MergeOptions, story: Story) -> dict[str, Any]:
    """Merge a direction into its base model, write the model with its card, and print the receipt.

    Raises:
        GradiendError: the folder is in use, something cannot be loaded, or the edit is impossible.
    """
    if options.overwrite:
        require_writable(out)
    else:
        require_empty(out, "another folder, or --overwrite to write into it")
    if _same(out, direction):
        raise ConfigError(f"{out} is the folder of the direction itself. Give another folder.")
    with quiet(story):
        with story.step("Load", told=False):
            model = _model(out, direction, options)
        applied, receipt, tokenizer, config = model.strength, model.receipt, model.tokenizer, model.active_peft_config
        with story.step("Merge", told=False), written_beside(out) as folder:
            merged = model.merge_and_unload()
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            dtype = str(merged.dtype).removeprefix("torch.")
            write_rewritten_card(
                folder,
                config,
                direction=direction,
                strength=applied,
                receipt=receipt,
                dtype=dtype,
                report=_report_of(direction, options.revision),
            )
    warning = beyond_band(config, [applied])
    table = pairs_table()
    table.add_row("merged", f"{direction} at strength {strength_text(applied)}")
    table.add_row("changed", f"{receipt.entries:,} weights in {receipt.tensors} tensors")
    table.add_row("‖Δ‖ / ‖W‖", f"{receipt.relative_norm:.3g}")
    lost = f"{receipt.swallowed:.2%} of the changes are below the spacing of {merged.dtype} numbers"
    table.add_row("lost to dtype", lost)
    table.add_row("written", f"{out} ({type(merged).__name__} with tokenizer, {megabytes(folder_size(out))})")
    if warning:
        table.add_row("beware", warning)
    story.show(table)
    return {
        "direction": direction,
        "strength": applied,
        "out": out,
        "model_class": type(merged).__name__,
        "dtype": dtype,
        "bytes": folder_size(out),
        "receipt": asdict(receipt),
        "warning": warning,
    }


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


def _report_of(direction: str, revision: str | None) -> Report | None:
    """Return what was measured of a direction that was loaded a moment ago."""
    folder = resolve_folder(direction, revision=revision, required=(CONFIG_FILE,)).folder
    return Report.load(folder) if (folder / REPORT_FILE).is_file() else None
