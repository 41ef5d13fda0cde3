"""Random directions of equal damage and sparsity: what an edit that costs as much does when it means nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.artifact.parameter import Values
from gradiend_hub.artifact.storage import index_dtype
from gradiend_hub.model import GradiendModel

from .curve import between
from .part import NotFiniteError
from .probe import StrengthProbe
from .records import Interval, StrengthPoint

CONTROL_STRENGTHS = (-1.0, 0.0, 1.0)
"""Strengths of a curve at which random directions are measured."""

_NAME = "compared"

_FIRST_NORM, _WIDEST_NORM = 16.0, 1024.0
"""Norm of the first random direction that is tried, relative to the direction's, and the widest one."""
_STRIDE = 8.0
"""Most that a norm grows or shrinks at once."""
_POWER = 1.5
"""Power of a norm as which damage grows, about: its mean as the square, and its error as the norm."""
_NORMS = 5
"""Norms that are tried."""
_ENOUGH = (0.7, 1.4)
"""Damage that is as good as equal, relative to the direction's."""


def random_direction(model: GradiendModel, seed: int) -> Direction:
    """A direction that changes as many entries of each parameter as the active one, by as much (‖Δ‖ at +1 and at −1).

    Where the active direction is sparse, the entries are drawn anew; where it is low-rank, factors of the same rank. It
    has no encoder. Apply it with a config whose `feature_factor` and `decoder_sign` are 1.
    """
    config, direction = model.active_peft_config, model.direction
    generator = np.random.default_rng(seed)
    c_w, c_b = (c / config.strength_unit for c in config.coefficients(1.0))
    parts = {}
    for name, part in direction.parameters.items():
        indices = None
        if part.indices is not None:
            drawn = generator.choice(part.numel, part.entries, replace=False, shuffle=False)
            indices = torch.from_numpy(np.sort(drawn)).to(index_dtype(part.numel))
        up, down = (_like(part.delta(c, c_b), generator) for c in (c_w, -c_w))
        if part.decoder_bias is None:
            parts[name] = ParameterDirection(part.shape, up, indices=indices)
        else:  # Δ(±1) = b ± w
            half = [_half_sum(up, down, sign) for sign in (-1, 1)]
            parts[name] = ParameterDirection(part.shape, half[0], half[1], indices=indices)
    return Direction(parts)


def _half_sum(up: Values, down: Values, sign: int) -> Values:
    if isinstance(up, Factors) and isinstance(down, Factors):
        return Factors.joined([up * 0.5, down * (0.5 * sign)]).short()
    assert isinstance(up, Tensor) and isinstance(down, Tensor)
    return (up + sign * down) / 2


def _like(delta: Values, generator: np.random.Generator) -> Values:
    """Gaussian values of the same number and norm as `delta` [k], or factors of the same rank and norm, fp32."""
    if isinstance(delta, Factors):
        shapes = delta.b.shape, delta.a.shape
        b, a = (torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)) for shape in shapes)
        factors = Factors(b, a)
        size, wanted = (math.sqrt(max(one.inner(one), 0.0)) for one in (factors, delta))
        return factors * (wanted / max(size, math.ulp(0.0)))
    drawn = torch.from_numpy(generator.standard_normal(len(delta), dtype=np.float32))
    norm = float(delta.double().norm())
    return drawn * (norm / max(float(drawn.double().norm()), math.ulp(0.0)))


@contextmanager
def instead(model: GradiendModel, direction: Direction, **fields: Any) -> Iterator[None]:
    """Inside, this direction is the active one, afterwards everything is as before.

    Its configuration is that of the one that was, with the signs of plain values, and what `fields` say.
    """
    active = list(model.active_adapters)
    signs = {"parameters": None, "feature_factor": 1.0, "decoder_sign": 1, "has_bias": direction.has_bias}
    config = replace(model.active_peft_config, **{**signs, **fields})
    model.add_direction(_NAME, direction, config)
    model.base_model.set_strength(_NAME, 0.0)  # nothing is written before a strength is asked for
    try:
        model.set_adapter(_NAME)
        yield
    finally:
        model.set_adapter(active)
        model.delete_adapter(_NAME)


@dataclass(frozen=True)
class Control:
    """A random direction beside the one that is measured.

    Attributes:
        points: its curve. At strength ±1 it damages the worst damage set as much as the direction does at that sign.
        norms: ‖Δ‖ at strength −1 and at +1, relative to the direction's.
    """

    points: list[StrengthPoint]
    norms: list[float] = field(default_factory=lambda: [1.0, 1.0])


def control_curves(
    probe: StrengthProbe,
    strengths: Sequence[float],
    known: Sequence[Control] = (),
    *,
    draws: int = 3,
    seed: int = 0,
    norms: Sequence[Interval] = (),
) -> list[Control]:
    """Curves of `draws` random directions at `strengths`, each with the base model's point at 0.

    Their doses are set by damage, for an edit without meaning that has the direction's norm changes next to nothing: at
    strength ±1 they cost the worst damage set about as much, by the bound that decides whether a dose is safe. Without a
    damage set, norms are equal.

    What a random direction changes is read on the probe's first part alone. Strengths at which the model computes NaN are
    left out.

    Args:
        probe: holds the model, with the direction that is compared, and what it is measured on.
        known: what the same draws gave before at some strengths, on the same probe.
        seed: of the first draw; the others follow.
        norms: of the first draws at −1 and at +1, if they were set on other rows and texts.
    """
    if not draws:
        return []
    base, found = probe.measure(0.0), list(known[:draws])
    signs = sorted({math.copysign(1.0, strength) for strength in strengths if strength})
    targets = {sign: probe.damage(sign * probe.model.active_peft_config.strength_unit) for sign in signs}
    size = {sign: _FIRST_NORM if sign in targets else 1.0 for sign in (-1.0, 1.0)}
    for draw in range(draws):
        before = found[draw] if draw < len(found) else None
        given = before.norms if before else norms[draw] if draw < len(norms) else None
        curve = {p.strength: p for p in (*(before.points if before else ()), base)}
        missing = [strength for strength in strengths if strength not in curve]
        if missing:
            aside = probe.aside()
            with instead(probe.model, random_direction(probe.model, seed + draw)):
                for sign, target in targets.items():
                    of_sign = [strength for strength in missing if strength * sign > 0]
                    if not of_sign:
                        continue
                    if given:
                        size[sign] = given[sign > 0]
                    else:
                        first = size[sign] if draw or sign == signs[0] else size[signs[0]]
                        size[sign] = _norm_of_damage(aside, sign, target, first)
                    for strength in of_sign:
                        with suppress(NotFiniteError):
                            curve[strength] = replace(aside.measure(size[sign] * strength, math.inf), strength=strength)
        own = list(given) if given else [size[-1.0], size[1.0]]
        found[draw : draw + 1] = [Control(sorted(curve.values(), key=lambda p: p.strength), own)]
    return found


def _norm_of_damage(probe: StrengthProbe, sign: float, wanted: float, first: float) -> float:
    """Find the norm, relative to the direction's, at which a random direction does about the wanted damage."""
    if wanted <= 0:
        return 1.0
    norm, low, high = first, (0.0, 0.0), (math.inf, math.inf)
    for _ in range(_NORMS):
        damage = probe.damage(sign * norm * probe.model.active_peft_config.strength_unit)
        if _ENOUGH[0] * wanted < damage < _ENOUGH[1] * wanted:
            break
        low, high = ((norm, damage), high) if damage < wanted else (low, (norm, damage))
        if low[0] and high[0] < math.inf:
            norm = between(*low, *high, wanted)
        else:  # damage grows about as this power of a norm
            factor = math.pow(wanted / max(damage, math.ulp(0.0)), 1 / _POWER) if damage < math.inf else 0.0
            norm = min(norm * min(max(factor, 1 / _STRIDE), _STRIDE), _WIDEST_NORM)
    return norm


def above_control(curve: Sequence[StrengthPoint], control: Sequence[Sequence[StrengthPoint]]) -> bool | None:
    """Return whether the effect at strengths ±1 is above that of every random direction, 95 % intervals included.

    `None` if there is no control, or strength ±1 was not measured.
    """
    if not control:
        return None
    verdicts = []
    for point in curve:
        others = [p.effect_interval for drawn in control for p in drawn if p.strength == point.strength]
        if abs(point.strength) == 1 and point.effect_interval is not None:
            verdicts.append(all(point.effect_interval[0] > other[1] for other in others if other is not None))
    return all(verdicts) if verdicts else None
