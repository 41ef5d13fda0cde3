"""A callback that tells a story how far a training is."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradiend_hub import GradiendTrainer

from .console import Story


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Tells a story how far the training is."""

    def __init__(self, story: Story, *, keep_log: bool) -> None:
        self._story = story
        self._keep_log = keep_log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._story.count("step", state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given.get("logs") or {}
        if self._keep_log and "loss" in logs:
            text = f"  step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}"
            self._story.say(text, style="dim")


def follow(trainer: GradiendTrainer, story: Story, *, keep_log: bool = False) -> None:
    """Let `story` show the progress of `trainer`, instead of the dictionaries that it would print.

    Args:
        keep_log: also print a line for every logged loss.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Follower(story, keep_log=keep_log))
