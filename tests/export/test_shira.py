"""A sparse direction as a SHiRA adapter: stock PEFT gives the probabilities of the direction, exactly the same entries."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.errors import BaseModelMismatchError, ConfigError, EditError
from gradiend_hub.export import to_shira
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.export.test_lora import as_stranger, linear_weights, probabilities
from tests.export.test_lora import learned as low_rank
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
SPARSE = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of PEFT's own use of torch


def sparse(base: nn.Module, *, bias: bool = False, share: float = 0.1, vectors: bool = False) -> Direction:
    """Some entries of every linear weight, fewer of some, and of the vectors if wanted."""
    generator, parts = torch.Generator().manual_seed(5), {}
    names = linear_weights(base) + [n for n, p in base.named_parameters() if p.ndim == 1 and vectors]
    for place, name in enumerate(names):
        parameter = base.get_parameter(name)
        size = max(1, int(share * parameter.numel() / (1 if share == 1 else 1 + place % 3)))
        indices = torch.randperm(parameter.numel(), generator=generator)[:size].sort().values.int()
        w, b = (0.5 * torch.randn(size, generator=generator) for _ in range(2))
        parts[name] = ParameterDirection(tuple(parameter.shape), w, b if bias else None, None, indices)
    return Direction(parts)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("bias", [False, True], ids=["odd", "with bias"])
def test_a_stranger_gets_the_same_probabilities(architecture: str, bias: bool, tmp_path: Path) -> None:
    base = build(architecture)
    direction = sparse(base, bias=bias)
    config = config_for(direction, base, strength_unit=2.0, decoder_sign=-1, base_model_name_or_path="us/base")
    made = to_shira(direction, config, base, tmp_path / "out")
    assert made.energy == pytest.approx(1) and not made.left_out and made.rank is None
    folders = dict(zip((1, -1), made.places, strict=False))
    if not bias:
        folders[-1] = to_shira(direction, config, base, tmp_path / "opposite", strength=-1.0).places[0]
    strange = as_stranger(base, folders, tmp_path)
    plain = probabilities(base)
    model = GradiendModel.from_direction(base, direction, config)
    for sign in (1, -1):
        model.set_strength(float(sign))
        expected = probabilities(model)
        assert float((expected - plain).abs().max()) > 5e-4
        torch.testing.assert_close(strange[sign], expected, atol=1e-7, rtol=1e-5)


@SPARSE
def test_entries_are_the_direction_s(tmp_path: Path) -> None:
    base = build("llama")
    direction = sparse(base, vectors=True)
    config = config_for(direction, base)
    made = to_shira(direction, config, base, tmp_path)
    model = peft.PeftModel.from_pretrained(build("llama"), tmp_path)
    for name, part in direction.parameters.items():
        if name in made.left_out:
            continue
        layer = model.base_model.model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(
            layer.get_delta_weight("default").to_dense(), part.dense(part.delta(*config.coefficients(1.0)))
        )
        layer.set_scale("default", -0.5)
        torch.testing.assert_close(
            layer.get_delta_weight("default").to_dense(), part.dense(part.delta(*config.coefficients(-0.5)))
        )
    assert made.left_out and all("norm" in why.lower() or "bias" in why for why in made.left_out.values())
    norms = sum(float(direction.parameters[name].inner(direction.parameters[name], 1, 1)) for name in made.left_out)
    assert made.energy == pytest.approx(1 - norms / direction.norm() ** 2)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    for name, values in load_file(tmp_path / "adapter_model.safetensors").items():
        if name.endswith("shira_weight"):
            shape = base.get_parameter(name.removeprefix("base_model.model.").replace("shira_weight", "weight")).shape
            assert len(values) == fields["r"] * sum(shape)


def test_bad_input(tmp_path: Path) -> None:
    base, out = build("bert"), tmp_path / "x"
    factors = low_rank(base)
    with pytest.raises(ConfigError, match=r"not sparse.*--format lora"):
        to_shira(factors, config_for(factors), base, out)
    full = sparse(base, share=1.0)
    with pytest.raises(ConfigError, match=r"need r = .*sparser"):
        to_shira(full, config_for(full), base, out)
    few = sparse(base)
    for strength in (0.0, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            to_shira(few, config_for(few), base, out, strength=strength)
    with pytest.raises(EditError, match="beyond the numbers of fp32"):
        to_shira(few, config_for(few), base, out, strength=1e300)
    with pytest.raises(BaseModelMismatchError):
        to_shira(few, config_for(few), build("llama"), out)
    turned = build("gpt2")
    conv = sparse(turned)
    with pytest.raises(ConfigError, match="Conv1D"):
        to_shira(conv, config_for(conv), turned, out)
    assert not out.exists()
