"""Quantised bases: the edit runs beside the packed weight, merging is refused, everything else stays exact."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from gradiend_hub.adapter.quantized import quantized_layers
from gradiend_hub.adapter.side_path import SidePath
from gradiend_hub.errors import BaseModelMismatchError, EditError
from gradiend_hub.gradients import Scope, select_parameters
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits, save
from tests.adapter.test_side_path import learned as low_rank
from tests.gradients.test_factors import autograd, loss_of, summed
from tests.models import TEXT, build, output

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


class Linear4bit(nn.Linear):
    """As bitsandbytes' class: the parameter `weight` is a column of packed bytes."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False)
        self.scale = float(dense.weight.detach().abs().max()) / 7
        codes = (dense.weight.detach() / self.scale).round().clamp(-8, 7).to(torch.int8) + 8
        self.weight = nn.Parameter(codes.to(torch.uint8).view(-1, 1), requires_grad=False)
        self.bias = dense.bias

    def dequantized(self) -> torch.Tensor:
        """The weight that the layer computes with."""
        return (self.weight.float().view(self.out_features, self.in_features) - 8) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a linear layer."""
        return nn.functional.linear(x, self.dequantized().to(x.dtype), self.bias)


class QuantLinear(nn.Module):
    """As GPTQ's classes: no `weight` at all, eight numbers of 4 bits to a word along the input, and the bias a buffer."""

    names = ("infeatures", "outfeatures")
    by_input = True

    def __init__(self, dense: nn.Linear, group: int = 16) -> None:
        super().__init__()
        for name, size in zip(self.names, (dense.in_features, dense.out_features), strict=True):
            setattr(self, name, size)
        weight = dense.weight.detach().T  # [in, out]
        scales = weight.unflatten(0, (-1, group)).abs().amax(1) / 7
        codes = (weight / scales.repeat_interleave(group, 0)).round().clamp(-8, 7).int() + 8
        self.register_buffer("qweight", self._packed(codes))
        self.register_buffer("qzeros", self._packed(torch.full_like(scales, 8).int(), columns=True))
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", torch.arange(len(weight)) // group)
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())

    def _packed(self, codes: torch.Tensor, columns: bool = False) -> torch.Tensor:
        axis = 0 if self.by_input and not columns else 1
        words = codes.long().unflatten(axis, (-1, 8))
        places = torch.arange(8).view(8, 1) if axis == 0 else torch.arange(8)
        return (words << 4 * places).sum(axis + 1).to(torch.int32)

    def _unpacked(self, words: torch.Tensor, columns: bool = False) -> torch.Tensor:
        axis = 0 if self.by_input and not columns else 1
        places = torch.arange(8).view(8, 1) if axis == 0 else torch.arange(8)
        return (words.long().unsqueeze(axis + 1) >> 4 * places & 15).flatten(axis, axis + 1)

    def dequantized(self) -> torch.Tensor:
        """The weight `[out, in]` that the layer computes with."""
        group = self.get_buffer("g_idx")
        codes = self._unpacked(self.get_buffer("qweight")) - self._unpacked(self.get_buffer("qzeros"), True)[group]
        return (codes * self.get_buffer("scales")[group]).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a linear layer."""
        return nn.functional.linear(x, self.dequantized().to(x.dtype), self._buffers["bias"])


class GemmLinear(QuantLinear):
    """As AWQ's class: eight numbers to a word along the output."""

    names = ("in_features", "out_features")
    by_input = False


KINDS = [Linear4bit, QuantLinear, GemmLinear]


def quantize(model: nn.Module, kind: Any) -> tuple[nn.Module, nn.Module]:
    """The model with quantised linear layers in its encoder, and a dense one that computes the same."""
    packed, dense = copy.deepcopy(model), copy.deepcopy(model)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and ".layer." in name:
            owner, _, leaf = name.rpartition(".")
            new = kind(packed.get_submodule(name))
            setattr(packed.get_submodule(owner), leaf, new)
            dense.get_submodule(name).weight.data = new.dequantized()
    return packed, dense


def quantized_by_bitsandbytes(model: Any, bits_per_weight: int, end: str = "proj") -> tuple[Any, Any]:
    """The model with layers of bitsandbytes where names end so, and a dense one with the weights that these keep."""
    import bitsandbytes

    packed, dense = copy.deepcopy(model), copy.deepcopy(model)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.endswith(end):
            size = module.in_features, module.out_features, module.bias is not None
            if bits_per_weight == 4:
                new = bitsandbytes.nn.Linear4bit(*size, quant_type="nf4")
            else:
                new = bitsandbytes.nn.Linear8bitLt(*size, has_fp16_weights=False)
            new.load_state_dict(module.state_dict())
            new = new.to("cpu")
            owner, _, leaf = name.rpartition(".")
            setattr(packed.get_submodule(owner), leaf, new)
            weight = new.weight
            if bits_per_weight == 4:
                weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            else:
                weight = weight.CB.float() * weight.SCB.view(-1, 1) / 127
            dense.get_submodule(name).weight.data = weight
    return packed.eval(), dense.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_weight(kind: type, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = build("bert")
    direction = random_direction(base)
    packed, dense = quantize(base, kind)
    before, plain = bits(packed), output(packed, "bert")
    with caplog.at_level(logging.INFO, logger="gradiend_hub"):
        model = GradiendModel.from_direction(
            packed, replace(direction, fingerprint=None), config_for(direction), strength=1.0
        )
    assert f"bert.encoder.layer.0.output.dense.weight is quantised ({kind.__name__})" in caplog.text
    assert len(quantized_layers(model)) == (12 if kind is Linear4bit else 24)  # biases are buffers there
    for strength in (1.0, -0.5):
        model.set_strength(strength)
        expected = output(edited(dense, [(direction, *config_for(direction).coefficients(strength))]), "bert")
        torch.testing.assert_close(output(model, "bert"), expected, atol=1e-5, rtol=1e-4)
    deltas = [
        part.dense(part.delta(*config_for(direction).coefficients(-0.5))) for part in direction.parameters.values()
    ]
    assert model.receipt.entries == sum(int(delta.count_nonzero()) for delta in deltas)
    with model.strength_at(0.0):
        assert torch.equal(output(model, "bert"), plain)
    with model.disable_adapter():
        assert torch.equal(output(model, "bert"), plain)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(EditError, match=r"quantised.*before quantising"):
            merge()
    by_row = output(model, "bert", strengths=[0.0, 1.0, -0.5])
    for row, strength in enumerate([0.0, 1.0, -0.5]):
        with model.strength_at(strength):
            torch.testing.assert_close(by_row[row], output(model, "bert")[row], atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    plain_peft = PeftModel.from_pretrained(copy.deepcopy(model.unload()), tmp_path, allow_unverified_base=True)
    expected = output(edited(dense, [(direction, 1.0, 1.0)]), "bert")
    torch.testing.assert_close(output(plain_peft, "bert"), expected, atol=1e-5, rtol=1e-4)
    assert same_bits(bits(packed), before)
    assert torch.equal(output(packed, "bert"), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_low_rank_directions_in_one_pass(kind: type) -> None:
    base = build("bert")
    direction = low_rank(base, bias=True)
    packed, dense = quantize(base, kind)
    plain, config = output(packed, "bert"), config_for(direction)
    model = GradiendModel.from_direction(packed, direction, config, strength=0.0)
    assert SidePath.fits(model.base_model, ["default"])
    by_row = output(model, "bert", strengths=[0.0, 1.0, -0.5])
    assert torch.equal(by_row[0], plain[0])
    for row, strength in ((1, 1.0), (2, -0.5)):
        expected = output(edited(dense, [(direction, *config.coefficients(strength))]), "bert")
        torch.testing.assert_close(by_row[row], expected[row], atol=1e-5, rtol=1e-4)
        model.set_strength(strength)
        torch.testing.assert_close(output(model, "bert"), expected, atol=1e-5, rtol=1e-4)


class Strange(nn.Module):
    """Keeps its weight in a way that nobody knows here."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("w_int", dense.weight.detach())


def test_other_forms_are_refused_in_one_sentence() -> None:
    base = build("bert")
    direction = random_direction(base)
    strange, packed = copy.deepcopy(base), copy.deepcopy(base)
    layer = strange.get_submodule("bert.encoder.layer.1.output")
    layer.dense = Strange(layer.dense)
    with pytest.raises(BaseModelMismatchError, match=r"layer.1.output.dense.weight has no values of its own in Strange.*"
                       "quantised by bitsandbytes, GPTQ"):  # fmt: skip
        GradiendModel.from_direction(strange, direction, config_for(direction))
    words = packed.get_input_embeddings()
    words.weight = nn.Parameter(torch.zeros(words.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    without = replace(direction, fingerprint=None)
    with pytest.raises(
        BaseModelMismatchError, match=r"word_embeddings.weight is packed in uint8 numbers.*before quant"
    ):
        GradiendModel.from_direction(packed, without, config_for(direction))


@pytest.mark.parametrize("kind", KINDS)
def test_directions_beside_quantised_layers_merge_as_ever(kind: type) -> None:
    """Norms, biases and embeddings of a quantised model are ordinary parameters."""
    packed, _ = quantize(build("bert"), kind)
    every = random_direction(build("bert"))
    names = [name for name in every.parameters if "LayerNorm" in name or "embeddings" in name]
    direction = type(every)({name: every.parameters[name] for name in names}, fingerprint=every.fingerprint.only(names))
    model = GradiendModel.from_direction(packed, direction, config_for(direction), strength=1.0)
    assert not quantized_layers(model)
    assert same_bits(bits(model), bits(edited(quantize(build("bert"), kind)[0], [(direction, 1.0, 1.0)])))


def test_fingerprint_of_what_is_not_quantised(tmp_path: Path) -> None:
    base = build("bert")
    packed, _ = quantize(base, Linear4bit)
    folder = save(tmp_path, random_direction(base))
    assert GradiendModel.from_pretrained(folder, packed).strength == 1.0


@pytest.mark.parametrize("bits_per_weight", [4, 8])
@pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*:UserWarning")
def test_bitsandbytes(bits_per_weight: int, tmp_path: Path) -> None:
    """The real classes, where they are installed: sparse and low-rank parts, strengths by row, receipt and undoing."""
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    torch.manual_seed(0)
    base = BertForMaskedLM(BertConfig(**{**TEXT, "hidden_size": 64, "intermediate_size": 128}))  # blocks of 64 weights
    every = random_direction(base, bias=False)
    direction = type(every)({name: part for name, part in every.parameters.items() if "dense.weight" in name})
    base, _ = quantized_by_bitsandbytes(base, bits_per_weight, "intermediate.dense")
    base.eval()
    plain = output(base, "bert")
    model = GradiendModel.from_pretrained(save(tmp_path, direction), base, strength=1.0, allow_unverified_base=True)
    assert len(quantized_layers(model)) == 2
    assert not torch.allclose(output(model, "bert"), plain, atol=1e-2)
    layer = quantized_layers(model)[0]
    x = torch.randn(3, 64)
    found = layer.site.owner(x)
    entries = model.receipt.entries
    by_row = output(model, "bert", strengths=[0.0, 1.0, -0.5])
    assert torch.equal(by_row[0], plain[0])
    for row, strength in enumerate([0.0, 1.0, -0.5]):
        with model.strength_at(strength):
            torch.testing.assert_close(by_row[row], output(model, "bert")[row], atol=2e-2, rtol=1e-2)
    model.set_strength(0.0)
    part = direction.parameters[layer.site.name]
    torch.testing.assert_close(
        found - layer.site.owner(x), x @ part.dense(part.delta(1.0, 1.0)).T, atol=1e-4, rtol=1e-3
    )
    deltas = [part.dense(part.delta(1.0, 1.0)) for part in direction.parameters.values()]
    assert entries == sum(int(delta.count_nonzero()) for delta in deltas)
    with pytest.raises(EditError, match=r"quantised.*before quantising"):
        model.merge_and_unload()
    assert torch.equal(output(model.unload(), "bert"), plain)


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="pip install gptqmodel")
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_gptqmodel() -> None:
    """The real class for GPTQ (its torch kernel, on a CPU): strengths, rows, undoing, and gradients by factors."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    torch.manual_seed(0)
    base = BertForMaskedLM(BertConfig(**{**TEXT, "hidden_size": 64, "intermediate_size": 128})).eval()
    packed, dense, group = copy.deepcopy(base), copy.deepcopy(base), 32
    for name, module in base.named_modules():
        if type(module) is nn.Linear and name.endswith("intermediate.dense"):
            size = {"in_features": module.in_features, "out_features": module.out_features, "bias": True}
            layer = TorchLinear(bits=4, group_size=group, sym=True, desc_act=False, register_buffers=False, **size)
            scales = module.weight.detach().unflatten(1, (-1, group)).abs().amax(-1) / 7
            columns = torch.arange(module.in_features, dtype=torch.int32) // group
            layer.pack_original(copy.deepcopy(module), scales, torch.full_like(scales, 8), columns)
            layer.post_init()
            packed.get_submodule(name.rpartition(".")[0]).dense = layer.eval()
            dense.get_submodule(name).weight.data = layer.dequantize_weight().T.float()
            dense.get_submodule(name).bias.data = layer.bias.float()
    direction, plain = low_rank(base, bias=True), output(packed, "bert")
    config = config_for(direction)
    scope, whole = (Scope.dense(select_parameters(model)) for model in (packed, dense))
    expected = autograd(whole, loss_of(dense, "bert")())
    for name, gradient in summed(packed, scope, loss_of(packed, "bert"))[1].items():
        assert float((gradient - expected[name]).norm()) <= 1e-5 * float(expected[name].norm()) + 1e-7, name
    model = GradiendModel.from_direction(packed, direction, config)
    assert len(quantized_layers(model)) == 4  # weight and bias of both layers
    by_row = output(model, "bert", strengths=[0.0, 1.0, -0.5])
    assert torch.equal(by_row[0], plain[0])
    for row, strength in ((1, 1.0), (2, -0.5)):
        wanted = output(edited(dense, [(direction, *config.coefficients(strength))]), "bert")
        torch.testing.assert_close(by_row[row], wanted[row], atol=1e-5, rtol=1e-4)
    assert torch.equal(output(model.unload(), "bert"), plain)


@pytest.mark.skipif(find_spec("torchao") is None, reason="pip install torchao")
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_torchao() -> None:
    """Its own kind of tensor under the name of the weight."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = build("llama")
    direction = low_rank(base)
    packed, dense = copy.deepcopy(base), copy.deepcopy(base)
    quantize_(packed, Int8WeightOnlyConfig())
    for name, module in packed.named_modules():
        if type(module) is nn.Linear:
            dense.get_submodule(name).weight.data = module.weight.dequantize().clone()
    plain, config = output(packed, "llama"), config_for(direction)
    model = GradiendModel.from_direction(packed, direction, config)
    assert len(quantized_layers(model)) == 15  # with the head
    for strength in (1.0, -0.5):
        model.set_strength(strength)
        wanted = output(edited(dense, [(direction, *config.coefficients(strength))]), "llama")
        torch.testing.assert_close(output(model, "llama"), wanted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(wanted, plain, atol=1e-2)
    assert torch.equal(output(model.unload(), "llama"), plain)
