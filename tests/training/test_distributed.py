"""Two processes learn what one learns: `accelerate launch` on CPUs, where gloo carries the sums."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import ENCODER_FILE, WEIGHTS_FILE
from tests.training.distributed_job import job

ROOT = Path(__file__).parents[2]
JOBS: list[dict[str, Any]] = [
    {"solver": "autoencoder", "max_steps": 8, "measure": True},
    {"solver": "closed_form", "max_steps": 4},
    {"solver": "ridge", "max_steps": 4},
]


def launch(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Do the jobs in two processes. (`--multi_gpu` means several processes; `--cpu` alone would start one.)"""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port,
        "-m", "tests.training.distributed_job", str(folder), json.dumps(jobs),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[:4000] + done.stderr[-4000:]


def assert_same(first: Path, second: Path, tolerance: float = 2e-5) -> None:
    """Saved directions are equal to fp32 rounding: by vector, because Adam magnifies it where a gradient is almost zero."""
    for file in (WEIGHTS_FILE, ENCODER_FILE):
        one, two = load_file(first / file), load_file(second / file)
        assert one.keys() == two.keys() and one
        for name, value in one.items():
            assert float(torch.dist(two[name], value)) <= tolerance * float(value.norm()), name


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    launch(tmp_path / "two", JOBS)
    (tmp_path / "one").mkdir()
    for options in JOBS:
        job(tmp_path / "one", **options)
        solver = options["solver"]
        assert_same(tmp_path / "one" / solver, tmp_path / "two" / solver)
        found = [json.loads((tmp_path / "two" / f"{solver}-{rank}.json").read_text()) for rank in (0, 1)]
        alone = json.loads((tmp_path / "one" / f"{solver}-0.json").read_text())
        assert [each["processes"] for each in found] == [2, 2]
        assert all(each["state"] == pytest.approx(alone["state"] / 2, rel=0.01) for each in found)
        assert [each["correlation"] for each in found] == [pytest.approx(alone["correlation"], abs=1e-4)] * 2

    # a checkpoint is the same for any number of processes: each run goes on with the other's
    resumed = {
        name: JOBS[0] | {"resume": str(tmp_path / name / "autoencoder" / "checkpoint-4")} for name in ("one", "two")
    }
    launch(tmp_path / "from_one", [resumed["one"]])
    (tmp_path / "from_two").mkdir()
    job(tmp_path / "from_two", **resumed["two"])
    assert_same(tmp_path / "one" / "autoencoder", tmp_path / "from_one" / "autoencoder")
    assert_same(tmp_path / "one" / "autoencoder", tmp_path / "from_two" / "autoencoder")


@pytest.mark.slow
def test_sketches_of_two_processes_add_up(tmp_path: Path) -> None:
    """Factors may have other signs; their products are the same. Each process chooses the same decoder."""
    options: dict[str, Any] = {"solver": "closed_form", "max_steps": 4, "rank": 6, "decoder": "natural", "controls": 0}
    launch(tmp_path / "two", [options])
    (tmp_path / "one").mkdir()
    job(tmp_path / "one", **options)
    found = [GradiendModel.from_pretrained(tmp_path / name / "closed_form").direction for name in ("one", "two")]
    for name, one in found[0].parameters.items():
        other = found[1].parameters[name]
        assert other.rank == one.rank
        for what in ("decoder", "encoder"):
            mine, theirs = (part.dense(getattr(part, what)) for part in (one, other))
            assert float(torch.dist(mine, theirs)) <= 1e-3 * float(mine.norm()), (name, what)
