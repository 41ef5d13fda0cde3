"""A command tells its own story: what the libraries below would print beside it is kept away."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from huggingface_hub import utils as hub

from .console import Story


@contextmanager
def quiet(story: Story) -> Iterator[None]:
    """Inside, no progress bars but that of the story's step, and no notices of transformers below an error.

    Only libraries that the command has imported are asked: `info` needs neither transformers nor datasets.
    """
    with ExitStack() as inside:
        for library in filter(None, (hub, sys.modules.get("datasets"))):
            inside.enter_context(_without_bars(library))
        if "transformers" in sys.modules:
            from gradiend_hub.progress import listening

            inside.enter_context(_quiet_transformers())
            inside.enter_context(listening(story.count))
        yield


@contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    drawn = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            library.enable_progress_bars()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
