"""Every architecture, every parameter: load, change, merge, undo, save, reload, always equal to W + σΔ."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from gradiend_hub.model import GradiendModel
from tests.adapter.support import NEEDS_OWN_LOADER, bits, config_for, edited, random_direction, same_bits, save
from tests.models import ARCHITECTURES, build, output

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # transformers' second load_adapter
]

DTYPES = [torch.float32, torch.bfloat16]


def frozen(architecture: str, dtype: torch.dtype) -> nn.Module:
    """A model whose weights are frozen, as under an adapter: torch has another convolution for weights that learn."""
    return build(architecture, dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_peft(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """PEFT's own calls: load, scale, disable, merge, unmerge, save, reload, merge and unload."""
    base = frozen(architecture, dtype)
    before = bits(base)
    direction = random_direction(base)
    config = config_for(direction, strength=0.5, strength_unit=2.0)
    save(tmp_path / "a", direction, strength=0.5, strength_unit=2.0)

    def expected(strength: float) -> torch.Tensor:
        return output(edited(base, [(direction, *config.coefficients(strength))]), architecture, dtype)

    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
    plain, at_half = output(base, architecture, dtype), expected(0.5)
    assert not torch.equal(at_half, plain)
    assert torch.equal(output(model, architecture, dtype), at_half)
    model.set_strength("default", -0.7)
    assert torch.equal(output(model, architecture, dtype), expected(-0.7))
    with model.disable_adapter():
        assert torch.equal(output(model, architecture, dtype), plain)

    model.merge_adapter(safe_merge=True)
    assert torch.equal(output(model, architecture, dtype), expected(-0.7))
    with model.disable_adapter():
        assert torch.equal(output(model, architecture, dtype), plain)
    model.set_strength("default", 0.5)
    assert torch.equal(output(model, architecture, dtype), at_half)
    model.unmerge_adapter()
    assert same_bits(bits(model.get_base_model()), before)
    assert torch.equal(output(model, architecture, dtype), at_half)

    model.save_pretrained(tmp_path / "b")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "b", low_cpu_mem_usage=True)
    assert torch.equal(output(again, architecture, dtype), at_half)
    merged = again.merge_and_unload()
    assert type(merged) is type(base)
    assert torch.equal(output(merged, architecture, dtype), at_half)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert same_bits(bits(model.unload()), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*little of the base model is left")  # edits that rounding cannot hide
def test_gradiend_model(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Our own calls: merged by default, exact at every strength, saved with everything, persistent when merged."""
    base = frozen(architecture, dtype)
    before = bits(base)
    direction = random_direction(base, seed=1)
    config = config_for(direction)
    save(tmp_path / "a", direction)

    model = GradiendModel.from_pretrained(tmp_path / "a", copy.deepcopy(base), strength=0.8)
    for strength in (0.8, -1.0, 0.0, 2.0):
        model.set_strength(strength)
        target = edited(base, [(direction, *config.coefficients(strength))])
        assert same_bits(bits(model), bits(target))
        assert torch.equal(output(model, architecture, dtype), output(target, architecture, dtype))
    with model.strength_at(0.0):
        assert same_bits(bits(model), before)
    model.save_pretrained(tmp_path / "b")
    again = GradiendModel.from_pretrained(tmp_path / "b", copy.deepcopy(base), strength=2.0)
    assert same_bits(bits(again), bits(model))
    assert torch.equal(again.direction.parameters[next(iter(direction.parameters))].encoder,
                       next(iter(direction.parameters.values())).encoder)  # fmt: skip
    merged = model.merge_and_unload()
    assert same_bits(merged.state_dict(), target.state_dict())
    if hasattr(merged, "save_pretrained"):
        outputs = []
        for name, saved in {"merged": merged, "target": target}.items():  # T5 is loaded with some weights in fp32
            saved.save_pretrained(tmp_path / name)
            reloaded = type(base).from_pretrained(tmp_path / name, dtype=dtype).eval().requires_grad_(False)
            outputs.append(output(reloaded, architecture, dtype))
        assert torch.equal(*outputs)


@NEEDS_OWN_LOADER
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "convnet"])
def test_transformers_integration(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """`model.load_adapter` of transformers, two directions, switching, saving."""
    base = frozen(architecture, dtype)
    first, second = random_direction(base, seed=2), random_direction(base, seed=3)
    config = config_for(first)
    save(tmp_path / "a", first)
    save(tmp_path / "b", second, strength=-0.5)

    def expected(*edits: tuple) -> torch.Tensor:
        return output(edited(base, [(d, *config.coefficients(s)) for d, s in edits]), architecture, dtype)

    model = copy.deepcopy(base)
    model.load_adapter(str(tmp_path / "a"))
    assert torch.equal(output(model, architecture, dtype), expected((first, 1.0)))
    model.load_adapter(str(tmp_path / "b"), adapter_name="second")
    model.set_adapter("second")
    assert torch.equal(output(model, architecture, dtype), expected((second, -0.5)))
    model.set_adapter(["default", "second"])
    assert torch.equal(output(model, architecture, dtype), expected((first, 1.0), (second, -0.5)))
    model.disable_adapters()
    assert torch.equal(output(model, architecture, dtype), output(base, architecture, dtype))
    model.enable_adapters()
    model.set_adapter("second")
    model.save_pretrained(tmp_path / "c")
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(output(model, architecture, dtype), expected((first, 1.0)))
    # transformers saves no samples of the base model
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "c", allow_unverified_base=True)
    assert torch.equal(output(again, architecture, dtype), expected((second, -0.5)))
