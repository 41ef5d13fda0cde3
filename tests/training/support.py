"""Short training runs that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments

CLASSES = ["3SG", "3PL"]
STEPS = 60


def arguments(folder: Path, **changes: Any) -> GradiendTrainingArguments:
    """Arguments of a short, quiet run of the papers' solver and its own decoder, unless a test is about others."""
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "disable_tqdm": True, "use_cpu": True, "logging_steps": 10, "save_strategy": "no",
        "quality_tokens": 300, "controls": 1, "solver": "autoencoder", "decoder": "solver",
    }  # fmt: skip
    return GradiendTrainingArguments(output_dir=str(folder), **{**defaults, **changes})


def trainer_of(base: Any, folder: Path, data: Any, neutral: Any = None, **options: Any) -> GradiendTrainer:
    """A trainer on a few hundred bundled rows; options are those of the config unless they are the trainer's."""
    names = (
        "args",
        "callbacks",
        "processing_class",
        "train_dataset",
        "eval_dataset",
        "neutral_train_dataset",
        "test_dataset",
        "test_neutral_dataset",
    )
    own = {k: options.pop(k) for k in names if k in options}
    config = options.pop("config", None) or GradiendConfig(feature_classes=CLASSES, **options)
    args = own.pop("args", None) or arguments(folder)
    texts = None if neutral is None else neutral.select(range(12))
    return GradiendTrainer(
        base, config, args,
        **{"train_dataset": data["train"].select(range(320)), "eval_dataset": data["validation"].select(range(40))} | own,
        neutral_dataset=texts,
    )  # fmt: skip
