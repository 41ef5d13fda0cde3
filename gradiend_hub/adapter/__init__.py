"""The PEFT method: importing this package registers GRADIEND directions with PEFT."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import register_peft_method

from gradiend_hub.artifact.config import GRADIEND, GradiendConfig

from .layer import GradiendLayer, gradiend_layers
from .older_releases import ask_the_tuner
from .tuner import GradiendTuner

__all__ = ["GRADIEND", "GradiendLayer", "GradiendTuner", "gradiend_layers", "register"]


def register() -> None:
    """Register GRADIEND with PEFT; a second call does nothing."""
    if GRADIEND not in PEFT_TYPE_TO_CONFIG_MAPPING:
        ask_the_tuner()
        register_peft_method(name="gradiend", config_cls=GradiendConfig, model_cls=GradiendTuner, prefix="gradiend_")


register()
