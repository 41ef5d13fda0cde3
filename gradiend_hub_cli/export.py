"""`export`: a direction in a form that others read."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, GGUF_FOLDER, WEIGHTS_FILE
from gradiend_hub.base_model import skeleton
from gradiend_hub.cards import write_card
from gradiend_hub.errors import ConfigError
from gradiend_hub.export import (
    AdapterExport,
    TaskVectorExport,
    to_gguf_lora,
    to_lora,
    to_shira,
    to_task_vector,
    vllm_rank,
)
from gradiend_hub.hub.resolve import resolve_folder

from .console import Story
from .options import require_out
from .quiet import quiet
from .sharing import ExportOptions
from .tables import folder_size, megabytes, pairs_table, strength_text


def export_direction(out: Path, direction: str, options: ExportOptions, story: Story) -> dict[str, Any]:
    """Write a direction for other programs, and print what it holds; of the base model, only the configuration is read.

    Raises:
        GradiendError: the folder is in use, something cannot be read, or the direction has no such form.
    """
    if options.form in ("task-vector", "shira") and options.rank is not None:
        raise ConfigError(f"--rank is of a LoRA, and --format {options.form} has none. Leave it out, or --format lora.")
    require_out(out, options.overwrite)
    with quiet(story), story.step("Export", told=False):
        folder = resolve_folder(direction, revision=options.revision, required=(CONFIG_FILE, WEIGHTS_FILE)).folder
        if out.exists() and out.samefile(folder):
            raise ConfigError(f"{out} is the folder of the direction itself. Give another folder.")
        config = GradiendConfig.from_pretrained(str(folder))
        streamed = Direction.stream(folder, config, encoder=False)
        base = skeleton(config, options.base)
        within = options.form == "gguf-lora" and out.absolute() == (folder / GGUF_FOLDER).absolute()
        if within and options.strength != 1:
            raise ConfigError(
                f"{out} is where a direction keeps its LoRA for llama.cpp at strength 1, and this is one of strength "
                f"{options.strength:g}. Leave --strength out, or give another folder."
            )
        made: AdapterExport | TaskVectorExport
        if options.form == "task-vector":
            made = to_task_vector(streamed, config, base, out, strength=options.strength)
        elif options.form == "shira":
            made = to_shira(streamed, config, base, out, strength=options.strength)
        else:
            write = to_lora if options.form == "lora" else to_gguf_lora
            made = write(streamed, config, base, out, rank=options.rank, strength=options.strength)
        if within:
            write_card(folder)  # it tells how to use that; one that people have edited stays
    places = [made.file] if isinstance(made, TaskVectorExport) else made.places
    size = sum(place.stat().st_size if place.is_file() else folder_size(place) for place in places)
    _show(made, places, megabytes(size), story)
    found = {key: value for key, value in asdict(made).items() if key not in ("places", "file")}
    kind = {"task-vector": "file", "gguf-lora": "files"}.get(options.form, "folders")
    return {**found, "direction": direction, kind: places[0] if kind == "file" else places}


def _show(made: AdapterExport | TaskVectorExport, places: list[Path], size: str, story: Story) -> None:
    table = pairs_table()
    table.add_row("written", f"{', '.join(map(str, places))} ({size})")
    odd = made.odd if isinstance(made, TaskVectorExport) else len(places) == 1
    both = f"{places[0].name} and {places[-1].name} are", f"strength ±{abs(made.strength):g}"
    one = "scale 1 is", f"strength {strength_text(made.strength)}" + (", scale −1 the opposite" if odd else "")
    table.add_row(*(one if len(places) == 1 else both))
    if isinstance(made, TaskVectorExport):
        table.add_row("holds", f"all of Δ, in {made.tensors} tensors")
        if not odd:
            table.add_row("the opposite", "another file: the decoder has a bias, so that Δ is not odd in the strength")
    else:
        reasons = Counter(made.left_out.values()).most_common()
        rank = f"rank {made.rank}, " if made.rank is not None else ""
        table.add_row("adapter", f"{rank}{made.modules} modules")
        table.add_row("holds", f"{made.energy:.1%} of ‖Δ‖²")
        table.add_row("left out", ", ".join(f"{count} × {reason}" for reason, count in reasons) or "nothing")
        if places[0].suffix == ".gguf":
            table.add_row("use", f"llama-completion -m BASE.gguf --lora-scaled {places[0]}:1.0 -p TEXT")
        elif made.rank is not None:
            needed = vllm_rank(made.rank)
            table.add_row(
                "vLLM", f"--max-lora-rank {needed}" if needed else "refuses ranks above 512: export with --rank 512"
            )
    story.show(table)
