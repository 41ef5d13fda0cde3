"""Memory and speed of merging file by file, at the shapes of an 8B model: its vocabulary, and two of its 32 layers.

Tensors are written and forgotten one after the other, so that further layers take time and no memory. The base model's
file is sparse (zeros that take no disk); what is written is not.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, Factors, ParameterDirection
from gradiend_hub.artifact.files import WEIGHTS_FILE
from gradiend_hub.export.merge_files import merge_files

from .measure import interleaved, line, peak_growth


def llama(layers: int, vocabulary: int, hidden: int, inner: int) -> tf.LlamaConfig:
    """A configuration with the shapes of Llama 3."""
    return tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        intermediate_size=inner,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_sparse(folder: Path, config: tf.LlamaConfig) -> dict[str, torch.Size]:
    """A checkpoint in bf16 whose file has holes instead of values; returns the shapes."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in tf.LlamaForCausalLM(config).named_parameters()}
    header, place = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + 2 * shape.numel()]}
        place += 2 * shape.numel()
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data += b" " * (-len(data) % 8)
    folder.mkdir()
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + place)
    return shapes


def directions(shapes: dict[str, torch.Size]) -> dict[str, Direction]:
    """Rank 8 on every linear weight; and 1 % of the entries of the vocabulary, the largest tensor."""
    generator = torch.Generator().manual_seed(0)
    low = {
        name: ParameterDirection(
            tuple(shape),
            Factors(
                torch.randn(shape[0], 8, generator=generator), 0.01 * torch.randn(8, shape[1], generator=generator)
            ),
        )
        for name, shape in shapes.items()
        if len(shape) == 2 and "embed" not in name and "lm_head" not in name
    }
    name, shape = max(shapes.items(), key=lambda item: item[1].numel())
    indices = torch.randint(shape.numel(), (shape.numel() // 100,), generator=generator).unique().int()
    sparse = ParameterDirection(tuple(shape), torch.randn(len(indices), generator=generator), indices=indices)
    return {"rank 8 on every linear weight": Direction(low), f"1 % of {name}": Direction({name: sparse})}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    config = llama(1, 8000, 1024, 2048) if quick else llama(2, 128256, 4096, 14336)
    title = "Llama, small" if quick else "Llama, shapes of 8B, two layers"
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        shapes = write_sparse(folder / "base", config)
        size = (folder / "base" / "model.safetensors").stat().st_size
        largest = 2 * max(math.prod(shape) for shape in shapes.values())
        mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}
        for number, (name, direction) in enumerate(directions(shapes).items()):
            place = folder / str(number)
            direction.save(place)
            fields = GradiendConfig(
                feature_classes=["a", "b"],
                parameters=direction.spec(),
                base_model_name_or_path=str(folder / "base"),
                auto_mapping=mapping,
            )
            allowed = (largest + (place / WEIGHTS_FILE).stat().st_size) / 2**20

            def merge(place: Path = place, fields: GradiendConfig = fields) -> None:
                shutil.rmtree(folder / "out", ignore_errors=True)
                streamed = Direction.stream(place, fields, encoder=False)
                merge_files(streamed, fields, folder / "out", strength=1.0, allow_unverified_base=True)

            del direction
            peak = peak_growth(merge)
            cells = {"model": title, "ours": f"{peak:.1f} MiB", "other": f"{allowed:.1f} MiB"}
            note = f"{name}; file of {size / 2**30:.2f} GiB"
            lines.append(
                line(
                    "peak memory of --stream / largest tensor + artifact",
                    peak / allowed,
                    "×",
                    "≤ 1",
                    note=note,
                    **cells,
                )
            )

            def copy() -> None:
                shutil.rmtree(folder / "copy", ignore_errors=True)
                (folder / "copy").mkdir()
                source, target = folder / "base" / "model.safetensors", folder / "copy" / "model.safetensors"
                with source.open("rb") as one, target.open("wb") as other:
                    while data := one.read(1 << 24):
                        other.write(data)

            times = interleaved({"copy": copy, "merge": merge}, 3 if quick else 1, warm_up=False)
            shutil.rmtree(folder / "copy")
            cells = {
                "model": title,
                "ours": f"{times.medians['merge']:.2f} s",
                "other": f"{times.medians['copy']:.2f} s",
            }
            lines.append(line("merge --stream / copy of the file", times.ratios["merge"], "×", note=name, **cells))
    return lines
