"""A command tells its own story: what the libraries below would print beside it is kept away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from gradiend_hub import GradiendTrainer

from .console import Step

__all__ = ["follow", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no progress bars, and no notices of transformers below an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    data_bars, hub_bars = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()
        if not hub_bars:
            enable_progress_bars()


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Tells a step of the story how far the training is."""

    def __init__(self, step: Step, *, keep_log: bool) -> None:
        self._step = step
        self._keep_log = keep_log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._step.progress(f"step {state.global_step} of {state.max_steps}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: object,
    ) -> None:  # fmt: skip
        if self._keep_log and logs and "loss" in logs:
            text = f"  step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}"
            self._step.status.console.print(text, style="dim")


def follow(trainer: GradiendTrainer, step: Step, *, keep_log: bool = False) -> None:
    """Let `step` show the progress of `trainer`, instead of the dictionaries that it would print.

    Args:
        keep_log: also print a line for every logged loss.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Follower(step, keep_log=keep_log))
