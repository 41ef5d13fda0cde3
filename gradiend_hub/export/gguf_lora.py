"""A direction as a LoRA in a GGUF file, which llama.cpp and what is built on it (Ollama, for one) apply at any scale.

GGUF names a tensor by its place in the architecture (`blk.0.attn_q.weight`), and the `gguf` package knows these names.
The file holds for each of them `….lora_a` `[rank, in]` and `….lora_b` `[out, rank]` in fp32. llama.cpp adds
`scale · alpha/rank · B·A` beside the weight of the base, whatever its quantisation; alpha is the rank here, so that the
scale 1 is the exported strength. Looked up in llama.cpp's `src/llama-adapter.cpp` and `convert_lora_to_gguf.py` of 2026.

Some architectures turn pairs of dimensions of a head by another order of rows than transformers: the converter of their
base models sorts the rows of queries and keys, and so must `B` be sorted. The table says which.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import GGUF_FILE
from gradiend_hub.artifact.names import shown_name
from gradiend_hub.errors import ConfigError
from gradiend_hub.lazy import require

from .lora import AdapterExport, Matrices, as_loras

ARCHITECTURES = {
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "gpt2": ("gpt2", False),
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
"""`model_type` of transformers → architecture of llama.cpp, and whether rows of queries and keys are in another order
there. Only what tests run in llama.cpp is listed."""


def to_gguf_lora(
    direction: Direction,
    config: GradiendConfig,
    base_model: nn.Module,
    folder: str | Path,
    *,
    rank: int | None = None,
    strength: float = 1.0,
) -> AdapterExport:
    """Write a direction as `adapter.gguf`, or, if its decoder has a bias, as `plus.gguf` and `minus.gguf`.

    Arguments as of `to_lora`; of the base model, its configuration is read, too.

    Raises:
        ConfigError: If llama.cpp's architecture of the base model is not known here, or as of `to_lora`.
        EditError: If an entry is beyond the numbers of fp32 at this strength.
        BaseModelMismatchError: If the base model lacks a parameter.
        MissingLibraryError: If the package `gguf` is not installed.
    """
    _require_form(base_model)
    gguf = require("gguf", "Writing GGUF files")
    loras = as_loras(direction, config, base_model, rank=rank, strength=strength)
    names = gguf_names(base_model, list(loras.shapes))

    def write(folder: Path, sign: str, matrices: Matrices) -> Path:
        place = folder / (f"{sign}.gguf" if sign else GGUF_FILE)
        tensors = gguf_tensors(matrices, names, base_model)
        _write(gguf, place, _architecture(base_model)[0], tensors, loras.rank, config)
        return place

    return loras.exported(folder, strength, write)


def _require_form(base_model: nn.Module) -> None:
    """Refuse base models that llama.cpp does not run, or that are not tried there.

    Raises:
        ConfigError: Saying what would fit instead.
    """
    kind = _kind(base_model)
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"There is no GGUF form of a direction on {kind}: known are causal language models of "
            f"{', '.join(ARCHITECTURES)}. Write a LoRA for PEFT (--format lora), or "
            "merge and convert the merged model: gradiend-hub merge."
        )
    if not type(base_model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"llama.cpp runs causal language models, and this direction is of {type(base_model).__name__}. Write a LoRA for "
            "PEFT: --format lora."
        )


def gguf_tensors(matrices: Matrices, names: Mapping[str, str], base_model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a GGUF file, by name.

    Args:
        matrices: A LoRA.
        names: Name in GGUF by that of the weight, as `gguf_names` finds them.
        base_model: For the order of its rows.
    """
    tensors: dict[str, Tensor] = {}
    for name, (b, a) in matrices:
        b = _as_in_gguf(name, b, base_model.config) if _architecture(base_model)[1] else b
        tensors |= {f"{names[name]}.lora_a": a, f"{names[name]}.lora_b": b}
    return tensors


def _kind(base_model: nn.Module) -> str:
    return getattr(getattr(base_model, "config", None), "model_type", None) or type(base_model).__name__


def _architecture(base_model: nn.Module) -> tuple[str, bool]:
    return ARCHITECTURES[_kind(base_model)]


def gguf_names(base_model: nn.Module, weights: list[str]) -> dict[str, str]:
    """Name in GGUF of every weight.

    Raises:
        ConfigError: If one has none.
    """
    gguf, architecture = require("gguf", "Names of GGUF"), _architecture(base_model)[0]
    described: Any = base_model.config
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, described.num_hidden_layers)
    found = {name: known.get_name(name, try_suffixes=(".weight",)) for name in weights}
    if strange := [name for name, place in found.items() if place is None]:
        raise ConfigError(
            f"{strange[0]} (and {len(strange) - 1} more) has no name in llama.cpp's architecture {architecture}. Learn "
            "without it (exclude=[...]), or write a LoRA for PEFT: --format lora."
        )
    return found


def _as_in_gguf(name: str, b: Tensor, config: Any) -> Tensor:
    """The rows `[out, rank]` in llama.cpp's order: of each head, both halves of the dimensions by turns."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return b
    rows: Tensor = b.unflatten(0, (heads, 2, -1))
    return rows.transpose(1, 2).flatten(0, 2)


def _write(
    gguf: Any, place: Path, architecture: str, tensors: dict[str, Tensor], rank: int, config: GradiendConfig
) -> None:
    writer = gguf.GGUFWriter(place, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_name("-".join(config.feature_classes or ["direction"]))
    if config.base_model_name_or_path:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, shown_name(config.base_model_name_or_path))
    for name, values in tensors.items():
        writer.add_tensor(name, values.float().contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(
            errno.ENOSPC, os.strerror(errno.ENOSPC), str(place)
        ) from error  # numpy tells only what is missing
    finally:
        writer.close()
