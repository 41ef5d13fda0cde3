"""Speed and memory of loading, applying and changing a direction, as ratios to the bare work in the same run.

Models of 22.6M and 135M parameters with random weights are built. Nothing is asserted: times are a matter of the machine,
and the targets are those of the project.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.artifact.parameter import Values
from gradiend_hub.model import GradiendModel

from .measure import interleaved, line, peak_growth

RANK = 8


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
        parameters[name] = ParameterDirection(shape, values(), values() if bias else None, values(), indices)
    return Direction(parameters, fingerprint=Fingerprint.of(dict(model.named_parameters())))


def low_rank_direction(model: nn.Module) -> Direction:
    """A random direction of rank `RANK` over all parameters, vectors dense."""
    generator = torch.Generator().manual_seed(0)

    def values(shape: tuple[int, ...]) -> Values:
        if len(shape) < 2:
            return 1e-3 * torch.randn(shape, generator=generator)
        rows, columns = shape[0], math.prod(shape[1:])
        r = min(RANK, rows, columns)
        b, a = (1e-2 * torch.randn(sides, generator=generator) for sides in ((rows, r), (r, columns)))
        return Factors(b, a)

    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    parts = {name: ParameterDirection(shape, values(shape), None, values(shape)) for name, shape in shapes.items()}
    return Direction(parts, fingerprint=Fingerprint.of(dict(model.named_parameters())))


def bench_low_rank(base: nn.Module, rounds: int, **details: Any) -> list[dict[str, Any]]:
    """Load and apply, and change the strength, of a low-rank direction beside reading its file and one `addmm` a matrix.

    Merged, as `GradiendModel` does, and beside the weights, as plain PEFT does: nothing is kept, and no Δ is formed.
    """
    direction = low_rank_direction(base)
    scratch = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    loaded: list[GradiendModel] = []
    beside: list[PeftModel] = []
    strengths = iter([0.5 + 0.01 * step for step in range(10_000)])
    with tempfile.TemporaryDirectory() as directory:
        direction.save(directory)
        config = GradiendConfig(feature_classes=["a", "b"], parameters=direction.spec(), has_bias=False)
        config.save_pretrained(directory)

        def read_and_touch(keep: bool = False) -> None:
            """With `keep`, the old values are kept, as an exact undo needs them."""
            tensors, kept = load_file(Path(directory) / WEIGHTS_FILE), []
            for name, part in direction.parameters.items():
                owner, _, leaf = name.rpartition(".")
                flat, target = tensors[f"base_model.model.{owner}.rewrite_{leaf}.gradiend_weight"], scratch[name]
                if keep:
                    kept.append(target.clone())
                if isinstance(part.decoder, Factors):
                    factors = part.decoder.form.factors(flat.to(target.dtype))
                    target.view(factors.b.shape[0], -1).addmm_(factors.b, factors.a)
                else:
                    target.add_(flat)

        times = interleaved(
            {
                "bare": read_and_touch,
                "floor": lambda: read_and_touch(keep=True),
                "load": lambda: loaded.append(GradiendModel.from_pretrained(directory, base)),
                "strength": lambda: loaded[0].set_strength(next(strengths)),
                "off": lambda: loaded.pop().unload(),
                "beside": lambda: beside.append(PeftModel.from_pretrained(base, directory)),
                "strength beside": lambda: beside[0].base_model.set_strength("default", next(strengths)),
                "off again": lambda: beside.pop().unload(),
            },
            rounds,
        )
    bare = f"{times.medians['bare'] * 1e3:.0f} ms"
    note = f"rank {RANK}, {len(direction.parameters)} tensors; floor, with the old values kept, {times.ratios['floor']:.2f}"
    named = {
        "load": "load and apply",
        "strength": "change the strength",
        "beside": "load beside the weights",
        "strength beside": "change the strength beside the weights",
    }
    return [
        line(f"{what} / read the file and one addmm a matrix", times.ratios[key], "×", "≤ 2",
             ours=f"{times.medians[key] * 1e3:.0f} ms", other=bare, note=note, **details)
        for key, what in named.items()
    ]  # fmt: skip


def bench(base: nn.Module, share: float | None, bias: bool, rounds: int, **details: Any) -> list[dict[str, Any]]:
    """All measurements of one direction on one model."""
    direction = make_direction(base, share, bias)
    kind = "dense" if share is None else f"{share:.0%} sparse"
    with_bias = " with bias" if bias else ""
    lines: list[dict[str, Any]] = []
    details["note"] = (
        f"{kind} direction{with_bias}, {direction.entries:,} entries in {len(direction.parameters)} tensors"
    )

    def compare(what: str, target: float, bare: Callable[[], Any], ours: Callable[[], Any], **more: Any) -> None:
        times = interleaved({"bare": bare, "ours": ours, **more}, rounds)
        mine, theirs = (f"{times.medians[name] * 1e3:.2f} ms" for name in ("ours", "bare"))
        cells = dict(details)
        if "floor" in more:  # bare tensor operations that keep the same promises
            cells["note"] += f"; floor {times.ratios['floor']:.2f}"
        lines.append(line(what, times.ratios["ours"], "×", f"≤ {target}", ours=mine, other=theirs, **cells))

    weights = {name: parameter.detach() for name, parameter in base.named_parameters()}
    scratch = {name: weight.clone().view(-1) for name, weight in weights.items()}
    indices = {n: p.indices.long() for n, p in direction.parameters.items() if p.indices is not None}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        direction.save(folder)
        GradiendConfig(feature_classes=["a", "b"], parameters=direction.spec(), has_bias=bias).save_pretrained(
            directory
        )

        loaded: list[GradiendModel] = []

        def read_and_touch(keep: bool = False) -> None:
            """Add what the file holds to scratch weights; with `keep`, checked, and the old values are kept."""
            tensors, kept = load_file(folder / WEIGHTS_FILE), []
            for name, part in direction.parameters.items():
                owner, _, leaf = name.rpartition(".")
                stem, target = f"base_model.model.{owner}.rewrite_{leaf}.gradiend_", scratch[name]
                values = [tensors[stem + kind].to(target.dtype) for kind in ("weight", "bias")[: 1 + bias]]
                where = tensors[f"{stem}indices"].long() if part.indices is not None else None
                if keep:
                    kept.append(target.clone() if where is None else target[where])
                    assert all(math.isfinite(float(torch.aminmax(value).max)) for value in values)
                for value in values:
                    target.add_(value) if where is None else target.index_add_(0, where, value)

        compare(
            "load and apply / read the file and add it in place",
            1.15 if share else 1.3,
            read_and_touch,
            lambda: loaded.append(GradiendModel.from_pretrained(folder, base)),
            off=lambda: loaded.pop().unload(),
            floor=lambda: read_and_touch(keep=True),
        )
        file = sum(path.stat().st_size for path in folder.iterdir())
        largest = max(weight.numel() * weight.element_size() for weight in weights.values())
        twin = copy.deepcopy(base)
        peak = peak_growth(lambda: GradiendModel.from_pretrained(folder, twin).merge_and_unload())
        allowed = (file + largest) / 2**20
        what = "peak memory of load and merge / file + largest tensor"
        cells = {"ours": f"{peak:.1f} MiB", "other": f"{allowed:.1f} MiB"}
        lines.append(line(what, peak / allowed, "×", "≤ 1", **cells, **details))
    clean = copy.deepcopy(base)
    merged = GradiendModel.from_direction(base, direction, GradiendConfig(feature_classes=["a", "b"]), strength=1.0)
    strengths = iter([0.5 + 0.01 * step for step in range(10_000)])

    originals = {name: weight.clone() for name, weight in scratch.items()}
    vectors = {
        n: [vector.to(scratch[n].dtype) for vector in (p.decoder, p.decoder_bias) if vector is not None]
        for n, p in direction.parameters.items()
    }

    def touch() -> None:
        for name, target in scratch.items():
            if name in indices:
                target.index_copy_(0, indices[name], vectors[name][0])
            else:
                for vector in vectors[name]:
                    target.add_(vector)

    def from_originals() -> None:
        """The fewest passes over memory that start from kept values; its sums are not rounded as ours have to be."""
        for name, target in scratch.items():
            source = originals[name]
            for vector in vectors[name]:
                source = torch.add(source, vector, alpha=0.7, out=target)

    compare(
        "change the strength / write the entries",
        2.0 if share else 1.3,
        touch,
        lambda: merged.set_strength(next(strengths)),
        **({} if share else {"floor": from_originals}),
    )
    ids = {"input_ids": torch.randint(5, 1000, (2, 16))}
    with torch.no_grad():
        compare("forward of the merged model / of the base", 1.0, lambda: clean(**ids), lambda: merged(**ids))
    merged.unload()
    with tempfile.TemporaryDirectory() as directory:
        direction.save(directory)
        GradiendConfig(feature_classes=["a", "b"], parameters=direction.spec(), has_bias=bias).save_pretrained(
            directory
        )
        unmerged = PeftModel.from_pretrained(base, directory)
    one = {"input_ids": ids["input_ids"][:1, :1]}
    with torch.no_grad():
        compare("forward of one token, unmerged / of the base", 1.5, lambda: clean(**one), lambda: unmerged(**one))
    unmerged.unload()
    return lines


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    models: dict[str, Callable[[], nn.Module]] = {"BERT, 22.6M": bert_22m, "Llama, 135M": llama_135m}
    lines: list[dict[str, Any]] = []
    for name, build in list(models.items())[: 1 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            model = build().to(dtype).eval()
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            lines += bench_low_rank(model, 3 if quick else 9, model=title)
            for share, bias in ((0.01, True), (0.01, False), (None, True), (None, False)):
                lines += bench(model, share, bias, 3 if quick else 15, model=title)
    return lines
