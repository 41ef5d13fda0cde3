"""Learning by factors: steps and encodings beside the bare passes, and memory by size of the model.

Bare passes are those of the base model alone: one forward pass, and a backward pass of input gradients for each gradient
(no parameter requires one). CPU time in turns, ratios within a turn. Bytes of models that are too large for this machine
are counted from their shapes; those of the config-built ones are measured on random weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import read_rows
from gradiend_hub.gradients import (
    FactorReader,
    GradientReader,
    Scope,
    directional_derivatives,
    read_factors,
    read_pair,
    select_parameters,
    stacks,
)
from gradiend_hub.gradients.frozen import frozen
from gradiend_hub.gradients.kronecker import COLUMNS
from gradiend_hub.objectives import Objective, PairBatch, examples_of, make_objective, output_nll
from gradiend_hub.solvers import ClosedFormSolver, Shard, Sketching, SketchSolver
from gradiend_hub.solvers.split_means import SplitMeans
from gradiend_hub.training.batches import TransitionDataset

from .bench_learner import DATA
from .bench_solvers import Laboratory, learn
from .measure import EXAMPLES, MODELS, interleaved, line, peak_growth, read_jsonl, skipped

RANK = 8
CLASSES = ["3SG", "3PL"]
SIZES: dict[str, dict[str, int]] = {  # width, feed-forward width, layers, heads, key-value heads, vocabulary
    "10M": {"d": 256, "f": 768, "layers": 8, "heads": 4, "kv": 4, "vocabulary": 8000},
    "40M": {"d": 448, "f": 1216, "layers": 14, "heads": 7, "kv": 7, "vocabulary": 16000},
    "135M": {"d": 576, "f": 1536, "layers": 30, "heads": 9, "kv": 3, "vocabulary": 49152},
    "500M": {"d": 1024, "f": 3072, "layers": 34, "heads": 16, "kv": 8, "vocabulary": 49152},
    "1B": {"d": 2048, "f": 5632, "layers": 22, "heads": 32, "kv": 4, "vocabulary": 32000},
    "8B": {"d": 4096, "f": 14336, "layers": 32, "heads": 32, "kv": 8, "vocabulary": 128256},
    "70B": {"d": 8192, "f": 28672, "layers": 80, "heads": 64, "kv": 8, "vocabulary": 128256},
}
"""Llama-shaped models; the last two are those of Llama 3."""

BUILT, BUILT_QUICK = ("10M", "40M", "135M", "500M", "1B"), ("10M",)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    lines: list[dict[str, Any]] = []
    for name, path in MODELS.items():
        if not path.exists():
            lines.append(skipped("step by factors", f"there is no {path.name} in {path.parent}", model=name))
        elif not (quick and name == "minilm"):
            lines += against_bare(name, path, quick)
            lines += passes(name, path)
    lines += experts(quick)
    if not quick and MODELS["causal"].exists():
        lines += against_bare("135M, random weights", MODELS["causal"], quick, "135M")
    lines += [measured(size) for size in (BUILT_QUICK if quick else BUILT)]
    return lines + [on_paper(size) for size in SIZES]


# -------------------------------------------------------------------------------------------------------------- time


def batches_of(
    path: Path, count: int, rows: int = 16, size: str | None = None
) -> tuple[nn.Module, Objective, list[PairBatch]]:
    """A base model and batches of training rows of about the same length, as training makes them.

    With a `size`, the model is built with random weights, and only the tokenizer is that of `path`.
    """
    base = load_base_model(path).float().eval() if size is None else LlamaForCausalLM(config_of(size)).eval()
    objective = make_objective(base, AutoTokenizer.from_pretrained(path))
    given = read_jsonl(EXAMPLES / "data" / "pronouns" / "train.jsonl")
    chosen = random.Random(0).sample(given, count * rows)
    examples = examples_of(objective, read_rows(chosen, CLASSES, read=objective.read, what="rows"), what="rows")
    by_length = sorted(examples, key=lambda example: example.cost)
    return base, objective, [objective.collate_pairs(by_length[i::count]) for i in range(count)]


def bare(base: nn.Module, objective: Objective, batch: PairBatch, gradients: int = 2) -> None:
    """One forward pass, and as many backward passes of input gradients."""
    handle = base.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_(True))
    factual, alternative = objective.losses(base, batch)
    handle.remove()
    losses = [alternative.sum(), (factual - alternative).sum()][:gradients]
    for number, loss in enumerate(losses):
        loss.backward(retain_graph=number + 1 < len(losses))


def against_bare(name: str, path: Path, quick: bool, size: str | None = None) -> list[dict[str, Any]]:
    """A step, and (unless a size is given) an encoding by one pass, beside the passes that they need."""
    base, objective, batches = batches_of(path, 2, size=size)
    scope = Scope.dense(select_parameters(base))
    shapes = {n: tuple(p.shape) for n, p in scope.parameters.items()}
    solver = SketchSolver(Sketching(shapes, RANK), scope.size)
    dense = ClosedFormSolver(scope.size)
    sums = solver.room()

    def bare_passes() -> None:
        with frozen(base):
            for batch in batches:
                bare(base, objective, batch)

    halves = SketchSolver(solver.sketching, scope.size)  # learns the same, either half of the rows, and two controls
    halves.split_means = SplitMeans(Shard(solver.sketching.size), 1 << 16)
    rows = iter(range(1 << 16))

    def by_factors(solver: SketchSolver) -> None:
        with FactorReader(base, scope) as reader:
            reader._watched = True  # a training looks for unseen reads once
            for batch in batches:
                sums.zero_()
                sinks = {"alternative": sink(solver, sums[0]), "diff": sink(solver, sums[1])}
                read_factors(reader, objective, batch, sinks)
                solver.take(sums, 1.0, len(batch), [next(rows) for _ in range(len(batch))])

    def by_vectors() -> None:
        with GradientReader(base, scope, reuse=True) as reader:
            for batch in batches:
                dense.observe(*read_pair(reader, objective, batch), 1.0)

    works = {
        "bare": bare_passes,
        "factors": lambda: by_factors(solver),
        "controls": lambda: by_factors(halves),
        "vectors": by_vectors,
    }
    times = interleaved(works, 5 if quick or size else 15)
    each = {n: f"{1e3 * seconds / len(batches):.0f} ms" for n, seconds in times.medians.items()}
    lines = [
        line("step by factors, rank 8 / bare forward and two input-gradient passes", times.ratios["factors"], "×", "≤ 1.10",
             model=name, ours=each["factors"], other=each["bare"], note="sketches of s and t, 16 rows"),
        line("step by factors with halves and two controls / without", times.medians["controls"] / times.medians["factors"],
             "×", "≤ 1.1", model=name, ours=each["controls"], other=each["factors"], note="five directions of one stream"),
        line("step by factors / step by whole vectors", times.medians["factors"] / times.medians["vectors"], "×", "< 1",
             model=name, ours=each["factors"], other=each["vectors"], note="closed_form with and without a rank"),
    ]  # fmt: skip
    return lines if size else lines + encodings(name, base, objective, batches, quick)


def experts(quick: bool) -> list[dict[str, Any]]:
    """A step of a mixture with random weights: one forward pass, one gradient, 8 rows of 24 tokens."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=1000, num_hidden_layers=4, num_local_experts=16, num_experts_per_tok=2, **shape)
    base = MixtralForCausalLM(config).eval()
    scope, ids = Scope.dense(select_parameters(base)), torch.randint(0, 1000, (8, 24))
    shapes = {n: tuple(p.shape) for n, p in scope.parameters.items()}
    solver = SketchSolver(Sketching(shapes, RANK, stacked=stacks(base, scope)), scope.size)
    sums = solver.room()

    def loss() -> Tensor:
        return output_nll(base(input_ids=ids).logits.log_softmax(-1).flatten(0, 1), ids.flatten()).sum()

    def passes() -> None:
        with frozen(base):
            handle = base.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_(True))
            total = loss()
            handle.remove()
            total.backward()  # type: ignore[no-untyped-call]

    def by_factors() -> None:
        with FactorReader(base, scope) as reader:
            reader.read(reader.forward(loss), sink(solver, sums[0]))

    def by_gradients() -> None:
        with frozen(base):
            for name, gradient in gradients_of(scope, loss).items():
                solver.sketching.add(sums[0], name, gradient)

    times = interleaved({"bare": passes, "factors": by_factors, "gradients": by_gradients}, 3 if quick else 9)
    each = {n: f"{1e3 * seconds:.0f} ms" for n, seconds in times.medians.items()}
    size = sum(p.numel() for p in base.parameters())
    note = f"{size / 1e6:.0f} M parameters, 16 experts in each of 4 layers, random weights"
    sketches, whole = 4 * solver.sketching.size / 2**20, 4 * scope.size / 2**20
    return [
        line("step of a mixture by factors / bare forward and one input-gradient pass", times.ratios["factors"], "×",
             model="Mixtral", ours=each["factors"], other=each["bare"], note=note),
        line("step of a mixture by factors / by gradients that are sketched", times.medians["factors"]
             / times.medians["gradients"], "×", "< 1", model="Mixtral", ours=each["factors"], other=each["gradients"],
             note=note),
        line("sketches of a mixture / a whole gradient", sketches / whole, "×", model="Mixtral",
             ours=f"{sketches:.0f} MiB", other=f"{whole:.0f} MiB", note=note),
    ]  # fmt: skip


def gradients_of(scope: Scope, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradients of all parameters of a scope, by autograd."""
    for parameter in scope.parameters.values():
        parameter.requires_grad_(True)
    return dict(zip(scope.parameters, torch.autograd.grad(loss(), list(scope.parameters.values())), strict=True))


def sink(solver: SketchSolver, into: Tensor) -> Callable[..., None]:
    return lambda parameter, part: solver.sketching.add(into, parameter, part)


def encodings(
    name: str, base: nn.Module, objective: Objective, batches: list[PairBatch], quick: bool
) -> list[dict[str, Any]]:
    samples = [sample for batch in batches for sample in batch.alternative.samples]
    generator = torch.Generator().manual_seed(0)
    low_rank: dict[str, Any] = {}
    for parameter, values in select_parameters(base).items():
        matrix = values.reshape(values.shape[0], -1) if values.ndim > 1 else None
        low_rank[parameter] = torch.randn(values.shape, generator=generator)
        if matrix is not None:
            b, a = (torch.randn(side, RANK, generator=generator) for side in matrix.shape)
            low_rank[parameter] = Factors(b, a.T.contiguous())
    whole = {n: t if isinstance(t, Tensor) else t.dense() for n, t in low_rank.items()}
    by_length = sorted(samples, key=lambda sample: sample.cost)
    batch = objective.collate(by_length)

    def passes() -> None:
        with frozen(base):
            handle = base.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_(True))
            losses = output_nll(objective.log_probs(base, batch), batch.labels)
            handle.remove()
            losses.sum().backward()

    works: dict[str, Callable[[], Any]] = {
        "bare": passes,
        "rank": lambda: directional_derivatives(base, objective, samples, low_rank, batch_size=len(samples)),
        "dense": lambda: directional_derivatives(base, objective, samples, whole, batch_size=len(samples)),
    }
    times = interleaved(works, 5 if quick else 15)
    each = {n: f"{1e3 * seconds / len(samples):.2f} ms/row" for n, seconds in times.medians.items()}
    return [
        line("encoding, rank 8 / bare forward and input-gradient pass", times.ratios["rank"], "×", "≤ 1.2", model=name,
             ours=each["rank"], other=each["bare"], note="same batch of 32 rows"),
        line("encoding, dense, forward mode / the same", times.ratios["dense"], "×", model=name, ours=each["dense"],
             other=each["bare"]),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- exactness


def passes(name: str, path: Path) -> list[dict[str, Any]]:
    """Cosine of a decoder by sketches with the exact one, over its matrices: one pass, one of more columns, two passes.

    Sketches are linear, so those of the exact decoder are what a training sums. A second pass would sum QᵀG for the Q of the
    first, which is QᵀM.
    """
    laboratory, rows = Laboratory.of(path, [], 0), read_rows(read_jsonl(DATA / "train.jsonl"), CLASSES)
    scope, data = (
        laboratory.scope,
        TransitionDataset(rows, examples_of(laboratory.objective, rows), CLASSES, "alternative"),
    )
    decoder = learn(laboratory.base, laboratory.objective, scope, data, steps=12)["mean"].decoder
    matrices = {n: v.view(len(scope.parameters[n]), -1) for n, v in scope.split(decoder).items()}
    whole = {n: m for n, m in matrices.items() if scope.parameters[n].ndim > 1}
    shapes = {n: tuple(m.shape) for n, m in whole.items()}
    found: dict[str, Mapping[str, Any]] = {}
    for oversampling in (None, 3 * RANK):
        sketching = Sketching(shapes, RANK, oversampling)
        sums = torch.zeros(sketching.size)
        for parameter, matrix in whole.items():
            sketching.add(sums, parameter, matrix)
        found[f"one pass, {sketching.k} columns"] = sketching.read(sums).parts
        if oversampling is None:
            found[f"two passes, {sketching.k} columns"] = {n: _projected(m, sketching) for n, m in whole.items()}
    found["the best of this rank"] = {n: Factors.nearest(m, min(RANK, *m.shape)) for n, m in whole.items()}
    size = math.sqrt(sum(float(m.double().square().sum()) for m in whole.values()))
    lines = []
    for kind, parts in found.items():
        inner = sum(part.inner(whole[n]) for n, part in parts.items())
        norm = math.sqrt(sum(part.inner(part) for part in parts.values()))
        lines.append(line(f"cosine with the exact decoder, rank {RANK}: {kind}", inner / (norm * size), "", model=name))
    return lines


def _projected(matrix: Tensor, sketching: Sketching) -> Factors:
    """Q·(QᵀM), cut to the rank, where the sketch's M·Ω gives Q; the best of the rank where a matrix is not sketched."""
    if (omega := sketching.right.get(matrix.shape[1])) is None:
        return Factors.nearest(matrix, min(RANK, *matrix.shape))
    q, _ = torch.linalg.qr(matrix.double() @ omega.double())
    return Factors(q.float(), (q.T @ matrix.double()).float()).to_rank(RANK)


# ------------------------------------------------------------------------------------------------------------- memory


def config_of(size: str) -> LlamaConfig:
    given = SIZES[size]
    return LlamaConfig(
        hidden_size=given["d"], intermediate_size=given["f"], num_hidden_layers=given["layers"],
        num_attention_heads=given["heads"], num_key_value_heads=given["kv"], vocab_size=given["vocabulary"],
        tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip


def scope_of(model: nn.Module) -> Scope:
    return Scope.dense(select_parameters(model))


def state_bytes(scope: Scope) -> dict[str, int]:
    """Bytes of the parts of learning at rank 8, by shape alone."""
    numbers = dict.fromkeys(("sketches", "batch", "random", "decoder", "direction"), 0)
    k, sides = 2 * RANK + 1, set()
    z = 2 * k + 1
    for parameter in scope.parameters.values():
        size = parameter.numel()
        if parameter.ndim < 2:
            numbers["sketches"] += 4 * size
            numbers["batch"] += 2 * size
            numbers["direction"] += 2 * size
            continue
        rows, columns = parameter.shape[0], size // parameter.shape[0]
        one = min(k * rows + z * columns, size)
        numbers["sketches"] += 4 * one
        numbers["batch"] += 2 * one
        numbers["direction"] += 2 * RANK * (rows + columns)
        numbers["decoder"] += sum(d * (min(d, COLUMNS) + 1) for d in (rows, columns))
        sides |= {(rows, "left"), (columns, "right")}
    numbers["random"] = sum(d * (z if side == "left" else k) for d, side in sides)
    return {name: 4 * count for name, count in numbers.items()}


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def on_paper(size: str) -> dict[str, Any]:
    """What learning needs beside base and activations, by size of the model."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(size))
    scope, base = scope_of(model), sum(p.numel() for p in model.parameters())
    parts = state_bytes(scope)
    sketches = parts["sketches"] + parts["batch"] + parts["random"]
    named = ", ".join(f"{name} {gigabytes(count)}" for name, count in parts.items())
    return line("sketches of rank 8 / whole vectors of the closed form", sketches / (4 * 7 * scope.size), "×", model=size,
                ours=gigabytes(sketches), other=gigabytes(4 * 7 * scope.size),
                note=f"{base / 1e9:.3g} G parameters; {named}; by shape")  # fmt: skip


def measured(size: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Peak growth of two steps over base and activations, beside the bytes of the sketches."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(size)).to(dtype).eval()
    scope = scope_of(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 8000, (8, 24), generator=generator)

    def loss() -> Tensor:
        logits: Tensor = model(input_ids=ids, logits_to_keep=1).logits
        return logits.log_softmax(-1)[:, -1, 5].sum()

    def passes() -> None:
        with frozen(model):
            handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_(True))
            total = loss()
            handle.remove()
            total.backward()  # type: ignore[no-untyped-call]

    def learn() -> SketchSolver:
        solver = SketchSolver(Sketching({n: tuple(p.shape) for n, p in scope.parameters.items()}, RANK), scope.size)
        sums = solver.room()
        with FactorReader(model, scope) as reader:
            for _ in range(2):
                total = reader.forward(loss)
                reader.read(total, sink(solver, sums[0]))
                solver.take(sums, 1.0, len(ids))
        return solver

    # of a training of the weights: with the inputs of layers, which passes of input gradients alone would not keep
    activations = max(peak_growth(loss), peak_growth(passes))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    growth = peak_growth(learn)
    parts = state_bytes(scope)
    state = (parts["sketches"] + parts["batch"] + parts["random"]) / 2**20
    base = sum(p.nbytes for p in model.parameters()) / 2**20
    whole = 4 * scope.size / 2**20
    return line(
        "peak growth of learning / activations + sketches", growth / (activations + state), "×", "≤ 1.25", model=size,
        ours=f"{growth:,.0f} MiB", other=f"{activations:,.0f} + {state:,.0f} MiB",
        note=f"{str(dtype).removeprefix('torch.')}, base {base:,.0f} MiB; a whole gradient is {whole:,.0f} MiB",
    )  # fmt: skip
