"""Which names mean something on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

__all__ = ["hub_id"]


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a repository id; `None` for a local path, which means nothing to anybody else."""
    if not name or Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
