"""A direction as a task vector: the difference `θ' − θ` by parameter name, as safetensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gradiend_hub.adapter.sites import SiteMap, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.tensor_files import write_values
from gradiend_hub.errors import BaseModelMismatchError, ConfigError
from gradiend_hub.folders import written_beside

from .lora import is_odd, require_finite

TASK_VECTOR_FILE = "task_vector.safetensors"


@dataclass(frozen=True)
class TaskVectorExport:
    """Description of a written task vector.

    Attributes:
        file: The file.
        strength: Strength that the scale 1 stands for.
        odd: Whether the scale −1 is the opposite strength: the decoder has no bias.
        tensors: Number of tensors.
        norm: `‖Δ‖`.
    """

    file: Path
    strength: float
    odd: bool
    tensors: int
    norm: float


def to_task_vector(
    direction: Direction, config: GradiendConfig, base_model: nn.Module, folder: str | Path, *, strength: float = 1.0
) -> TaskVectorExport:
    """Write Δ at a strength as `task_vector.safetensors`: fp32 tensors by the base model's names, in its shapes.

    `θ + Δ` is the merge at this strength. One parameter at a time is made dense. The metadata name base model, commit and
    strength.

    Arguments as of `to_lora`.

    Raises:
        ConfigError: If the strength is 0 or not finite.
        BaseModelMismatchError: If the base model lacks a parameter, or has it in another shape.
        EditError: If Δ is beyond the numbers of fp32 at this strength.
    """
    if strength == 0 or not math.isfinite(strength):
        raise ConfigError(f"A task vector stands for a strength other than 0, found {strength}.")
    coefficients = config.coefficients(strength)
    parameters = SiteMap(base_model).parameters
    names = resolve_names(base_model, direction.parameters, parameters)
    header: dict[str, object] = {"__metadata__": _metadata(config, strength)}
    end = 0
    for stored, name in names.items():
        spec = direction.parameters[stored].shape
        if tuple(parameters[name].shape) != spec:
            raise BaseModelMismatchError(
                f"{name} is {list(parameters[name].shape)} in the base model and {list(spec)} in the direction. Give the "
                "base model that it was learned on."
            )
        start, end = end, end + 4 * math.prod(spec)
        header[name] = {"dtype": "F32", "shape": list(spec), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    squares = []
    with written_beside(Path(folder)) as beside, (beside / TASK_VECTOR_FILE).open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for stored, name in names.items():
            part = direction.parameters[stored]
            delta = part.dense(part.delta(*coefficients)).contiguous()
            require_finite(name, delta)
            write_values(file, delta)
            squares.append(float(delta.double().square().sum()))
    place, odd = Path(folder, TASK_VECTOR_FILE), is_odd(direction)
    return TaskVectorExport(place, strength, odd, len(names), math.sqrt(math.fsum(squares)))


def _metadata(config: GradiendConfig, strength: float) -> dict[str, str]:
    fields = {"base_model": config.base_model_name_or_path, "revision": config.revision}
    return {"format": "pt", "strength": repr(float(strength)), **{k: v for k, v in fields.items() if v is not None}}
