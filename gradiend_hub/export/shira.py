"""A sparse direction as a SHiRA adapter of PEFT: single entries of the weights of linear layers, exactly.

PEFT gives every module `r·(in + out)` entries with the one `r` of the configuration, so modules with fewer are filled up
with zeros. `set_scale` of its layers is the strength. Looked up in PEFT 0.19 to 0.21, `peft/tuners/shira`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradiend_hub.adapter.sites import Site, SiteMap, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import LORA_SIGNS
from gradiend_hub.artifact.storage import KEY_PREFIX
from gradiend_hub.errors import ConfigError
from gradiend_hub.folders import written_beside

from .lora import AdapterExport, common_fields, is_odd, left_out_of_lora, require_finite, write_adapter


def to_shira(
    direction: Direction, config: GradiendConfig, base_model: nn.Module, folder: str | Path, *, strength: float = 1.0
) -> AdapterExport:
    """Write a direction as one SHiRA adapter, or, if its decoder has a bias, as one for each sign (`plus/`, `minus/`).

    Arguments as of `to_lora`.

    Raises:
        ConfigError: If the strength is zero, no parameter has a place in SHiRA, or no `r` fits all modules.
        EditError: If an entry is beyond the numbers of fp32 at this strength.
        BaseModelMismatchError: If the base model lacks a parameter.
    """
    if strength == 0 or not math.isfinite(strength):
        raise ConfigError(f"An adapter stands for a strength other than 0, found {strength}.")
    sites = SiteMap(base_model)
    names = resolve_names(base_model, direction.parameters, sites.parameters)
    reasons = {name: _left_out(sites[name], direction.parameters[stored]) for stored, name in names.items()}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    parts = {name: direction.parameters[stored] for stored, name in names.items() if name not in left_out}
    if not parts:
        some = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:3])
        raise ConfigError(
            f"No parameter of this direction has a place in SHiRA, which holds single entries of linear layers: {some}. "
            "Write a LoRA (--format lora), or the whole change (--format task-vector)."
        )
    r = _common_r(parts)
    signs = (1,) if is_odd(direction) else (1, -1)
    adapters, energies = {}, []
    for sign in signs:
        coefficients = config.coefficients(sign * strength)
        adapters[sign] = _tensors(parts, coefficients, r)
        whole = sum(part.inner(part, *coefficients) for part in direction.parameters.values())
        energies.append(sum(part.inner(part, *coefficients) for part in parts.values()) / whole if whole else 1.0)
    fields = {"peft_type": "SHIRA", "r": r, "mask_type": "random", "fan_in_fan_out": False, "init_weights": True}
    fields |= common_fields(config, list(parts), base_model)
    subfolders = [LORA_SIGNS[sign] if len(signs) > 1 else "" for sign in signs]
    with written_beside(Path(folder)) as beside:
        for subfolder, tensors in zip(subfolders, adapters.values(), strict=True):
            write_adapter(beside / subfolder, tensors, fields)
    return AdapterExport(
        [Path(folder, name) for name in subfolders], strength, None, len(parts), min(energies), left_out
    )


def _left_out(site: Site, part: ParameterDirection) -> str | None:
    """Say why SHiRA has no place for a parameter; `None` if it has."""
    if (why := left_out_of_lora(site)) is not None:
        return why
    if not isinstance(site.owner, nn.Linear):
        return f"no linear layer but {type(site.owner).__name__}"
    return None if part.indices is not None else "not sparse"


def _common_r(parts: dict[str, ParameterDirection]) -> int:
    """The smallest `r` for which `r·(in + out)` has room for the entries of every module.

    Raises:
        ConfigError: If a module has fewer elements than that.
    """
    r, densest = max((max(1, -(-part.entries // sum(part.shape))), name) for name, part in parts.items())
    for name, part in parts.items():
        if r * sum(part.shape) > part.numel:
            raise ConfigError(
                f"SHiRA gives every module r·(in + out) entries: the {parts[densest].entries:,} of {densest} need r = {r}, "
                f"which is more than {name} {list(part.shape)} has. Write a sparser direction (truncate it), or the whole "
                "change: --format task-vector."
            )
    return r


def _tensors(parts: dict[str, ParameterDirection], coefficients: tuple[float, float], r: int) -> dict[str, Tensor]:
    """Both tensors of every module: values `[k]`, and rows and columns `[2, k]`; what fills up adds 0 to the first entry."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        values, indices = part.delta(*coefficients), part.indices
        assert isinstance(values, Tensor) and indices is not None
        require_finite(name, values)
        missing, module = r * sum(part.shape) - len(values), KEY_PREFIX + name.removesuffix(".weight")
        places = torch.stack([indices.long() // part.shape[1], indices.long() % part.shape[1]]).int()
        tensors |= {
            f"{module}.shira_weight": pad(values, (0, missing)),
            f"{module}.shira_indices": pad(places, (0, missing)),
        }
    return tensors
