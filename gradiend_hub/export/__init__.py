"""Directions for programs that know nothing of this package."""

from __future__ import annotations

from .lora import LoraExport, Loras, as_loras, to_lora, write_loras
from .task_vector import TaskVectorExport, to_task_vector

__all__ = ["LoraExport", "Loras", "TaskVectorExport", "as_loras", "to_lora", "to_task_vector", "write_loras"]
