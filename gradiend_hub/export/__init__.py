"""Directions for programs that know nothing of this package."""

from __future__ import annotations

from .lora import LoraExport, to_lora

__all__ = ["LoraExport", "to_lora"]
