"""Feature directions of language models as PEFT-style adapters on the Hugging Face Hub.

Importing this package registers the PEFT method "GRADIEND", so that plain PEFT and transformers load directions, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction

from . import adapter as adapter  # registers the PEFT method
from .errors import GradiendError
from .model import GradiendModel

if TYPE_CHECKING:
    from .training import GradiendTrainer, GradiendTrainingArguments

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


def _self_test(model: GradiendModel, folder: Path) -> Any:
    from .evaluation.selftest import verify

    return verify(model, folder)


GradiendModel.self_test = _self_test


def __getattr__(name: str) -> Any:
    """Training pulls in `transformers.Trainer` and `datasets`; loading a direction needs neither."""
    if name not in ("GradiendTrainer", "GradiendTrainingArguments"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import training

    return getattr(training, name)
