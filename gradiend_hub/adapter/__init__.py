"""The PEFT method: importing this package registers GRADIEND directions with PEFT."""

from __future__ import annotations

from gradiend_hub.config import GRADIEND

from .layer import GradiendLayer
from .registration import register
from .tuner import GradiendTuner, gradiend_layers

__all__ = ["GRADIEND", "GradiendLayer", "GradiendTuner", "gradiend_layers", "register"]

register()
