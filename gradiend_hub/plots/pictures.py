"""Figure of images: what a classifier makes of each at some strengths, beside its feature value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradiend_hub.data import Picture
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Completion, Report, SplitReport

from .style import FIRST, SECOND, SUBTLE, figure, label, shown_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRENGTHS = (-1.0, 0.0, 1.0)
MOST_LABELS = 3
"""Labels that are shown at each strength."""

MOST_PICTURES = 8


def pictured(split: SplitReport) -> list[Completion]:
    """Return the completions that are shown by a picture, the first few."""
    return [completion for completion in split.completions if completion.image is not None][:MOST_PICTURES]


def plot_pictures(report: Report, split: str | None = None, *, outputs: Sequence[Sequence[str]] = ((), ())) -> Figure:
    """Images with their feature values, and the likeliest labels at -1, 0 and +1 with their probabilities.

    Args:
        report: the measurements.
        split: name of the split; by default the one that the card shows.
        outputs: labels of the first and of the second class, for their colours; by default the classes' names.

    Raises:
        ConfigError: the report holds no pictures.
        DataError: a picture of it cannot be decoded.
    """
    name, measured = shown_split(report, split)
    found = pictured(measured)
    if not found:
        raise ConfigError(f"The report has no pictures of the {name} split.")
    first, second = ({*names} or {of} for names, of in zip(outputs, report.feature_classes, strict=True))
    encoder = measured.encoder  # its encodings hold an image with another label, too, as "other"
    values = {e.text: e.h for e in encoder.encodings if e.kind in encoder.rows} if encoder else {}
    drawing, unused = figure(7.0, 0.5 + 1.05 * len(found))
    unused.remove()
    grid = drawing.add_gridspec(len(found), 1 + len(STRENGTHS), width_ratios=[1.0] + [1.6] * len(STRENGTHS))
    for row, completion in enumerate(found):
        axes = drawing.add_subplot(grid[row, 0])
        axes.imshow(Picture.read(completion.image).open().convert("RGB"), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        h = values.get(completion.text)
        axes.set_xlabel("" if h is None else f"h = {h:+.2f}", fontsize=8, labelpad=1)
        for column, strength in enumerate(STRENGTHS):
            axes = drawing.add_subplot(grid[row, column + 1])
            _bars(axes, completion.by_strength.get(str(strength), ()), first, second)
            if row == 0:
                shown = f"strength {strength:+g}" if strength else "base model"
                axes.set_title(shown, fontsize=9)
    return drawing


def _bars(axes: Axes, chances: object, first: set[str], second: set[str]) -> None:
    """Draw the likeliest labels, the first one on top."""
    pairs = [] if isinstance(chances, str) else [(str(name), float(p)) for name, p in chances][:MOST_LABELS]  # type: ignore[attr-defined]
    looks = [FIRST if name in first else SECOND if name in second else None for name, _ in pairs]
    places = range(len(pairs))
    axes.barh(
        places,
        [p for _, p in pairs],
        height=0.72,
        color=[look.face if look else SUBTLE for look in looks],
        edgecolor=[look.colour if look else SUBTLE for look in looks],
    )
    for place, (name, p) in zip(places, pairs, strict=True):
        inside = p > 0.5
        colour = "white" if inside and looks[place] is FIRST else "black"
        axes.text(
            p - 0.02 if inside else p + 0.02,
            place,
            f"{label(name)} {p:.2f}",
            ha="right" if inside else "left",
            va="center",
            fontsize=7.5,
            color=colour,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(MOST_LABELS - 0.4, -0.6)
    axes.axis("off")
