"""Pushing the directions of a folder, as a suite writes them: into one repository, or one each with a collection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from gradiend_hub.artifact.files import CONFIG_FILE
from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.printable import listed

from .collections import add_to_collection
from .publish import publish_folder

__all__ = ["directions_in", "publish_directions"]


def directions_in(folder: str | Path) -> list[Path]:
    """The folders of directions in a folder that is neither one itself nor a model, in the order of their names.

    Checkpoints of a training are none.
    """
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).exists() for name in (CONFIG_FILE, "config.json")):
        return []
    found = (path for path in folder.iterdir() if not path.name.startswith((".", "checkpoint-")))
    return sorted(path for path in found if (path / CONFIG_FILE).is_file())


def publish_directions(
    folder: str | Path, repo_id: str, *, collection: str | None = None, private: bool | None = None, **options: Any
) -> dict[str, CommitInfo]:
    """Push every direction in a folder, each in one commit or none. What is there already is not committed again.

    Args:
        folder: what `DirectionSuite` wrote: a folder for each direction.
        repo_id: repository that gets them in folders of their names (`subfolder=`); with a collection, what the names of
            their own repositories begin with: "alice/number" gives "alice/number-3SG-3PL".
        collection: slug or title of a collection that gets these repositories.
        private: visibility of new repositories, and of a new collection.
        **options: further ones of `publish_folder`.

    Returns:
        The commit of each, by the repository, or the folder in it.

    Raises:
        ConfigError: there is no direction in the folder, or two would have one name.
        HubPushError: one could not be pushed, or not be added; those before it are published, and to repeat is safe.
    """
    found = directions_in(folder)
    if not found:
        raise ConfigError(f"There is no direction in {folder}: expected folders with an {CONFIG_FILE}.")
    names = {path: re.sub(r"[^\w.-]+|--+|\.\.+", "-", path.name).strip("-.") for path in found}
    if len({*names.values()}) < len(found):
        raise ConfigError(f"Two folders of {folder} would have the same name on the Hub: {listed(names.values())}.")
    done: dict[str, CommitInfo] = {}
    for path, name in names.items():
        place: dict[str, Any] = {} if collection is not None else {"subfolder": name}
        where = f"{repo_id}-{name}" if collection is not None else repo_id
        try:
            commit = publish_folder(path, where, private=private, **place, **options)
        except HubPushError as error:
            before = f" Published before that: {listed(done)}." if done else ""
            raise HubPushError(f"{error}{before}") from error
        done[where if collection is not None else f"{repo_id}/{name}"] = commit
    if collection is not None:
        token = options.get("token")
        add_to_collection(collection, list(done), private=bool(private), token=token)
    return done
