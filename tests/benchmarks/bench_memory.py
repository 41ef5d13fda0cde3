"""Peak memory that `gradiend-hub train --dry-run` predicts, beside the peak of the job itself, each a process of its own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from .measure import EXAMPLES, MODELS, line

RECIPE = EXAMPLES / "train.yaml"


def run(quick: bool) -> list[dict[str, Any]]:
    """A line per base model: the job of `examples/train.yaml`, or (quick) forty steps of it."""
    steps = ["--set", "args.max_steps=40"] if quick else []
    lines = []
    for name, folder in MODELS.items():
        what = {"what": "predicted peak memory / that of the job", "model": name, "target": "≥ 0.9"}
        if not folder.is_dir():
            lines.append(what | {"skipped": f"{folder} is missing"})
            continue
        with tempfile.TemporaryDirectory() as out:
            options = [str(RECIPE), "--set", f"model={folder}", "--set", f"args.output_dir={out}", *steps]
            said = json.loads(_run([*options, "--dry-run", "--json"])[0])["estimate"]
            peak = _run([*options, "--quiet"])[1]
        ratio = said["peak_bytes"] / peak
        note = "; ".join(f"{part} {said[part] / 2**20:.0f}" for part in said if part.endswith("_bytes") and said[part])
        sizes = {"ours": f"{said['peak_bytes'] / 2**20:.0f} MiB", "other": f"{peak / 2**20:.0f} MiB"}
        lines.append(line(what.pop("what"), ratio, "", **what, **sizes, note=f"MiB: {note}"))
    return lines


def _run(options: list[str]) -> tuple[str, int]:
    """Standard output of `gradiend-hub train` with these options, and the most memory that the process held, in bytes."""
    with tempfile.TemporaryFile("w+") as output:
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "gradiend_hub", "train", *options],
            {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)],
        )
        _, status, usage = os.wait4(process, 0)
        output.seek(0)
        if status:
            raise RuntimeError(f"gradiend-hub train {' '.join(options)} ended with status {status}")
        return output.read(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
