"""Checkpoints of a training: what is in them, which one is gone on with, and when they are removed."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.gradients.memory import format_bytes
from gradiend_hub.gradients.store import differences

from .run import TrainingRun
from .streams import store_key

logger = logging.getLogger(__name__)

KEY_FILE = "gradiend_training.json"
"""File that says what the state in a checkpoint is of."""

PARTS = (SAFE_WEIGHTS_NAME, "optimizer.pt", "scheduler.pt", KEY_FILE, "trainer_state.json")
"""Files without which a checkpoint is not complete; the last one is written last."""

STATE_FORMAT = 2
"""Layout of the solvers' state."""


def training_key(run: TrainingRun) -> dict[str, str]:
    """Describe what a checkpoint's state depends on, as text by name."""
    key = asdict(store_key(run, [list(range(len(run.data.dataset)))]))
    args, config = run.args, run.config
    fields = {name: key[name] for name in ("base", "objective", "rows", "scope", "kept")}
    fields |= {"source": config.source, "target": config.target, "solver": args.solver, "runs": args.runs}
    fields["class means of the target"] = args.decoder != "solver" or args.solver != "autoencoder"
    fields["comparable"] = args.comparable
    fields["rank"] = args.rank if args.solver == "closed_form" else None
    fields["state format"] = STATE_FORMAT
    return {name: str(value) for name, value in fields.items()}


def write_state(folder: Path, state: Mapping[str, Tensor], key: Mapping[str, str]) -> None:
    """Write a solver's state into a checkpoint, and what it is of: all that a resumed training needs of the solver."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / SAFE_WEIGHTS_NAME, {"format": "pt"})
    (folder / KEY_FILE).write_text(json.dumps(key, indent=1), encoding="utf-8")


def find_checkpoint(output_dir: str | Path, wanted: str | Path | bool) -> Path:
    """Find the checkpoint to go on with: the one that is named, or the last complete one in the output directory.

    Raises:
        ConfigError: there is none, or the one that is named is not complete.
    """
    if not isinstance(wanted, bool):
        if missing := _missing(Path(wanted)):
            raise ConfigError(
                f"{wanted} is no complete checkpoint: it lacks {', '.join(missing)} (a run that was killed while it was "
                "saved, or save_only_model=True). Name another one, or resume_from_checkpoint=True takes the last that is "
                "complete."
            )
        return Path(wanted)
    for path in _checkpoints(Path(output_dir))[::-1]:
        if not (missing := _missing(path)):
            return path
        logger.warning("Not resumed from %s: it is not complete, %s missing.", path, ", ".join(missing))
    raise ConfigError(f"There is no complete checkpoint in {output_dir}; train from the start instead.")


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders of checkpoints, the oldest first."""
    numbered = {
        int(match[1]): path
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name))
    }
    return [path for _, path in sorted(numbered.items())]


def remove_checkpoints(output_dir: str | Path) -> None:
    """Remove the checkpoints that trainers of directions have written into a folder."""
    for path in _checkpoints(Path(output_dir)):
        if (path / KEY_FILE).is_file():
            shutil.rmtree(path)


def _missing(folder: Path) -> list[str]:
    return [name for name in PARTS if not (folder / name).is_file()]


def require_same_training(folder: Path, key: Mapping[str, str]) -> None:
    """Refuse a checkpoint whose state means something else.

    Raises:
        TrainingError: naming the fields that differ.
    """
    try:
        found = json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if listed := differences(found, key):
        raise TrainingError(
            f"The checkpoint {folder} is of another training: {listed}. Train with what it was made with, or from the start "
            "into another output_dir."
        )


def require_space(folder: str | Path, needed: int, what: str) -> None:
    """Refuse a training whose files would not fit on the disk.

    Raises:
        ConfigError: with what is needed and what is left.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"The disk of the output directory {folder} has {format_bytes(free)} left, and {what} need "
            f'{format_bytes(needed)}. Choose another output_dir, a lower density, or save_strategy="no".'
        )


def require_unused(folder: Path) -> None:
    """Refuse an output directory that holds something: it is resumed or overwritten by choice, never by accident.

    Raises:
        ConfigError: it is not empty.
    """
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if not found:
        return
    checkpoint = any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in found)
    hint = "train(resume_from_checkpoint=True) to go on with its last checkpoint, " if checkpoint else ""
    raise ConfigError(
        f"The output directory {folder} is not empty ({', '.join(found[:4])}). Use {hint}overwrite_output_dir=True to "
        "write into it, or another directory."
    )
