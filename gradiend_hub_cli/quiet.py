"""A command tells its own story: what the libraries below would print beside it is kept away."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .console import Story


@contextmanager
def quiet(story: Story) -> Iterator[None]:
    """Inside, no progress bars but that of the story's step, and no notices of transformers below an error.

    Only libraries that the command has imported are asked: `info` needs neither transformers nor datasets.
    """
    transformers, datasets = sys.modules.get("transformers"), sys.modules.get("datasets")
    hub_bars = not are_progress_bars_disabled()
    data_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    disable_progress_bars()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        if transformers is None:
            yield
        else:
            with _quiet_transformers(), _listening(story):
                yield
    finally:
        if data_bars and datasets is not None:
            datasets.enable_progress_bars()
        if hub_bars:
            enable_progress_bars()


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


@contextmanager
def _listening(story: Story) -> Iterator[None]:
    from gradiend_hub.progress import listening

    with listening(story.count):
        yield
