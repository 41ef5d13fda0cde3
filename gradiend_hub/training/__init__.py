"""Learning a direction: the trainer and its arguments, and what a training consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradiend_hub.lazy import attach

if TYPE_CHECKING:
    from .args import GradiendTrainingArguments
    from .suite import DirectionSuite
    from .trainer import GradiendTrainer

__all__ = ["DirectionSuite", "GradiendTrainer", "GradiendTrainingArguments"]

__getattr__, __dir__ = attach(__name__, __file__)
