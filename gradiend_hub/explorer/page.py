"""The explorer's page, of gradio. It keeps nothing of a visit: every event carries its text and strengths."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gradiend_hub.errors import GradiendError
from gradiend_hub.lazy import require

from . import view
from .asking import Explorer

logger = logging.getLogger(__name__)


def require_gradio() -> Any:
    """Import gradio.

    Raises:
        MissingLibraryError: It is not installed.
    """
    return require("gradio", "The explorer")


def build_page(explorer: Explorer) -> Any:
    """Make the page: a `gradio.Blocks`, to be launched with `launch_options()`.

    Raises:
        MissingLibraryError: gradio is not installed.
    """
    gr = require_gradio()
    names = list(explorer.configs)

    def show(value: Any, *at: float) -> list[str]:
        return _shown(explorer, _uploaded(value) if explorer.pictures else value, dict(zip(names, at, strict=True)))

    def read(value: Any) -> str:
        return _read(explorer, value)

    def back() -> list[float]:
        return [0.0] * len(names)

    with gr.Blocks(title="gradiend-hub explore", analytics_enabled=False) as page:
        gr.Markdown("# What a direction does\nMove a slider: to the right, the first class becomes likelier.")
        if explorer.pictures:
            given = gr.Image(label="Image", elem_id="input", sources=["upload", "clipboard"])
        else:
            slot = " [MASK] stands where the word is to be guessed." if explorer.needs_slot else ""
            given = gr.Textbox(
                explorer.first_input(),
                label="Text",
                info=f"Press Enter to ask.{slot}",
                max_length=5000,
                elem_id="input",
            )
        sliders = []
        for number, name in enumerate(names):
            low, high = explorer.range(name)
            first, second = explorer.classes(name)
            label = f"{name}: {second} (−) to {first} (+)"
            start = min(max(explorer.configs[name].strength, low), high) if len(names) == 1 else 0.0
            sliders.append(gr.Slider(low, high, start, step=0.05, label=label, elem_id=f"strength-{number}"))
        with gr.Row():
            zero = gr.Button("All to 0", elem_id="zero")
            reads = None if explorer.pictures else gr.Button("Read feature values word by word", elem_id="read")
        outputs = [gr.HTML(elem_id=part) for part in ("notice", "answers", "curves")]
        events = [page.load, *(slider.release for slider in sliders), *(slider.change for slider in sliders)]
        events.append(given.change if explorer.pictures else given.submit)
        # an image comes as a file that nobody has opened yet: one that is none is answered as any other bad input
        options = {"show_progress": "hidden", "trigger_mode": "always_last", "preprocess": not explorer.pictures}
        gr.on(events, show, [given, *sliders], outputs, api_name="ask", **options)
        zero.click(back, None, sliders, api_visibility="private")
        if reads is not None:
            values = gr.HTML(elem_id="values")
            reads.click(read, [given], [values], api_name="values", show_progress="minimal")
    return page


def launch_options() -> dict[str, Any]:
    """Return arguments for `launch` of the page: its look, and nothing that is fetched from elsewhere."""
    gr = require_gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")  # of enough contrast
    return {"theme": theme, "css": view.CSS, "head": view.HEAD, "footer_links": [], "max_file_size": "8mb"}


def _uploaded(image: dict[str, Any] | None) -> bytes | None:
    """Return the bytes of a file that a visitor has uploaded; what it holds is checked by whoever reads it."""
    return Path(image["path"]).read_bytes() if image and image.get("path") else None


def _shown(explorer: Explorer, value: Any, strengths: dict[str, float]) -> list[str]:
    """Notices, answers and curves, as HTML. An input that cannot be read says why, and the curves stay."""
    curves = "".join(
        view.curve(name, explorer.reports.get(name), explorer.classes(name), explorer.configs[name].safe_band, at)
        for name, at in strengths.items()
    )
    try:
        base, edited = explorer.ask(value, strengths)
        remarks = explorer.remarks(value, strengths)
        return [view.notice(remarks), view.answers(base, edited, strengths), curves]
    except GradiendError as error:
        return [view.notice([str(error)]), "", curves]
    except Exception:
        logger.exception("A question could not be answered.")
        said = "This could not be answered. Try another text; the explorer's terminal says more."
        return [view.notice([said]), "", curves]


def _read(explorer: Explorer, text: Any) -> str:
    parts = []
    for name in explorer.configs:
        try:
            parts.append(view.words(explorer.values(text or "", name), explorer.classes(name)))
        except GradiendError as error:
            parts.append(view.notice([str(error)]))
    return "".join(parts)
