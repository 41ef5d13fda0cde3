"""The README's first block runs as it stands, and prints what the README says that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_first_block_prints_what_stands_below_it(tmp_path: Path, masked_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block, output = re.findall(r"```python\n(.*?)```\n.*?```text\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert run.returncode == 0, run.stderr[-2000:]
    printed = [line for line in run.stdout.splitlines() if not line.startswith("{'loss'")]
    wanted = output.splitlines()
    printed = printed[-len(wanted) :]
    # training on another number of threads or another processor rounds differently, so figures may move
    for found, expected in zip(printed, wanted, strict=True):
        assert found.split(": ")[0] == expected.split(": ")[0]
        assert _figures(found).keys() & _figures(expected).keys()
        for name in _figures(found).keys() & _figures(expected).keys():
            assert _figures(found)[name] == pytest.approx(_figures(expected)[name], abs=0.3)
    assert (tmp_path / "out/plural/model.safetensors").is_file()


def _figures(line: str) -> dict[str, float]:
    """`… -1: they 0.60 he 0.38` and `{'correlation': 0.982}` → figures by name."""
    return {name: float(value) for name, value in re.findall(r"(\w+)'?:? (\d\.\d+)", line)}
