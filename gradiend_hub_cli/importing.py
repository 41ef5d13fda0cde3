"""`import`: what the package gradiend has saved as a direction of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.errors import ArtifactNotFoundError
from gradiend_hub.export import import_gradiend, read_gradiend_folder
from gradiend_hub.folders import require_empty, written_beside

from .console import Story
from .quiet import quiet
from .tables import folder_size, megabytes, pairs_table


def import_direction(
    folder: Path, out: Path, base: str, classes: str | None, dtype: str | None, story: Story
) -> dict[str, Any]:
    """Write the direction, and print what it holds; the folder is read before the base model is loaded.

    Raises:
        GradiendError: the folder in question is in use, something cannot be read, or it is no direction of this base model.
    """
    require_empty(out, "another folder")
    if not folder.is_dir():
        raise ArtifactNotFoundError(
            f"There is no folder {folder}. Download it first: hf download REPO_ID --local-dir {folder}"
        )
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    with quiet(story), story.step("Import", told=False):
        read_gradiend_folder(folder, feature_classes=names)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        model = load_base_model(base, use_safetensors=True, **options)
        direction, config = import_gradiend(folder, model, feature_classes=names)
        with written_beside(out) as beside:
            direction.save(beside, dtype=config.dtype)
            config.save_pretrained(str(beside))
            write_card(beside, config)
    first, second = config.feature_classes or ("", "")
    table = pairs_table()
    table.add_row("written", f"{out} ({megabytes(folder_size(out))})")
    table.add_row("classes", f"{first} (read as +1), {second} (−1)")
    table.add_row("holds", f"{direction.entries:,} entries of {len(direction.parameters)} parameters")
    if direction.has_bias:
        table.add_row("the bias", "as the package decodes with it, which negates it when it turns an encoder round")
    table.add_row("strength", f"1 is its learning rate 1; 0 until it is measured: gradiend-hub evaluate {out}")
    story.show(table)
    return {
        "direction": out,
        "feature_classes": config.feature_classes,
        "source": config.source,
        "target": config.target,
        "entries": direction.entries,
        "parameters": len(direction.parameters),
        "has_bias": direction.has_bias,
    }
