"""Figures of the encoder: every slot as a point, and the words side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import EncoderReport, Report

from .style import figure, label, legend, look_of, shown_split, tidy
from .svg import SAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"neutral": "neutral text", "other": "other tokens"}
"""Names of the two kinds of slots that belong to no class."""

MOST_FILLERS = 24

BINS = 60
"""Of a swarm of points."""


def beeswarm(values: Sequence[float]) -> list[float]:
    """Offsets in [−1, 1] that put points beside their line, so that they show how many there are.

    Points of a bin are laid out evenly, and the fullest bin fills the width. The result depends on the values alone.
    """
    places: dict[int, list[int]] = {}
    for i, value in enumerate(values):
        places.setdefault(min(int((value + 1) / 2 * BINS), BINS - 1), []).append(i)
    fullest = max(map(len, places.values()), default=1)
    offsets = [0.0] * len(values)
    for members in places.values():
        for rank, i in enumerate(members):
            side = (rank + 1) // 2 * (1 if rank % 2 else -1)
            offsets[i] = 2 * side / max(fullest, 8)
    return offsets


def plot_encodings(report: Report, split: str | None = None) -> Figure:
    """Feature values of both classes and of slots that belong to neither: points, mean and 95 % interval of the mean.

    Raises:
        ConfigError: no slot was kept in the report.
    """
    name, measured = shown_split(report, split)
    encoder = measured.encoder
    first, second = report.feature_classes
    found = {s.kind for s in encoder.encodings} if encoder else set()
    kinds = [kind for kind in (second, "other", "neutral", first) if kind in found]
    if not encoder or not kinds:
        raise ConfigError(f"The report keeps no encoded slots of the {name} split, so there is nothing to draw.")
    drawing, axes = figure(7.0, 0.9 + 0.85 * len(kinds))
    tidy(
        axes,
        x="feature value h (line: mean of a class, cap: its 95 % interval)",
        title=f"What the encoder reads ({label(name)} split)",
        grid="x",
    )
    for row, kind in enumerate(kinds):
        _row(axes, row, kind, report.feature_classes, encoder)
    axes.set_yticks(range(len(kinds)), [_name(kind, encoder) for kind in kinds])
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.6, len(kinds) - 0.4)
    axes.axvline(0, color="#888888", linewidth=0.8)
    return drawing


def _row(axes: Axes, row: int, kind: str, classes: list[str], encoder: EncoderReport) -> None:
    """Draw the slots of one kind around the height `row`."""
    look, found = look_of(kind, classes), [(i, s.h) for i, s in enumerate(encoder.encodings) if s.kind == kind]
    numbers, h = zip(*found, strict=True)
    axes.plot(
        h,
        [row + 0.38 * offset for offset in beeswarm(h)],
        linestyle="none",
        color=look.colour,
        markeredgewidth=0.7,
        alpha=0.75,
        gid=" ".join([SAMPLES, *map(str, numbers)]),
        **look.marks(3.6),
    )
    if kind in encoder.class_means:
        mean, bounds = encoder.class_means[kind], encoder.intervals.get(f"mean {kind}")
        axes.plot([mean, mean], [row - 0.45, row + 0.45], color="black", linewidth=1.6)
        if bounds is not None:
            axes.plot(bounds, [row + 0.45] * 2, color="black", linewidth=1.6)


def _name(kind: str, encoder: EncoderReport) -> str:
    numbers = {**encoder.rows, "neutral": encoder.neutral_rows, "other": encoder.other_rows}
    shown, measured = sum(s.kind == kind for s in encoder.encodings), numbers.get(kind, 0)
    part = f"{shown:,} of {measured:,}" if shown < measured else f"{shown:,}"
    return f"{label(KINDS.get(kind, kind))}\n{part} slots"


def plot_outputs(report: Report, split: str | None = None, *, output: str = "word") -> Figure:
    """Mean feature value of each word, with the standard deviation of its rows; the most frequent words.

    Args:
        output: what the title calls a word: the objective's `output_name`.

    Raises:
        ConfigError: words were not told apart.
    """
    name, measured = shown_split(report, split)
    found = list(measured.encoder.outputs.items())[:MOST_FILLERS] if measured.encoder else []
    if not found:
        raise ConfigError(f"The report has no figures by word for the {name} split.")
    found.sort(key=lambda item: (-report.feature_classes.index(item[1].feature_class), item[1].mean))
    drawing, axes = figure(7.0, 1.3 + 0.3 * len(found))
    tidy(
        axes,
        x="feature value h: mean ± standard deviation",
        title=f"Encoding by {output} ({label(name)} split)",
        grid="x",
    )
    seen: set[str] = set()
    for row, (_, filler) in reversed([*enumerate(found)]):
        look = look_of(filler.feature_class, report.feature_classes)
        text = None if filler.feature_class in seen else label(filler.feature_class)
        seen.add(filler.feature_class)
        ends = [[min(filler.std, max(0.0, room))] for room in (1 + filler.mean, 1 - filler.mean)]  # h is within ±1
        axes.errorbar(
            filler.mean,
            row,
            xerr=ends,
            color=look.colour,
            linewidth=1.3,
            capsize=3,
            linestyle="none",
            label=text,
            **look.marks(6),
        )
    axes.set_yticks(range(len(found)), [f"{label(word)} ({filler.rows:,})" for word, filler in found])
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.set_xlim(-1.05, 1.05)
    axes.axvline(0, color="#888888", linewidth=0.8)
    legend(drawing)
    return drawing
