"""Feature directions of language models as PEFT-style adapters on the Hugging Face Hub.

Importing this package registers the PEFT method "GRADIEND", so that plain PEFT and transformers load directions, too.
It costs next to nothing: PEFT is told as soon as it is imported, and a name of this package is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import attach
from .registration import import_after

if TYPE_CHECKING:
    from .artifact.config import GradiendConfig
    from .artifact.direction import Direction
    from .errors import GradiendError
    from .model import GradiendModel
    from .training import GradiendTrainer, GradiendTrainingArguments

__version__ = "0.2.0"

__all__ = [
    "Direction",
    "GradiendConfig",
    "GradiendError",
    "GradiendModel",
    "GradiendTrainer",
    "GradiendTrainingArguments",
    "__version__",
]

__getattr__, __dir__ = attach(__name__, __file__)

# In two steps: when a configuration is what imports PEFT, the adapter can be imported only after it.
import_after("peft", "gradiend_hub.artifact.config")
import_after("gradiend_hub.artifact.config", "gradiend_hub.adapter")
