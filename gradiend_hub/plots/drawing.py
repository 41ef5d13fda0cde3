"""Where things go in the two drawings of the HTML page, in the units of their SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradiend_hub.evaluation import SplitReport, StrengthPoint

from .encoder import KINDS, spread
from .strength import near_breaks

__all__ = ["draw_cloud", "draw_curve"]

WIDTH, HEIGHT = 860, 360
LEFT, RIGHT, TOP, BOTTOM = 46, 800, 14, 320
ROW = 74
CLOUD_LEFT, CLOUD_RIGHT = 150, 840


def draw_curve(split: SplitReport, first: str, second: str, safe_band: Sequence[float] | None) -> dict[str, Any] | None:
    """Lines, marks and ticks of the strength curve; `None` if none was measured."""
    strengths = [p.strength for p in split.curve]
    if not strengths:
        return None
    breaks = near_breaks(split)
    low, high = min([*strengths, *breaks]), max([*strengths, *breaks])
    width = (high - low) or 1.0

    def x(strength: float) -> float:
        return round(LEFT + 10 + (strength - low) / width * (RIGHT - LEFT - 20), 1)

    def y(probability: float) -> float:
        return round(BOTTOM - probability * (BOTTOM - TOP), 1)

    lines, marks = [], []
    for wanted, other, look in ((first, second, "first"), (second, first, "second")):
        for curve in split.control:
            lines.append(_line(curve, x, _read(wanted, other), y, f"{look} line control"))
        lines.append(_line(split.curve, x, _read(wanted, other), y, f"{look} line"))
        values = [(p.strength, _read(wanted, other)(p)) for p in split.curve]
        marks += [{"look": look, "x": x(s), "y": y(value)} for s, value in values if value is not None]
    damage, damage_ticks = _damage(split, x)
    band = [x(min(max(edge, low), high)) for edge in safe_band] if safe_band else None
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM,
        "lines": [*lines, *damage], "marks": marks, "band": band, "damage_ticks": damage_ticks,
        "breaks": [x(side) for side in breaks],
        "y_ticks": [{"at": y(value / 4), "text": f"{value / 4:g}"} for value in range(5)],
        "x_ticks": [{"at": x(s), "text": f"{s:+.3g}" if s else "0"} for s in _apart(strengths, x)],
        "at": {f"{s:+.3g}" if s else "0": x(s) for s in strengths},
    }  # fmt: skip


def _read(wanted: str, other: str) -> Callable[[StrengthPoint], float | None]:
    return lambda point: point.probability.get(other, {}).get(wanted)


def _line(
    curve: Sequence[StrengthPoint], x: Callable[[float], float], read: Callable[[StrengthPoint], float | None],
    y: Callable[[float], float], look: str,
) -> dict[str, str]:  # fmt: skip
    values = [(p.strength, read(p)) for p in curve]
    return {"look": look, "points": " ".join(f"{x(s)},{y(value)}" for s, value in values if value is not None)}


def _damage(split: SplitReport, x: Callable[[float], float]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The line of the damage and the ticks of its own axis: the rise of the NLL of neutral text in per cent."""
    base = next((p.nll for p in split.curve if p.strength == 0), None)
    if not base:
        return [], []
    highest = max(2.0, *(100 * (p.nll / base - 1) for p in split.curve if p.nll is not None))

    def y(rise: float) -> float:
        return round(BOTTOM - rise / highest * (BOTTOM - TOP), 1)

    line = _line(split.curve, x, lambda p: None if p.nll is None else 100 * (p.nll / base - 1), y, "damage")
    ticks = [{"at": y(highest * part / 2), "text": f"{highest * part / 2:.3g} %"} for part in range(3)]
    return [line], ticks


def _apart(strengths: Sequence[float], x: Callable[[float], float]) -> list[float]:
    """As many strengths as have room for their text, 0 and ±1 before others."""
    kept: list[float] = []
    for strength in sorted(strengths, key=lambda s: (s not in (-1, 0, 1), abs(s))):
        if all(abs(x(strength) - x(other)) >= 34 for other in kept):
            kept.append(strength)
    return sorted(kept)


def draw_cloud(split: SplitReport, classes: list[str]) -> dict[str, Any] | None:
    """A point for every kept slot, in the order of the report; `None` if none was kept."""
    samples = split.encoder.encodings if split.encoder else []
    first, second = classes
    looks = {first: "first", "neutral": "neutral", "other": "other", second: "second"}
    kinds = [kind for kind in looks if any(s.kind == kind for s in samples)]
    if not kinds:
        return None
    centres = {kind: ROW // 2 + 8 + ROW * row for row, kind in enumerate(kinds)}
    points: list[dict[str, Any]] = [{} for _ in samples]
    for kind in kinds:
        numbers = [i for i, s in enumerate(samples) if s.kind == kind]
        h = [samples[i].h for i in numbers]
        for i, value, offset in zip(numbers, h, spread(h), strict=True):
            points[i] = {
                "look": looks[kind], "x": _cloud_x(value), "y": round(centres[kind] + 0.42 * ROW * offset, 1),
            }  # fmt: skip
    return {
        "width": WIDTH, "height": ROW * len(kinds) + 40, "points": points,
        "rows": [{"name": _short(KINDS.get(kind, kind)), "at": centres[kind]} for kind in kinds],
        "ticks": [{"at": _cloud_x(value / 2), "text": f"{value / 2:g}"} for value in range(-2, 3)],
    }  # fmt: skip


def _short(name: str) -> str:
    """As much of a name as the margin has room for."""
    return name if len(name) <= 22 else f"{name[:21]}…"


def _cloud_x(h: float) -> float:
    return round(CLOUD_LEFT + (h + 1) / 2 * (CLOUD_RIGHT - CLOUD_LEFT), 1)
