"""Names that mean something on the Hub, where users of the Hub look for them; `artifact.names` tells them from paths."""

from __future__ import annotations

from pathlib import PurePosixPath

from gradiend_hub.artifact.names import hub_id, is_revision, shown_name

__all__ = ["hub_id", "is_inside", "is_revision", "shown_name"]


def is_inside(subfolder: str) -> bool:
    """Tell whether this is a plain relative path of folders, as a repository has them."""
    parts = PurePosixPath(subfolder).parts
    return bool(parts) and "/".join(parts) == subfolder and not subfolder.startswith("/") and ".." not in parts
