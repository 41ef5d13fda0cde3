"""A run that was killed goes on from its last whole checkpoint, and from none of another training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub import GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.training.checkpoints import KEY_FILE
from tests.training.support import arguments, trainer_of
from tests.training.test_trainer import same_direction

ROOT = Path(__file__).parents[2]
STEPS = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}


def fresh(base: Any, folder: Path, pronouns: Any, layers: str = "3", rows: int = 40, **options: Any) -> GradiendTrainer:
    config = {name: options.pop(name) for name in ("source", "density") if name in options}
    args = arguments(folder, **STEPS, save_total_limit=5, **options)
    return trainer_of(base, folder, pronouns, args=args, layers=layers, **config,
                      train_dataset=pronouns["train"].select(range(rows)))  # fmt: skip


@pytest.fixture(scope="module")
def through(masked_path: Path, pronouns: Any, tmp_path_factory: pytest.TempPathFactory) -> GradiendTrainer:
    """A run that nothing has stopped, whose checkpoints are there. Tests only read it."""
    trainer = fresh(masked_path, tmp_path_factory.mktemp("through") / "run", pronouns)
    trainer.train()
    return trainer


@pytest.fixture
def stopped(through: GradiendTrainer, tmp_path: Path) -> Path:
    """A copy of the folder of a whole run, whose checkpoints can be gone on with."""
    return Path(shutil.copytree(through.args.output_dir, tmp_path / "run"))


@pytest.mark.parametrize("missing", ["trainer_state.json", "optimizer.pt", KEY_FILE, "model.safetensors"])
def test_a_checkpoint_that_was_not_written_to_its_end(
    stopped: Path,
    through: GradiendTrainer,
    masked_path: Path,
    pronouns: Any,
    missing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (stopped / "checkpoint-10" / missing).unlink()
    shutil.copytree(stopped / "checkpoint-2", stopped / "checkpoint-11")
    for file in (stopped / "checkpoint-11").iterdir():
        file.unlink()
    resumed = fresh(masked_path, stopped, pronouns)
    with pytest.raises(ConfigError, match=f"no complete checkpoint: it lacks {missing}"):
        resumed.train(resume_from_checkpoint=str(stopped / "checkpoint-10"))
    resumed.train(resume_from_checkpoint=True)
    assert [f"checkpoint-{n}: it is not complete" in caplog.text for n in (11, 10, 8)] == [True, True, False]
    assert same_direction(resumed.direction, through.direction)
    for folder in stopped.glob("checkpoint-*"):
        (folder / "trainer_state.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no complete checkpoint in"):
        fresh(masked_path, stopped, pronouns).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"layers": "2"}, "scope"), ({"source": "diff"}, "source"), ({"rows": 44}, "rows"), ({"density": 0.5}, "kept"),
        ({"solver": "closed_form"}, "solver"), ({"num_runs": 2}, "runs"), ({"seed": 3}, "runs"),
        ({"decoder": "mean"}, "class means of the target"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(
    stopped: Path, masked_path: Path, pronouns: Any, options: dict[str, Any], field: str
) -> None:
    trainer = fresh(masked_path, stopped, pronouns, **options)
    with pytest.raises(TrainingError, match=f"is of another training: .*{field} is "):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 0


def test_a_checkpoint_of_another_base_model_is_refused(stopped: Path, masked_path: Path, pronouns: Any) -> None:
    trainer = fresh(masked_path, stopped, pronouns)
    trainer.base_model.get_input_embeddings().weight.data[7, 3] += 1.0  # one value of millions
    with pytest.raises(TrainingError, match="is of another training: base is "):
        trainer.train(resume_from_checkpoint=True)
    (stopped / "checkpoint-10" / KEY_FILE).write_text("[1")
    with pytest.raises(TrainingError, match="base is None"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_runs": 2, "learning_rates": [0.05, 0.1], "density": 0.1},
        {"decoder": "mean", "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
        {"solver": "ridge"},
    ],
    ids=["runs", "best", "ridge"],
)
def test_any_run_goes_on_bit_for_bit(masked_path: Path, pronouns: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    through = fresh(masked_path, tmp_path / "run", pronouns, **options)
    through.train()
    resumed = fresh(masked_path, tmp_path / "run", pronouns, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert same_direction(resumed.direction, through.direction)


KILLED_WHILE_SAVING = """
import os, signal, sys, json
from pathlib import Path
import torch
from tests.training.test_resuming import fresh, bundled
written = torch.save
def save(value, file, *more, **options):
    if "checkpoint-6" in str(file) and "optimizer" in str(file):
        Path(file).write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    written(value, file, *more, **options)
torch.save = save
fresh(sys.argv[1], Path(sys.argv[2]), bundled()).train()
"""


def bundled() -> dict[str, Any]:
    from datasets import load_dataset

    rows = load_dataset(str(ROOT / "examples" / "data" / "pronouns"))
    return {"train": rows["train"], "validation": rows["validation"]}


def test_killed_while_a_checkpoint_is_written(
    through: GradiendTrainer, masked_path: Path, pronouns: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED_WHILE_SAVING, str(masked_path), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = fresh(masked_path, tmp_path / "run", pronouns)
    resumed.train(resume_from_checkpoint=True)
    assert same_direction(resumed.direction, through.direction)
    state = json.loads((tmp_path / "run" / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["global_step"] == 10


def test_activations_are_recomputed_when_the_arguments_say_so(
    through: GradiendTrainer, masked_path: Path, pronouns: Any, tmp_path: Path
) -> None:
    names = {field.name for field in fields(GradiendTrainingArguments)}
    option = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    trainer = fresh(masked_path, tmp_path / "again", pronouns, **{option: True})
    trainer.train()
    assert trainer.base_model.is_gradient_checkpointing
    for name, part in trainer.direction.parameters.items():
        assert float((part.decoder - through.direction.parameters[name].decoder).norm()) < 1e-4 * float(
            part.decoder.norm()
        )


# --------------------------------------------------------------------------------------------------- memory and rows


@pytest.mark.parametrize("what", ["__init__", "observe"])
def test_memory_that_runs_out_in_the_solver(
    masked_path: Path, pronouns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The allocations themselves are torch's; what it says when one fails is raised in their place."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …"
        )

    build: Callable[[], GradiendTrainer] = lambda: fresh(masked_path, tmp_path, pronouns, density=0.5)  # noqa: E731
    trainer = None if what == "__init__" else build()
    monkeypatch.setattr(f"gradiend_hub.solvers.autoencoder.AutoencoderSolver.{what}", fail)
    with pytest.raises(
        TrainingError, match=r"Out of memory with 16(?:\.5)? vectors .*density=0.05 in place of 0.5 \(saves"
    ):
        (trainer or build()).train()
