"""Directions for programs that know nothing of this package."""

from __future__ import annotations

from .lora import LoraExport, Loras, as_loras, to_lora, write_loras

__all__ = ["LoraExport", "Loras", "as_loras", "to_lora", "write_loras"]
