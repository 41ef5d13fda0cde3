"""Damage-aware decoders: the same effect on the feature at less damage to everything else.

To first order an edit Δ changes the feature by ⟨w_d, Δ⟩, and to second order it costs neutral text ½·ΣF_i·Δ_i² nats per
token, where F is the diagonal of the Fisher information. Among edits of equal cost the one of most effect is
Δ ∝ w_d/F. F is damped, for it says little about coordinates that neutral text hardly uses, and nothing about how
coordinates act together. A coordinate's share in the effect is then w_d²/F, by which a damage-aware decoder is pruned.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gradiend_hub.errors import ConfigError

from .base import Solution

DAMPINGS = (10.0, 1.0, 1e-1, 1e-2)
"""Dampings that are compared, in units of the mean of F."""

UNMEASURED = 1.0
"""Damping where none can be compared: at most a few per cent of the effect from the best one on the bundled models."""


def damping_weights(fisher: Tensor, damping: float) -> Tensor:
    """Return F̄·damping/(F + damping·F̄), by which a decoder is made damage-aware: [n], in (0, 1]."""
    if not damping > 0:
        raise ConfigError(f"damping must be positive, found {damping}.")
    return 1 / (1 + fisher / (damping * fisher.mean()).clamp(min=1e-38))


def damage_aware(solution: Solution, fisher: Tensor, damping: float) -> Solution:
    """Divide a solution's decoder by F + damping·F̄, and rescale it so that ‖w_d‖ stays.

    The encoder stays as it is; t̂ is now an edit, and no prediction of the target gradient.

    Args:
        fisher: F, [n]; F̄ is its mean.
        damping: positive; the larger, the closer to the plain decoder.
    """
    weights = damping_weights(fisher, damping)
    decoder = solution.decoder * weights
    scale = float(solution.decoder.norm() / decoder.norm().clamp(min=1e-38))
    bias = None if solution.decoder_bias is None else solution.decoder_bias * weights * scale
    return replace(solution, decoder=decoder * scale, decoder_bias=bias)


def effect_shares(solution: Solution, fisher: Tensor, damping: float) -> Tensor:
    """Return w_d²/(F + damping·F̄), the share of each coordinate in a damage-aware decoder's effect: [n], for `top_k`.

    Args:
        solution: the plain one, not yet divided.
    """
    shares: Tensor = solution.decoder.square() / (fisher + damping * fisher.mean()).clamp(min=1e-38)
    return shares
