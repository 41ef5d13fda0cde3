"""Figures and page of comparisons: what they draw, and what strangers' names cannot do to them."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from gradiend_hub.comparison.tables import Matrix, Profile
from gradiend_hub.errors import ConfigError
from gradiend_hub.plots.comparison import plot_map, plot_matrix, plot_profile, plot_venn
from gradiend_hub.plots.comparison_page import Section, render_comparison


def table(count: int = 5, seed: int = 0) -> Matrix:
    found = np.random.default_rng(seed).normal(size=(count, 4))
    found /= np.linalg.norm(found, axis=1)[:, None]
    names = tuple(f"masc_{i} / fem_{i}" for i in range(count))
    return Matrix("cosine of decoders", names, names, found @ found.T, np.full((count, count), 0.3), symmetric=True)


def test_a_heatmap_shows_every_value_and_what_coin_labels_reach(tmp_path: Path) -> None:
    drawn = table()
    figure = plot_matrix(drawn)
    axes = figure.axes[0]
    image = axes.images[0]
    assert np.allclose(np.asarray(image.get_array()), drawn.values) and image.get_clim() == (-1.0, 1.0)
    inside = int((np.abs(drawn.values) <= 0.3).sum())
    assert len(axes.collections[0].get_offsets()) == inside > 0
    assert len([t for t in axes.texts if re.fullmatch(r"-?\d\.\d\d", t.get_text())]) == 25
    figure.savefig(tmp_path / "figure.png")


def test_similar_directions_stand_side_by_side() -> None:
    drawn = table(6, seed=3)
    order = [t.get_text() for t in plot_matrix(drawn, order="clusters").axes[0].get_yticklabels()]
    assert sorted(order) == sorted(drawn.rows) and order != list(drawn.rows)


def test_44_directions_in_groups_are_drawn_without_numbers() -> None:
    drawn = table(44)
    groups = {"German": drawn.rows[:23], "others": drawn.rows[23:]}
    figure = plot_matrix(drawn, groups=groups)
    axes = figure.axes[0]
    assert {t.get_text() for t in axes.texts} == {"German", "others"} and len(axes.get_yticklabels()) == 44
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(a.y0 >= b.y1 - 1 or b.y0 >= a.y1 - 1 for a, b in pairwise(boxes))  # nothing overlaps
    with pytest.raises(ConfigError, match="each of the 44 rows once"):
        plot_matrix(drawn, groups={"German": drawn.rows[:23]})


def test_what_is_not_known_is_grey() -> None:
    drawn = Matrix("effects", ("a",), ("b", "c"), np.array([[np.nan, 4.0]]))
    image = plot_matrix(drawn).axes[0].images[0]
    assert image.get_array().mask.tolist() == [[True, False]] and image.get_clim() == (0.0, 4.0)
    with pytest.raises(ConfigError, match="'given' or 'clusters'"):
        plot_matrix(drawn, order="size")
    with pytest.raises(ConfigError, match="directions with themselves"):
        plot_map(drawn)


def test_a_map_keeps_distances_that_a_plane_can_hold() -> None:
    angles = np.deg2rad([0, 10, 120])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    names = ("a", "b", "c")
    figure = plot_map(Matrix("made up", names, names, 1 - distances, symmetric=True))
    found = np.stack([figure.axes[0].lines[0].get_xdata(), figure.axes[0].lines[0].get_ydata()], 1)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=2), distances, atol=1e-8)
    one = Matrix("one", ("a",), ("a",), np.ones((1, 1)), symmetric=True)
    assert plot_map(one).axes


def test_no_name_on_a_map_of_44_covers_another() -> None:
    drawn = table(44)
    drawn = replace(drawn, rows=tuple(f"masc_nom_{i}_fem" for i in range(44)), columns=drawn.rows)
    figure = plot_map(drawn)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to their points
    assert len(boxes) == 44
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_regions_of_a_venn_diagram_count_every_entry_once() -> None:
    sets = {"a": [1, 2, 3, 4], "b": [3, 4, 5], "c": [4, 6]}
    written = [t.get_text() for t in plot_venn(sets).axes[0].texts]
    counts = [int(text) for text in written if text.isdigit()]
    assert sum(counts) == 6 and sorted(counts) == [0, 0, 1, 1, 1, 1, 2] and written[-3:] == ["a", "b", "c"]
    assert len(plot_venn({"a": [1]}).axes[0].patches) == 2
    with pytest.raises(ConfigError, match="one to three directions"):
        plot_venn({str(i): [i] for i in range(4)})


def test_a_profile_has_a_line_for_each_pair() -> None:
    profile = Profile("layer", {str(i): table(3, seed=i) for i in range(4)})
    figure = plot_profile(profile)
    assert len(figure.axes[0].lines) == 3 and len(figure.axes[0].collections) == 1
    one = plot_profile(profile, pairs=[(profile["0"].rows[0], profile["0"].rows[1])]).axes[0].lines[0]
    assert list(one.get_ydata()) == [profile[str(i)].values[0, 1] for i in range(4)]


def test_the_page_is_one_file_without_scripts() -> None:
    name = "<script>alert(1)</script>"
    drawn = Matrix("cosine", (name,), (name,), np.array([[1.0]]))
    page = render_comparison("Set", [Section("Cosine", [name], [(plot_matrix(drawn), name)], drawn)])
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page.replace("http-equiv", "")
    assert "null and ceiling unknown" in page and "data:image/png;base64," in page
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/=]+'", page)
