"""Class means that are learned as linear sketches, in one pass, from the factors of gradients (Tropp et al. 2017).

Of a mean M [o, i] only Y = M·Ω [o, k] and Z = Ψ·M [l, i] are summed, for fixed Gaussian Ω and Ψ. In the end
M ≈ Q·(ΨQ)⁺·Z with Q = qr(Y), cut to rank r. What is cut is mostly noise between rows. Vectors, and matrices that are no
larger than their sketches, are summed themselves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradiend_hub.artifact.fields import matrix_shape
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import ConfigError
from gradiend_hub.gradients import Outer

from .base import LEVEL, ByParameter, Solution, Solver
from .closed_form import regression
from .shard import Shard
from .split_means import Contrasts, SplitMeans

logger = logging.getLogger(__name__)

KINDS = ("source +", "source -", "target +", "target -")


@dataclass(frozen=True)
class Place:
    """Place of a parameter's sums in a flat vector: `whole`, or both of its sketches, y [rows, k] and z [l, columns].

    A stack of matrices has sketches of each, y [E, rows, k] and z [E, l, columns]; otherwise `stack` is empty.
    """

    stack: tuple[int, ...]
    rows: int
    columns: int
    whole: slice | None = None
    y: slice | None = None
    z: slice | None = None


class Sketching:
    """The linear maps from gradients by parameter to one flat vector: all whole parts, then all Y, then all Z.

    Args:
        shapes: of the parameters, by name.
        rank: r, to which matrices are cut.
        oversampling: columns of Y beyond r; by default r + 1, and at least 8. Z has 2k + 1 rows.
        seed: of the random matrices. One is shared by all parameters with a side of its length.
        stacked: names of parameters [E, rows, columns] that are stacks of matrices (experts).
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        rank: int,
        oversampling: int | None = None,
        seed: int = 0,
        stacked: Collection[str] = (),
    ) -> None:
        matrices = {n: matrix_shape(shape, n in stacked) for n, shape in shapes.items() if len(shape) > 1}
        sides = [min(sides[-2:]) for sides in matrices.values()]
        if rank < 1 or (sides and rank > max(sides)):
            most = max(sides, default=0)
            raise ConfigError(
                f"rank: expected 1…{most}, the longest smaller side of a matrix in scope, found {rank}. Give a smaller "
                "one; 4 to 16 hold what there is on the models that were measured."
            )
        self.rank, self.shapes = rank, dict(shapes)
        self.k = rank + (max(rank + 1, 8) if oversampling is None else oversampling)
        self.l = 2 * self.k + 1
        generator = torch.Generator().manual_seed(seed)
        self.right: dict[int, Tensor] = {}
        self.left: dict[int, Tensor] = {}
        sketched = {n: m for n, m in matrices.items() if self.k * m[-2] + self.l * m[-1] < m[-2] * m[-1]}
        for *_, rows, columns in sketched.values():
            if columns not in self.right:
                self.right[columns] = torch.randn(columns, self.k, generator=generator)
            if rows not in self.left:
                self.left[rows] = torch.randn(self.l, rows, generator=generator)
        ends = 0

        def take(count: int) -> slice:
            nonlocal ends
            ends += count
            return slice(ends - count, ends)

        whole = {n: take(math.prod(shape)) for n, shape in shapes.items() if n not in sketched}
        self.whole = slice(0, ends)
        y = {n: take(math.prod(m[:-1]) * self.k) for n, m in sketched.items()}
        self.y = slice(self.whole.stop, ends)
        z = {n: take(math.prod(m[:-2]) * self.l * m[-1]) for n, m in sketched.items()}
        self.size = ends
        self.places = {}
        for n, shape in shapes.items():
            *stack, rows, columns = matrices.get(n, (math.prod(shape), 1))
            self.places[n] = Place(tuple(stack), rows, columns, whole.get(n), y.get(n), z.get(n))

    def add(self, vector: Tensor, name: str, part: Outer | Tensor) -> None:
        """Add a part of a gradient, by factors or in the parameter's shape, to the sums in a flat vector [size]."""
        place = self.places[name]
        number = part.number if isinstance(part, Outer) else None
        if place.whole is not None:
            dense = part.dense() if isinstance(part, Outer) else part
            _matrix(vector[place.whole], place, number).add_(dense.reshape(-1).to(vector.device))
            return
        assert place.y is not None and place.z is not None
        device = part.right.device if isinstance(part, Outer) else part.device
        omega, psi = self.right[place.columns].to(device), self.left[place.rows].to(device)
        if isinstance(part, Outer):
            y, z = part.sketched(omega, psi)
        else:
            matrix = part.reshape(*place.stack, place.rows, place.columns)
            y, z = matrix @ omega, psi @ matrix
        for sums, sketch in ((vector[place.y], y), (vector[place.z], z)):
            _matrix(sums, place, number).add_(sketch.reshape(-1).to(vector.device))

    def square(self, vector: Tensor) -> float:
        """About the squared norm of what was summed: E‖MΩ‖² = k·‖M‖²."""
        whole, y = vector[self.whole], vector[self.y]
        return float(whole.dot(whole)) + float(y.dot(y)) / self.k

    def read(self, vector: Tensor) -> ByParameter:
        """Return what was summed, its matrices cut to the rank."""
        return ByParameter({name: self._read(vector, name) for name in self.places})

    def _read(self, vector: Tensor, name: str) -> Tensor | Factors:
        place = self.places[name]
        if place.whole is not None:
            values = vector[place.whole].float().cpu()
            if len(self.shapes[name]) < 2:
                return values
            rank = min(self.rank, place.rows, place.columns)
            if place.stack and rank * (place.rows + place.columns) >= place.rows * place.columns:
                return values  # its factors would be no shorter
            return Factors.nearest(values.view(*place.stack, place.rows, place.columns), rank)
        assert place.y is not None and place.z is not None
        y = vector[place.y].view(*place.stack, place.rows, self.k).double().cpu()
        z = vector[place.z].view(*place.stack, self.l, place.columns).double().cpu()
        q, _ = torch.linalg.qr(y)
        core = torch.linalg.lstsq(self.left[place.rows].double() @ q, z).solution  # [k, columns]
        u, s, v = torch.linalg.svd(core, full_matrices=False)
        root = s[..., : self.rank].sqrt()
        left, right = u[..., : self.rank] * root[..., None, :], root[..., None] * v[..., : self.rank, :]
        return Factors((q @ left).float(), right.float().contiguous())


def _matrix(sums: Tensor, place: Place, number: int | None) -> Tensor:
    """The flat sums of one matrix of a stack; all of them without a number."""
    return sums if number is None else sums.view(*place.stack, -1)[number]


class SketchSolver(Solver):
    """The closed form by sketches: encoder and decoder from the class means of s and t, at low rank.

    The encoder is the difference of the class means of s, without the variances that `ClosedFormSolver` divides by: they
    would be a vector of all coordinates. Neutral rows draw the decoder towards zero and need no gradient.

    State: four vectors of `sketching.size` values, and four more where halves of the rows are compared, which one process
    can do. In several processes each sums its own rows, and the sums add up.
    """

    vectors: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, sketching: Sketching, size: int, shard: Shard | None = None) -> None:
        super().__init__(size, Shard(size))  # nothing is divided by coordinates
        self.processes = shard or Shard(size)
        self.sketching = sketching
        self.register_buffer("sums", torch.zeros(len(KINDS), sketching.size))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.float64))  # rows of label +1, −1 and 0
        self.sums: Tensor
        self.counts: Tensor

    def room(self) -> Tensor:
        """Zeros for the sums of s and t of one batch: [2, size]."""
        return torch.zeros(2, self.sketching.size, device=self.sums.device)

    @torch.no_grad()
    def take(self, sums: Tensor, label: float, rows: int, numbers: Sequence[int] = ()) -> Tensor:
        """Take in the summed gradients of some rows of one label, [2, size] as `room` gives them.

        Args:
            rows: how many there are.
            numbers: which ones they are, for the halves of all rows.

        Returns:
            As `observe`, from the sketches.
        """
        which = 0 if label > 0 else 1 if label < 0 else 2
        if which == 2:
            self.counts[2] += rows
            return torch.zeros(1, device=self.sums.device)
        source, target = self.sums[which], self.sums[2 + which]
        known = float(self.counts[which])
        if numbers:
            super().halve(sums[1] / rows, label, numbers)
        error = self.sketching.square(sums[1] / rows - (target / known if known else 0))
        loss = error / max(self.sketching.square(sums[1] / rows), 1e-38)
        self.counts[which] += rows
        source += sums[0]
        target += sums[1]
        return torch.tensor([loss], device=self.sums.device)

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        """As `Solver.observe`, of whole vectors [n], e.g. out of a store; each counts as one row."""
        sums = self.room()
        for into, vector in zip(sums, (source, target), strict=True):
            for name, values in self._split(vector):
                self.sketching.add(into, name, values)
        return self.take(sums, label, 1)

    def _split(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        start = 0
        for name, shape in self.sketching.shapes.items():
            stop = start + math.prod(shape)
            yield name, vector[start:stop].view(shape)
            start = stop

    def whole_state(self) -> dict[str, Tensor]:
        """The state that one process alone would have. All processes must call it."""
        sums, counts = self.processes.sum(self.sums, self.counts)
        return {**self.state_dict(), "sums": sums, "counts": counts}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> object:
        """As `Solver.load_state_dict`; of several processes the first one takes it all, and the others begin at zero."""
        if hasattr(self, "split_means") and "split_means.means" not in state_dict:
            logger.warning("The checkpoint has no halves of the rows: the direction will have no null and no ceiling.")
            del self.split_means
        if self.processes.rank:
            state_dict = {name: torch.zeros_like(values) for name, values in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def halve(self, target: Tensor, label: float, rows: Sequence[int]) -> None:
        """As `Solver.halve`, of a whole vector [n]."""
        means: SplitMeans | None = getattr(self, "split_means", None)
        if means is None or label == 0 or means.has_seen(rows):
            return
        sketch = torch.zeros_like(self.sums[0])
        for name, values in self._split(target):
            self.sketching.add(sketch, name, values)
        super().halve(sketch, label, rows)

    def contrasts(self) -> Contrasts | None:
        """As `Solver.contrasts`, at the rank of the sketches."""
        found = super().contrasts()
        if found is None:
            return None
        vectors = (found.mean, found.first, found.second, *found.controls)
        mean, first, second, half, apart = map(self.sketching.read, vectors)
        return Contrasts(mean, first, second, half, found.rows, apart)

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        sums, counts = self.processes.sum(self.sums, self.counts)
        means = sums / counts[:2].repeat(2).clamp(min=1).to(sums)[:, None]
        encoder = self.sketching.read(means[0] - means[1])
        encoder = encoder * (2 * math.atanh(LEVEL) / max(encoder.norm() ** 2, 1e-38))
        factors, offsets = regression(counts)
        decoder, bias = (self.sketching.read(c.to(means) @ means[2:]) for c in (factors, offsets))
        return [Solution(encoder, 0.0, decoder, bias)]
