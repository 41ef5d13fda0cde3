"""Random sequences of operations over several directions: the weights are always W + ΣΔ, and come back to the bit."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from gradiend_hub.adapter import arithmetic, gradiend_layers
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import ConfigError, EditError, GradiendError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Net(nn.Module):
    """Two tied linear layers, a norm and a transposed (not contiguous) weight; some values are negative zero."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.norm = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)
        self.last.weight = self.first.weight
        self.turned = nn.Linear(6, 5)
        with torch.no_grad():
            self.first.weight[0] = -0.0
            self.norm.bias[:3] = -0.0
            self.turned.weight = nn.Parameter(torch.randn(6, 5).T)
        self.to(dtype)
        assert not self.turned.weight.is_contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A number for every row."""
        hidden: torch.Tensor = self.turned(self.last(self.norm(self.first(x))))
        return hidden


def directions(net: nn.Module) -> dict[str, Direction]:
    """One of each kind; "few" touches one tensor only."""
    few = random_direction(net, "sparse", seed=4, share=0.5)
    return {
        "dense": random_direction(net, "dense", seed=1),
        "sparse": random_direction(net, "sparse", seed=2, share=0.3),
        "mixed": random_direction(net, "mixed", seed=3, share=0.3, bias=False),
        "low rank": random_direction(net, "low rank", seed=5),
        "few": Direction({"norm.bias": few.parameters["norm.bias"]}, 0.0, few.fingerprint.only(["norm.bias"])),  # type: ignore[union-attr]
    }


def expected(net: nn.Module, available: dict[str, Direction], strengths: dict[str, float]) -> nn.Module:
    edits = [(d, *config_for(d).coefficients(strengths[name])) for name, d in available.items() if name in strengths]
    return edited(net, edits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_random_sequences(dtype: torch.dtype, seed: int) -> None:
    """40 random operations on `GradiendModel`; after each, weights and outputs are those of the reference."""
    choose = random.Random(seed)
    net = Net(dtype)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    available = directions(net)
    first, *others = available
    model = GradiendModel.from_direction(
        copy.deepcopy(net), available[first], config_for(available[first]), adapter_name=first
    )
    for name in others:
        model.add_direction(name, available[name], config_for(available[name]))
    strengths = dict.fromkeys(available, 1.0) | {first: 0.0}
    active, merged, names = [first], True, list(available)  # in the order in which they were added: that of the sum
    kinds = ["strength", "strength", "strength", "active", "merge", "at", "disable", "copy", "fail", "renew", "nest"]
    for _ in range(40):
        operation = choose.choice(kinds)
        if operation == "strength":
            name, strength = choose.choice(list(available)), choose.choice([0.0, 1.0, -1.0, 0.5, 7.0])
            model.set_strength({name: strength})
            strengths[name] = strength
            active += [name] if name not in active else []
        elif operation == "active":
            active = choose.sample(list(available), choose.randint(1, len(available)))
            model.set_adapter(active)
        elif operation == "merge":
            merged = not merged
            if merged:
                model.merge_adapter()
            else:
                model.unmerge_adapter()
        elif operation == "at":
            with model.strength_at({choose.choice(list(available)): choose.choice([0.0, 3.0])}):
                model(x)
        elif operation == "copy":
            model = copy.deepcopy(model) if choose.random() < 0.5 else pickle.loads(pickle.dumps(model))
        elif operation == "fail":
            with pytest.raises(GradiendError):
                model.set_strength({choose.choice(names): choose.choice([float("nan"), 1e45])})
        elif operation == "renew":
            name = choose.choice(names)
            model.delete_adapter(name)
            model.add_direction(name, available[name], config_for(available[name]))
            names = [*(other for other in names if other != name), name]
            strengths[name] = 1.0
            active = [other for other in active if other != name]
        elif operation == "nest":
            with model.strength_at({choose.choice(names): 2.0}), model.disable_adapter():
                with model.strength_at({choose.choice(names): -1.0}), pytest.raises(ConfigError):
                    model.set_strength({"unknown": 1.0})
                assert same_bits(bits(model), bits(net))
        else:
            with model.disable_adapter():
                assert torch.equal(model(x), net(x))
                assert same_bits(bits(model), bits(net))
        target = expected(net, {name: available[name] for name in names}, {name: strengths[name] for name in active})
        assert same_bits(bits(model), bits(target if merged else net)), operation
        assert torch.equal(model(x), target(x)), operation
    assert same_bits(bits(model.unload()), bits(net))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_sequences_through_plain_peft(dtype: torch.dtype, seed: int, tmp_path: Any) -> None:
    """PEFT's own merging, in any order and any number of steps."""
    choose = random.Random(seed)
    net = Net(dtype)
    torch.nn.init.normal_(net.norm.bias)  # zeros are in every model, so they do not identify one
    available = directions(net)
    for name, direction in available.items():
        config_for(direction).save_pretrained(str(tmp_path / name))
        direction.save(tmp_path / name)
    first, *others = available
    model = PeftModel.from_pretrained(copy.deepcopy(net), tmp_path / first, adapter_name=first)
    for name in others:
        model.load_adapter(tmp_path / name, name)
    strengths, merged = dict.fromkeys(available, 1.0), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(30):
            operation = choose.choice(["merge", "merge", "unmerge", "strength"])
            name = choose.choice(list(available))
            if operation == "merge":
                model.merge_adapter([name])
                merged += [name] if name not in merged else []
            elif operation == "unmerge":
                model.unmerge_adapter()
                merged = []
            else:
                strengths[name] = choose.choice([0.0, -1.0, 0.3, 5.0])
                model.set_strength(name, strengths[name])
            target = expected(net, available, {name: strengths[name] for name in merged})
            assert same_bits(bits(model.get_base_model()), bits(target)), operation
    assert same_bits(bits(model.unload()), bits(net))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_rounding(dtype: torch.dtype) -> None:
    """Against fp64: the edited value is the nearest number of the type, or its neighbour where fp32 itself rounded."""
    net = Net(dtype)
    direction = random_direction(net, "dense", bias=False)
    model = GradiendModel.from_direction(copy.deepcopy(net), direction, config_for(direction), strength=0.25)
    for name, parameter in model.get_base_model().named_parameters():
        if "rewrite_" in name:
            continue
        exact = (
            net.get_parameter(name).double() + 0.25 * direction.parameters[name].decoder.view(parameter.shape).double()
        )
        spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
        limit = 0.5 if dtype != torch.float32 else 1.0
        assert bool(((parameter.double() - exact).abs() <= limit * 1.01 * spacing).all())


def test_undo_keeps_only_the_touched_entries() -> None:
    net = nn.Linear(1000, 1000)
    direction = random_direction(net, "sparse", share=0.01)
    model = GradiendModel.from_direction(net, direction, config_for(direction), strength=1.0)
    kept = sum(layer._originals.values.numel() for layer in gradiend_layers(model) if layer._originals is not None)
    assert kept == direction.entries < 0.011 * direction.numel


def test_a_failing_change_leaves_the_former_strength() -> None:
    net = nn.Linear(20, 20).to(torch.bfloat16)  # drawn in bf16, some weights would be 0, and any edit changes those
    direction = random_direction(net)
    model = GradiendModel.from_direction(net, direction, config_for(direction), strength=1.0)
    before = bits(model)
    with pytest.raises(EditError, match="no weight changes"):
        model.set_strength(1e-12)
    assert model.strength == 1.0
    assert same_bits(bits(model), before)


def test_safe_merge_refuses_infinite_weights() -> None:
    net = Net(torch.float16)
    before = bits(net)
    direction = 1e7 * random_direction(net)
    model = GradiendModel.from_direction(net, direction, config_for(direction))
    model.unmerge_adapter()
    model.base_model.attached["default"].set(1.0)  # past the check of `set_strength`
    with pytest.raises(EditError, match="beyond the numbers"):
        model.merge_adapter(safe_merge=True)
    assert same_bits(bits(model.unload()), before)


def test_a_failing_merge_and_unload_changes_nothing() -> None:
    """One tensor overflows: no other tensor is merged either, and the model can go on."""
    net = Net(torch.float16)
    before = bits(net)
    direction = random_direction(net, "dense")
    last = list(direction.parameters)[-1]
    direction.parameters[last].decoder.mul_(1e6)
    model = GradiendModel.from_direction(net, direction, config_for(direction))
    model.unmerge_adapter()
    model.base_model.attached["default"].set(1.0)
    with pytest.raises(EditError, match="beyond the numbers"):
        model.merge_and_unload()
    assert same_bits(bits(net), before)
    assert len(list(gradiend_layers(model))) == len(direction.parameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_tensors_larger_than_a_block(
    dtype: torch.dtype, kind: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors are written in blocks, the last of which is shorter."""
    monkeypatch.setattr(arithmetic, "BLOCK", 10)
    net = Net(dtype)
    direction = random_direction(net, kind, share=0.6, bias=bias)
    before, config = bits(net), config_for(direction)
    model = GradiendModel.from_direction(copy.deepcopy(net), direction, config, strength=1.0)
    for strength in (1.0, -0.7):
        model.set_strength(strength)
        assert same_bits(bits(model), bits(edited(net, [(direction, *config.coefficients(strength))])))
    assert same_bits(bits(model.unload()), before)
