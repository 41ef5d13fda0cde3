"""`report.html`: one file with everything in it, for a browser without a network.

Texts of strangers are escaped by the template, or are data that the script only ever sets as text; and the page's own
security policy runs no script but the one that was written here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from gradiend_hub.artifact.files import HTML_FILE
from gradiend_hub.evaluation import Completion, Encoding, Report, SplitReport
from gradiend_hub.evaluation.shift import shifts
from gradiend_hub.objectives import OBJECTIVES, Objective
from gradiend_hub.printable import spelled_out

from .encoder import plot_encodings
from .strength import plot_strength
from .style import quiet_glyphs, shown_split
from .svg import Drawing, drawn_inline
from .text import number, percent

HARDEST = 12


def save_html(report: Report, folder: str | Path, **options: Any) -> Path:
    """Write `report.html` into a folder; options as of `render_html`."""
    path = Path(folder, HTML_FILE)
    path.write_text(render_html(report, **options), encoding="utf-8")
    return path


def render_html(
    report: Report,
    *,
    base: str = "its base model",
    safe_band: Sequence[float] | None = None,
    objective: str | None = None,
) -> str:
    """The interactive page of a measured report.

    Args:
        base: what the page calls the base model.
        safe_band: `GradiendConfig.safe_band`, shaded.
        objective: `GradiendConfig.objective`, in whose words the page says what is read.

    Raises:
        ConfigError: nothing was measured.
    """
    name, split = shown_split(report)
    first, second = report.feature_classes
    samples = split.encoder.encodings if split.encoder else []
    completions = [_completion(completion) for completion in split.completions]
    curve = _Curve.of(report, split, safe_band) if split.curve else None
    style, script = source("report.css"), source("report.js")
    kind = OBJECTIVES.get(objective or "", Objective)
    data = {
        "samples": [{"text": s.text, "output": s.output, "kind": s.kind, "h": s.h} for s in samples],
        "curve": _points(split, first, second, curve.places if curve else []),
        "completions": completions,
        "probabilities": [
            {"key": "up", "name": f"P({first}) on {second} rows", "look": "first"},
            {"key": "down", "name": f"P({second}) on {first} rows", "look": "second"},
        ],
    }
    page: str = template("report.html.jinja").render(
        report=report,
        first=first,
        second=second,
        base=base,
        reads=kind.read_name,
        output=kind.output_name,
        split_name=name,
        split=split,
        shifts=shifts(split, (first, second)),
        curve=curve,
        start=next((i for i, p in enumerate(split.curve) if not p.strength), 0),
        safe_band=safe_band,
        breaks=[side for side in split.break_point or [] if side is not None],
        cloud=_drawn(plot_encodings(report), "encodings") if samples else None,
        completions=completions,
        written_at=[at for at in ("-1", "0", "+1") if any(at in c["at"] for c in completions)],
        hardest=_hardest(split, first),
        data=_embedded(data),
        style=style,
        script=script,
        style_hash=hashed(style),
        script_hash=hashed(script),
    )
    return page


def _drawn(figure: Any, name: str) -> Drawing:
    with quiet_glyphs():
        return drawn_inline(figure, name)


@dataclass(frozen=True)
class _Curve:
    """The drawn strength curve, the place of each strength in it, and the ends of its axes from top to bottom."""

    drawing: Drawing
    places: list[float]
    ends: list[float]

    @classmethod
    def of(cls, report: Report, split: SplitReport, safe_band: Sequence[float] | None) -> _Curve:
        figure = plot_strength(report, safe_band=safe_band)
        drawing, axes = _drawn(figure, "curve"), figure.axes[0]  # where the axes are is known once they are drawn
        scale, box = drawing.width / figure.bbox.width, axes.get_window_extent()
        places = [round(scale * axes.transData.transform((p.strength, 0.0))[0], 1) for p in split.curve]
        return cls(drawing, places, [round(drawing.height - scale * y, 1) for y in (box.y1, box.y0)])


def _points(split: SplitReport, first: str, second: str, places: Sequence[float]) -> list[dict[str, Any]]:
    """The figures of each strength for the slider, and `x`, its place in the drawing."""
    return [
        {
            "name": strength_name(p.strength),
            "x": x,
            "up": p.reading(first, second).value,
            "down": p.reading(second, first).value,
            "quality": p.quality,
            "kl": p.kl,
            "nll": p.nll,
        }
        for p, x in zip(split.curve, places, strict=True)
    ]


@cache
def template(name: str) -> jinja2.Template:
    """Return a template of the folder `page`; what it writes is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"number": number, "percent": percent, "strength": strength_name, "ends": _ends}
    return environment.from_string(source(name))


@cache
def source(name: str) -> str:
    """Return the text of a file of the folder `page`."""
    return files("gradiend_hub.plots").joinpath("page").joinpath(name).read_text("utf-8")


def hashed(text: str) -> str:
    """Return the hash by which a page's security policy knows a style or script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in, whatever its texts hold."""
    text = json.dumps(_all_shown(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _all_shown(value: Any) -> Any:
    """A JSON value whose texts are all shown as `_shown` shows them."""
    if isinstance(value, dict):
        return {_shown(name): _all_shown(item) for name, item in value.items()}
    return [_all_shown(item) for item in value] if isinstance(value, (list, tuple)) else _shown(value)


def _shown(value: Any) -> Any:
    """Return what the template writes: plain text as `spelled_out`; marked-up text is of this module."""
    return spelled_out(value, lines=True) if type(value) is str else value


def _ends(ends: Sequence[float], between: str, scale: float = 1, digits: int = 3) -> str:
    return between.join(f"{scale * end:.{digits}f}" for end in ends)


def strength_name(strength: float) -> str:
    """Return a strength with three digits, more than which no one reads off a curve: `-1`, `0`, `+1.09`."""
    return f"{strength:+.3g}" if strength else "0"


def _word(word: object) -> str:
    """A filler as it is, or within quotation marks if a comma or a space could be taken for what stands between fillers."""
    return str(word) if re.fullmatch(r"[\w'’-]*\w[\w'’-]*", str(word)) else f"“{word}”"


def _completion(completion: Completion) -> dict[str, Any]:
    at = {
        strength_name(float(strength)): written
        if isinstance(written, str)
        else ", ".join(f"{_word(word)}\u00a0{float(chance):.2f}" for word, chance in written)
        for strength, written in completion.by_strength.items()
    }
    return {"text": completion.text, "at": at, "image": completion.image}


def _hardest(split: SplitReport, first: str) -> list[Encoding]:
    """The slots of both classes whose feature value is the furthest from what their class should have."""
    encoder = split.encoder
    of_classes = [s for s in encoder.encodings if s.kind in encoder.rows] if encoder else []
    return sorted(of_classes, key=lambda s: s.h if s.kind == first else -s.h)[:HARDEST]
