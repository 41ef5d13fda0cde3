"""Edits that are not merged: whoever reads a parameter sees W', however it is read, and never an old one."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.artifact.config import GradiendConfig
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits, save
from tests.models import build, inputs, output

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


class Helper(nn.Module):
    """Parameters that are read by a method, or by whoever has the module, and never by its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.inner = nn.Linear(6, 6)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Block(nn.Module):
    """Calls a helper's method, and reads a weight of the helper's child."""

    def __init__(self) -> None:
        super().__init__()
        self.helper, self.table = Helper(), nn.Embedding(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.helper.scaled(x) + self.helper.shift
        return x @ self.table.weight + nn.functional.linear(x, self.helper.inner.weight)


class Net(nn.Module):
    """A bare parameter, blocks in containers, one of which has two names, a cross-read, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bare = nn.Parameter(torch.randn(6))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.again = nn.ModuleDict({"first": self.blocks[0]})
        self.head = nn.Linear(6, 6)
        self.head.weight = self.blocks[1].table.weight
        self.few = nn.ParameterList([nn.Parameter(torch.randn(6))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.blocks, self.again["first"]):
            x = torch.tanh(block(x)) * self.bare + self.few[0]
        return self.head(x) + x @ self.blocks[0].table.weight.T


def attach(net: nn.Module, folder: Path, **options: Any) -> tuple[PeftModel, nn.Module]:
    """The model with a direction over everything, unmerged, and W + Δ by hand."""
    direction = random_direction(net)
    model = PeftModel.from_pretrained(copy.deepcopy(net), save(folder, direction), **options)
    return model.eval(), edited(net, [(direction, 1.0, 1.0)]).requires_grad_(False).eval()


def test_parameters_that_are_read_outside_of_their_owner(tmp_path: Path) -> None:
    net, x = Net(), torch.randn(4, 6)
    model, reference = attach(net, tmp_path)
    assert len(list(gradiend_layers(model))) == len(list(net.parameters()))
    inner = model.base_model.model
    for _ in range(3):
        assert torch.equal(model(x), reference(x))
        assert torch.equal(inner(x), reference(x))  # past PEFT's forward
        for mine, theirs in zip(inner.blocks, reference.blocks, strict=True):  # and past the model's
            assert torch.equal(mine(x), theirs(x))
        assert same_bits(bits(inner), bits(net))
    assert torch.equal(model.unload()(x), net(x))


def test_an_error_within_a_forward_leaves_nothing_behind(tmp_path: Path) -> None:
    net, x = Net(), torch.randn(4, 6)
    model, reference = attach(net, tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("not today")

    for hook in (model.base_model.model.register_forward_pre_hook, model.base_model.model.head.register_forward_hook):
        handle = hook(fail)
        with pytest.raises(RuntimeError, match="not today"):
            model(x)
        handle.remove()
        assert same_bits(bits(model.base_model.model), bits(net))
        assert torch.equal(model(x), reference(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_parameters_that_others_read(reentrant: bool, tmp_path: Path) -> None:
    """The backward pass runs parts of the model again; they see W' then, too."""
    base = build("gemma3n")
    save(tmp_path, random_direction(base))

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True).train()
        if checkpointing:
            renamed = hasattr(model, "activation_checkpointing_enable")  # transformers ≥ 5.23
            enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**inputs("gemma3n"), labels=inputs("gemma3n")["input_ids"]).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain and plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], atol=1e-6, rtol=1e-4, msg=name)


# ------------------------------------------------------------------------------------------------- kept between forwards


class Small(nn.Module):
    """A table that is larger than what is compared whole, a transposed weight, a tied pair, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.last = nn.Embedding(900, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False)
        self.turned = nn.Linear(8, 8)
        self.turned.weight = nn.Parameter(torch.randn(8, 8).T)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.turned(self.norm(self.table(ids)))) @ self.table.weight.T


def kept(model: nn.Module) -> int:
    return sum(layer._kept._value is not None for layer in gradiend_layers(model))


def write(model: nn.Module, choose: random.Random) -> None:
    """Change the base model's values in one of the ways in which people do."""
    parameter = choose.choice([model.table.weight, model.norm.bias, model.last.weight, model.turned.weight])
    way = choose.choice(["in place", "data", "row of data", "detached", "assigned", "copied", "state", "numpy"])
    row = choose.randrange(len(parameter))
    with torch.no_grad():
        if way == "in place":
            parameter[row] += 0.5
        elif way == "data":
            parameter.data.mul_(1.5)
        elif way == "row of data":
            parameter.data[row] -= 0.25
        elif way == "detached":
            parameter.detach().add_(0.125)
        elif way == "assigned":
            parameter.data = parameter.data + 0.5
        elif way == "copied":
            parameter.copy_(parameter.flip(0))
        elif way == "numpy" and parameter.dtype != torch.bfloat16:
            parameter.detach().numpy()[row] += 1.0
        else:
            model.load_state_dict(
                {k: v * 0.75 for k, v in model.state_dict().items() if "rewrite_" not in k}, strict=False
            )


@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_is_never_old(seed: int, tmp_path: Path) -> None:
    """Random changes of everything that an edit is made of; after each, the output is that of W + ΣΔ made anew."""
    choose = random.Random(seed)
    ids = torch.randint(900, (3,), generator=torch.Generator().manual_seed(seed))
    plain = Small().requires_grad_(False)
    directions = {name: random_direction(plain, "mixed", seed=place) for place, name in enumerate("ab")}
    folders = {name: save(tmp_path / name, direction) for name, direction in directions.items()}
    model = PeftModel.from_pretrained(copy.deepcopy(plain), folders["a"], adapter_name="a")
    model.load_adapter(folders["b"], "b")
    strengths, scales, active, times = {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, ["a"], 0
    kinds = [
        "write",
        "write",
        "strength",
        "scale",
        "active",
        "off",
        "values",
        "dtype",
        "copy",
        "merge",
        "inference",
        "none",
    ]
    for _ in range(40):
        inner = model.base_model.model
        kind, name = choose.choice(kinds), choose.choice("ab")
        if kind == "write":
            write(inner, choose)
        elif kind == "strength":
            strengths[name] = choose.choice([0.0, -1.0, 0.5, 2.0])
            model.set_strength(name, strengths[name])
        elif kind == "scale":
            scales[name] = choose.choice([1.0, 0.5, 3.0])
            for layer in gradiend_layers(model):
                layer.set_scale(name, scales[name])
        elif kind == "active":
            active = choose.choice([["a"], ["b"], ["a", "b"]])
            model.base_model.set_adapter(active, inference_mode=True)
        elif kind == "off":
            with model.disable_adapter():
                assert torch.equal(model(ids), strip(inner)(ids))
        elif kind == "values":  # what training and loaders do
            for layer in gradiend_layers(model):
                values = layer.gradiend_weight[name]
                with torch.no_grad():
                    (values if choose.random() < 0.5 else values.data).mul_(-0.5)
        elif kind == "dtype":
            model.to(choose.choice([torch.float32, torch.bfloat16, torch.float16]))
        elif kind == "copy":
            model = copy.deepcopy(model)
        elif kind == "merge":
            model.merge_adapter()
            write_nothing = bits(inner)
            model.unmerge_adapter()
            assert write_nothing.keys() == bits(inner).keys()
        inner = model.base_model.model
        edits = [
            (model.base_model.direction_of(n), *config_for(directions[n]).coefficients(strengths[n] * scales[n]))
            for n in "ab"
        ]
        expected = edited(strip(inner), [edit for n, edit in zip("ab", edits, strict=True) if n in active])
        for _ in range(choose.randint(1, 3)):
            with torch.inference_mode() if kind == "inference" else torch.no_grad():
                assert torch.equal(model(ids), expected(ids)), kind
            times += kept(model) > 0
    assert times > 10  # something was kept


def strip(model: nn.Module) -> nn.Module:
    """The base model without side-cars, of the same layout in memory."""
    plain = Small().requires_grad_(False).to(model.norm.weight.dtype)
    for name, parameter in model.named_parameters():
        if "rewrite_" not in name:
            module, _, leaf = name.rpartition(".")
            plain.get_submodule(module)._parameters[leaf] = nn.Parameter(
                parameter.detach().clone(), requires_grad=False
            )
    return plain


def test_nothing_is_kept_of_what_learns(tmp_path: Path) -> None:
    """An optimizer may write without telling anybody; a fresh adapter is summed anew in every forward."""
    base = build("bert")
    model = get_peft_model(copy.deepcopy(base), GradiendConfig(scope="*query.weight"))
    for _ in range(3):
        output(model, "bert")
    assert kept(model) == 0
    loaded = PeftModel.from_pretrained(base, save(tmp_path, random_direction(base)))
    for _ in range(3):
        output(loaded, "bert")
    assert kept(loaded) == len(list(gradiend_layers(loaded)))
    loaded.merge_adapter()
    assert kept(loaded) == 0


def test_what_is_kept_can_be_backpropagated_through(tmp_path: Path) -> None:
    """Made in inference mode, used under autograd."""
    base = build("bert").requires_grad_(False)
    model, reference = attach(base, tmp_path)
    for _ in range(3):
        with torch.inference_mode():
            model(**inputs("bert"))
    found, expected = (
        torch.autograd.functional.jacobian(
            lambda x, m=m: m(inputs_embeds=x).logits.sum(), torch.ones(1, 2, 16), create_graph=False
        )
        for m in (model, reference)
    )
    torch.testing.assert_close(found, expected)
