"""Speed and memory of loading, applying and changing a direction, as ratios to the bare work in the same run.

    python -m tests.benchmarks.bench_adapter [FOLDER OF A MASKED LM]

Without a folder, models of 22.6M and 135M parameters with random weights are built. Nothing is asserted: times are a
matter of the machine, and the targets are those of the project.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file
from torch import nn

from gradiend_hub.config import GradiendConfig
from gradiend_hub.constants import WEIGHTS_FILE
from gradiend_hub.direction import Direction, ParameterDirection
from gradiend_hub.fingerprint import Fingerprint
from gradiend_hub.model import GradiendModel

ROUNDS = 15


def bert_22m() -> nn.Module:
    """A BERT of 22.6M parameters."""
    config = tf.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return tf.BertForMaskedLM(config)


def llama_135m() -> nn.Module:
    """A Llama of 135M parameters."""
    config = tf.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        tie_word_embeddings=True,
    )
    return tf.LlamaForCausalLM(config)


def make_direction(model: nn.Module, share: float | None, bias: bool) -> Direction:
    """A random direction over all parameters; `share` of the entries, or all of them."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, parameter in model.named_parameters():
        numel = parameter.numel()
        size = numel if share is None else max(1, int(share * numel))
        indices = None
        if share is not None:
            indices = torch.randint(numel, (2 * size,), generator=generator).unique()[:size].int()
            size = len(indices)

        def values(size: int = size) -> torch.Tensor:
            return 1e-3 * torch.randn(size, generator=generator)

        shape = tuple(parameter.shape)
        parameters[name] = ParameterDirection(shape, values(), values() if bias else None, None, indices)
    return Direction(parameters, fingerprint=Fingerprint.of(dict(model.named_parameters())))


def compare(name: str, target: float, ours: Callable[[], Any], bare: Callable[[], Any]) -> None:
    """Time both alternately; print medians and the median of the ratios of neighbours."""
    ours()
    bare()
    pairs = []
    for _ in range(ROUNDS):
        gc.collect()
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        bare()
        pairs.append((middle - start, time.perf_counter() - middle))
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    mark = "" if ratio <= target else "  above"
    print(
        f"  {name:44s} {mine * 1e3:9.2f} ms  bare {theirs * 1e3:9.2f} ms  ratio {ratio:5.2f}  (target {target}){mark}"
    )


def peak_memory(work: Callable[[], Any]) -> int:
    """Bytes that the process grew at most while the work ran (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kept = work()
    peak = status("VmHWM") - before
    del kept
    return peak


def bench(model: nn.Module, share: float | None, bias: bool) -> None:
    """All measurements of one direction on one model."""
    direction = make_direction(model, share, bias)
    kind = "dense" if share is None else f"{share:.0%} sparse"
    tensors = len(direction.parameters)
    with_bias = " with bias" if bias else ""
    print(f"{kind} direction{with_bias}: {direction.entries:,} entries in {tensors} tensors")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    flat = {name: weight.view(-1) for name, weight in weights.items()}
    indices = {n: p.indices.long() for n, p in direction.parameters.items() if p.indices is not None}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        direction.save(folder)
        GradiendConfig(feature_classes=["a", "b"], parameters=direction.spec(), has_bias=bias).save_pretrained(
            directory
        )

        def load() -> None:
            GradiendModel.from_pretrained(folder, model).unload()

        def read_and_touch() -> None:
            tensors = load_file(folder / WEIGHTS_FILE)
            for name, part in direction.parameters.items():
                owner, _, leaf = name.rpartition(".")
                stem = f"base_model.model.{owner}.rewrite_{leaf}.gradiend_"
                values = (tensors[f"{stem}weight"] * 0.0).to(flat[name].dtype)
                if part.indices is not None:
                    flat[name].index_add_(0, tensors[f"{stem}indices"].long(), values)
                else:
                    flat[name].add_(values)

        compare("load, apply, take off again / read, add", 1.15, load, read_and_touch)
        file = sum(path.stat().st_size for path in folder.iterdir())
        largest = max(weight.numel() * weight.element_size() for weight in weights.values())
        twin = copy.deepcopy(model)
        peak = peak_memory(lambda: GradiendModel.from_pretrained(folder, twin).merge_and_unload())
        allowed = (file + largest) / 2**20
        print(
            f"  {'peak memory of load and merge':44s} {peak / 2**20:9.1f} MB  file + largest tensor {allowed:9.1f} MB"
        )
    clean = copy.deepcopy(model)
    merged = GradiendModel.from_direction(model, direction, GradiendConfig(feature_classes=["a", "b"]), strength=1.0)
    strengths = iter([0.5 + 0.01 * step for step in range(10_000)])

    scratch = {name: weight.clone().view(-1) for name, weight in weights.items()}
    values = {
        n: scratch[n][indices[n]] if n in indices else p.decoder.to(scratch[n].dtype)
        for n, p in direction.parameters.items()
    }

    def touch() -> None:
        for name, entries in values.items():
            if name in indices:
                scratch[name].index_copy_(0, indices[name], entries)
            else:
                scratch[name].add_(entries)

    compare(
        "change the strength / write the entries",
        2.0 if share else 1.3,
        lambda: merged.set_strength(next(strengths)),
        touch,
    )
    ids = {"input_ids": torch.randint(5, 1000, (2, 16))}
    with torch.no_grad():
        compare("forward of the merged model / of the base", 1.0, lambda: merged(**ids), lambda: clean(**ids))
    merged.unload()


def main() -> None:
    """Run everything."""
    torch.set_num_threads(1)
    models: dict[str, Callable[[], nn.Module]] = {"BERT, 22.6M": bert_22m, "Llama, 135M": llama_135m}
    if len(sys.argv) > 1:
        models = {sys.argv[1]: lambda: tf.AutoModelForMaskedLM.from_pretrained(sys.argv[1], dtype=torch.float32)}
    for name, build in models.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = build().to(dtype).eval()
            print(f"\n{name}, {sum(p.numel() for p in model.parameters()):,} parameters, {dtype}")
            for share, bias in ((0.01, True), (0.01, False), (None, True), (None, False)):
                bench(model, share, bias)


if __name__ == "__main__":
    main()
