"""Pushing what is in memory: written to a folder first, which stays where the push fails."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from huggingface_hub import CommitInfo
from safetensors import SafetensorError

from gradiend_hub.errors import HubPushError, first_line

from .publish import publish_folders
from .push import refusal

_CARD: Final = "gradiend_hub.cards:write_card"
"""Writes a card; a name, since cards are built upon this package."""


def push_written(
    write: Callable[[Path], Any], repo_id: str, *, publish: Callable[..., CommitInfo] = publish_folders, **options: Any
) -> CommitInfo:
    """Write to a temporary folder what is in memory, and push it in one commit. The folder stays if that fails.

    Args:
        write: is given the folder, and returns what `publish` takes: by default, which of its folders goes to which one of
            the repository.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        publish: pushes what was written.
        **options: of `publish`.

    Raises:
        HubPushError: nothing was committed; the message names the folder where everything is kept, if it could be written.
    """
    if refused := refusal(repo_id, options.get("base_id")):
        raise HubPushError(f"Could not push to {repo_id}: {refused}.\nNothing was written or sent.")
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="gradiend-"))
        written = write(folder)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) and not isinstance(error, HubPushError):
            raise HubPushError(
                f"Could not push to {repo_id}: what is pushed cannot be written to {folder or tempfile.gettempdir()} "
                f"({first_line(error)}). Nothing was sent. Make room there, or name another place with TMPDIR."
            ) from error
        raise
    try:
        commit = publish(written, repo_id, **options)
    except HubPushError:
        raise  # it names the folder
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return commit


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
