"""The papers' solver: a rank-one tanh autoencoder moved by AdamW, with closed-form derivatives and no scale to tune.

With ŝ = s/ρ_s and t/ρ_t, where ρ is the running mean absolute value of a coordinate, and parameters of order one,

    z = ⟨u_e, ŝ⟩/n + 0.01·v_e,   h = tanh(z),   r = u_d·h + u_b − t/ρ_t,   loss = ‖r‖²/n

Raw gradients would put the derivatives (about 1e-12 for n = 1e8) far below Adam's epsilon, where the useful learning rate
depends on model, batch and n. In these units every derivative is of order one, and a step that agrees with ŝ moves z by
just the learning rate, however heavy the tails of the gradient. (Root mean squares in place of mean absolute values
would let the tails decide: on one bundled model z then moved six times slower than on another.) The scales are folded
back into the solution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Solution, Solver

_BIAS_RATE = 0.01
"""b_e = 0.01·v_e, so that it moves slower than ⟨u_e, ŝ⟩: otherwise it swings z away before the classes are found."""


class AutoencoderSolver(Solver):
    """State: encoder, decoder and decoder bias [k, n] and encoder bias [k] for k runs with their own seeds.

    Args:
        size: n, the number of coordinates.
        seeds: one initialisation per run. All runs see the same stream, so that k runs cost one.
    """

    def __init__(self, size: int, seeds: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        self.num_runs = len(seeds)

        def initial(stream: int) -> Tensor:
            rows = [
                torch.randn(size, generator=torch.Generator().manual_seed(2 * seed + stream)).mul_(0.1)
                for seed in seeds
            ]
            return torch.stack(rows)

        self.encoder = nn.Parameter(initial(0))
        self.encoder_bias = nn.Parameter(torch.zeros(self.num_runs))
        self.decoder = nn.Parameter(initial(1))
        self.decoder_bias = nn.Parameter(torch.zeros(self.num_runs, size))
        # fp64 so that the running means do not depend on how often a run was stopped and resumed
        self.register_buffer("observed", torch.zeros((), dtype=torch.float64))
        self.register_buffer("source_size", torch.zeros((), dtype=torch.float64))
        self.register_buffer("target_size", torch.zeros((), dtype=torch.float64))
        self.observed: Tensor
        self.source_size: Tensor
        self.target_size: Tensor

    @property
    def size(self) -> int:
        return int(self.encoder.shape[1])

    def _scale(self, total: Tensor) -> float:
        return float(total / self.observed.clamp(min=1))

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor) -> Tensor:
        n = self.size
        self.observed += 1
        self.source_size += torch.linalg.vector_norm(source, 1, dtype=torch.float64) / n
        self.target_size += torch.linalg.vector_norm(target, 1, dtype=torch.float64) / n
        s, t = source / self._scale(self.source_size), target / self._scale(self.target_size)

        if self.observed == 1:
            # ∂loss/∂z needs a decoder that tells the classes apart. From noise alone its first signs are chance, and now
            # and then z runs off to one side for both classes, where tanh is flat, and stays there.
            self.decoder.add_(0.1 * t)

        h = torch.tanh(self.encoder @ s / n + _BIAS_RATE * self.encoder_bias)  # [k]
        residual = torch.addcmul(self.decoder_bias - t, self.decoder, h.unsqueeze(1))  # r, [k, n]
        loss: Tensor = torch.linalg.vector_norm(residual, dim=1) ** 2 / n
        # ∂loss/∂z = (2/n)⟨r, u_d⟩(1 − h²); the derivatives of the vectors are handed over times n
        dz = 2 / n * (residual * self.decoder).sum(1) * (1 - h.square())
        self.encoder_bias.grad = _BIAS_RATE * dz
        self.encoder.grad = dz.unsqueeze(1) * s
        self.decoder.grad = residual * (2 * h.unsqueeze(1))
        self.decoder_bias.grad = residual.mul_(2)
        return loss

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        source_scale, target_scale = self._scale(self.source_size), self._scale(self.target_size)
        return [
            Solution(
                encoder=self.encoder[k] / (self.size * max(source_scale, 1e-30)),
                encoder_bias=_BIAS_RATE * float(self.encoder_bias[k]),
                decoder=self.decoder[k] * target_scale,
                decoder_bias=self.decoder_bias[k] * target_scale,
            )
            for k in range(self.num_runs)
        ]
