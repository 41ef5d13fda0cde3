"""Learning a direction: the trainer and its arguments, and what a training consists of."""

from __future__ import annotations

from .args import GradiendTrainingArguments
from .trainer import GradiendTrainer

__all__ = ["GradiendTrainer", "GradiendTrainingArguments"]
