"""One line of progress for a push or a load, in place of the bars that the Hub's client draws for each file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from gradiend_hub.printable import printable

_TICK_SECONDS = 0.5


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Within the block, a line says what is done and for how long, once that takes a second; the client draws no bars.

    Where its bars are switched off (HF_HUB_DISABLE_PROGRESS_BARS=1, `disable_progress_bars`), there is no line either.

    Args:
        what: e.g. "Uploading 12 files to alice/plural".
    """
    hidden = are_progress_bars_disabled()
    switch = not hidden and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if switch:
        disable_progress_bars()
    ended = threading.Event()
    with tqdm(desc=printable(what), bar_format="{desc} ({elapsed})", delay=1.0, leave=False, disable=hidden) as line:

        def tick() -> None:
            while not ended.wait(_TICK_SECONDS):
                line.update(0)
                line.refresh()

        ticking = threading.Thread(target=tick, daemon=True)
        if not hidden:
            ticking.start()
        try:
            yield
        finally:
            ended.set()
            if not hidden:
                ticking.join()
            if switch:
                enable_progress_bars()
