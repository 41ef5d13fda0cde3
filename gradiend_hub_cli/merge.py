"""`merge`: the rewritten model as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CONFIG_FILE, REPORT_FILE
from gradiend_hub.base_model import base_name
from gradiend_hub.cards.card import write_rewritten_card
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.resolve import resolve_folder

from .quiet import quiet
from .tables import beyond_band, folder_size, megabytes, pairs_table, strength_text

__all__ = ["merge_into", "require_empty"]


def merge_into(
    out: Path,
    direction: str,
    *,
    base: str | None,
    revision: str | None,
    strength: float | None,
    dtype: str | None,
    overwrite: bool,
    console: Console,
) -> None:
    """Merge a direction into its base model, write the model with its card, and print the receipt.

    Raises:
        GradiendError: the folder is in use, something cannot be loaded, or the edit is impossible.
    """
    if not overwrite:
        require_empty(out, "another folder, or --overwrite to write into it")
    if out.exists() and Path(direction).exists() and out.samefile(direction):
        raise ConfigError(f"{out} is the folder of the direction itself. Give another folder.")
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    with quiet():
        model = GradiendModel.from_pretrained(
            direction, base_model=base, revision=revision, strength=strength, **options
        )
        loaded_from = base_name(model.get_base_model())
        if loaded_from and out.exists() and Path(loaded_from).exists() and out.samefile(loaded_from):
            raise ConfigError(f"{out} is the folder of the base model itself. Give another folder.")
        if model.strength == 0:
            raise ConfigError(
                "Strength 0 is the base model itself: there is nothing to merge. Give another --strength."
            )
        applied, receipt, tokenizer, config = model.strength, model.receipt, model.tokenizer, model.active_peft_config
        merged = model.merge_and_unload()
        merged.save_pretrained(out)
        tokenizer.save_pretrained(out)
        name = str(merged.dtype).removeprefix("torch.")
        write_rewritten_card(
            out, config, direction=direction, strength=applied, receipt=receipt, dtype=name,
            report=_report_of(direction, revision),
        )  # fmt: skip
    table = pairs_table()
    table.add_row("merged", f"{direction} at strength {strength_text(applied)}")
    table.add_row("changed", f"{receipt.entries:,} weights in {receipt.tensors} tensors")
    table.add_row("‖Δ‖ / ‖W‖", f"{receipt.relative_norm:.3g}")
    table.add_row(
        "lost to dtype", f"{receipt.swallowed:.2%} of the changes are below the spacing of {merged.dtype} numbers"
    )
    table.add_row("written", f"{out} ({type(merged).__name__} with tokenizer, {megabytes(folder_size(out))})")
    if warning := beyond_band(config, [applied]):
        table.add_row("beware", warning)
    console.print(table)


def _report_of(direction: str, revision: str | None) -> Report | None:
    """What was measured of a direction that was loaded a moment ago."""
    folder = resolve_folder(direction, revision=revision, required=(CONFIG_FILE,)).folder
    return Report.load(folder) if (folder / REPORT_FILE).is_file() else None


def require_empty(folder: Path, instead: str) -> None:
    """Raise `ConfigError` if there is something at `folder`."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; expected a folder. Use {instead}.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found:
        raise ConfigError(f"The folder {folder} is not empty ({', '.join(found[:4])}). Use {instead}.")
