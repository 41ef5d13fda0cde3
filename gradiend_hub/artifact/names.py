"""Names that mean something on the Hub, and local paths, which do not."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.printable import is_printable

LONGEST = 96
"""Characters of a repository id; a file system refuses to look up names that are much longer."""


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a repository id; `None` for a local path, which means nothing to anybody else."""
    if not name or len(name) > LONGEST or Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def is_revision(name: str) -> bool:
    """Tell whether a name can be a branch, tag or commit: it becomes a part of addresses, and of paths in the cache."""
    return is_printable(name) and not {"", ".", ".."} & {*name.split("/")} and "\\" not in name


def shown_name(name: str | None) -> str:
    """The public name of a model: its Hub id, or the last part of a local path."""
    return hub_id(name) or Path(name or "unknown").name


def is_inside(subfolder: str) -> bool:
    """Tell whether this is a plain relative path of folders, as a repository has them."""
    parts = PurePosixPath(subfolder).parts
    return bool(parts) and "/".join(parts) == subfolder and not subfolder.startswith("/") and ".." not in parts
