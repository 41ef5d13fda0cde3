"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from gradiend_hub.artifact.fields import DirectionFields
from gradiend_hub.evaluation import SplitReport
from gradiend_hub.evaluation.damage import set_label


def strength_text(strength: float) -> str:
    """`-1`, `0`, `+0.5`, `-1.09`; below 0.1 two digits that are not 0."""
    if not strength:
        return "0"
    return f"{strength:+.2g}" if abs(strength) < 0.1 else f"{round(strength, 2):+g}"


def beyond_band(config: DirectionFields, strengths: Sequence[float]) -> str | None:
    """Return a warning of strengths outside of the safe band; `None` if all are inside, or it was not measured."""
    if config.safe_band is None:
        return None
    low, high = config.safe_band
    outside = [strength_text(s) for s in strengths if not low <= s <= high]
    if not outside:
        return None
    band = f"{strength_text(low)} to {strength_text(high)}"
    return f"{', '.join(outside)}: outside of the safe band, {band}; the model may lose quality elsewhere, too."


def megabytes(size: int) -> str:
    """A size in bytes as people read it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def folder_size(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def columns_table(texts: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table with columns of texts, to the left, and then of figures, to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", overflow="fold")
    return table


def pairs_table() -> Table:
    """An empty table of names and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def encoder_line(split: SplitReport) -> str:
    """Return the encoder's figures in a line."""
    encoder = split.encoder
    if encoder is None:
        return "not measured, the direction has none"
    fit, quiet = _figure(encoder.correlation), _figure(encoder.neutral_abs_mean, 2)
    return f"correlation {fit}, accuracy {encoder.accuracy:.3f}, |h| on neutral text {quiet}"


def curve_table(split: SplitReport, classes: Sequence[str], strengths: Sequence[float] | None = None) -> Table:
    """Return the table of what each strength changes; of all measured ones, or of some."""
    first, second = classes
    points = [p for p in split.curve if strengths is None or p.strength in strengths]
    table = columns_table([], ["strength", f"P({first}) on {second} rows", f"P({second}) on {first} rows", "quality"])
    for point in points:
        worst = point.worst(bound=False)
        score = "not measured" if worst is None else f"{100 * worst[1]:.2f} % ({set_label(worst[0])})"
        table.add_row(
            strength_text(point.strength),
            _figure(point.reading(first, second).value),
            _figure(point.reading(second, first).value),
            score,
        )
    return table


def _figure(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"
