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
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from gradiend_hub.artifact.files import HTML_FILE
from gradiend_hub.evaluation import Completion, Report, SplitReport
from gradiend_hub.evaluation.control import CONTROL_ROWS, CONTROL_TOKENS

from .drawing import draw_cloud, draw_curve
from .style import shown_split

__all__ = ["render_html", "save_html"]

HARDEST = 12


def save_html(
    report: Report, folder: str | Path, *, base: str = "its base model", safe_band: Sequence[float] | None = None
) -> Path:
    """Write `report.html` into a folder; arguments as of `render_html`."""
    path = Path(folder, HTML_FILE)
    path.write_text(render_html(report, base=base, safe_band=safe_band), encoding="utf-8")
    return path


def render_html(report: Report, *, base: str = "its base model", safe_band: Sequence[float] | None = None) -> str:
    """The interactive page of a measured report.

    Args:
        base: what the page calls the base model.
        safe_band: `GradiendConfig.safe_band`, shaded.

    Raises:
        ConfigError: nothing was measured.
    """
    name, split = shown_split(report)
    first, second = report.feature_classes
    curve = draw_curve(split, first, second, safe_band)
    rows = _rows(split, first, second)
    completions = [_completion(completion) for completion in split.completions]
    samples = split.encoder.encodings if split.encoder else []
    parts = {file: _source(file) for file in ("report.css", "report.js")}
    data = {
        "samples": [{"text": s.text, "output": s.output, "kind": s.kind, "h": s.h} for s in samples],
        "curve": [{**row, "x": curve["at"][row["name"]]} for row in rows] if curve else [],
        "completions": completions,
        "probabilities": [
            {"key": "up", "name": f"P({first}) on {second} rows", "look": "first"},
            {"key": "down", "name": f"P({second}) on {first} rows", "look": "second"},
        ],
    }
    page: str = _template().render(
        first=first, second=second, base=base, split_name=name, encoder=split.encoder, samples=samples,
        curve=curve, curve_rows=rows, start=next((i for i, row in enumerate(rows) if row["name"] == "0"), 0),
        has_control=bool(split.control), controls=len(split.control), control_rows=CONTROL_ROWS,
        control_tokens=CONTROL_TOKENS, safe_band=safe_band, missing=split.missing,
        breaks=[side for side in split.break_point or [] if side is not None],
        cloud=draw_cloud(split, [first, second]), completions=completions,
        written_at=[name for name in ("-1", "0", "+1") if any(name in c["at"] for c in completions)],
        hardest=_hardest(split, first),
        data=_embedded(data), style=parts["report.css"], script=parts["report.js"],
        style_hash=_hash(parts["report.css"]), script_hash=_hash(parts["report.js"]),
    )  # fmt: skip
    return page


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda v, digits=3: "not measured" if v is None else f"{v:.{digits}f}"
    environment.filters["percent"] = lambda v: "not measured" if v is None else f"{100 * v:.2f} %"
    environment.filters["strength"] = strength_name
    environment.filters["ends"] = _ends
    return environment.from_string(_source("report.html.jinja"))


@cache
def _source(name: str) -> str:
    return files("gradiend_hub.plots").joinpath("page").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in, whatever its texts hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def strength_name(strength: float) -> str:
    """`-1`, `0`, `+0.5`, and refined strengths with three digits."""
    return f"{strength:+.3g}" if strength else "0"


def _ends(ends: Sequence[float], between: str, scale: float = 1, digits: int = 3) -> str:
    return between.join(f"{scale * end:.{digits}f}" for end in ends)


def _rows(split: SplitReport, first: str, second: str) -> list[dict[str, Any]]:
    return [
        {
            "name": strength_name(p.strength), "up": p.probability.get(second, {}).get(first),
            "down": p.probability.get(first, {}).get(second), "quality": p.quality, "kl": p.kl, "nll": p.nll,
            "intervals": {
                "up": p.intervals.get(f"{first} on {second}"), "down": p.intervals.get(f"{second} on {first}"),
                "quality": p.intervals.get("quality"), "kl": p.intervals.get("kl"),
            },
            "control": {
                "up": _control(split, p.strength, first, second), "down": _control(split, p.strength, second, first),
            },
        }
        for p in split.curve
    ]  # fmt: skip


def _control(split: SplitReport, strength: float, wanted: str, other: str) -> list[float] | None:
    """Lowest and highest probability under the random directions at a strength; `None` if they were not read there."""
    points = [p for drawn in split.control for p in drawn if p.strength == strength]
    values = [p.probability[other][wanted] for p in points if wanted in p.probability.get(other, {})]
    return [min(values), max(values)] if values else None


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
    return {"text": completion.text, "at": at}


def _hardest(split: SplitReport, first: str) -> list[Any]:
    """Batch of both classes whose feature value is the furthest from what their class should have."""
    encoder = split.encoder
    of_classes = [s for s in encoder.encodings if s.kind in encoder.rows] if encoder else []
    return sorted(of_classes, key=lambda s: s.h if s.kind == first else -s.h)[:HARDEST]
