"""Files that a training leaves: the direction as it is, and the artifact with report, probes, card and figures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import LORA_FOLDER, REFERENCES_FILE
from gradiend_hub.artifact.names import shown_name
from gradiend_hub.artifact.references import References
from gradiend_hub.cards import render_artifact
from gradiend_hub.data import require_classes, rows_digest
from gradiend_hub.evaluation import Report, edit_account
from gradiend_hub.evaluation.selftest import write_probes
from gradiend_hub.model import GradiendModel
from gradiend_hub.scope import base_parameters
from gradiend_hub.solvers import SeedReport

from .args import GradiendTrainingArguments
from .decoders import LEARNED
from .run import TrainingRun

_ARGUMENT = {"rows_per_gradient": "per_device_train_batch_size", "epochs": "num_train_epochs"}
"""Training arguments whose name in the report is another one."""


def new_report(run: TrainingRun) -> Report:
    """Begin the report of a training: what is learned from what, and how."""
    config, data = run.config, run.data
    classes = require_classes(config.feature_classes)
    defaults = {f.name: f.default for kind in (GradiendTrainingArguments, GradiendConfig) for f in fields(kind)}
    training = _arguments(run)
    return Report(
        feature_classes=list(classes),
        base_model=shown_name(config.base_model_name_or_path),
        base_revision=config.revision,
        scope=run.scope.summary(),
        training=training,
        default_arguments=[
            n for n, v in training.items() if n in run.args.decided or v == defaults.get(_ARGUMENT.get(n, n), v)
        ],
        data={
            "train_rows": {c: sum(row.factual_class == c for row in data.rows) for c in classes},
            "eval_rows": len(data.eval_rows),
            "neutral_texts": len(data.texts),
            "train_sha256": rows_digest(data.rows),
        },
        versions={name: version(name) for name in ("gradiend_hub", "torch", "transformers", "peft")},
    )


def _arguments(run: TrainingRun) -> dict[str, Any]:
    """The training arguments that shape the result."""
    config, args, data = run.config, run.args, run.data
    is_trained = args.solver == "autoencoder"  # the others have no learning rate and no seeds
    return {
        "solver": args.solver,
        "source": config.source,
        "target": config.target,
        "learning_rate": args.learning_rate if is_trained else None,
        "rows_per_gradient": args.per_device_train_batch_size,
        "epochs": args.num_train_epochs,
        "max_steps": max(args.max_steps, 0) or None,
        "seed": args.seed,
        "base_parameters": sum(p.numel() for p in base_parameters(run.base_model).values()),
        "num_runs": args.num_runs if is_trained else None,
        "learning_rates": args.learning_rates,
        "density": config.density,
        "importance": args.importance if config.density < 1 else None,
        "identity_rows": len(data.dataset) - len(data.rows),
        "decoder": args.decoder,
        "final_density": args.final_density,
        "rank": args.rank,
        "spared_sentences": len(data.fisher_texts) if args.decoder in LEARNED else None,
    }


def seed_records(found: SeedReport, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Describe each run of a training for the report."""
    return [
        {
            "seed": run.seed,
            "learning_rate": run.rate,
            "correlation": run.correlation,
            "class_means": dict(zip(classes, run.class_means, strict=True)),
            "converged": run.converged,
            "chosen": run.chosen,
        }
        for run in found.runs
    ]


def save_direction(
    folder: Path, run: TrainingRun, direction: Direction, report: Report, references: References | None = None
) -> None:
    """Write a direction as it is, with the report so far: all that `GradiendModel.from_pretrained` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    with run.applied(direction) as model:
        _save(folder, model, report, references)


def save_artifact(
    folder: Path, run: TrainingRun, direction: Direction, report: Report, references: References | None = None
) -> None:
    """Write the direction, its probes, the report and what is rendered from it."""
    folder.mkdir(parents=True, exist_ok=True)
    with run.applied(direction) as model:
        config = model.active_peft_config
        if report.splits:
            report.layers, report.dtype_loss = edit_account(model)
            report.examples = [run.objective.record(run.objective.small_row(row)) for row in run.data.rows[:3]]
        _save(folder, model, report, references)
        write_probes(folder, model, run.data.eval_rows or run.data.rows, run.objective)
        shutil.rmtree(folder / LORA_FOLDER, ignore_errors=True)  # of a former direction
        if report.lora is not None and report.lora.holds:
            model.to_lora(folder / LORA_FOLDER)
    render_artifact(folder, config, report)


def _save(folder: Path, model: GradiendModel, report: Report, references: References | None) -> None:
    """Write a direction, the report, and what it is compared with; remove that of a former direction."""
    report.save(folder)
    if references is None:
        (folder / REFERENCES_FILE).unlink(missing_ok=True)
    else:
        references.save(folder)
    model.save_pretrained(folder)
