"""Any change of a base model's weights, told in known directions: of another direction, or of a fine-tuned checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gradiend_hub import notebook
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.errors import BaseModelMismatchError, ConfigError

from .tables import Written
from .vectors import Frame, Vectors, products


class _Shown(Written):
    """A small record of named numbers."""

    def to_pandas(self) -> Any:
        """A data frame with a row for each direction."""
        import pandas

        fields = self.to_dict()
        return pandas.DataFrame({name: value for name, value in fields.items() if isinstance(value, dict)})

    def _repr_html_(self) -> str:
        fields = self.to_dict()
        columns = {name: value for name, value in fields.items() if isinstance(value, dict)}
        names = dict.fromkeys(name for column in columns.values() for name in column)
        rows = [(name, [notebook.number(column.get(name)) for column in columns.values()]) for name in names]
        single = [f"{name}: {value:g}" for name, value in fields.items() if name not in columns and value is not None]
        return notebook.table(type(self).__name__, ["", *columns], rows) + notebook.lines(single)


@dataclass(frozen=True)
class Mixture(_Shown):
    """A change of the weights as a sum of known edits, and what is left.

    Attributes:
        coefficients: strength of each direction whose sum comes nearest (least squares).
        cosine: signed cosine of the change and each direction's edit.
        explained: share of the change's squared norm that the sum has.
        null: share that it has of directions of coin labels (95 % stay below); `None` if there are none.
    """

    coefficients: dict[str, float]
    cosine: dict[str, float]
    explained: float
    null: float | None


@dataclass(frozen=True)
class Drift(_Shown):
    """Movement of a checkpoint along known directions.

    Attributes:
        cosine: signed cosine of the checkpoint's change and each direction's edit.
        null: absolute cosine that directions of coin labels reach with the change (95 % stay below); `None` if there are
            none.
        coefficients: strength of each direction whose sum comes nearest to the change (least squares).
        predicted_effect: change of each feature's log-odds to first order; of directions whose gradient is known.
        explained: share of the change's squared norm that lies along the directions.
        norm: ‖θ − θ_base‖ over the compared parameters.
        relative_norm: the same divided by ‖θ_base‖.
        parameters: number of parameters that were compared.
    """

    cosine: dict[str, float]
    null: float | None
    coefficients: dict[str, float]
    predicted_effect: dict[str, float]
    explained: float
    norm: float
    relative_norm: float
    parameters: int


def decompose(names: Sequence[str], edits: Vectors, change: Vectors, controls: Vectors | None) -> Mixture:
    """Take one change apart into known edits.

    Args:
        edits: of the known directions, at strength 1.
        change: one vector of the same frame.
        controls: coin directions.

    Raises:
        ConfigError: The change is zero, or all edits are.
    """
    square = float(products(change)[0, 0])
    if square == 0:
        raise ConfigError("decompose: the change is zero everywhere, so there is nothing to take apart.")
    gram, inner = products(edits), products(edits, change)[:, 0]
    if not np.diag(gram).any():
        raise ConfigError("decompose: all known directions are zero.")
    solver = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    coefficients = solver @ inner
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = inner / np.sqrt(np.diag(gram) * square)
    null = None
    if controls is not None and len(controls):
        products_of = products(edits, controls)
        squares = np.array([products(controls.single(k))[0, 0] for k in range(len(controls))])
        shares = np.einsum("ik,ij,jk->k", products_of, solver, products_of) / np.where(squares > 0, squares, 1)
        null = float(np.quantile(shares, 0.95, method="higher"))
    return Mixture(
        dict(zip(names, map(float, coefficients), strict=True)),
        dict(zip(names, map(float, cosine), strict=True)),
        float(np.clip(coefficients @ inner / square, 0, 1)),
        null,
    )


def changed(base: Mapping[str, torch.Tensor], model: nn.Module, frame: Frame, called: str) -> tuple[Direction, float]:
    """The difference of a checkpoint's parameters and the base model's, and the norm of the base's.

    Raises:
        BaseModelMismatchError: A parameter is missing in the checkpoint, or has another shape.
        ConfigError: The checkpoint has the base model's weights.
    """
    found, parts, square = dict(model.named_parameters()), {}, 0.0
    for name, shape in frame.shapes.items():
        one, other = base.get(name), found.get(name)
        if one is None or (other is not None and other.itemsize == 1):
            whose = "the base model" if one is None else called
            raise BaseModelMismatchError(
                f"{name} is quantised in {whose}, so that there are no values to take a difference of. Give base model and "
                "fine-tune without quantisation."
            )
        if other is None or one.shape != other.shape:
            there = "no such parameter" if other is None else f"shape {list(other.shape)}"
            raise BaseModelMismatchError(
                f"{called} is no checkpoint of the directions' base model: expected {name} of shape {list(shape)}, found "
                f"{there}. Give a fine-tune of that model."
            )
        square += float(one.double().square().sum())
        parts[name] = ParameterDirection(shape, (other.detach().float() - one.float()).flatten().cpu())
    change = Direction(parts)
    if change.norm() == 0:
        raise ConfigError(f"{called} has the base model's own weights in all compared parameters; nothing has moved.")
    return change, math.sqrt(square)
