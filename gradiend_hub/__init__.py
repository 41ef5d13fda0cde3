"""Feature directions of language models as PEFT-style adapters on the Hugging Face Hub.

Importing this package registers the PEFT method "GRADIEND", so that plain PEFT and transformers load directions, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import adapter as adapter  # registers the PEFT method
from .config import GradiendConfig
from .direction import Direction
from .errors import GradiendError
from .model import GradiendModel

if TYPE_CHECKING:
    from .trainer import GradiendTrainer
    from .training_args import GradiendTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "Direction",
    "GradiendConfig",
    "GradiendError",
    "GradiendModel",
    "GradiendTrainer",
    "GradiendTrainingArguments",
    "__version__",
]

_LAZY = {"GradiendTrainer": "trainer", "GradiendTrainingArguments": "training_args"}


def __getattr__(name: str) -> Any:
    """Training pulls in `transformers.Trainer` and `datasets`; loading a direction needs neither."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
