"""A page on which people move directions of a real model and see what it says."""

from __future__ import annotations

from .asking import Explorer, Shown, Word
from .page import build_page, launch_options, require_gradio
from .space import push_space, space_files

__all__ = ["Explorer", "Shown", "Word", "build_page", "launch_options", "push_space", "require_gradio", "space_files"]
