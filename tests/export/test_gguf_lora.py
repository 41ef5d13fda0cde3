"""A direction in llama.cpp: at the scales −1, 0 and 1 it gives the probabilities that the direction gives here."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.errors import BaseModelMismatchError, ConfigError, EditError
from gradiend_hub.export import to_gguf_lora
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.export.llama_cpp import MODELS, build_causal, next_token, run_llama_cpp, run_llama_server, write_gguf
from tests.export.test_lora import learned
from tests.models import build

gguf = pytest.importorskip("gguf", reason="pip install gguf")
LIBRARIES = {"xllamacpp": "pip install xllamacpp", "llama_cpp": "pip install llama-cpp-python (it is compiled)"}
PROMPTS = [list(range(5, 17)), [40, 3, 22]]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"there is no {name} here: {LIBRARIES[name]}")
    return name


@pytest.mark.parametrize(("kind", "bias"), [*((kind, False) for kind in MODELS), ("llama", True)])
def test_llama_cpp_gives_the_same_probabilities(kind: str, bias: bool, library: str, tmp_path: Path) -> None:
    base = build_causal(kind)
    write_gguf(base, kind, tmp_path / "base.gguf")
    direction = learned(base, bias=bias)
    config = config_for(direction, base, strength_unit=0.8, decoder_sign=-1, base_model_name_or_path="us/base")
    made = to_gguf_lora(direction, config, base, tmp_path / "out")
    assert [place.name for place in made.places] == (["plus.gguf", "minus.gguf"] if bias else ["adapter.gguf"])
    assert made.energy == pytest.approx(1, abs=1e-5) and not made.left_out and made.rank == (6 if bias else 3)
    scales = [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]] if bias else [[-1.0], [0.0], [1.0]]
    found = run_llama_cpp(library, tmp_path / "base.gguf", made.places, scales, PROMPTS, tmp_path)
    model = GradiendModel.from_direction(base, direction, config)
    plain = next_token(model.get_base_model(), PROMPTS)
    for strength, seen in zip((-1.0, 0.0, 1.0), found, strict=True):
        model.set_strength(strength)
        wanted = next_token(model, PROMPTS)
        assert strength == 0 or float((wanted - plain).abs().max()) > 0.02
        torch.testing.assert_close(seen, wanted, atol=2e-5, rtol=2e-3)


@pytest.mark.skipif(shutil.which("llama-server") is None, reason="there is no llama-server on the PATH")
@pytest.mark.parametrize("bias", [False, True])
def test_llama_server_gives_every_request_its_strength(bias: bool, tmp_path: Path) -> None:
    base = build_causal("llama")
    write_gguf(base, "llama", tmp_path / "base.gguf")
    direction = learned(base, bias=bias)
    config = config_for(direction, base, strength_unit=0.8)
    made = to_gguf_lora(direction, config, base, tmp_path)
    strengths = [1.0, 0.0, -1.0, 0.0, 1.0]
    scales = [[max(s, 0.0), max(-s, 0.0)] for s in strengths] if bias else [[s] for s in strengths]
    found = run_llama_server(tmp_path / "base.gguf", made.places, scales, PROMPTS)
    model = GradiendModel.from_direction(base, direction, config)
    for strength, seen in zip(strengths, found, strict=True):
        model.set_strength(strength)
        torch.testing.assert_close(seen, next_token(model, PROMPTS), atol=2e-5, rtol=2e-3)


def test_what_the_file_says(tmp_path: Path) -> None:
    base = build_causal("llama")
    direction = learned(base, vectors=True)
    config = config_for(direction, base, base_model_name_or_path="us/base")
    made = to_gguf_lora(direction, config, base, tmp_path)
    read = gguf.GGUFReader(made.places[0])
    told = {name: field.contents() for name, field in read.fields.items()}
    assert told["general.type"] == "adapter" and told["adapter.type"] == "lora"
    assert told["general.architecture"] == "llama" and told["adapter.lora.alpha"] == made.rank == 3
    assert told["general.base_model.0.name"] == "us/base"
    names = {tensor.name for tensor in read.tensors}
    assert len(names) == 2 * made.modules and {name.rpartition(".")[2] for name in names} == {"lora_a", "lora_b"}
    assert made.left_out and made.energy < 1  # the norms


def test_one_rank_for_every_use_of_a_dense_direction(tmp_path: Path) -> None:
    base = build_causal("qwen2")
    parts = {n: ParameterDirection(p.shape, p.dense(p.decoder).flatten()) for n, p in learned(base).parameters.items()}
    dense = Direction(parts)
    assert to_gguf_lora(dense, config_for(dense, base), base, tmp_path, rank=2).rank == 2


def test_bad_input(tmp_path: Path) -> None:
    out = tmp_path / "x"
    for name, said in (("bert", "no GGUF form of a direction on bert"), ("opt", "known are causal .* llama")):
        base = build(name)
        direction = learned(base)
        with pytest.raises(ConfigError, match=said):
            to_gguf_lora(direction, config_for(direction, base), base, out)
    base = build_causal("llama")
    direction = learned(base)
    for options in ({"rank": 0}, {"rank": 10**6}, {"strength": 0.0}, {"strength": float("nan")}):
        with pytest.raises(ConfigError):
            to_gguf_lora(direction, config_for(direction), base, out, **options)
    with pytest.raises(EditError, match="beyond the numbers of fp32"):
        to_gguf_lora(direction, config_for(direction), base, out, strength=1e300)
    with pytest.raises(BaseModelMismatchError):
        to_gguf_lora(direction, config_for(direction), build_causal("gpt2"), out)
    assert not out.exists()
