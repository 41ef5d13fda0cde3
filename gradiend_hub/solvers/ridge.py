"""Ridge regression of the label on the source gradient, solved in the span of the observed vectors.

    min over w:  Σ_i c_i·(y_i − ⟨w, s_i⟩)² + λ‖w‖²,   y ∈ {+1, −1, 0 for neutral rows}

With at most a few dozen vectors, everything but the vectors themselves is their Gram matrix: w = Σ a_i·s_i. The error of
predicting each vector from all others is known in closed form, (y_i − ŷ_i)/(1 − H_ii) with the hat matrix H, and chooses
λ. There is no learning rate and no seed, and no bias: what has no gradient has no feature. Neutral rows teach the encoder
to be silent, which the closed form is not taught.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradiend_hub.errors import ConfigError

from .base import LEVEL, Solution, Solver
from .closed_form import ClassMeans
from .shard import Shard

PENALTIES = torch.logspace(-4, 2, 25, dtype=torch.float64)
"""Values of λ that are compared, in units of the mean squared norm of the vectors."""

_CHUNK = 2**12
"""Coordinates whose products are summed in fp32; chunks are summed in fp64. What all gradients share is most of a product,
so that rounding of longer sums would be seen in the result, and by how processes divide the coordinates."""


class RidgeSolver(Solver):
    """Keeps up to `capacity` source vectors. When all places are taken, neighbours of equal label are averaged in pairs.

    Memory: capacity + 2 vectors of n values, of which only those in use are ever touched.

    Args:
        size: n, the number of coordinates.
        capacity: number of vectors that are kept.
        folder: keep them in a temporary file there instead of in memory. The file has no name and ends with the solver.
        shard: coordinates of this process; default: all.

    Raises:
        ConfigError: a capacity below 6, where averaging could not make room.
    """

    vectors: ClassVar[frozenset[str]] = frozenset({"bank", "target_means.means", "split_means.means"})

    def __init__(
        self,
        size: int,
        capacity: int = 64,
        folder: str | Path | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(size, shard)
        if capacity < 6:
            raise ConfigError(f"capacity must be at least 6 vectors, found {capacity}.")
        self.capacity = capacity
        self.register_buffer("bank", _zeros(capacity, self.shard.length, folder))
        self.register_buffer("gram", torch.zeros(capacity, capacity, dtype=torch.float64))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(capacity, dtype=torch.float64))  # vectors in each; 0 = not in use
        self.bank: Tensor
        self.gram: Tensor
        self.labels: Tensor
        self.counts: Tensor
        self.target_means = ClassMeans(self.shard)

    @property
    def used(self) -> int:
        """Number of vectors in the bank."""
        return int((self.counts > 0).sum())

    def whole_state(self) -> dict[str, Tensor]:
        """As `Solver.whole_state`, without the places of the bank that are not in use."""
        state = super().whole_state()
        return state | {"bank": state["bank"][: self.used]}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `Solver.load_state_dict`; of a bank without its unused places, too."""
        bank = state_dict.get("bank")
        if bank is not None and len(bank) < self.capacity:
            whole = bank.new_zeros(self.capacity, bank.shape[1])
            whole[: len(bank)] = bank
            state_dict = {**state_dict, "bank": whole}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        loss = self.target_means.relative_error(target, label)
        self.target_means.observe(target, label)
        if self.used == self.capacity:
            self._average_pairs()
        place = self.used
        self.bank[place] = source
        self.labels[place], self.counts[place] = label, 1
        products = torch.zeros(place + 1, dtype=torch.float64, device=source.device)
        for vectors, part in zip(self.bank[: place + 1].split(_CHUNK, dim=1), source.split(_CHUNK), strict=True):
            products += (vectors @ part).double()
        (products,) = self.shard.sum(products)
        self.gram[place, : place + 1] = self.gram[: place + 1, place] = products
        return loss

    def _average_pairs(self) -> None:
        pairs: list[list[int]] = []
        open_pairs: dict[float, list[int]] = {}
        for place, label in enumerate(self.labels.tolist()):
            pair = open_pairs.pop(label, None)
            if pair is None:
                pairs.append([place])
                open_pairs[label] = pairs[-1]
            else:
                pair.append(place)
        mixing = torch.zeros_like(self.gram)
        labels, counts = torch.zeros_like(self.labels), torch.zeros_like(self.counts)
        for new, pair in enumerate(pairs):  # new ≤ pair[0]: nothing is overwritten that is still to be read
            counts[new], labels[new] = self.counts[pair].sum(), self.labels[pair[0]]
            mixing[new, pair] = self.counts[pair] / counts[new]
            self.bank[new] = sum(self.bank[old] * float(mixing[new, old]) for old in pair)
        self.gram.copy_(mixing @ self.gram @ mixing.T)
        self.labels.copy_(labels)
        self.counts.copy_(counts)

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        used = self.used
        labels, counts = self.labels[:used], self.counts[:used]
        if not bool((labels > 0).any() and (labels < 0).any()):
            zeros = self.bank.new_zeros(self.shard.size)
            return [Solution(zeros, 0.0, zeros, zeros)]
        weights, fitted = dual_ridge(self.gram[:used, :used], labels, counts)
        gain = math.atanh(LEVEL)
        encoder = gain * (weights.to(self.bank) @ self.bank[:used])
        h = torch.tanh(gain * fitted)
        levels = [(h * counts)[labels == y].sum() / counts[labels == y].sum().clamp(min=1) for y in (1, -1, 0)]
        return [Solution(self.shard.whole(encoder), 0.0, *self.target_means.fit(torch.stack(levels)))]


def dual_ridge(gram: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression through the origin, λ chosen by the leave-one-out error.

    Args:
        gram: ⟨s_i, s_j⟩, [N, N], fp64.
        y: what is predicted, [N].
        counts: weight c_i of each vector, [N].

    Returns:
        The coefficients a of w = Σ a_i·s_i, [N], and the fitted values ŷ, [N].
    """
    roots = counts.sqrt()
    kernel = roots[:, None] * gram * roots
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    goal = vectors.T @ (roots * y)
    unit = float(kernel.diagonal().mean())

    def shrunk(penalty: float) -> Tensor:
        return torch.div(values, values + penalty * unit)

    def left_out(penalty: float) -> float:
        residual = roots * y - vectors @ (shrunk(penalty) * goal)
        leverage = vectors.square() @ shrunk(penalty)
        return float((residual / (1 - leverage).clamp(min=1e-12)).square().sum())

    penalty = min(PENALTIES.tolist(), key=left_out)
    coefficients = roots * (vectors @ (goal / (values + penalty * unit)))
    return coefficients, gram @ coefficients


def _zeros(rows: int, columns: int, folder: str | Path | None) -> Tensor:
    """Zeros that cost no memory until they are written, in memory or in a temporary file in `folder`."""
    if folder is None:
        return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32))
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(4 * rows * columns)
        flat = torch.from_file(file.name, shared=True, size=rows * columns, dtype=torch.float32)
    return flat.view(rows, columns)
