"""Shared parts of all figures: colours, marks, text of strangers, and a figure that no window system knows of.

Every series differs from its neighbours in lightness and in its mark or dash, so the figures can be read in grey and by
people who do not tell colours apart. The hues are those of Okabe and Ito's palette, darkened or lightened for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_LABEL = 40
"""Characters of a name that a figure shows."""


@dataclass(frozen=True)
class Look:
    """The look of a series: hex colour, matplotlib's marker and dash, and whether its marks are filled."""

    colour: str
    marker: str
    dash: str
    filled: bool

    @property
    def face(self) -> str:
        """Colour inside of the marks."""
        return self.colour if self.filled else "white"

    def marks(self, size: float | None = None) -> dict[str, Any]:
        """Arguments of matplotlib for the marks of a line, `size` in points."""
        return {"marker": self.marker, "markerfacecolor": self.face, "markersize": size}


FIRST = Look("#00558f", "o", "-", True)
SECOND = Look("#dd7a00", "s", "-", False)
NEUTRAL = Look("#666666", "^", ":", False)
OTHER = Look("#9a9a9a", "x", ":", True)
SUBTLE = "#c8c8c8"


def look_of(kind: str, classes: list[str]) -> Look:
    """The look of a class, of neutral text or of other tokens."""
    return dict(zip([*classes, "neutral", "other"], (FIRST, SECOND, NEUTRAL, OTHER), strict=True))[kind]


def figure(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure (inches) with one pair of axes. It belongs to nobody but the caller: pyplot is not involved."""
    require("matplotlib", "Drawing figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing, drawing.add_subplot()


def tidy(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
    """Titles, a light grid behind the marks, and no box around them."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(drawing: Figure, columns: int = 2) -> None:
    """One legend below the figure for all its axes."""
    handles: list[Any] = []
    names: list[str] = []
    for axes in drawing.axes:
        some, texts = axes.get_legend_handles_labels()
        handles, names = handles + some, names + texts
    made = drawing.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    part = made.get_window_extent().width / (0.98 * drawing.bbox.width)
    if part > 1 and columns > 1:  # long names get a line each
        made.remove()
        legend(drawing, 1)
    elif part > 1:
        for text in made.get_texts():
            text.set_fontsize(8.5 / part)


@contextmanager
def quiet_glyphs() -> Iterator[None]:
    """Inside, a letter that no installed font has is drawn as a box without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def label(text: object) -> str:
    """A name on one line, short, and never a formula: matplotlib reads what stands between two dollar signs as one."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
    short = line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"
    return short.replace("$", r"\$")


def shown_split(report: Report, name: str | None = None) -> tuple[str, SplitReport]:
    """The split that figures and card show, with its name: the test split, else the one of the choice, else the last.

    Raises:
        ConfigError: it was not measured.
    """
    found = name or next((n for n in ("test", "eval", *reversed(report.splits)) if n in report.splits), None)
    if found is None or found not in report.splits:
        raise ConfigError(f"The report has no split {found or 'at all'}; measured are {list(report.splits)}.")
    return found, report.splits[found]
