"""Directions for programs that know nothing of this package, and from one."""

from __future__ import annotations

from .gguf_lora import to_gguf_lora
from .gradiend_package import import_gradiend, read_gradiend_folder
from .lora import AdapterExport, Loras, as_loras, to_lora, vllm_rank, write_loras
from .shira import to_shira
from .task_vector import TaskVectorExport, to_task_vector

__all__ = [
    "AdapterExport",
    "Loras",
    "TaskVectorExport",
    "as_loras",
    "import_gradiend",
    "read_gradiend_folder",
    "to_gguf_lora",
    "to_lora",
    "to_shira",
    "to_task_vector",
    "vllm_rank",
    "write_loras",
]
