"""`export`: a direction in a form that others read."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import skeleton
from gradiend_hub.errors import ConfigError
from gradiend_hub.export import to_lora
from gradiend_hub.folders import require_empty, require_writable, written_beside
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .quiet import quiet
from .tables import folder_size, megabytes, pairs_table, strength_text

__all__ = ["ExportOptions", "export_lora"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of `gradiend-hub export`."""

    base: str | None
    revision: str | None
    rank: int | None
    strength: float
    overwrite: bool


def export_lora(out: Path, direction: str, options: ExportOptions, story: Story) -> dict[str, Any]:
    """Write a direction as a LoRA, and print what it holds; of the base model, only the configuration is read.

    Raises:
        GradiendError: the folder is in use, something cannot be read, or the direction has no form as a LoRA.
    """
    if options.overwrite:
        require_writable(out)
    else:
        require_empty(out, "another folder, or --overwrite to write into it")
    with quiet(story), story.step("Export", told=False):
        folder = resolve_folder(direction, revision=options.revision, required=(CONFIG_FILE, WEIGHTS_FILE)).folder
        if out.exists() and out.samefile(folder):
            raise ConfigError(f"{out} is the folder of the direction itself. Give another folder.")
        config = GradiendConfig.from_pretrained(str(folder))
        streamed = Direction.stream(folder, config, encoder=False)
        base = skeleton(config, options.base)
        with written_beside(out) as beside:
            made = to_lora(streamed, config, base, beside, rank=options.rank, strength=options.strength)
            names = [place.relative_to(beside) for place in made.folders]
    reasons = Counter(made.left_out.values())
    left = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    table = pairs_table()
    table.add_row("written", f"{out} ({megabytes(sum(folder_size(out / name) for name in names))})")
    signs = "scale 1 is" if len(names) == 1 else "plus/ and minus/ are"
    dose = strength_text(options.strength) if len(names) == 1 else f"±{abs(options.strength):g}"
    table.add_row(signs, f"strength {dose}" + (", scale −1 the opposite" if len(names) == 1 else ""))
    table.add_row("rank", f"{made.rank}, in {made.modules} modules")
    table.add_row("holds", f"{made.energy:.1%} of ‖Δ‖²")
    table.add_row("left out", left or "nothing")
    story.show(table)
    return {**asdict(made), "direction": direction, "folders": [out / name for name in names]}
