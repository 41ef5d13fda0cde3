"""A direction as a LoRA: stock PEFT gives the probabilities of the direction, in a process that cannot import us."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import BaseModelMismatchError, ConfigError
from gradiend_hub.export import to_lora
from gradiend_hub.export.lora import as_loras, vllm_rank
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

STRANGER = """
import json, sys, warnings
sys.modules["gradiend_hub"] = None
warnings.simplefilter("ignore")
import torch, transformers
from peft import PeftModel
try:
    import gradiend_hub
except ImportError:
    pass
for line in sys.stdin:
    base, classname, folders, own_loader, out = json.loads(line)
    found = {}
    ids = torch.arange(5, 17).view(2, 6)
    for sign, folder in folders.items():
        model = getattr(transformers, classname).from_pretrained(base).eval()
        if own_loader:
            model.load_adapter(folder)
        else:
            model = PeftModel.from_pretrained(model, folder)
        with torch.no_grad():
            found[sign] = model(ids).logits.softmax(-1).tolist()
    assert not any(name.startswith("gradiend_hub.") for name in sys.modules)
    with open(out, "w") as file:
        json.dump(found, file)
    print("done", flush=True)
"""


def linear_weights(base: nn.Module) -> list[str]:
    kinds = (nn.Linear,)
    tied = {id(base.get_input_embeddings().weight)}
    found = [n for n, m in base.named_modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"]
    return [f"{n}.weight" for n in found if id(base.get_submodule(n).weight) not in tied]


def learned(base: nn.Module, rank: int = 3, *, bias: bool = False, vectors: bool = False) -> Direction:
    """Factors of every linear weight, and small vectors if wanted."""
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for name in linear_weights(base):
        o, i = base.get_parameter(name).shape
        r = min(rank, o, i)
        w, b = (
            Factors(0.3 * torch.randn(o, r, generator=generator), 0.3 * torch.randn(r, i, generator=generator))
            for _ in range(2)
        )
        parts[name] = ParameterDirection((o, i), w, b if bias else None)
    for name, parameter in base.named_parameters() if vectors else ():
        if parameter.ndim == 1:
            values = 0.05 * torch.randn(parameter.numel(), generator=generator)
            parts[name] = ParameterDirection(tuple(parameter.shape), values)
    return Direction(parts)


@cache
def _stranger() -> subprocess.Popen[str]:
    """Start the process that cannot import this package; one for all tests, as its imports take seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", STRANGER],  # nothing of the working folder is imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def as_stranger(
    base: nn.Module, folders: dict[int, Path], tmp_path: Path, *, own_loader: bool = False
) -> dict[int, torch.Tensor]:
    """Probabilities that a process without this package computes with the base model and each LoRA."""
    base.save_pretrained(tmp_path / "base")
    out = tmp_path / "found.json"
    names = {sign: str(folder) for sign, folder in folders.items()}
    arguments = json.dumps([str(tmp_path / "base"), type(base).__name__, names, own_loader, str(out)])
    process = _stranger()
    assert process.stdin is not None and process.stdout is not None
    print(arguments, file=process.stdin, flush=True)
    assert process.stdout.readline() == "done\n", "it ended; its traceback is above"
    return {int(sign): torch.tensor(values) for sign, values in json.loads(out.read_text()).items()}


def probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 17).view(2, 6)).logits.softmax(-1)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("bias", [False, True], ids=["odd", "with bias"])
def test_a_stranger_gets_the_same_probabilities(architecture: str, bias: bool, tmp_path: Path) -> None:
    base = build(architecture)
    direction = learned(base, bias=bias)
    config = config_for(direction, base, strength_unit=2.0, decoder_sign=-1, base_model_name_or_path="us/base")
    model = GradiendModel.from_direction(base, direction, config)
    found = model.to_lora(tmp_path / "lora")
    assert [f.relative_to(tmp_path).as_posix() for f in found.places] == (
        ["lora/plus", "lora/minus"] if bias else ["lora"]
    )
    assert found.energy == pytest.approx(1.0, abs=1e-5) and not found.left_out
    folders = dict(zip((1, -1), found.places, strict=False))
    if not bias:
        folders[-1] = model.to_lora(tmp_path / "opposite", strength=-1.0).places[0]
    model.unload()
    strange = as_stranger(base, folders, tmp_path)
    plain = probabilities(base)
    model = GradiendModel.from_direction(base, direction, config)
    for sign in (1, -1):
        model.set_strength(float(sign))
        expected = probabilities(model)
        assert float((expected - plain).abs().max()) > 5e-4
        torch.testing.assert_close(strange[sign], expected, atol=1e-6, rtol=1e-4)


def test_transformers_own_loader_reads_it(tmp_path: Path) -> None:
    base = build("llama")
    direction = learned(base)
    found = to_lora(direction, config_for(direction, base, decoder_sign=1), base, tmp_path / "lora")
    expected = GradiendModel.from_direction(base, direction, config_for(direction, decoder_sign=1), strength=1.0)
    wanted = probabilities(expected)
    expected.unload()
    strange = as_stranger(base, {1: found.places[0]}, tmp_path, own_loader=True)
    torch.testing.assert_close(strange[1], wanted, atol=1e-5, rtol=1e-4)


def test_files_are_what_vllm_and_llama_cpp_read(tmp_path: Path) -> None:
    """One rank and alpha for all modules, no bias, no norms, names of lora_A and lora_B alone."""
    base = build("llama")
    direction = learned(base, vectors=True)
    config = config_for(direction, base, objective="causal_lm", base_model_name_or_path="us/base", revision="a" * 40)
    found = to_lora(direction, config, base, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA" and fields["bias"] == "none" and fields["task_type"] == "CAUSAL_LM"
    assert fields["r"] == fields["lora_alpha"] == found.rank == 3
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("us/base", "a" * 40)
    assert not {"modules_to_save", "rank_pattern", "alpha_pattern", "use_dora"} & fields.keys()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rsplit(".", 2)[1] for key in tensors} == {"lora_A", "lora_B"}
    assert all(key.startswith("base_model.model.") and key.endswith(".weight") for key in tensors)
    assert {t.shape[0 if "lora_A" in key else 1] for key, t in tensors.items()} == {3}
    assert "down_proj" in fields["target_modules"] and all("." not in name for name in fields["target_modules"])
    assert all(
        why.startswith("a weight of") or "bias" in why or "norm" in why.lower() for why in found.left_out.values()
    )
    norms = sum(float(p.inner(p, 1, 1)) for n, p in direction.parameters.items() if n in found.left_out)
    assert found.energy == pytest.approx(1 - norms / direction.norm() ** 2, abs=1e-6)


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (17, 32), (257, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_is_started_with(rank: int, served: int | None) -> None:
    assert vllm_rank(rank) == served


def test_modules_that_end_alike_are_named_whole(tmp_path: Path) -> None:
    base = build("bert")
    direction = learned(base)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    part = Direction({name: direction.parameters[name]})
    to_lora(part, config_for(part, base), base, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [
        name.removesuffix(".weight")
    ]
    model = peft.PeftModel.from_pretrained(base, tmp_path)
    assert sum("lora_A" in n for n, _ in model.named_parameters()) == 1


def test_dense_directions_are_cut(tmp_path: Path) -> None:
    base = build("bert")
    low = learned(base, rank=5)
    parts = {n: ParameterDirection(p.shape, p.dense(p.decoder).flatten()) for n, p in low.parameters.items()}
    dense = Direction(parts)
    config = config_for(dense, base)
    assert to_lora(dense, config, base, tmp_path / "a").rank == 8
    assert to_lora(dense, config, base, tmp_path / "a").energy == pytest.approx(1.0, abs=1e-5)
    cut = to_lora(dense, config, base, tmp_path / "b", rank=2)
    assert (
        cut.rank == 2
        and cut.energy == pytest.approx(dense.energy_kept(low.to_rank(2)).total, abs=1e-5)
        and cut.energy < 0.9
    )


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_held_is_a_direction_too(bias: bool, tmp_path: Path) -> None:
    """The same low-rank parts, to be measured before they are written."""
    base = build("bert")
    direction = learned(base, bias=bias, vectors=True)
    config = config_for(direction, base, strength_unit=0.7)
    held, fields = as_loras(direction, config, base).direction()
    found = to_lora(direction, config, base, tmp_path)
    loaded = [peft.PeftModel.from_pretrained(build("bert"), folder) for folder in found.places]
    model = GradiendModel.from_direction(base, held, config.replaced(**fields), strength=1.0)
    torch.testing.assert_close(probabilities(model), probabilities(loaded[0]), atol=1e-5, rtol=1e-4)
    model.set_strength(-1.0)
    if bias:
        torch.testing.assert_close(probabilities(model), probabilities(loaded[1]), atol=1e-5, rtol=1e-4)


def test_bad_input(tmp_path: Path) -> None:
    base = build("bert")
    direction = learned(base)
    config = config_for(direction, base)
    impossible: list[Any] = [0, -3, 10**6, 2.5, True, "4"]
    for rank in impossible:
        with pytest.raises(
            ConfigError, match=r"smaller side of the largest weight, found .*Leave it out for the direction's own, or 8"
        ):
            to_lora(direction, config, base, tmp_path / "x", rank=rank)
    unfit: tuple[Any, ...] = (0.0, float("nan"), float("inf"), "1", True, None)
    for strength in unfit:
        with pytest.raises(ConfigError, match=r"other than 0, found .*without any it is 1"):
            to_lora(direction, config, base, tmp_path / "x", strength=strength)
    vectors = Direction({"bert.embeddings.LayerNorm.bias": ParameterDirection((16,), torch.ones(16))})
    with pytest.raises(ConfigError, match="No parameter of this direction has a place in a LoRA"):
        to_lora(vectors, config_for(vectors), base, tmp_path / "x")
    embeddings = base.get_input_embeddings().weight
    tied = Direction({"bert.embeddings.word_embeddings.weight": ParameterDirection(
        tuple(embeddings.shape), torch.ones(embeddings.numel()))})  # fmt: skip
    with pytest.raises(ConfigError, match=r"Embedding|tied"):
        to_lora(tied, config_for(tied), base, tmp_path / "x")
    with pytest.raises(BaseModelMismatchError):
        to_lora(direction, config, build("llama"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_layers_that_peft_refuses_are_left_out(tmp_path: Path) -> None:
    base = build("mamba")
    direction = learned(base)
    found = to_lora(direction, config_for(direction, base, decoder_sign=1), base, tmp_path)
    assert {name.split(".")[-2] for name, why in found.left_out.items() if "PEFT refuses" in why} == {"out_proj"}
    peft.PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2_moe", "deepseek_v3", "mamba"])
def test_what_is_held_is_what_peft_adds(architecture: str, tmp_path: Path) -> None:
    """Also where PEFT takes layers beside fused experts for these, as in DeepSeek-V3."""
    base = build(architecture)
    direction, ids = learned(base), torch.arange(5, 17).view(2, 6)
    loras = as_loras(direction, config_for(direction, base, decoder_sign=1), base)
    to_lora(direction, config_for(direction, base, decoder_sign=1), base, tmp_path)
    expected = build(architecture)
    with torch.no_grad():
        before = base(ids).logits.softmax(-1)
        for name, delta in loras.deltas[1].items():
            expected.get_parameter(name).add_(delta.dense())
        after = expected(ids).logits.softmax(-1)
        found = peft.PeftModel.from_pretrained(base, tmp_path)(ids).logits.softmax(-1)
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(found, after, rtol=1e-4, atol=1e-6)


def test_a_weight_that_is_read_without_its_layer_is_left_out() -> None:
    base, called = build("mamba"), []
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    base(torch.arange(5, 17).view(2, 6))
    uncalled = {name for name in linear_weights(base) if name.removesuffix(".weight") not in called}
    loras = as_loras(direction := learned(base), config_for(direction, base, decoder_sign=1), base)
    assert uncalled and uncalled == {name for name, why in loras.left_out.items() if "without its layer" in why}


class Router(nn.Linear):
    """Scores and the best of them, as routers of Llama 4 and Phi-MoE give."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """[N, in] → [N, out], [N]."""
        scores = super().forward(x)
        return scores, scores.argmax(-1)


def test_linear_layers_with_several_outputs_are_left_out() -> None:
    base = nn.Sequential(nn.Linear(6, 6), Router(6, 6))
    factors = Factors(torch.ones(6, 1), torch.ones(1, 6))
    direction = Direction({f"{n}.weight": ParameterDirection((6, 6), factors, None) for n in range(2)})
    loras = as_loras(direction, config_for(direction, base, decoder_sign=1), base)
    assert loras.left_out == {"1.weight": "no linear layer but Router"}
