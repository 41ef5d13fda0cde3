"""Figures of comparisons: heatmaps, profiles over the layers, sets of largest entries, and a map of directions.

Signed tables are drawn in a palette whose two ends differ for everybody (PuOr), others in one of even lightness (cividis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from gradiend_hub.comparison.clusters import average_linkage
from gradiend_hub.comparison.tables import Matrix, Profile
from gradiend_hub.errors import ConfigError

from .style import FIRST, NEUTRAL, SECOND, SUBTLE, figure, label, legend, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANNOTATED = 16
"""Most rows or columns of a heatmap whose numbers are written."""

LOOKS = (FIRST, SECOND, NEUTRAL)


def plot_matrix(
    table: Matrix,
    *,
    order: str = "given",
    groups: Mapping[str, Sequence[str]] | None = None,
    limit: float | None = None,
) -> Figure:
    """A heatmap. A dot marks a value that directions of coin labels reach as well.

    Args:
        order: "given", or "clusters" to put similar directions side by side (of a symmetric table).
        groups: name of each group to its rows, which are drawn together under the name.
        limit: value of the strongest colour; default: 1 for similarities, the largest one otherwise.

    Raises:
        ConfigError: An unknown order, or groups that do not hold each row once.
    """
    if order not in ("given", "clusters"):
        raise ConfigError(f"plot: order must be 'given' or 'clusters', found {order!r}.")
    bounds: list[tuple[str, int, int]] = []
    if groups is not None:
        table, bounds = _grouped(table, groups)
    elif order == "clusters":
        table = table.reordered(average_linkage(table).order)
    rows, columns = len(table.rows), len(table.columns)
    names = max((len(label(name)) for name in (*table.rows, *table.columns)), default=0)
    side = 0.19 if max(rows, columns) > ANNOTATED else 0.52
    drawing, axes = figure(
        2.4 + 0.07 * names + side * columns, 1.6 + 0.07 * names + side * rows + 0.14 * min(len(table.notes), 3)
    )
    from matplotlib import colormaps

    signed = bool((np.nan_to_num(table.values) < 0).any())
    most = limit or _limit(table)
    colours, least = ("PuOr", -most) if signed else ("cividis", 0.0)
    palette = colormaps[colours].with_extremes(bad="#e4e4e4")
    image = axes.imshow(np.ma.masked_invalid(table.values), cmap=palette, vmin=least, vmax=most, aspect="auto")
    size = 8 if side > 0.2 else 6.5
    axes.set_xticks(range(columns), [label(name) for name in table.columns], rotation=90, fontsize=size)
    axes.set_yticks(range(rows), [label(name) for name in table.rows], fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if max(rows, columns) <= ANNOTATED:
        _write_numbers(axes, table, least, most, colours)
    _mark_null(axes, table, small=side < 0.2)
    for name, start, end in bounds:
        axes.axhline(end - 0.5, color="#444444", linewidth=1)
        axes.axvline(end - 0.5, color="#444444", linewidth=1)
        axes.text(columns - 0.3, (start + end - 1) / 2, label(name), va="center", fontsize=size, style="italic")
    axes.set_title(label(table.measure), loc="left", fontsize=10)
    drawing.colorbar(image, ax=axes, shrink=0.6, pad=0.12 if bounds else 0.02).outline.set_visible(False)
    if table.null is not None and np.isfinite(table.null).any():
        drawing.supxlabel("· directions of coin labels reach this", fontsize=7.5, x=0.01, ha="left")
    return drawing


def _limit(table: Matrix) -> float:
    largest = float(np.nanmax(np.abs(table.values), initial=0.0))
    return 1.0 if largest <= 1.0 + 1e-6 else largest


def _grouped(table: Matrix, groups: Mapping[str, Sequence[str]]) -> tuple[Matrix, list[tuple[str, int, int]]]:
    """Put the rows of each group together, and say where each group stands."""
    listed = [name for members in groups.values() for name in members]
    if sorted(listed) != sorted(table.rows):
        raise ConfigError(
            f"plot: groups must hold each of the {len(table.rows)} rows once; "
            f"{sorted(set(table.rows) ^ set(listed))[:3] or 'one is there twice'}."
        )
    order, bounds, start = [table.rows.index(name) for name in listed], [], 0
    for name, members in groups.items():
        bounds.append((name, start, start + len(members)))
        start += len(members)
    columns = order if table.columns == table.rows else list(range(len(table.columns)))
    return table.reordered(order, columns), bounds


def _write_numbers(axes: Axes, table: Matrix, least: float, most: float, colours: str) -> None:
    for i, row in enumerate(table.values):
        for j, value in enumerate(row):
            if np.isfinite(value):
                value = round(float(value), 2) + 0.0  # no minus before a 0
                at = (value - least) / (most - least or 1)
                dark = abs(at - 0.5) > 0.33 if colours == "PuOr" else at < 0.5
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color="white" if dark else "black"
                )


def _mark_null(axes: Axes, table: Matrix, *, small: bool) -> None:
    """A dot where coin labels reach the value; in the corner, so that numbers stay readable."""
    if table.null is None:
        return
    with np.errstate(invalid="ignore"):
        inside = np.abs(table.values) <= table.null
    y, x = np.nonzero(inside)
    shift = 0.0 if small else 0.38
    axes.scatter(x + shift, y - shift, s=2.5 if small else 7, color="#2b2b2b", linewidths=0, zorder=3)


def plot_profile(profile: Profile, *, pairs: Sequence[tuple[str, str]] | None = None) -> Figure:
    """A line for each pair of directions over the layers or components; grey: what coin labels reach.

    Args:
        pairs: by default the three pairs of the largest absolute values.
    """
    parts = list(profile.tables)
    first = next(iter(profile.tables.values()))
    if pairs is None:
        every = (
            list(combinations(first.rows, 2))
            if first.symmetric
            else [(r, c) for r in first.rows for c in first.columns]
        )
        strength = {p: np.nanmean([abs(t[p].value or 0.0) for t in profile.tables.values()]) for p in every}
        pairs = sorted(every, key=lambda p: -strength[p])[:3]
    drawing, axes = figure(max(5.0, 2 + 0.5 * len(parts)), 3.6)
    places = range(len(parts))
    nulls = [[profile.tables[part][pair].null for part in parts] for pair in pairs]
    if any(value is not None for line in nulls for value in line):
        reach = [max((v for v in column if v is not None), default=0.0) for column in zip(*nulls, strict=True)]
        axes.fill_between(places, [-r for r in reach], reach, color="#dddddd", linewidth=0, label="coin labels")
    for number, pair in enumerate(pairs):
        look = LOOKS[number % len(LOOKS)]
        values = [profile.tables[part][pair].value for part in parts]
        shown = [np.nan if value is None else value for value in values]
        name = f"{label(pair[0])} – {label(pair[1])}"
        axes.plot(places, shown, look.dash, color=look.colour, label=name, **look.marks(5))
    turned = 90 if max(map(len, parts)) > 4 else 0
    axes.set_xticks(places, [label(part) for part in parts], rotation=turned)
    tidy(axes, title=first.measure, x=profile.by)
    legend(drawing)
    return drawing


def plot_venn(sets: Mapping[str, Any]) -> Figure:
    """Circles of one size for the largest entries of up to three directions, with the number of entries in each region.

    Args:
        sets: name to the places of its entries, as `DirectionSet.largest` gives them.

    Raises:
        ConfigError: None, or more than three.
    """
    if not 1 <= len(sets) <= 3:
        raise ConfigError(f"plot_venn: expected one to three directions, found {len(sets)}.")
    from matplotlib.patches import Circle

    drawing, axes = figure(4.6, 4.2)
    names, members = list(sets), [{*map(int, places)} for places in sets.values()]
    angles = np.deg2rad([90, 210, 330] if len(sets) == 3 else [180, 0][: len(sets)])
    distance = 0.0 if len(sets) == 1 else 0.62
    centres = [distance * np.array([np.cos(a), np.sin(a)]) for a in angles]
    for centre, look in zip(centres, LOOKS, strict=False):
        axes.add_patch(Circle(tuple(centre), 1.0, facecolor=look.colour, alpha=0.18, linewidth=0))
        axes.add_patch(Circle(tuple(centre), 1.0, fill=False, edgecolor=look.colour, linewidth=2))
    for size in range(1, len(sets) + 1):
        for chosen in combinations(range(len(sets)), size):
            outside = [members[k] for k in range(len(sets)) if k not in chosen]
            count = len(set.intersection(*(members[k] for k in chosen)) - set().union(*outside))
            middle = np.mean([centres[k] for k in chosen], axis=0)
            others = [centres[k] for k in range(len(sets)) if k not in chosen]
            away = middle - np.mean(others, axis=0) if others else np.zeros(2)
            length = float(np.linalg.norm(away))
            x, y = middle + (0.34 * away / length if length else away)
            axes.text(x, y, f"{count:,}", ha="center", va="center")
    for centre, name in zip(centres, names, strict=True):
        out = centre / (np.linalg.norm(centre) or 1) if distance else np.array([0.0, 1.0])
        x, y = centre + 1.1 * out
        side = "center" if abs(out[0]) < 0.1 else "left" if out[0] > 0 else "right"
        axes.text(x, y, label(name), ha=side, va="bottom" if out[1] >= 0 else "top", fontsize=9.5)
    axes.set_xlim(-2.2, 2.2)
    axes.set_ylim(-2.0, 2.1)
    axes.set_aspect("equal")
    axes.axis("off")
    return drawing


def plot_map(table: Matrix, *, groups: Mapping[str, Sequence[str]] | None = None) -> Figure:
    """A map of directions by their similarity (classical scaling of 1 − similarity): what is alike lies close.

    Args:
        table: a symmetric table of similarities.
        groups: name of each group to its directions, which share a look.
    """
    if not table.symmetric:
        raise ConfigError(f"Only a table of directions with themselves makes a map, and {table.measure!r} is none.")
    distances = np.clip(1 - np.nan_to_num((table.values + table.values.T) / 2), 0, None)
    np.fill_diagonal(distances, 0)
    count = len(table.rows)
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ np.square(distances) @ centring)
    places = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    if places.shape[1] < 2:
        places = np.hstack([places, np.zeros((count, 2 - places.shape[1]))])
    places = places * np.where(places[0] < 0, -1, 1)
    drawing, axes = figure(8.0 if count > 20 else 6.0, 6.4 if count > 20 else 4.8)
    listed = groups or {"": list(table.rows)}
    markers = "osD^vPX*<>"
    for number, (name, members) in enumerate(listed.items()):
        look = LOOKS[number % len(LOOKS)]
        at = [table.rows.index(member) for member in members]
        face = look.colour if number % 2 == 0 else "white"
        axes.plot(
            *places[at].T, markers[number % len(markers)], color=look.colour, markerfacecolor=face, label=label(name)
        )
    tidy(axes, title=label(f"Map by {table.measure}"), grid="both")
    if groups:
        legend(drawing, 4)
    _name_points(drawing, axes, places, [label(name) for name in table.rows], 6.5 if count > 20 else 8.5)
    return drawing


def _name_points(drawing: Figure, axes: Axes, places: Any, names: Sequence[str], size: float) -> None:
    """Write a name beside each point, where it covers no other name and no point; one that stands apart gets a line."""
    axes.margins(0.08)
    drawing.draw_without_rendering()  # so that the axes have their place
    points = axes.transData.transform(places)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    per_point = drawing.dpi / 72
    for (x, y), place, name in zip(points, places, names, strict=True):
        width, height = 0.62 * size * len(name) * per_point, 1.25 * size * per_point
        best: tuple[float, int, int, Box] | None = None
        for right, up in _SPOTS:
            left = x + right * per_point - (0 if right > 0 else width if right < 0 else width / 2)
            low = y + up * per_point - height / 2
            box = (left, low, left + width, low + height)
            covered = sum(_common_area(box, other) for other in taken) + _outside(box, axes)
            if best is None or covered < best[0]:
                best = (covered, right, up, box)
            if covered == 0:
                break
        assert best is not None
        _, right, up, box = best
        taken.append(box)
        far = max(abs(right), abs(up)) > 12
        line = {"arrowstyle": "-", "color": SUBTLE, "linewidth": 0.6, "shrinkB": 3} if far else None
        side = "left" if right > 0 else "right" if right < 0 else "center"
        spot: dict[str, Any] = {"xytext": (right, up), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(name, tuple(place), fontsize=size, arrowprops=line, **spot).set_in_layout(False)


_SPOTS = [
    (round(far * side), round(0.8 * far * height))
    for far in (6, 12, 20, 30, 42, 56, 72)
    for side, height in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1.2), (0, -1.2))
]
"""Places of a name beside its point, in points of 1/72 inch, the nearest ones first."""

Box = tuple[float, float, float, float]


def _common_area(one: Box, other: Any) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, axes: Axes) -> float:
    """Area of a box that lies outside of the axes."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _common_area(box, axes.bbox.extents)
