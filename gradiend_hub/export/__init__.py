"""Directions for programs that know nothing of this package, and from one."""

from __future__ import annotations

from .gradiend_package import import_gradiend, read_gradiend_folder
from .lora import LoraExport, Loras, as_loras, to_lora, write_loras
from .task_vector import TaskVectorExport, to_task_vector

__all__ = [
    "LoraExport",
    "Loras",
    "TaskVectorExport",
    "as_loras",
    "import_gradiend",
    "read_gradiend_folder",
    "to_lora",
    "to_task_vector",
    "write_loras",
]
