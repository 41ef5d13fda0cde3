"""The Hugging Face Hub: pushing a direction in one commit, and finding its files again."""

from __future__ import annotations

from .publish import publish_folder
from .resolve import ResolvedRepo, resolve_folder
from .search import FoundDirection, search_directions

__all__ = ["FoundDirection", "ResolvedRepo", "publish_folder", "resolve_folder", "search_directions"]
