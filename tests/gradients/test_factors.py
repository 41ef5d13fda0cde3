"""Gradients by factors, compared with plain autograd by parameter, on every architecture of the tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, dispatch_model
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gradiend_hub.errors import ConfigError
from gradiend_hub.gradients import (
    FactorReader,
    GradientReader,
    Outer,
    Scope,
    read_factors,
    read_pair,
    select_parameters,
)
from gradiend_hub.gradients.memory import activation_bytes
from tests.gradients.test_checkpointing import CHECKPOINTED, enable, forwards, with_dropout
from tests.gradients.test_pairs import examples, pairs
from tests.models import ARCHITECTURES, EXPERTS, build, inputs
from tests.objectives.support import objective

OWN = {
    "deberta": ["rel_embeddings"],
    "mamba": ["conv1d", "dt_proj", "mixer"],
    "vit": ["embeddings"],
    "convnet": ["attention", "out_proj", "recurrent", "self_attn"],
}
"""Modules by architecture whose matrices are read by code that no hook sees, or that do more than their class says."""


def summed(
    model: nn.Module, scope: Scope, loss_of: Callable[[], Tensor], reads: int = 1
) -> tuple[FactorReader, dict[str, Tensor]]:
    """The gradient of every parameter, put together from its parts."""
    total: dict[str, Tensor] = {}

    def sink(name: str, part: Outer | Tensor) -> None:
        shape = scope.parameters[name].shape
        into = total.setdefault(name, torch.zeros(shape))
        if isinstance(part, Outer) and part.number is not None:
            into, shape = into[part.number], shape[1:]
        into += (part.dense() if isinstance(part, Outer) else part).reshape(shape)

    with FactorReader(model, scope) as reader:
        loss = reader.forward(loss_of)
        for number in range(reads):
            reader.read(loss, sink, retain_graph=number + 1 < reads)
    return reader, total


def loss_of(model: nn.Module, architecture: str, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(2)
    batch = inputs(architecture, dtype)

    def loss() -> Tensor:
        result = model(**batch)
        found = result if isinstance(result, Tensor) else result["logits"] if "logits" in result else result[0]
        weights = torch.randn(found.shape, generator=generator.manual_seed(2))
        return (found.double() * weights).sum()

    return loss


def autograd(scope: Scope, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(scope.parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(scope.parameters, found, strict=True) if g is not None}


@pytest.mark.parametrize("architecture", dict.fromkeys((*ARCHITECTURES, *EXPERTS)))
def test_equal_to_autograd_by_parameter(architecture: str) -> None:
    model = build(architecture)
    scope = Scope.dense(select_parameters(model, scope="*"))
    expected = autograd(scope, loss_of(model, architecture)())
    reader, found = summed(model, scope, loss_of(model, architecture))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name
    own = sorted({name.split(".")[-2] for name in reader.matrices_of_their_own})
    if Version(transformers.__version__) >= Version("5.20"):
        assert own == OWN.get(architecture, [])
    else:  # older releases read fewer of them past their layers
        assert {*own} <= {*OWN.get(architecture, [])}


@pytest.mark.parametrize("architecture", dict.fromkeys((*ARCHITECTURES, *EXPERTS)))
def test_bfloat16_models(architecture: str) -> None:
    """Products of bf16 factors are summed in fp32: no further from autograd's than that is rounded itself."""
    model = build(architecture, torch.bfloat16)
    scope = Scope.dense(select_parameters(model, scope="*"))
    expected = autograd(scope, loss_of(model, architecture, torch.bfloat16)())
    _, found = summed(model, scope, loss_of(model, architecture, torch.bfloat16))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        scale = float(gradient.float().norm())
        assert float((found[name] - gradient.float()).norm()) <= 0.01 * scale + 1e-6, name


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("architecture", CHECKPOINTED)
def test_layers_are_recomputed_and_nothing_changes(architecture: str, reentrant: bool) -> None:
    """Their inputs are kept as autograd keeps any: not at all, until they are computed anew."""
    plain = build(architecture)
    scope = Scope.dense(select_parameters(plain))
    expected = autograd(scope, loss_of(plain, architecture)())
    model = with_dropout(architecture).train()
    enable(model, {"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    calls = forwards(model)
    reader, found = summed(model, Scope.dense(select_parameters(model)), loss_of(model, architecture), reads=2)
    assert len(calls) == 3  # once forward, once again for each of the two gradients
    assert not reader.matrices_of_their_own
    for name, gradient in expected.items():
        assert float((found[name] / 2 - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name
    assert all(module.training for module in model.modules())


def test_checkpointing_saves_memory() -> None:
    kept = []
    for recompute in (False, True):
        model = build("llama")
        if recompute:
            enable(model.train())
        with FactorReader(model, Scope.dense(select_parameters(model))) as reader:
            kept.append(activation_bytes(reader, objective("llama"), objective("llama").collate_pairs(examples())))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_device_maps(architecture: str, split: bool, checkpointing: bool) -> None:
    """With hooks at the model alone, or at every block, that move inputs and outputs."""
    model = build(architecture)
    scope = Scope.dense(select_parameters(model))
    expected = autograd(scope, loss_of(model, architecture)())
    model = build(architecture)
    blocks = dict.fromkeys((n for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)), "cpu")
    rest = {n: "cpu" for n, m in model.named_modules() if not [*m.children()] and not n.startswith(tuple(blocks))}
    model = dispatch_model(model, blocks | rest if split else {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(model.get_submodule(next(iter(blocks))), "_hf_hook")
    if checkpointing:
        enable(model)
    _, found = summed(model, Scope.dense(select_parameters(model)), loss_of(model, architecture))
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("learned", [0, 1])
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_the_other_blocks_are_offloaded(architecture: str, learned: int, where: str, tmp_path: Path) -> None:
    """Gradients pass through blocks whose weights are not kept on the device, and stop at those of the scope."""
    model, layers = build(architecture), str(learned)
    scope = Scope.dense(select_parameters(model, layers=layers))
    expected = autograd(scope, loss_of(model, architecture)())
    model = build(architecture)
    devices = {n: "cpu" for n, m in model.named_modules() if not [*m.children()] and ".layers." not in n}
    devices |= {f"model.layers.{number}": "cpu" if number == learned else where for number in (0, 1)}
    if where == "cpu":
        cpu_offload(model.model.layers[1 - learned], torch.device("cpu"))
    else:
        model = dispatch_model(model, devices, main_device="cpu", offload_dir=str(tmp_path))
    assert any(p.is_meta for p in model.parameters())
    reader, found = summed(model, Scope.dense(select_parameters(model, layers=layers)), loss_of(model, architecture))
    assert found.keys() == expected.keys() and not reader.matrices_of_their_own
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


def test_offloaded_parameters_are_refused_by_name() -> None:
    model = cpu_offload(build("llama"), torch.device("cpu"))
    scope = Scope.dense(select_parameters(model))
    with pytest.raises(ConfigError, match="parameters in scope are offloaded"), FactorReader(model, scope):
        pass


class Reads(nn.Module):
    """A layer whose weight is also read past it: as a second product, or only to look at its type."""

    def __init__(self, past: bool) -> None:
        super().__init__()
        self.past, self.layer = past, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[…, 4] → […, 4]."""
        assert self.layer.weight.dtype == torch.float32
        y: Tensor = self.layer(x)
        return y + x @ self.layer.weight.T if self.past else y


@pytest.mark.parametrize("past", [False, True])
def test_a_weight_that_is_read_past_its_layer(past: bool) -> None:
    torch.manual_seed(0)
    model, x = Reads(past), torch.randn(3, 5, 4)
    scope = Scope.dense(dict(model.named_parameters()))
    expected = autograd(scope, model(x).square().sum())
    reader, found = summed(model, scope, lambda: model(x).square().sum())
    assert reader.matrices_of_their_own == (["layer.weight"] if past else [])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    """A linear layer that does more than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        """The product with twice the weight."""
        return nn.functional.linear(x, 2 * self.weight)


@pytest.mark.parametrize("make", [
    lambda: Doubled(4, 4), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    lambda: nn.Conv1d(4, 4, 1, groups=2), lambda: nn.Conv1d(4, 4, 3, padding="same"),
    lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
], ids=["subclass", "weight_norm", "groups", "same", "circular"])  # fmt: skip
def test_layers_of_which_no_factors_are_known(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, 4, 4)
    scope = Scope.dense(dict(model.named_parameters()))
    reader, found = summed(model, scope, lambda: model(x).square().sum())
    assert reader.matrices_of_their_own
    for name, gradient in autograd(scope, model(x).square().sum()).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [
    lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2),
    lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
], ids=["1d", "2d"])  # fmt: skip
def test_convolutions(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 4, 9) if isinstance(model, nn.Conv1d) else torch.randn(2, 4, 9, 8)
    scope = Scope.dense(dict(model.named_parameters()))
    reader, found = summed(model, scope, lambda: model(x).square().sum())
    assert not reader.matrices_of_their_own
    for name, gradient in autograd(scope, model(x).square().sum()).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-4)


class InPlace(nn.Module):
    """Changes the output of a layer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[…, 4] → […, 4]."""
        y: Tensor = self.one(x)
        return self.two(y.add_(1.0).mul_(2.0))


def test_outputs_that_are_changed_in_place() -> None:
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(3, 4)
    scope = Scope.dense(dict(model.named_parameters()))
    _, found = summed(model, scope, lambda: model(x).square().sum())
    for name, gradient in autograd(scope, model(x).square().sum()).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [None, 2])
def test_embeddings_and_their_products_with_matrices(padding: int | None) -> None:
    torch.manual_seed(0)
    layer, ids = nn.Embedding(9, 4, padding_idx=padding), torch.tensor([[1, 2, 2], [5, 1, 0]])
    expected = torch.autograd.grad((layer(ids) * torch.arange(12.0).view(3, 4)).sum(), layer.weight)[0]
    parts: list[Any] = []
    with FactorReader(layer, Scope.dense(dict(layer.named_parameters()))) as reader:
        loss = reader.forward(lambda: (layer(ids) * torch.arange(12.0).view(3, 4)).sum())
        reader.read(loss, lambda _, part: parts.append(part))
    (part,) = parts
    assert part.is_lookup
    right, left = torch.randn(4, 3), torch.randn(2, 9)
    torch.testing.assert_close(part.dense(), expected)
    torch.testing.assert_close(part.times(right), expected @ right)
    torch.testing.assert_close(part.timed(left), left @ expected)


@pytest.mark.parametrize("shared", [True, False], ids=["one-forward", "two-forwards"])
def test_pairs_of_gradients_are_those_of_the_other_reader(shared: bool) -> None:
    """Summed over rows, not averaged; each wanted one of the three."""
    model = build("bert")
    scope, batch = Scope.dense(select_parameters(model)), pairs("bert", shared=shared)
    for source, target in itertools.product(("factual", "alternative", "diff"), repeat=2):
        with GradientReader(model, scope) as reader:
            s, t = read_pair(reader, objective("bert"), batch, source=source, target=target)
        found = {name: torch.zeros(scope.size) for name in {source, target}}

        def sink(into: Tensor, name: str, part: Outer | Tensor) -> None:
            into[scope.slices()[name]] += (part.dense() if isinstance(part, Outer) else part).flatten()

        with FactorReader(model, scope) as by_factors:
            read_factors(by_factors, objective("bert"), batch, {n: partial(sink, v) for n, v in found.items()})
        for mine, theirs in ((found[source], s), (found[target], t)):
            assert float((mine / len(batch) - theirs).norm() / theirs.norm()) < 1e-5
    assert not any(p.grad is not None for p in model.parameters())


def test_parts_of_parameters_are_refused() -> None:
    model = build("bert")
    scope = Scope.dense(select_parameters(model))
    name = next(iter(scope.parameters))
    with pytest.raises(ConfigError, match="whole parameters"):
        FactorReader(model, scope.keep({name: torch.tensor([0, 1])}))


def test_the_base_of_a_lora() -> None:
    """Its layers are within PEFT's; the gradient is that of the base weight beside them."""
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    base = model.get_base_model()
    scope = Scope.dense(select_parameters(base))
    for parameter in scope.parameters.values():
        parameter.requires_grad_(True)
    expected = autograd(scope, loss_of(base, "llama")())
    reader, found = summed(base, scope, loss_of(base, "llama"))
    assert not reader.matrices_of_their_own
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


class Shares(nn.Module):
    """A module with the weight of a layer inside it, whose second half of tokens may be none."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.first, self.second = tokens, nn.Linear(4, 4), nn.Linear(4, 4)
        self.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4] → the same."""
        x = self.first(x)
        return torch.cat([x[self.tokens :], self.second(x[: self.tokens])])


@pytest.mark.parametrize("tokens", [0, 3])
def test_shared_with_a_layer_inside_and_layers_without_tokens(tokens: int) -> None:
    torch.manual_seed(0)
    model, x = Shares(tokens), torch.randn(5, 4)
    scope = Scope.dense(select_parameters(model, scope="*"))
    expected = autograd(scope, model(x).square().sum())
    _, found = summed(model, scope, lambda: model(x).square().sum())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
