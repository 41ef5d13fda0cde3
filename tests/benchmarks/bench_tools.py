"""What other programs compute with an exported direction, beside this package at the strengths −1, 0 and 1.

    python -m tests.benchmarks.bench_tools                  # small models in each tool that is installed
    python -m tests.benchmarks.bench_tools out/smollm2      # and SmolLM2 in llama.cpp (see tests.benchmarks.smollm2)

Prints a table: tool, version, what was run, the largest difference to this package at −1 and 1, the same at 0, which is due
to the tool's own arithmetic, and the largest change that the edit itself makes. Tools that are missing are named;
`llama-server` is one where it is on the PATH, and vLLM where VLLM_PYTHON names an interpreter of an environment that has it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import transformers as tf
from torch import nn

from gradiend_hub.export import import_gradiend, to_gguf_lora, to_lora, to_shira
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for, edited
from tests.adapter.test_quantized import quantized_by_bitsandbytes
from tests.adapter.test_side_path import learned as scoped
from tests.benchmarks.smollm2 import gguf_file
from tests.export import test_vllm
from tests.export.llama_cpp import LIBRARIES, build_causal, next_token, run_llama_cpp, run_llama_server, write_gguf
from tests.export.test_gradiend_package import KINDS, STORED, base_model, rows_of
from tests.export.test_lora import as_stranger, learned, probabilities
from tests.export.test_mergekit import run_mergekit
from tests.export.test_shira import sparse
from tests.export.test_smollm2 import TEXTS as LONGER_TEXTS
from tests.export.test_smollm2 import WORDS, measured
from tests.models import build

PROMPTS = [list(range(5, 17)), [40, 3, 22]]
MODELS = Path(__file__).parents[2] / "examples" / "base_models"
TEXTS = ["the boy was tired because", "the girls were happy when", "the player went home after"]
STRENGTHS = (-1.0, 0.0, 1.0)


class Line(NamedTuple):
    """A line of the table."""

    tool: str
    version: str
    what: str
    difference: float
    at_0: float | None
    change: float


def compared(tool: str, number: str, what: str, theirs: torch.Tensor, ours: torch.Tensor) -> Line:
    """Compare values `[3, …]` at −1, 0 and 1."""
    apart = (theirs - ours).abs().flatten(1).amax(1)
    change = (ours - ours[1]).abs().max()
    return Line(tool, number, what, float(apart[[0, 2]].max()), float(apart[1]), float(change))


def at_strengths(model: GradiendModel, read: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """What is read of a model at −1, 0 and 1."""
    found = []
    for strength in STRENGTHS:
        model.set_strength(strength)
        found.append(read(model))
    return torch.stack(found)


def in_peft(kind: str, own_loader: bool, folder: Path) -> Line:
    """A LoRA or a SHiRA adapter in plain PEFT, or by transformers' loader, in a process that cannot import this package."""
    base = build("llama")
    direction = learned(base) if kind == "LoRA" else sparse(base)
    config = config_for(direction, base, strength_unit=2.0, base_model_name_or_path="us/base")
    write = to_lora if kind == "LoRA" else to_shira
    folders = {s: write(direction, config, base, folder / str(s), strength=float(s)).places[0] for s in (1, -1)}
    found = as_stranger(base, folders, folder, own_loader=own_loader)
    theirs = torch.stack([found[-1], probabilities(base), found[1]])
    ours = at_strengths(GradiendModel.from_direction(base, direction, config), probabilities)
    name, tool = ("transformers", "transformers") if own_loader else ("PEFT", "peft")
    line = compared(f"{name}, {kind}", version(tool), "tiny Llama, all probabilities", theirs, ours)
    return line._replace(at_0=None)


def in_pipelines(folder: Path) -> Line:
    """`pipeline("fill-mask")` over a batch with a strength for each row, against one strength at a time."""
    path = MODELS / "masked"
    base, tokenizer = (
        tf.AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32),
        tf.AutoTokenizer.from_pretrained(path),
    )
    direction = scoped(base) * 0.3
    model = GradiendModel.from_direction(base, direction, config_for(direction, base), strength=0.0)
    texts = [f"{text} {tokenizer.mask_token} left ." for text in TEXTS]
    fill = tf.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    rows = len(STRENGTHS) * len(texts)
    with model.strengths_by_row([strength for strength in STRENGTHS for _ in texts]):
        answers = fill(texts * len(STRENGTHS), batch_size=rows, top_k=model.config.vocab_size)
    by_token = [sorted(answer, key=lambda found: found["token"]) for answer in answers]
    theirs = torch.tensor([[found["score"] for found in answer] for answer in by_token]).view(len(STRENGTHS), -1)

    def read(edited_model: nn.Module) -> torch.Tensor:
        found = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            slot = inputs["input_ids"][0] == tokenizer.mask_token_id
            with torch.no_grad():
                found.append(edited_model(**inputs).logits[0, slot].softmax(-1).flatten())
        return torch.cat(found)

    what = f"bundled masked model, fill-mask of {rows} rows, each at its own strength; all probabilities"
    return compared("transformers, pipelines", version("transformers"), what, theirs, at_strengths(model, read))


SERVER = "llama-server"


def is_here(tool: str) -> bool:
    """Whether a library, or llama.cpp's server, or an environment with vLLM, is there."""
    if tool == "vllm":
        return bool(test_vllm.PYTHON)
    return (shutil.which(tool) if tool == SERVER else importlib.util.find_spec(tool)) is not None


def in_vllm(folder: Path) -> Line:
    """A small Llama and two LoRAs, all probabilities; each request names its LoRA."""
    number, (minus, zero, plus), change = test_vllm.differences(folder)
    return Line(
        "vLLM", number, "small Llama, a LoRA for each strength, all probabilities", max(minus, plus), zero, change
    )


def in_llama_cpp(library: str, folder: Path) -> Line:
    """A tiny Llama as a GGUF file in fp32, all probabilities; of the server, with a scale in every request."""
    base = build_causal("llama")
    write_gguf(base, "llama", folder / "base.gguf")
    direction = learned(base)
    config = config_for(direction, base, strength_unit=0.8)
    made = to_gguf_lora(direction, config, base, folder)
    scales = [[s] for s in STRENGTHS]
    if library == SERVER:
        theirs = run_llama_server(folder / "base.gguf", made.places, scales, PROMPTS)
        said = subprocess.run([SERVER, "--version"], capture_output=True, text=True)
        tool, number = "llama.cpp, llama-server", (said.stdout + said.stderr).partition("version: ")[2].split(" ")[0]
    else:
        theirs = run_llama_cpp(library, folder / "base.gguf", made.places, scales, PROMPTS, folder)
        tool, number = LIBRARIES[library], version(LIBRARIES[library])
    model = GradiendModel.from_direction(base, direction, config)
    ours = at_strengths(model, lambda m: next_token(m, PROMPTS))
    what = "tiny Llama (fp32 GGUF), all probabilities"
    return compared(tool, number, what, theirs, ours)


def smollm2(library: str, path: str, exact: bool, folder: Path) -> Line:
    """SmolLM2, of 4 bits or as fp32, beside the dequantised model in fp32: probabilities of the class words."""
    theirs, ours = measured(library, Path(path), folder, exact=exact)
    kind = "fp32 GGUF" if exact else "Q4_1 GGUF"
    print(f"{LIBRARIES[library]}, SmolLM2-135M ({kind}): mean P of {', '.join(WORDS)} at −1, 0, 1")
    print("  here  ", ours.mean(1).tolist())
    print("  there ", theirs.mean(1).tolist())
    what = f"SmolLM2-135M ({kind}), P of{' and'.join(WORDS)} after {len(LONGER_TEXTS)} prompts"
    return compared(LIBRARIES[library], version(LIBRARIES[library]), what, theirs, ours)


def in_mergekit(folder: Path) -> Line:
    """Task arithmetic of two rewritten models, weights."""
    base = build("llama")
    direction = learned(base)
    config = config_for(direction, base)
    found = run_mergekit(base, direction, config, folder)
    ours = dict(edited(base, [(direction, *config.coefficients(1.5))]).named_parameters())
    difference = max(float((found[name] - value).abs().max()) for name, value in ours.items())
    change = max(float((ours[name] - value).abs().max()) for name, value in base.named_parameters())
    what = "tiny Llama, task arithmetic of ½ and −½ to strength 1.5; weights"
    return Line("mergekit", version("mergekit"), what, difference, None, change)


def in_lm_eval(folder: Path) -> Line:
    """The harness's log-likelihoods of continuations, against sums of logs of their tokens."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    path = MODELS / "causal"
    base, tokenizer = (
        tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        tf.AutoTokenizer.from_pretrained(path),
    )
    direction = scoped(base) * 0.3
    model = GradiendModel.from_direction(base, direction, config_for(direction, base), strength=0.0)
    pairs = [(text, f" {word}") for text in TEXTS for word in ("he", "they")]
    harness = HFLM(pretrained=model.get_base_model(), tokenizer=tokenizer, batch_size=2)

    def by_harness(_: nn.Module) -> torch.Tensor:
        asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        return torch.tensor([value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)])

    def by_hand(edited_model: nn.Module) -> torch.Tensor:
        values = []
        for text, word in pairs:
            prompt, ids = tokenizer(text)["input_ids"], tokenizer(text + word)["input_ids"]
            with torch.no_grad():
                logs = edited_model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(sum(float(logs[place - 1, ids[place]]) for place in range(len(prompt), len(ids))))
        return torch.tensor(values)

    what = f"bundled causal model, log-likelihood of {len(pairs)} continuations"
    theirs, ours = at_strengths(model, by_harness), at_strengths(model, by_hand)
    return compared("lm-evaluation-harness", version("lm_eval"), what, theirs, ours)


def in_bitsandbytes(bits: int, folder: Path) -> Line:
    """A model with quantised layers and the edit beside them, against W + σΔ by hand in the dequantised model."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)  # widths are whole blocks of 64, which 4 bits need on CPUs
    base = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=97, initializer_range=0.1, **sizes)).eval()
    direction = learned(base) * 0.1
    packed, dense = quantized_by_bitsandbytes(base, bits)
    config = config_for(direction, base)
    ours = torch.stack([probabilities(edited(dense, [(direction, *config.coefficients(s))])) for s in STRENGTHS])
    theirs = at_strengths(GradiendModel.from_direction(packed, direction, config), probabilities)
    what = f"small Llama, {bits} bits, edit beside the weights, to W + σΔ of the dequantised model; all probabilities"
    return compared("bitsandbytes", version("bitsandbytes"), what, theirs, ours)


def of_gradiend(folder: Path) -> Line:
    """Encodings of rows by imported folders, against what the package has encoded itself."""
    differences, largest = [], 0.0
    for kind in KINDS:
        direction, config = import_gradiend(STORED / kind, base_model())
        tokenizer = tf.AutoTokenizer.from_pretrained(STORED / "base")
        model = GradiendModel.from_direction(base_model(), direction, config, strength=0.0, processing_class=tokenizer)
        rows, values = rows_of(kind)
        differences.append(float((torch.as_tensor(model.encode(rows)) + values).abs().max()))
        largest = max(largest, float(values.abs().max()))
    what = f"import of {len(KINDS)} of its folders, {len(rows)} feature values of each; the largest value"
    maker = (STORED / "MAKER").read_text().split("gradiend ")[1].split(",")[0]
    return Line("gradiend (the reference)", maker, what, max(differences), None, largest)


def main(smollm2_folder: str | None) -> None:
    """Run every tool that is installed, and print the table."""
    jobs: list[tuple[str, Callable[[Path], Line]]] = [
        ("peft", lambda f: in_peft("LoRA", False, f)),
        ("peft", lambda f: in_peft("LoRA", True, f)),
        ("peft", lambda f: in_peft("SHiRA", False, f)),
        ("transformers", in_pipelines),
        *((library, lambda f, name=library: in_llama_cpp(name, f)) for library in (*LIBRARIES, SERVER)),
        ("vllm", in_vllm),
        ("mergekit", in_mergekit),
        ("lm_eval", in_lm_eval),
        ("bitsandbytes", lambda f: in_bitsandbytes(8, f)),
        ("bitsandbytes", lambda f: in_bitsandbytes(4, f)),
        ("peft", of_gradiend),
    ]
    if smollm2_folder and gguf_file() is not None:
        jobs += [
            (library, lambda f, name=library, exact=exact: smollm2(name, smollm2_folder, exact, f))
            for library in LIBRARIES
            for exact in (True, False)
        ]
    missing = sorted({library for library, _ in jobs if not is_here(library)})
    lines, failed = [], []
    for library, job in jobs:
        if library in missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                lines.append(job(Path(folder)))
            except Exception as error:  # of a tool; the others are run all the same
                failed.append(f"{library}: {type(error).__name__}: {error}")
    print("\n| tool | version | what was run at −1, 0, 1 | difference at ±1 | at 0 | largest change by the edit |")
    print("|---|---|---|---|---|---|")
    for line in lines:
        at_0 = "–" if line.at_0 is None else f"{line.at_0:.1e}"
        print(f"| {line.tool} | {line.version} | {line.what} | {line.difference:.1e} | {at_0} | {line.change:.2g} |")
    if missing:
        print(f"\nNot installed, and so not run: {', '.join(missing)}.")
    if failed:
        raise SystemExit("\nFailed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
