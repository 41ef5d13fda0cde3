"""A direction as a plain LoRA: PEFT, transformers, vLLM and llama.cpp's converter load it without this package.

What these read was looked up in PEFT 0.21, in vLLM up to 0.27 (`vllm/lora/peft_helper.py`, `vllm/config/lora.py`) and in
llama.cpp's `convert_lora_to_gguf.py` of 2026:

* every module has the one rank of the configuration (vLLM and llama.cpp scale by `lora_alpha / r` of it and know no
  `rank_pattern`), so shorter factors are filled up with zeros, and alpha is the rank: scale 1 is the exported strength;
* no bias terms, no `modules_to_save`, no norms (vLLM refuses them);
* `r` up to vLLM's `--max-lora-rank`, which is one of 1, 8, 16, 32, 64, 128, 256, 320 and 512, and 16 by default;
* no embeddings, and nothing that is tied to them: a LoRA beside one use of a tied matrix leaves the other one as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from peft.utils.peft_types import TaskType
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from gradiend_hub.adapter.sites import Site, SiteMap, is_linear, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import CONFIG_FILE, LORA_SIGNS, WEIGHTS_FILE
from gradiend_hub.artifact.low_rank import Factors, is_rank
from gradiend_hub.artifact.storage import KEY_PREFIX, write
from gradiend_hub.errors import ConfigError, EditError
from gradiend_hub.folders import written_beside
from gradiend_hub.scope import packed_parameters

DEFAULT_RANK = 8
"""Rank of what is not low-rank already."""
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Types of models in which PEFT refuses a LoRA of `out_proj`."""
_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names of layers that experts were made of before they were stacked. PEFT turns a LoRA of any such layer into one of the
stack, of dense layers and shared experts, too, which then have none; in models of which types, differs by release."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be (0.11 to 0.27; 16 if it is not given)."""
Matrices = Iterator[tuple[str, tuple[Tensor, Tensor]]]
"""Names of weights, and `B [out, rank]` and `A [rank, in]` of each."""
TASKS = {"causal_lm": TaskType.CAUSAL_LM.value, "seq2seq_lm": TaskType.SEQ_2_SEQ_LM.value}


@dataclass(frozen=True)
class AdapterExport:
    """Record of an adapter that was written for other programs.

    Attributes:
        places: One folder (of llama.cpp: file) if Δ is odd in the strength, so that scale −1 is the opposite; else "plus"
            and "minus".
        strength: Strength that scale 1 stands for.
        rank: Rank of every module; `None` for SHiRA, which has none.
        modules: Number of modules.
        energy: Share of `‖Δ‖²` that it holds (the lower one of both signs).
        left_out: Parameters that it has no place for, and why.
    """

    places: list[Path]
    strength: float
    rank: int | None
    modules: int
    energy: float
    left_out: dict[str, str]


@dataclass(frozen=True)
class Loras:
    """Shares of a direction that LoRAs hold.

    Attributes:
        deltas: Δ by sign of the strength (+1 alone if Δ is odd in it), and by name of the weight in the base model, whose
            orientation it has.
        shapes: Shape of each of these weights.
        turned: Those that are stored transposed (`Conv1D`).
        energy: As `AdapterExport`.
        left_out: As `AdapterExport`.
    """

    deltas: dict[int, dict[str, Factors]]
    shapes: dict[str, tuple[int, ...]]
    turned: set[str]
    energy: float
    left_out: dict[str, str]

    @property
    def rank(self) -> int:
        """The largest rank of all."""
        return max(delta.rank for deltas in self.deltas.values() for delta in deltas.values())

    def matrices(self, sign: int) -> Matrices:
        """The LoRA of a sign, all matrices of the one rank and in the orientation of `nn.Linear`."""
        for name, delta in self.deltas[sign].items():
            missing = self.rank - delta.rank
            b, a = pad(delta.b, (0, missing)), pad(delta.a, (0, 0, 0, missing))
            yield name, ((a.T, b.T) if name in self.turned else (b, a))

    def exported(
        self, folder: str | Path, strength: float, write: Callable[[Path, str, Matrices], Path]
    ) -> AdapterExport:
        """Write the LoRA of each sign, all of them or none.

        Args:
            folder: Where to write; it is made if it is missing.
            strength: Strength that they were cut at.
            write: Writes one into a folder under a name, "plus" or "minus", or "" if one is enough; returns its place.
        """
        names = {sign: LORA_SIGNS[sign] if len(self.deltas) > 1 else "" for sign in self.deltas}
        with written_beside(Path(folder)) as beside:
            places = [write(beside, name, self.matrices(sign)) for sign, name in names.items()]
        places = [Path(folder, place.relative_to(beside)) for place in places]
        return AdapterExport(places, strength, self.rank, len(self.shapes), self.energy, self.left_out)

    def direction(self) -> tuple[Direction, dict[str, Any]]:
        """The same as a direction, and fields of a configuration with which its strength 1 is the scale 1 of the LoRAs."""
        plus, minus = self.deltas[1], self.deltas.get(-1)
        if minus is None:
            parts = {name: ParameterDirection(self.shapes[name], delta) for name, delta in plus.items()}
        else:  # Δ(±1) = b ± w
            parts = {
                name: ParameterDirection(
                    self.shapes[name],
                    Factors.joined([delta * 0.5, minus[name] * -0.5]).short(),
                    Factors.joined([delta * 0.5, minus[name] * 0.5]).short(),
                )
                for name, delta in plus.items()
            }
        fields = {"decoder_sign": 1, "strength_unit": 1.0, "feature_factor": 1.0, "target": "diff"}
        return Direction(parts), {**fields, "has_bias": minus is not None, "parameters": None, "dtype": "float32"}


def to_lora(
    direction: Direction,
    config: GradiendConfig,
    base_model: nn.Module,
    folder: str | Path,
    *,
    rank: int | None = None,
    strength: float = 1.0,
) -> AdapterExport:
    """Write a direction as one LoRA, or, if its decoder has a bias, as one for each sign (`plus/` and `minus/`).

    Args:
        direction: The direction; it may be streamed.
        config: Its configuration.
        base_model: Its base model, for the kinds of its modules; values are not read (it may be on the meta device).
        folder: Where to write; it is made if it is missing.
        rank: Largest rank; by default that of the direction, or 8 if it is dense or sparse.
        strength: Strength that the scale 1 is to stand for.

    Raises:
        ConfigError: If the rank is impossible, the strength zero, or no parameter has a place in a LoRA.
        EditError: If an entry is beyond the numbers of fp32 at this strength.
        BaseModelMismatchError: If the base model lacks a parameter.
    """
    return write_loras(
        as_loras(direction, config, base_model, rank=rank, strength=strength), config, base_model, folder, strength
    )


def write_loras(
    loras: Loras, config: GradiendConfig, base_model: nn.Module, folder: str | Path, strength: float = 1.0
) -> AdapterExport:
    """Write what `as_loras` has cut; arguments as of `to_lora`."""
    return loras.exported(folder, strength, partial(_write_lora, _lora_config(config, loras, base_model)))


def _write_lora(fields: dict[str, Any], folder: Path, name: str, matrices: Matrices) -> Path:
    tensors: dict[str, Tensor] = {}
    for weight, (b, a) in matrices:
        module = KEY_PREFIX + weight.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_adapter(folder / name, tensors, fields)
    return folder / name


def write_adapter(folder: Path, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    """Write both files of an adapter of PEFT's; the folder is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lora_config(config: GradiendConfig, loras: Loras, base_model: nn.Module) -> dict[str, Any]:
    return {
        **common_fields(config, list(loras.shapes), base_model),
        "peft_type": "LORA",
        "r": loras.rank,
        "lora_alpha": loras.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": loras.turned == loras.shapes.keys(),
    }


def common_fields(config: GradiendConfig, weights: list[str], base_model: nn.Module) -> dict[str, Any]:
    """The fields that every version of PEFT, vLLM and llama.cpp's converter know; all others have their defaults there."""
    mapping = {"base_model_class": type(base_model).__name__, "parent_library": type(base_model).__module__}
    task = TASKS.get(config.objective or "")
    return {
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "task_type": task,
        "auto_mapping": None if task else config.auto_mapping or mapping,
        "inference_mode": True,
        "target_modules": _target_modules([name.removesuffix(".weight") for name in weights], base_model),
    }


def _target_modules(targets: list[str], base_model: nn.Module) -> list[str]:
    """The last parts of the modules' names (`q_proj`), which is what one expects there; the whole names where modules that
    are not targets end alike."""
    endings = {name.rpartition(".")[2] for name in targets}
    named = {name for name, _ in base_model.named_modules() if name.rpartition(".")[2] in endings}
    return sorted(endings) if named == set(targets) else sorted(targets)


# -------------------------------------------------------------------------------------------------------------- cutting


def as_loras(
    direction: Direction,
    config: GradiendConfig,
    base_model: nn.Module,
    *,
    rank: int | None = None,
    strength: float = 1.0,
) -> Loras:
    """Cut a direction to what LoRAs hold; arguments and errors as of `to_lora`."""
    if isinstance(strength, bool) or not isinstance(strength, Real) or strength == 0 or not math.isfinite(strength):
        raise ConfigError(
            f"A LoRA stands for a finite strength other than 0, found {strength!r}. Give the one that scale 1 is to have; "
            "without any it is 1."
        )
    sites = SiteMap(base_model)
    names = resolve_names(base_model, direction.parameters, sites.parameters)
    misread = _misread_by_peft(base_model)
    reasons = {
        name: misread.get(name.rpartition(".")[0].rpartition(".")[2]) or left_out_of_lora(sites[name])
        for name in names.values()
    }
    shapes = {name: tuple(sites.parameters[name].shape) for name, why in reasons.items() if why is None}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    if not shapes:
        some = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:3])
        raise ConfigError(
            f"No parameter of this direction has a place in a LoRA, which holds weights of linear layers: {some}. "
            "Merge the direction into its base model instead: gradiend-hub merge."
        )
    most = max(min(shape) for shape in shapes.values())
    if rank is not None and not is_rank(rank, most):
        raise ConfigError(
            f"rank: expected 1…{most}, the smaller side of the largest weight, found {rank!r}. Leave it out for the "
            f"direction's own, or {DEFAULT_RANK} where it has none."
        )
    coefficients = {sign: config.coefficients(sign * strength) for sign in ((1,) if is_odd(direction) else (1, -1))}
    deltas: dict[int, dict[str, Factors]] = {sign: {} for sign in coefficients}
    squares, held = dict.fromkeys(coefficients, 0.0), dict.fromkeys(coefficients, 0.0)
    for stored, name in names.items():
        part = direction.parameters[stored]
        sizes = {sign: part.inner(part, *c) for sign, c in coefficients.items()}
        if not any(sizes.values()):
            left_out.pop(name, None)  # there is nothing to leave out
        for sign, (c_w, c_b) in coefficients.items():
            squares[sign] += sizes[sign]
            if name in shapes:
                delta = part.delta(c_w, c_b)
                delta = delta if isinstance(delta, Factors) else part.dense(delta)
                require_finite(name, *((delta.b, delta.a) if isinstance(delta, Factors) else (delta,)))
                cut = deltas[sign][name] = _cut(delta, rank)
                held[sign] += cut.inner(cut)
    energy = min(held[sign] / square if square else 1.0 for sign, square in squares.items())
    turned = {name for name in shapes if isinstance(sites[name].owner, Conv1D)}
    return Loras(deltas, shapes, turned, energy, left_out)


def require_finite(name: str, *change: Tensor) -> None:
    """Refuse a change of a weight that is beyond the numbers of fp32.

    Raises:
        EditError: If it is.
    """
    if not all(bool(values.isfinite().all()) for values in change):
        raise EditError(
            f"The change of {name} is beyond the numbers of fp32 at this strength. Give a smaller one (--strength)."
        )


def vllm_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` that vLLM serves a LoRA with; `None` if its rank is beyond all of them."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def is_odd(direction: Direction) -> bool:
    """Tell whether Δ is odd in the strength, so that −1 is the opposite of 1: the decoder has no bias, or zeros."""
    parts = direction.parameters.values()
    return not any(part.inner(part, 0.0, 1.0) for part in parts if part.decoder_bias is not None)


def _cut(delta: Factors | Tensor, rank: int | None) -> Factors:
    if isinstance(delta, Factors):
        return delta.short() if rank is None else delta.to_rank(min(rank, *delta.form.matrix))
    return Factors.nearest(delta, min(rank or DEFAULT_RANK, *delta.shape))


def left_out_of_lora(site: Site) -> str | None:
    """Say why a LoRA has no place for a parameter; `None` if it has."""
    parameter = site.owner._parameters.get(site.leaf)
    if site.leaf != "weight" and parameter is not None and parameter.ndim == 3:
        return f"a stack of {len(parameter)} matrices of {type(site.owner).__name__}"
    if site.leaf != "weight" or not is_linear(site.owner):
        kind = type(site.owner).__name__
        return f"a {site.leaf} of {kind}" if site.leaf != "weight" else f"no linear layer but {kind}"
    if len(site.slots) > 1:
        return "tied to another module's"
    if not _gives_a_tensor(site.owner):
        return f"no linear layer but {type(site.owner).__name__}"
    return None


def _misread_by_peft(base_model: nn.Module) -> dict[str, str]:
    """Say of which layers, by the last part of their names, PEFT would not add a LoRA to what they give."""
    kind = getattr(getattr(base_model, "config", None), "model_type", None)
    ends = {".".join(name.split(".")[-2:]) for name, _ in base_model.named_parameters()}
    found = {}
    if "experts.gate_up_proj" in ends:
        found = dict.fromkeys(
            _OF_EXPERTS, f"a layer of a name that PEFT may take for an expert's in models of type {kind}"
        )
    if kind in MAMBA:
        found["out_proj"] = f"a layer that PEFT refuses in models of type {kind}"
    if any(end.endswith(".A_log") for end in ends):  # Mamba's kernels
        found["dt_proj"] = "a weight that is read without its layer"
    return found


def _gives_a_tensor(layer: nn.Module) -> bool:
    """Tell whether a linear layer's output is what a LoRA's is added to; routers are subclasses with several outputs."""
    if type(layer).forward in (nn.Linear.forward, Conv1D.forward) or not isinstance(layer, nn.Linear):
        return True
    if packed_parameters(layer):
        return True
    try:
        with torch.no_grad():
            return isinstance(type(layer).forward(layer, layer.weight.new_zeros(1, layer.in_features)), Tensor)
    except (TypeError, ValueError, RuntimeError):  # it takes more than a layer does
        return False
