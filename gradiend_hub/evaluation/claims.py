"""Claims of an artifact that can be measured again with nothing but the artifact and its base model: `verify --full`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import (
    GGUF_FILES,
    GGUF_FOLDER,
    LORA_FILES,
    LORA_FOLDER,
    LORA_SIGNS,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    own_file,
)
from gradiend_hub.artifact.storage import KEY_PREFIX
from gradiend_hub.artifact.summary import Summary
from gradiend_hub.errors import ArtifactError, ConfigError, DataError
from gradiend_hub.export import as_loras
from gradiend_hub.export.gguf_lora import gguf_names, gguf_tensors
from gradiend_hub.export.lora import Loras
from gradiend_hub.lazy import require
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, evaluating

from .completions import ask, kept
from .edit import edit_account
from .published import Check, compared, measured_on_rows
from .records import Completion
from .report import Report

_SUMMARIZE: Final = "gradiend_hub.cards.summary:summarize"
"""Makes a summary; a name, since cards are built upon what is measured."""

_OF_STRANGE_FILES: Final = (
    ArithmeticError, AssertionError, AttributeError, ConfigError, LookupError, MemoryError, OSError, TypeError, ValueError,
)  # fmt: skip
"""Errors with which the package `gguf` answers a file that is damaged, or made to harm."""


def check_summary(folder: Path, config: GradiendConfig, report: Report | None, *, base: bool = True) -> list[Check]:
    """Compare the figures that a search shows with the configuration and report that they are from.

    Args:
        folder: of the artifact.
        config: of the direction.
        report: the claims.
        base: whether the configuration names the base model as its author does, and not as the reader has.
    """
    path = own_file(folder, SUMMARY_FILE)
    if path is None:
        return []
    try:
        claimed: dict[str, Any] = asdict(Summary.load(path))
        found = asdict(resolve_name(_SUMMARIZE)(folder, config, report))
    except (ArtifactError, ConfigError) as error:
        return [Check(SUMMARY_FILE, "a summary", str(error), False)]
    # reports by others need not lie on the disk
    free = ("schema_version", "others", *(() if base else ("base_model", "base_revision")))
    said_of = [name for name, value in claimed.items() if name not in free and value not in (None, {}, [])]
    wrong = [name for name in said_of if claimed[name] != found[name]]
    said, is_ = ("; ".join(f"{name}: {of[name]}" for name in wrong) for of in (claimed, found))
    return [Check(SUMMARY_FILE, said or "as the report", is_ or "as the report", not wrong)]


def measured_again(
    model: GradiendModel, objective: Objective, report: Report, folder: Path, tolerance: float
) -> list[Check]:
    """Measure the figures of a report that need no further data: the edit's, its LoRA's, those of the rows that the report
    holds, and what the model writes.

    Args:
        model: the base model with the direction.
        objective: of the base model.
        report: the claims.
        folder: of the artifact.
        tolerance: largest difference of a value that passes.
    """
    checks = [*_of_edit(model, report, tolerance), *_of_lora(model, report, folder, tolerance)]
    checks += measured_on_rows(model, objective, report, tolerance)
    for split in report.splits.values():
        for completion in split.completions:
            checks += _of_completion(model, objective, completion, tolerance)
        if split.generation is not None:
            for sample in split.generation.samples:
                checks += _of_continuation(
                    model, objective, sample.prompt, sample.by_strength, split.generation.new_tokens
                )
    return checks


def _of_edit(model: GradiendModel, report: Report, tolerance: float) -> Iterator[Check]:
    layers, losses = edit_account(model)
    found = {layer.layer: layer for layer in layers}
    for claimed in report.layers:
        mine = found.get(claimed.layer)
        for name, most in (("share", tolerance), ("relative_norm", tolerance), ("tensors", 0), ("entries", 0)):
            value = math.nan if mine is None else getattr(mine, name)
            yield compared(f"{name.replace('_', ' ')} of {claimed.layer}", getattr(claimed, name), value, most)
    for dtype, loss in report.dtype_loss.items():
        yield compared(f"lost to {dtype}", loss, losses.get(dtype, math.nan), tolerance)


def _of_lora(model: GradiendModel, report: Report, folder: Path, tolerance: float) -> Iterator[Check]:
    """Compare the LoRA beside the direction, which others load without this library, with the direction at strength ±1."""
    claimed = next((split.lora for split in report.splits.values() if split.lora is not None), None)
    weights = [*(name for name in LORA_FILES if name.endswith(WEIGHTS_FILE)), *GGUF_FILES]
    files = [name for name in weights if own_file(folder, name)]
    if claimed is None and not files:
        return
    try:
        loras = as_loras(model.direction, model.active_peft_config, model.get_base_model())
    except ConfigError as error:
        yield Check(LORA_FOLDER, "a LoRA", str(error), False)
        return
    if claimed is not None:
        for name, mine in (("rank", loras.rank), ("modules", len(loras.shapes)), ("left out", len(loras.left_out))):
            yield compared(f"{name} of the LoRA", getattr(claimed, name.replace(" ", "_")), mine, 0)
        yield compared("energy of the LoRA", claimed.energy, loras.energy, tolerance)
    signs = {f"{LORA_FOLDER}/{name}/{WEIGHTS_FILE}": sign for sign, name in LORA_SIGNS.items()}
    signs |= {f"{GGUF_FOLDER}/{name}.gguf": sign for sign, name in LORA_SIGNS.items()}
    for name in files:
        place, sign, is_gguf = folder / name, signs.get(name, 1), name in GGUF_FILES
        distance = _gguf_distance(loras, sign, place, model) if is_gguf else _distance(loras, sign, place)
        shown = "none of it" if math.isnan(distance) else f"differs by {distance:.1%}"
        yield Check(name, "the direction", "the direction" if distance <= tolerance else shown, distance <= tolerance)


def _distance(loras: Loras, sign: int, path: Path) -> float:
    """‖BA − Δ‖ / ‖Δ‖ of the file of a LoRA; NaN if it holds other tensors."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        return math.nan
    if sign not in loras.deltas:
        return math.nan
    modules = {name: KEY_PREFIX + name.removesuffix(".weight") for name in loras.shapes}
    keys = {f"{module}.lora_{part}.weight" for module in modules.values() for part in "AB"}
    if keys != tensors.keys():
        return math.nan
    found = {n: (tensors[f"{m}.lora_B.weight"], tensors[f"{m}.lora_A.weight"]) for n, m in modules.items()}
    return _apart((*of, *found[name]) for name, of in loras.matrices(sign))


def _gguf_distance(loras: Loras, sign: int, path: Path, model: GradiendModel) -> float:
    """The same of a LoRA for llama.cpp."""
    try:
        reader = require("gguf", "Comparing GGUF files").GGUFReader(path)
        tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        base = model.get_base_model()
        mine = gguf_tensors(loras.matrices(sign), gguf_names(base, list(loras.shapes)), base)
    except _OF_STRANGE_FILES:
        return math.nan
    if mine.keys() != tensors.keys():
        return math.nan
    names = [name.removesuffix(".lora_a") for name in mine if name.endswith(".lora_a")]
    return _apart(
        (mine[f"{n}.lora_b"], mine[f"{n}.lora_a"], tensors[f"{n}.lora_b"], tensors[f"{n}.lora_a"]) for n in names
    )


def _apart(pairs: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> float:
    """‖BA − B'A'‖ / ‖BA‖ over all matrices, from B, A, B' and A'; NaN if shapes differ."""
    square = distance = 0.0
    for b, a, other_b, other_a in pairs:
        mine, theirs = _product(b, a), _product(other_b, other_a)
        if theirs.shape != mine.shape:
            return math.nan
        square += float(mine.square().sum())
        distance += float((theirs - mine).square().sum())
    return math.sqrt(distance / square) if square else math.nan


def _product(b: Tensor, a: Tensor) -> Tensor:
    return b.double() @ a.double() if b.ndim == a.ndim == 2 and b.shape[1] == a.shape[0] else torch.zeros(0)


def _of_completion(model: GradiendModel, objective: Objective, completion: Completion, tolerance: float) -> list[Check]:
    """Ask the model again what it writes. Guesses are compared with their probabilities, continuations as text."""
    checks = []
    for strength, wanted in completion.by_strength.items():
        said = kept(ask(model, objective, [completion.text], float(strength))[0])
        name = f"{completion.text} at {float(strength):+g}"
        if isinstance(wanted, str) or isinstance(said, str):
            checks.append(Check(name, str(wanted), str(said), wanted == said))
            continue
        chances = {str(word): float(chance) for word, chance in said}
        for word, chance in wanted:
            mine = chances.get(str(word), math.nan)
            checks.append(compared(f"P({word}): {name}", float(chance), mine, tolerance + 1e-4))
    return checks


def _of_continuation(
    model: GradiendModel, objective: Objective, prompt: str, by_strength: Mapping[str, str], tokens: int
) -> Iterator[Check]:
    """Let the model go on with a prompt again, as `GenerationProbe` does."""
    base = model.get_base_model()
    special = {*objective.processor.all_special_ids}
    for strength, wanted in by_strength.items():
        name = f"{prompt} … at {float(strength):+g}"
        try:
            with model.strength_at(float(strength)), evaluating(base), torch.inference_mode():
                (sample,) = objective.generate(base, [prompt], tokens=tokens, batch_size=1)
        except DataError as error:  # a prompt that is more than its text
            yield Check(name, wanted, f"not measured: {error}", False)
            continue
        said = objective.processor.decode([token for token in sample.labels if token not in special]).strip()
        yield Check(name, wanted, said, wanted == said)
