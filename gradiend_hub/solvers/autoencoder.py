"""The papers' solver: a rank-one tanh autoencoder moved by AdamW, with closed-form derivatives and no scale to tune.

With ŝ = s/ρ_s and t/ρ_t, where ρ is the running mean absolute value of a coordinate, and parameters of order one,

    z = ⟨u_e, ŝ⟩/n + 0.01·v_e,   h = tanh(z),   r = u_d·h + u_b − t/ρ_t,   loss = ‖r‖²/2n

Raw gradients would put the derivatives (about 1e-12 for n = 1e8) far below Adam's epsilon, where the useful learning rate
depends on model, batch and n. In these units every derivative is of order one, and a step that agrees with ŝ moves z by
just the learning rate, however heavy the tails of the gradient. (Root mean squares in place of mean absolute values
would let the tails decide: on one bundled model z then moved six times slower than on another.) The scales are folded
back into the solution.

k runs share one stream. A run of learning rate f times the optimizer's stores its weights divided by f: Adam's step does
not depend on the size of a derivative, so these move as any others, and the weights f times as far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gradiend_hub.errors import ConfigError

from .base import Solution, Solver
from .shard import Shard

_BIAS_RATE = 0.01
"""b_e = 0.01·v_e, so that it moves slower than ⟨u_e, ŝ⟩: otherwise it swings z away before the classes are found."""

_CHUNK = 2**18
"""Values of all runs that a CPU works on at a time: small enough to stay in a cache between the reads of one chunk, large
enough that starting an operation costs nothing beside it (measured in tests/benchmarks/README.md)."""


class AutoencoderSolver(Solver):
    """State: encoder, decoder and decoder bias [k, n] and encoder bias [k] for k runs.

    Labels are not read, except that neutral rows (label 0) do not count in the target's scale.

    Args:
        size: n, the number of coordinates.
        seeds: one initialisation per run.
        rates: learning rate of each run, relative to the optimizer's; default: 1 for all.
        shard: coordinates of this process; default: all.

    Raises:
        ConfigError: no run, or rates that are not one positive number per run.
    """

    needs_optimizer: ClassVar[bool] = True
    vectors: ClassVar[frozenset[str]] = frozenset(
        {"encoder", "decoder", "decoder_bias", "target_means.means", "source_seen", "target_seen", "split_means.means"}
    )

    def __init__(
        self,
        size: int,
        seeds: Sequence[int] = (0,),
        rates: Sequence[float] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(size, shard)
        self.seeds = tuple(seeds)
        self.rates = tuple(rates or [1.0] * len(self.seeds))
        if not self.seeds or len(self.rates) != len(self.seeds) or min(self.rates) <= 0:
            raise ConfigError(f"Expected one positive learning-rate factor per seed, found {seeds=} and {rates=}.")
        self.num_runs = len(self.seeds)

        def initial(stream: int) -> Tensor:
            values = torch.empty(self.num_runs, self.shard.length)
            for row, seed, rate in zip(values, self.seeds, self.rates, strict=True):
                # the same values in any number of processes
                whole = row if self.shard.world == 1 else torch.empty(size)
                whole.normal_(generator=torch.Generator().manual_seed(2 * seed + stream)).mul_(0.1 / rate)
                if whole is not row:
                    row.copy_(whole[self.shard.where])
            return values

        self.encoder = nn.Parameter(initial(0))
        self.encoder_bias = nn.Parameter(torch.zeros(self.num_runs))
        self.decoder = nn.Parameter(initial(1))
        self.decoder_bias = nn.Parameter(torch.zeros(self.num_runs, self.shard.length))
        # sums over the stream: Σ 1 and Σ‖s‖₁/n; Σ 1, Σ‖t‖₁/n and Σ‖t‖²/n of rows that have a target.
        # fp64 so that the running means do not depend on how often a run was stopped and resumed
        self.register_buffer("source_sums", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("target_sums", torch.zeros(3, dtype=torch.float64))
        self.source_sums: Tensor
        self.target_sums: Tensor
        # 1 where s, or t, was ever other than 0: elsewhere the weights are what they were drawn as, and mean nothing
        self.register_buffer("source_seen", torch.zeros(self.shard.length, dtype=torch.uint8))
        self.register_buffer("target_seen", torch.zeros(self.shard.length, dtype=torch.uint8))
        self.source_seen: Tensor
        self.target_seen: Tensor
        self._all_seen: set[tuple[str, int]] = set()
        self._gradients: tuple[Tensor, ...] = ()
        self._scratch = torch.empty(0)

    @property
    def size(self) -> int:
        return self.shard.size

    def _scales(self) -> tuple[float, float]:
        """ρ_s and ρ_t."""
        sums = [self.source_sums, self.target_sums]
        source, target = (float(x[1] / x[0]) if x[0] > 0 else 0.0 for x in sums)
        return max(source, 1e-30), max(target, 1e-30)

    def _chunks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The same coordinates of vectors [n] and matrices [k, n], as many as a cache holds; all at once on a GPU."""
        length = max(1, _CHUNK // self.num_runs) if self.encoder.device.type == "cpu" else self.size
        return zip(*(tensor.split(length, dim=-1) for tensor in tensors), strict=True)

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        n, rates = self.size, self.encoder_bias.new_tensor(self.rates)
        dots, mean_square = self._read(source, target, has_target=label != 0)
        source_scale, target_scale = self._scales()
        if label != 0 and self.target_sums[0] == 1:
            # ∂loss/∂z needs a decoder that tells the classes apart. From noise alone its first signs are chance, and now
            # and then z runs off to one side for both classes, where tanh is flat, and stays there.
            self.decoder.addr_(1 / rates, target, alpha=0.1 / target_scale)

        h = torch.tanh(rates * (dots / (n * source_scale) + _BIAS_RATE * self.encoder_bias))  # [k]
        if not self._gradients or self._gradients[0].device != self.encoder.device:  # kept: fresh memory is slow memory
            self._gradients = tuple(torch.empty_like(p) for p in (self.encoder, self.decoder, self.decoder_bias))
        for_encoder, for_decoder, for_bias = self._gradients
        squares, slopes = torch.zeros_like(h), torch.zeros_like(h)  # ‖r‖² and ⟨r, u_d⟩
        column, plain = h.unsqueeze(1), all(rate == 1 for rate in self.rates)
        parts = self._chunks(target, self.decoder, self.decoder_bias, for_decoder, for_bias)
        for t, decoder, bias, to_decoder, residual in parts:  # ∂loss/∂u_b = r/n; derivatives are handed over times n
            torch.addcmul(bias, decoder, column, out=residual)
            if not plain:
                residual.mul_(rates.unsqueeze(1))
            residual.sub_(t, alpha=1 / target_scale)
            torch.mul(residual, column, out=to_decoder)
            squares += _dot(residual, residual)
            slopes += _dot(residual, decoder)
        squares, slopes = self.shard.sum(squares, slopes)
        dz = rates * slopes * (1 - h.square()) / n  # ∂loss/∂z
        factor = (dz / source_scale).unsqueeze(1)
        for s, to_encoder in self._chunks(source, for_encoder):
            torch.mul(s, factor, out=to_encoder)
        self.encoder.grad, self.decoder.grad, self.decoder_bias.grad = self._gradients
        self.encoder_bias.grad = _BIAS_RATE * dz
        return squares * (target_scale**2 / (n * mean_square))

    def _read(self, source: Tensor, target: Tensor, *, has_target: bool) -> tuple[Tensor, float]:
        """Take (s, t) into the running scales.

        Returns:
            ⟨q_e, s⟩ by run, where q_e is the stored encoder: [k]; and ‖t‖²/n, of neutral rows the mean of the others'.
        """
        dots = torch.zeros_like(self.encoder_bias)
        parts = []  # ‖s‖₁, ‖t‖₁ and ‖t‖² by chunk
        seen = self._chunks(self.source_seen, self.target_seen)
        for i, (s, t, encoder) in enumerate(self._chunks(source, target, self.encoder)):
            dots += encoder @ s
            source_seen, target_seen = next(seen)
            self._note(("source", i), source_seen, s)
            self._note(("target", i), target_seen, t)
            parts += [self._absolute_sum(s), self._absolute_sum(t), t @ t] if has_target else [self._absolute_sum(s)]
        sums = torch.stack(parts).double().view(-1, 3 if has_target else 1).sum(0) / self.size
        dots, sums = self.shard.sum(dots, sums)
        one = torch.ones_like(sums[:1])
        self.source_sums += torch.cat([one, sums[:1]])
        if has_target:
            self.target_sums += torch.cat([one, sums[1:]])
            return dots, float(sums[2])
        return dots, float(self.target_sums[2] / self.target_sums[0]) if self.target_sums[0] > 0 else 1.0

    def _note(self, chunk: tuple[str, int], seen: Tensor, values: Tensor) -> None:
        """Remember where a chunk of a gradient is other than 0, until it has been so everywhere."""
        if chunk not in self._all_seen:
            seen.logical_or_(values)
            if bool(seen.all()):
                self._all_seen.add(chunk)

    def _absolute_sum(self, chunk: Tensor) -> Tensor:
        """‖chunk‖₁, four times faster than a CPU's 1-norm, and eight times faster than with fresh memory for |chunk|."""
        if self._scratch.numel() < chunk.numel() or self._scratch.device != chunk.device:
            self._scratch = torch.empty_like(chunk)
        return torch.abs(chunk, out=self._scratch[: chunk.numel()]).sum()

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        source_scale, target_scale = self._scales()
        return [
            Solution(
                encoder=self.shard.whole(self.encoder[k] * self.source_seen) * (rate / (self.size * source_scale)),
                encoder_bias=_BIAS_RATE * rate * float(self.encoder_bias[k]),
                decoder=self.shard.whole(self.decoder[k] * self.target_seen) * (rate * target_scale),
                decoder_bias=self.shard.whole(self.decoder_bias[k] * self.target_seen) * (rate * target_scale),
            )
            for k, rate in enumerate(self.rates)
        ]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of the rows of two matrices: [k, n], [k, n] → [k]. One row needs no memory for the products."""
    return (left[0] @ right[0]).reshape(1) if len(left) == 1 else torch.linalg.vecdot(left, right)
