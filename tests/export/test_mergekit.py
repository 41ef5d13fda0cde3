"""mergekit's task arithmetic of base and rewritten models is our merge at the summed strength, to rounding."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for, edited
from tests.export.test_lora import learned
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
RUN = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
recipe, out = json.loads(sys.argv[1])
run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), out, MergeOptions(copy_tokenizer=False))
"""
RECIPE = """
merge_method: task_arithmetic
base_model: {folder}/base
models:
  - model: {folder}/half
    parameters: {{weight: 1.0}}
  - model: {folder}/opposite
    parameters: {{weight: -2.0}}
dtype: float32
"""


def run_mergekit(base: Any, direction: Direction, config: GradiendConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Weights that mergekit makes of a base model and of copies rewritten at ½ and −½: those at strength 1.5."""
    base.save_pretrained(folder / "base")
    for name, strength in (("half", 0.5), ("opposite", -0.5)):
        model = GradiendModel.from_direction(copy.deepcopy(base), direction, config)
        model.merge_and_unload(strength=strength).save_pretrained(folder / name)
    given = json.dumps([RECIPE.format(folder=folder), str(folder / "out")])
    done = subprocess.run([sys.executable, "-c", RUN, given], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, torch.Tensor] = {}
    for file in (folder / "out").glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.skipif(find_spec("mergekit") is None, reason="pip install mergekit")
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_task_arithmetic_is_the_merge_at_the_summed_strength(architecture: str, tmp_path: Path) -> None:
    base = build(architecture)
    direction = learned(base, vectors=True)  # its decoder has no bias: Δ is linear in the strength
    config = config_for(direction, base)
    found = run_mergekit(base, direction, config, tmp_path)
    expected = edited(base, [(direction, *config.coefficients(1.5))])  # 1 · 0.5 + (−2) · (−0.5)
    wanted = dict(expected.named_parameters())
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values.detach(), atol=1e-6, rtol=1e-5)
    moved = max(float((wanted[name] - parameter).detach().abs().max()) for name, parameter in base.named_parameters())
    assert moved > 0.1
