"""Solvers turn a stream of gradient pairs into a direction: (w_e, b_e, w_d, b_d)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradiend_hub.errors import ConfigError

from .autoencoder import AutoencoderSolver
from .base import ByParameter, Solution, Solver, Vector, calibrated, gain_of
from .closed_form import ClassMeans, ClosedFormSolver
from .damage_aware import DAMPINGS, UNMEASURED, damage_aware, damping_weights, effect_shares
from .report import Convergence, RunReport, SeedReport, convergence, seed_report
from .ridge import RidgeSolver
from .shard import Shard
from .sketches import Sketching, SketchSolver
from .split_means import Contrasts, SplitMeans

__all__ = [
    "DAMPINGS",
    "SOLVERS",
    "UNMEASURED",
    "AutoencoderSolver",
    "ByParameter",
    "ClassMeans",
    "ClosedFormSolver",
    "Contrasts",
    "Convergence",
    "RidgeSolver",
    "RunReport",
    "SeedReport",
    "Shard",
    "SketchSolver",
    "Sketching",
    "Solution",
    "Solver",
    "SplitMeans",
    "Vector",
    "calibrated",
    "convergence",
    "damage_aware",
    "damping_weights",
    "effect_shares",
    "gain_of",
    "make_solver",
    "seed_report",
]

SOLVERS: dict[str, type[Solver]] = {
    "autoencoder": AutoencoderSolver,
    "closed_form": ClosedFormSolver,
    "ridge": RidgeSolver,
}


def make_solver(
    name: str,
    size: int,
    *,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] | None = None,
    folder: str | Path | None = None,
    shard: Shard | None = None,
    sketching: Sketching | None = None,
) -> Solver:
    """Make the solver called `name` for gradients of `size` coordinates.

    Args:
        seeds: one run each; solvers without a random start make one run whatever the seeds.
        rates: learning rate of each run relative to the optimizer's, of the autoencoder.
        folder: where ridge keeps its vectors, instead of in memory.
        shard: coordinates that this process holds; default: all.
        sketching: how the closed form sketches its class means, instead of keeping them.

    Raises:
        ConfigError: unknown name, or several runs or rates for a solver that has neither.
    """
    if name not in SOLVERS:
        raise ConfigError(f"Unknown solver {name!r}; expected one of {sorted(SOLVERS)}.")
    if name == "autoencoder":
        return AutoencoderSolver(size, seeds, rates, shard)
    if len(seeds) > 1 or rates is not None:
        raise ConfigError(
            f"Solver {name!r} has no seeds and no learning rates; its one run needs neither. Several are of "
            "solver='autoencoder'."
        )
    if name == "closed_form" and sketching is not None:
        return SketchSolver(sketching, size, shard)
    return RidgeSolver(size, folder=folder, shard=shard) if name == "ridge" else ClosedFormSolver(size, shard)
