"""The PEFT method: importing this package registers GRADIEND directions with PEFT."""

from __future__ import annotations

from gradiend_hub.artifact.config import GRADIEND

from .layer import GradiendLayer, gradiend_layers
from .registration import register
from .tuner import GradiendTuner

__all__ = ["GRADIEND", "GradiendLayer", "GradiendTuner", "gradiend_layers", "register"]

register()
