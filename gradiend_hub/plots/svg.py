"""A figure as SVG inside of an HTML page, whose style sheet and security policy hold for it."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES: Final = "samples"
"""Begins the `gid` of a line whose points are kept slots, `samples 3 5 8`: their numbers in the report."""

_STYLED: Final = re.compile(r"fill|stroke|opacity|text-anchor|font-size")


@dataclass(frozen=True)
class Drawing:
    """Markup within `<svg>`, which is safe to embed, and the size of its view box."""

    markup: str
    width: float
    height: float


def drawn_inline(figure: Figure, name: str = "figure") -> Drawing:
    """Draw a figure as markup for a page.

    A page without inline styles ignores `style=`, so each becomes attributes of presentation. Ids and clip paths would have
    to be unique in the page, and go. Every point of a `SAMPLES` line gets its number as `data-sample`.

    Args:
        name: of the figure in its page; the ids that stay, those of markers, depend on it.
    """
    from matplotlib import rc_context

    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"gradiend_hub {name}"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _name(child) in ("metadata", "style", "clipPath"):
                parent.remove(child)
    for group in root.iter():
        kind, _, numbers = group.get("id", "").partition(" ")
        if kind == SAMPLES:
            points = [part for part in group.iter() if _name(part) == "use"]
            for point, number in zip(points, numbers.split(), strict=True):
                point.set("class", "point")
                point.set("data-sample", number)
    for element in root.iter():
        _embed(element)
    width, height = (size * 72 for size in figure.get_size_inches())
    return Drawing("".join(ElementTree.tostring(child, "unicode") for child in root), width, height)


def _name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace, which HTML does not have."""
    return element.tag.rpartition("}")[2]


def _embed(element: ElementTree.Element) -> None:
    """Make an element of an SVG file one of an HTML page."""
    element.tag, element.tail = _name(element), None
    given = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    element.attrib.clear()
    style = dict(part.split(": ", 1) for part in given.pop("style", "").split("; ") if ": " in part)
    if size := re.search(r"[\d.]+px", style.pop("font", "")):  # matplotlib up to 3.9
        style["font-size"] = size[0]
    is_marker = element.tag == "path" and re.fullmatch("m[0-9a-f]+", given.get("id", ""))
    if not is_marker:  # a marker looks as the element that uses it says, so that the page can highlight it
        given.pop("id", None)
        given |= {name: value for name, value in style.items() if _STYLED.match(name)}
    given.pop("clip-path", None)
    if "d" in given:
        given["d"] = " ".join(given["d"].split())
    element.attrib.update(given)
