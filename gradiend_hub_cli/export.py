"""`export`: a direction in a form that others read."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import skeleton
from gradiend_hub.errors import ConfigError
from gradiend_hub.export import LoraExport, TaskVectorExport, to_lora, to_task_vector
from gradiend_hub.folders import require_empty, require_writable, written_beside
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .quiet import quiet
from .tables import folder_size, megabytes, pairs_table, strength_text

__all__ = ["ExportOptions", "export_direction"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of `gradiend-hub export`."""

    form: Literal["lora", "task-vector"]
    base: str | None
    revision: str | None
    rank: int | None
    strength: float
    overwrite: bool


def export_direction(out: Path, direction: str, options: ExportOptions, story: Story) -> dict[str, Any]:
    """Write a direction for other programs, and print what it holds; of the base model, only the configuration is read.

    Raises:
        GradiendError: the folder is in use, something cannot be read, or the direction has no such form.
    """
    if options.form == "task-vector" and options.rank is not None:
        raise ConfigError("--rank is of a LoRA: a task vector holds the whole change. Leave it out, or --format lora.")
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
        made: LoraExport | TaskVectorExport
        with written_beside(out) as beside:
            if options.form == "lora":
                made = to_lora(streamed, config, base, beside, rank=options.rank, strength=options.strength)
                places = [out / place.relative_to(beside) for place in made.folders]
            else:
                made = to_task_vector(streamed, config, base, beside, strength=options.strength)
                places = [out / made.file.name]
    size = sum(place.stat().st_size if place.is_file() else folder_size(place) for place in places)
    _show(made, f"{out} ({megabytes(size)})", story)
    written = {"folders": places} if isinstance(made, LoraExport) else {"file": places[0]}
    return {**asdict(made), "direction": direction, **written}


def _show(made: LoraExport | TaskVectorExport, where: str, story: Story) -> None:
    table = pairs_table()
    table.add_row("written", where)
    odd = made.odd if isinstance(made, TaskVectorExport) else len(made.folders) == 1
    both = "plus/ and minus/ are", f"strength ±{abs(made.strength):g}"
    one = "scale 1 is", f"strength {strength_text(made.strength)}" + (", scale −1 the opposite" if odd else "")
    table.add_row(*(both if isinstance(made, LoraExport) and not odd else one))
    if isinstance(made, TaskVectorExport):
        table.add_row("holds", f"all of Δ, in {made.tensors} tensors")
        if not odd:
            table.add_row("the opposite", "another file: the decoder has a bias, so that Δ is not odd in the strength")
    else:
        reasons = Counter(made.left_out.values()).most_common()
        table.add_row("rank", f"{made.rank}, in {made.modules} modules")
        table.add_row("holds", f"{made.energy:.1%} of ‖Δ‖²")
        table.add_row("left out", ", ".join(f"{count} × {reason}" for reason, count in reasons) or "nothing")
    story.show(table)
