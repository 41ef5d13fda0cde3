"""From a gradient stream to (w_e, b_e, w_d, b_d)."""

from __future__ import annotations

from .autoencoder import AutoencoderSolver
from .base import Solution, Solver, calibrated

__all__ = ["AutoencoderSolver", "Solution", "Solver", "calibrated"]
