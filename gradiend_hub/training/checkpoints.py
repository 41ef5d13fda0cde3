"""Which checkpoint a training goes on with: one that was written to its end, and that is of this very training."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.gradients.store import differences

__all__ = ["find_checkpoint", "require_same_training", "write_key"]

logger = logging.getLogger(__name__)

KEY_FILE = "gradiend_training.json"
"""What the state in a checkpoint is of."""

PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", KEY_FILE, "trainer_state.json")
"""What `Trainer` and we write into a checkpoint; the last one is written last."""


def find_checkpoint(output_dir: str | Path, wanted: str | Path | bool) -> Path:
    """The checkpoint to go on with: the one that is named, or the last complete one in the output directory.

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
    numbered = {
        int(match[1]): path
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name))
    }
    for _, path in sorted(numbered.items(), reverse=True):
        if not (missing := _missing(path)):
            return path
        logger.warning("Not resumed from %s: it is not complete, %s missing.", path, ", ".join(missing))
    raise ConfigError(f"There is no complete checkpoint in {output_dir}; train from the start instead.")


def _missing(folder: Path) -> list[str]:
    return [name for name in PARTS if not (folder / name).is_file()]


def write_key(folder: Path, key: Mapping[str, str]) -> None:
    """Say in a checkpoint what its state is of."""
    (folder / KEY_FILE).write_text(json.dumps(key, indent=1), encoding="utf-8")


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
