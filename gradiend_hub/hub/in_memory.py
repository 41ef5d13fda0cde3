"""Pushing what is in memory: written to a folder first, which stays where the push fails."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from huggingface_hub import CommitInfo
from safetensors import SafetensorError

from gradiend_hub.errors import HubPushError, first_line

from .publish import publish_folders
from .push import refusal

__all__ = ["push_direction", "push_written", "removed_when_sent"]

_CARD: Final = "gradiend_hub.cards:write_card"
"""Writes a card; a name, since cards are built upon this package."""


@contextmanager
def removed_when_sent(folder: Path) -> Iterator[None]:
    """Remove a temporary folder at the end of the block; one that could not be pushed stays, since the error names it."""
    try:
        yield
    except HubPushError:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def push_written(write: Callable[[Path], Mapping[str | None, Path]], repo_id: str, **options: Any) -> CommitInfo:
    """Write directions to a temporary folder, and push them in one commit.

    Args:
        write: is given the folder, and returns which of its folders goes to which one of the repository.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        **options: of `publish_folders`.

    Raises:
        HubPushError: nothing was committed; the message names the folder where the artifact is kept, if it could be written.
    """
    if refused := refusal(repo_id, options.get("base_id")):
        raise HubPushError(f"Could not push to {repo_id}: {refused}.\nNothing was written or sent.")
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="gradiend-"))
        folders = write(folder)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) and not isinstance(error, HubPushError):
            raise HubPushError(
                f"Could not push to {repo_id}: the direction cannot be written to {folder or tempfile.gettempdir()} "
                f"({first_line(error)}). Nothing was sent. Make room there, or name another place with TMPDIR."
            ) from error
        raise
    with removed_when_sent(folder):
        return publish_folders(folders, repo_id, **options)


def push_direction(
    direction: Any, repo_id: str, config: Any, *, subfolder: str | None = None, **options: Any
) -> CommitInfo:
    """Publish a direction that is in memory, with a card; see `Direction.push_to_hub`."""

    def write(folder: Path) -> dict[str | None, Path]:
        direction.save(folder, dtype=config.dtype)
        own = config.replaced(parameters=direction.spec(), has_bias=direction.has_bias)
        own.origin = None  # the files beside another direction are not of this one
        own.save_pretrained(str(folder))
        resolve_name(_CARD)(folder)
        return {subfolder: folder}

    return push_written(write, repo_id, **options)
