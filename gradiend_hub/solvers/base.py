"""The protocol of all solvers: a stream of gradient pairs in, one rank-one encoder-decoder out.

A solver sees flat vectors and labels. It knows nothing of language, parameters or files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.low_rank import Factors

from .shard import Shard
from .split_means import Contrasts, SplitMeans

LEVEL = 0.9
"""|h| of a typical row."""


@dataclass(frozen=True, eq=False)
class ByParameter:
    """A vector [n] by parameter: matrices by the factors of their product, all else as it is, flat; fp32, on the CPU."""

    parts: Mapping[str, Tensor | Factors]

    def __mul__(self, factor: float) -> ByParameter:
        return ByParameter({name: part * factor for name, part in self.parts.items()})

    def __add__(self, other: ByParameter) -> ByParameter:
        return ByParameter({name: _sum(part, other.parts[name]) for name, part in self.parts.items()})

    def to_rank(self, rank: int) -> ByParameter:
        """The nearest vector whose matrices are of at most this rank."""
        parts = self.parts.items()
        return ByParameter({n: part.to_rank(rank) if isinstance(part, Factors) else part for n, part in parts})

    def inner(self, other: ByParameter) -> float:
        """Inner product with a vector of the same parameters, in fp64."""
        total = 0.0
        for name, mine in self.parts.items():
            theirs = other.parts[name]
            if isinstance(mine, Factors):
                total += mine.inner(theirs)
            elif isinstance(theirs, Factors):
                total += theirs.inner(mine)
            else:
                total += float(mine.double() @ theirs.double())
        return total

    def norm(self) -> float:
        """Euclidean norm."""
        return math.sqrt(max(self.inner(self), 0.0))


def _sum(one: Tensor | Factors, other: Tensor | Factors) -> Tensor | Factors:
    """Add up values of one parameter; factors that outgrow the smaller side are cut to it, which loses nothing."""
    if isinstance(one, Factors) and isinstance(other, Factors):
        return Factors.joined([one, other]).short()
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return one + other


Vector = Tensor | ByParameter
"""A vector over all coordinates: [n], fp32, or by parameter, where [n] would be too long."""


@dataclass(frozen=True)
class Solution:
    """h = tanh(⟨w_e, s⟩ + b_e) and t̂ = w_d·h + b_d; vectors are [n], fp32 (arXiv 2502.01406, section 3).

    All three are `ByParameter` where the solver learns by sketches. `decoder_bias` is `None` for zeros: then the edit is
    odd in its strength.
    """

    encoder: Any
    encoder_bias: float
    decoder: Any
    decoder_bias: Any = None

    def mapped(self, change: Callable[[Any], Any]) -> Solution:
        """The solution with each of its vectors changed."""
        bias = None if self.decoder_bias is None else change(self.decoder_bias)
        return replace(self, encoder=change(self.encoder), decoder=change(self.decoder), decoder_bias=bias)

    def with_gain(self, gain: float, decoder_scale: float = 1.0) -> Solution:
        """The map with its pre-activation times `gain`. A negative gain flips the orientation: then h and w_d change
        their signs and t̂ does not, so b_d stays.
        """
        sign = math.copysign(1.0, gain)
        return replace(
            self,
            encoder=self.encoder * gain,
            encoder_bias=self.encoder_bias * gain,
            decoder=self.decoder * (decoder_scale * sign),
        )

    def quieter(self, level: float) -> Solution:
        """The same reading with |h| of the typical row at `level` instead of `LEVEL`, and the same decoder."""
        gain = math.atanh(level) / math.atanh(LEVEL)
        return replace(self, encoder=self.encoder * gain, encoder_bias=self.encoder_bias * gain)

    def encode(self, s: Tensor) -> float:
        """h of one source gradient [n]; for vectors [n]."""
        return float(torch.tanh(self.encoder @ s + self.encoder_bias))

    def decode(self, h: float) -> Tensor:
        """t̂ of one feature value: [n]; for vectors [n]."""
        prediction: Tensor = self.decoder * h
        return prediction if self.decoder_bias is None else prediction + self.decoder_bias


def gain_of(z: Tensor, labels: Tensor, level: float = LEVEL) -> float:
    """Return the factor of z at which the median |h|, that of the typical row, is `level`, and label +1 encodes above 0.

    A mean of |h| would be dominated by the extremes: where the source gradient vanishes for some rows, as the factual one
    does where the model is right, |z| spans many orders of magnitude, and a mean of 0.9 saturates most rows.

    Args:
        z: pre-activations ⟨w_e, s⟩ + b_e of single rows, [N].
        labels: ±1 of the same rows, [N].
    """
    z = z.double()
    typical = float(z.abs().quantile(0.5)) if len(z) else 0.0
    if typical == 0.0:
        return 1.0
    gain = math.atanh(level) / typical
    h = torch.tanh(gain * z)
    return -gain if float((h - h.mean()) @ labels.double()) < 0 else gain


def calibrated(solution: Solution, z: Tensor, labels: Tensor, *, level: float = LEVEL) -> Solution:
    """Orient a solution and set its gain, so that feature values mean the same for every solver, model and seed.

    The decoder is rescaled so that it predicts the same t̂ for the typical feature value as before. Arguments are those of
    `gain_of`.
    """
    gain = gain_of(z, labels, level)
    if gain == 1.0:
        return solution
    return solution.with_gain(gain, math.tanh(math.atanh(level) / abs(gain)) / level)


class Solver(nn.Module, ABC):
    """Turns a stream of (s, t, label) into solutions. `num_runs` solutions advance together on one stream.

    A solver is a module, so that trainers save, resume and move it like any other: everything it has learned is in its
    `state_dict`.

    Several processes can share the state: each is given a `Shard` of the coordinates, and observes that part of s and t.
    All of them call `observe` and `solutions` together then. A `state_dict` holds the part, and one of all coordinates
    (`whole_state`) is loaded in any number of processes.

    Attributes:
        vectors: names of the parts of the state whose last dimension is that of the coordinates.
        shard: the coordinates that this process holds.
        num_runs: number of solutions k.
        needs_optimizer: whether an optimizer moves the solver's parameters after each `observe`. Without one, there are
            no parameters: learning rate and its schedule have no meaning.
    """

    _keys_to_ignore_on_save = None  # `Trainer` asks for it when a checkpoint does not fit
    num_runs: int = 1
    needs_optimizer: ClassVar[bool] = False
    vectors: ClassVar[frozenset[str]]

    def __init__(self, size: int, shard: Shard | None = None) -> None:
        super().__init__()
        self.shard = shard or Shard(size)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module.load_state_dict`; of vectors with all coordinates this process takes its part."""
        own = {
            name: x[..., self.shard.where] if name in self.vectors and x.shape[-1] == self.shard.size else x
            for name, x in state_dict.items()
        }
        return super().load_state_dict(own, strict=strict, assign=assign)

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Nothing: it is the base model whose activations are recomputed, and the trainer tells it so."""

    gradient_checkpointing_enable = activation_checkpointing_enable

    def whole_state(self) -> dict[str, Tensor]:
        """The `state_dict` of all coordinates, as one process alone would have it. All processes must call it."""
        return {name: self.shard.whole(x) if name in self.vectors else x for name, x in self.state_dict().items()}

    def halve(self, target: Tensor, label: float, rows: Sequence[int]) -> None:
        """Take in the target gradient of some training rows for what the direction is compared with; see `SplitMeans`."""
        if means := getattr(self, "split_means", None):
            means.observe(target, label, rows)

    def contrasts(self) -> Contrasts | None:
        """Read what the direction is compared with from the halves of the rows; `None` if they were not kept apart."""
        means: SplitMeans | None = getattr(self, "split_means", None)
        return None if means is None else means.contrasts()

    @abstractmethod
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        """Take in one gradient pair; set `.grad` of parameters that an optimizer moves.

        Args:
            source: s, [n], fp32, or this process's part of it.
            target: t, likewise.
            label: sign of the class whose token gives s: +1 or −1; 0 for neutral and identity rows, whose t is zero.

        Returns:
            ‖t̂ − t‖²/‖t‖² by run, [k], before this pair is learned from: 1 is the error of predicting nothing. For neutral
            rows, which have no ‖t‖, the mean of the others takes its place.
        """

    @abstractmethod
    def solutions(self) -> list[Solution]:
        """Return what has been learned so far, one solution per run."""
