"""The strength curve: effect, damage, what chance does, and where it is safe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradiend_hub.evaluation import Report, SplitReport, StrengthPoint
from gradiend_hub.evaluation.damage import NEUTRAL as NEUTRAL_SET
from gradiend_hub.evaluation.damage import OWN, set_label

from .style import FIRST, NEUTRAL, SECOND, SUBTLE, Look, figure, label, legend, shown_split, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = (":", "-.", (0, (1, 4)), (0, (6, 2, 1, 2)))
"""Of the damage sets."""


def plot_strength(report: Report, split: str | None = None, safe_band: Sequence[float] | None = None) -> Figure:
    """Effect (left axis) and damage (right axis) at every measured strength.

    Args:
        split: which measurement; by default the test split, or what there is.
        safe_band: lowest and highest safe strength, shaded.

    Raises:
        ConfigError: no curve was measured.
    """
    name, measured = shown_split(report, split)
    first, second = report.feature_classes
    drawing, axes = figure(7.2, 4.6)
    tidy(axes, x="strength", y="probability", title=f"What each strength changes ({label(name)} split)")
    for wanted, other, look in ((first, second, FIRST), (second, first, SECOND)):
        for curve in measured.control:
            _line(axes, curve, wanted, other, Look(look.colour, "", "--", False), width=0.9)
        _line(axes, measured.curve, wanted, other, look, f"P({label(wanted)}) on {label(other)} rows")
    axes.set_ylim(-0.03, 1.03)
    _damage(axes, measured)
    if measured.control:
        number = len(measured.control)
        what = f"the same under {number} random direction{'s' * (number > 1)}"
        axes.plot([], [], "--", color="black", linewidth=0.9, label=what)
    if safe_band is not None:
        axes.axvspan(*safe_band, color="#e9eef2", zorder=0, label="safe band")
    for side in _near_breaks(measured):
        axes.axvline(side, color="black", linewidth=1, dashes=(6, 2, 1, 2))
        axes.annotate(
            "breaks",
            (side, 0.35),
            rotation=90,
            fontsize=8.5,
            va="center",
            ha="right" if side > 0 else "left",
            xytext=(-3 if side > 0 else 3, 0),
            textcoords="offset points",
            backgroundcolor="white",
        )
    legend(drawing)
    return drawing


def _near_breaks(split: SplitReport) -> list[float]:
    """The break points that a drawing of the curve has room for: one where the model computes NaN may be far beyond it."""
    widest = max((abs(p.strength) for p in split.curve), default=0.0)
    return [side for side in split.break_point or [] if side is not None and abs(side) <= 2 * widest]


def _line(
    axes: Axes,
    curve: Sequence[StrengthPoint],
    wanted: str,
    other: str,
    look: Look,
    text: str | None = None,
    width: float = 1.8,
) -> None:
    points = [(p.strength, p.reading(wanted, other)) for p in curve]
    x = [strength for strength, reading in points if reading.value is not None]
    y = [reading.value for _, reading in points if reading.value is not None]
    bounds = [reading.interval for _, reading in points if reading.value is not None]
    axes.plot(x, y, look.dash, color=look.colour, linewidth=width, label=text, **look.marks(5))
    if look.marker and bounds and all(bounds):
        low, high = zip(*(b for b in bounds if b), strict=True)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _damage(axes: Axes, split: SplitReport) -> None:
    """Draw the damage on each set of text: the rise of the negative log-likelihood, in per cent of the base model's."""
    lines = _rises(split)
    if not lines:
        return
    twin = axes.twinx()
    for (name, (x, y)), dash in zip(lines.items(), _DASHES * len(lines), strict=False):
        own = ", the classes left out" if name == OWN else ""
        text = f"damage: rise of the NLL of {label(set_label(name))}{own} (right axis)"
        twin.plot(x, y, linestyle=dash, color="black", linewidth=1.4, label=text, **NEUTRAL.marks(5))
    highest = max(2.0, *(max(y) for _, y in lines.values()))
    lowest = min(0.0, *(min(y) for _, y in lines.values()))
    twin.set_ylabel("rise of the NLL, %")
    twin.set_ylim(lowest - 0.03 * highest, 1.05 * highest)
    twin.axhline(0, color=SUBTLE, linewidth=0.8, zorder=0)
    twin.spines[["top", "left"]].set_visible(False)


def _rises(split: SplitReport) -> dict[str, tuple[list[float], list[float]]]:
    """Strengths and rises of what counts, in per cent, by damage set."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for point in split.curve:
        qualities = {name: of.counted(name)[0] for name, of in point.damage.items()}
        if not qualities and point.quality is not None:  # a report of version 0.1
            qualities[NEUTRAL_SET] = point.quality
        for name, quality in qualities.items():
            x, y = found.setdefault(name, ([], []))
            x.append(point.strength)
            y.append(100 * (1 / quality - 1))
    return found
