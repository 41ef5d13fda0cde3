"""What a training leaves behind: its report, and the artifact with everything that is rendered from it."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import (
    ASSETS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    HTML_FILE,
    PROBES_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.cards import render_artifact
from gradiend_hub.data import require_classes, rows_digest
from gradiend_hub.evaluation import Report, edit_account
from gradiend_hub.evaluation.selftest import write_probes
from gradiend_hub.hub.names import shown_name
from gradiend_hub.model import GradiendModel

from .args import GradiendTrainingArguments
from .run import Learned

__all__ = ["ARTIFACT_FILES", "new_report", "save_artifact"]

ARTIFACT_FILES = (
    CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE, REPORT_FILE, PROBES_FILE, CARD_FILE, HTML_FILE, f"{ASSETS_FOLDER}/*.png",
)  # fmt: skip


_ARGUMENT = {"rows_per_gradient": "per_device_train_batch_size", "epochs": "num_train_epochs"}
"""Training arguments whose name in the report is another one."""


def new_report(learned: Learned) -> Report:
    """The report of a training that has not begun: what is learned from what, and how."""
    config, data = learned.config, learned.data
    classes = require_classes(config.feature_classes)
    defaults = {f.name: f.default for kind in (GradiendTrainingArguments, GradiendConfig) for f in fields(kind)}
    training = _arguments(learned)
    return Report(
        feature_classes=list(classes),
        base_model=shown_name(config.base_model_name_or_path),
        base_revision=config.revision,
        scope=learned.scope.summary(),
        training=training,
        default_arguments=[n for n, v in training.items() if v == defaults.get(_ARGUMENT.get(n, n), v)],
        data={
            "train_rows": {c: sum(row.factual_class == c for row in data.rows) for c in classes},
            "eval_rows": len(data.eval_rows), "neutral_texts": len(data.texts), "train_sha256": rows_digest(data.rows),
        },
        versions={name: version(name) for name in ("gradiend_hub", "torch", "transformers", "peft")},
    )  # fmt: skip


def _arguments(learned: Learned) -> dict[str, Any]:
    """The training arguments that shape the result."""
    config, args, data = learned.config, learned.args, learned.data
    return {
        "solver": args.solver, "source": config.source, "target": config.target,
        "learning_rate": args.learning_rate, "rows_per_gradient": args.per_device_train_batch_size,
        "epochs": args.num_train_epochs, "max_steps": max(args.max_steps, 0) or None, "seed": args.seed,
        "base_parameters": sum(p.numel() for p in learned.base_model.parameters()),
        "num_runs": args.num_runs, "learning_rates": args.learning_rates, "density": config.density,
        "importance": args.importance, "identity_rows": len(data.dataset) - len(data.rows), "decoder": args.decoder,
        "final_density": args.final_density,
    }  # fmt: skip


def save_artifact(folder: Path, learned: Learned, direction: Direction, report: Report) -> None:
    """Write the direction, its probes, the report and what is rendered from it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = GradiendModel.from_direction(
        learned.base_model, direction, learned.config, processing_class=learned.objective.processor
    )
    try:
        config = model.active_peft_config
        if report.splits:
            report.layers, report.dtype_loss = edit_account(model)
            report.examples = [learned.objective.record(row) for row in learned.data.rows[:3]]
        report.save(folder)
        model.save_pretrained(folder)
        write_probes(folder, model, learned.data.eval_rows or learned.data.rows, learned.objective)
    finally:
        model.unload()
    render_artifact(folder, config, report)
