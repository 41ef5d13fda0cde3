"""The figures show the report's values, all of them, and stand what strangers write."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.plots import (
    FIGURES,
    plot_encodings,
    plot_layers,
    plot_outputs,
    plot_strength,
    plot_training,
    save_plots,
)
from gradiend_hub.plots.encoder import beeswarm
from gradiend_hub.plots.style import FIRST, NEUTRAL, SECOND
from gradiend_hub.plots.svg import SAMPLES, drawn_inline
from tests.reports import full_report

CLASSES = ["3SG", "3PL"]
DRAWN = [name for name in FIGURES if name != "pictures"]  # what the report of a language model has
FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}


@pytest.fixture
def report() -> Report:
    return full_report(CLASSES, FILLERS)


def bare(report: Report) -> Report:
    """The same without anything that an older report lacks."""
    splits = {}
    for name, split in report.splits.items():
        old = split.encoder
        encoder = type(old)(
            old.correlation, old.accuracy, old.auc, old.class_means, old.class_stds, None, old.rows, 0
        )  # fmt: skip
        curve = [
            replace(p, nll=None, accuracy=None, quality=None, quality_low=None, kl=None, intervals={})
            for p in split.curve
        ]
        splits[name] = type(split)(encoder, curve, [], 0)
    return Report(report.feature_classes, report.base_model, splits=splits)


def line(axes: Any, label: str) -> tuple[list[float], list[float]]:
    """Data of the line with this label."""
    found = next(part for part in axes.get_lines() if part.get_label() == label)
    return [*found.get_xdata()], [*found.get_ydata()]


def test_the_strength_curve_is_the_reports(report: Report) -> None:
    drawing = plot_strength(report, "test", safe_band=[-1.0, 1.5])
    axes, twin = drawing.axes
    curve = report.splits["test"].curve
    strengths = [p.strength for p in curve]
    assert line(axes, "P(3SG) on 3PL rows") == (strengths, [p.probability["3PL"]["3SG"] for p in curve])
    assert line(axes, "P(3PL) on 3SG rows") == (strengths, [p.probability["3SG"]["3PL"] for p in curve])
    base = report.splits["test"].at(0.0).nll
    assert base
    x, rises = line(twin, "damage: rise of the NLL of neutral text (right axis)")
    assert x == strengths
    assert rises == pytest.approx([100 * (p.nll / base - 1) for p in curve if p.nll])
    dashed = [part for part in axes.get_lines() if part.get_linestyle() == "--" and len(part.get_xdata()) > 2]
    assert len(dashed) == 2 * 3
    band = next(patch for patch in axes.patches if patch.get_label() == "safe band")
    assert (band.get_x(), band.get_x() + band.get_width()) == (-1.0, 1.5)
    assert [text.get_text() for text in axes.texts] == ["breaks"]
    assert axes.texts[0].xy[0] == 3.0


def test_a_break_point_far_beyond_the_curve_is_not_drawn(report: Report) -> None:
    """Where the model computes NaN may be at any strength; the curve would shrink to a line."""
    report.splits["test"] = replace(report.splits["test"], break_point=[-6.0, 1e30])
    axes = plot_strength(report, "test").axes[0]
    assert [text.xy[0] for text in axes.texts] == [-6.0]


@pytest.mark.parametrize("letter", ["n", "W"])
def test_legends_of_long_names_are_within_the_figure(letter: str) -> None:
    names = [f"{letter * 38}{i}" for i in range(2)]
    drawing = plot_strength(full_report(names, {name: ["w"] for name in names}), "test", safe_band=[-1, 1])
    drawing.canvas.draw()
    (shown,) = drawing.legends
    box = shown.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawing.bbox.width and len(shown.get_texts()) == 5
    short = plot_strength(full_report(CLASSES, FILLERS)).legends[0]
    assert short._ncols == 2 and short.get_texts()[0].get_fontsize() == 8.5


def test_a_curve_without_damage_control_and_band(report: Report) -> None:
    drawing = plot_strength(bare(report))
    (axes,) = drawing.axes
    assert len(axes.get_lines()) == 2
    assert not axes.patches
    assert not axes.texts


def test_every_kept_slot_is_a_point(report: Report) -> None:
    drawing = plot_encodings(report)
    (axes,) = drawing.axes
    kept = report.splits["test"].encoder.encodings
    drawn = {}
    for part in axes.get_lines():
        kind, _, numbers = (part.get_gid() or "").partition(" ")
        if kind == SAMPLES:
            drawn |= dict(zip(map(int, numbers.split()), map(float, part.get_xdata()), strict=True))
    assert drawn == {number: s.h for number, s in enumerate(kept)}
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [
        "3PL\n60 of 587 slots", "other tokens\n60 of 377 slots", "neutral text\n60 of 402 slots", "3SG\n60 of 611 slots",
    ]  # fmt: skip


def test_words_with_their_means(report: Report) -> None:
    drawing = plot_outputs(report)
    (axes,) = drawing.axes
    found = report.splits["test"].encoder.outputs
    labels = [text.get_text() for text in axes.get_yticklabels()]
    means = {int(c.lines[0].get_ydata()[0]): float(c.lines[0].get_xdata()[0]) for c in axes.containers}
    assert {text: means[row] for row, text in enumerate(labels)} == {
        f"{word} ({f.rows})": f.mean for word, f in found.items()
    }


def test_feature_values_of_words_stay_within_their_range(report: Report) -> None:
    split = report.splits["test"]
    fillers = {word: replace(f, std=0.4) for word, f in split.encoder.outputs.items()}
    report.splits["test"] = replace(split, encoder=replace(split.encoder, outputs=fillers))
    (axes,) = plot_outputs(report).axes
    ends = [x for c in axes.containers for line in c.lines[2] for x in line.get_segments()[0][:, 0]]
    assert (min(ends), max(ends)) == (-1.0, 1.0)
    assert min(map(abs, ends)) == pytest.approx(min(abs(abs(f.mean) - 0.4) for f in fillers.values()))


def test_training_and_layers(report: Report) -> None:
    axes, twin = plot_training(report).axes
    losses = [(r["step"], r["loss"]) for r in report.history if "loss" in r]
    assert [*zip(*line(axes, "loss (left axis)"), strict=True)] == losses
    assert line(twin, "correlation (right axis)") == ([300, 612], [0.93, 0.967])
    axes, twin = plot_layers(report).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([40, 30, 20, 10])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2", "3"]
    assert line(twin, "‖Δ‖ / ‖W‖ of the layer (right axis)")[1] == pytest.approx([0.31, 0.38, 0.45, 0.52])


@pytest.mark.parametrize("draw", [plot_encodings, plot_outputs, plot_training, plot_layers])
def test_what_was_not_measured_is_not_drawn(report: Report, draw: Any) -> None:
    with pytest.raises(ConfigError, match="The report"):
        draw(bare(report))
    with pytest.raises(ConfigError, match=r"no split at all|The report"):
        draw(Report(CLASSES, "base"))


def test_files_of_a_former_report_go(report: Report, tmp_path: Path) -> None:
    assert save_plots(report, tmp_path) == DRAWN
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == set(DRAWN)
    for name in DRAWN:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 250
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
    save_plots(report, tmp_path)
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")} == pictures
    assert save_plots(bare(report), tmp_path) == ["strength"]
    assert [path.name for path in tmp_path.iterdir()] == ["strength.png"]
    assert save_plots(Report(CLASSES, "base"), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["$x_1$ 名詞 🙂", r"$\nope{$ \$ ^{", "a\nb\x00\u2028c" + "_" * 300])
def test_names_of_strangers_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    """A formula or a letter without a glyph neither fails nor warns."""
    report = full_report([name, "second"], {name: [name, "w"], "second": [f"{name}2"]})
    report.layers = [replace(layer, layer=f"{name}.{layer.layer}.{name}") for layer in report.layers]
    assert save_plots(report, tmp_path, safe_band=[-1, 1]) == DRAWN


def test_a_figure_in_a_page_has_all_of_it_and_nothing_that_a_page_forbids(report: Report) -> None:
    """The same figure as the PNG: every text of it, a mark for every point, and no style, script or reference outwards."""
    figure = plot_strength(report, "test", safe_band=[-1.0, 1.5])
    drawing = drawn_inline(figure)
    assert (drawing.width, drawing.height) == pytest.approx((72 * 7.2, 72 * 4.6))
    root = ElementTree.fromstring(f"<svg>{drawing.markup}</svg>")
    written = {element.text for element in root.iter("text")}
    for axes in figure.axes:
        texts = [axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left"), *(t.get_text() for t in axes.texts)]
        assert {text for text in texts if text} <= written
    assert {text.get_text() for text in figure.legends[0].get_texts()} <= written
    names = {element.tag for element in root.iter()}
    assert names <= {"svg", "g", "defs", "path", "use", "text"}
    found = {(name, value) for element in root.iter() for name, value in element.attrib.items()}
    assert not {name for name, _ in found} & {"style", "onload", "clip-path"}
    ids = [value for name, value in found if name == "id"]
    assert {value for name, value in found if name == "href"} <= {f"#{i}" for i in ids}
    marks = [use for use in root.iter("use") if use.get("stroke") == FIRST.colour and use.get("fill") == FIRST.colour]
    assert len(marks) == len(report.splits["test"].curve) + 1  # and one in the legend
    assert drawn_inline(figure) == drawing


def test_series_differ_without_colour() -> None:
    looks = [FIRST, SECOND, NEUTRAL]
    grey = [float(np.dot(to_rgb(look.colour), (0.2126, 0.7152, 0.0722))) for look in looks]
    for a, b in itertools.combinations(range(3), 2):
        assert looks[a].marker != looks[b].marker
        assert (looks[a].filled, looks[a].dash) != (looks[b].filled, looks[b].dash)
        assert abs(grey[a] - grey[b]) > 0.1


def test_points_lie_beside_each_other() -> None:
    values = [0.5] * 30 + [-0.2] * 3 + [1.0, -1.0]
    offsets = beeswarm(values)
    assert len({*zip(values, offsets, strict=True)}) == len(values)
    assert max(map(abs, offsets)) <= 1
    assert offsets[-1] == offsets[-2] == 0
    assert beeswarm(values) == offsets
    assert beeswarm([]) == []


def test_matplotlib_is_imported_when_a_figure_is_drawn() -> None:
    script = "import sys, gradiend_hub.plots; assert 'matplotlib' not in sys.modules"
    script += (
        "; gradiend_hub.plots.style.figure(); print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr
