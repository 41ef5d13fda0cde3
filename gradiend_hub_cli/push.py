"""`push` and `collection`: saved directions, and merged models, on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from gradiend_hub.errors import ConfigError
from gradiend_hub.hub.collections import add_to_collection
from gradiend_hub.hub.publish import (
    directions_in,
    is_rewritten,
    publish_directions,
    publish_folder,
    publish_rewritten,
)

from .console import Story, on_interrupt
from .quiet import quiet
from .sharing import PushOptions


def push_direction(folder: Path, repo_id: str, options: dict[str, Any], story: Story) -> dict[str, Any]:
    """Publish a folder in one commit, and print where it is.

    Args:
        options: of `publish_folder`; without "commit_message", what is pushed decides.

    Raises:
        HubPushError: the upload failed; the message says how to repeat it.
    """
    publish = publish_rewritten if is_rewritten(folder) else publish_folder
    return publish_by(publish, folder, repo_id, options, story)


def publish_by(
    publish: Callable[..., CommitInfo], folder: Path, repo_id: str, options: dict[str, Any], story: Story
) -> dict[str, Any]:
    """Publish a folder by a function of the library, print where it is, and return it."""
    kept = on_interrupt("The folder is as it was. To run the command again is safe.")
    with kept, quiet(story), story.step("Push", told=False):
        commit = publish(folder, repo_id, **options)
    story.show(f"Published {folder}: {commit.pr_url or commit.commit_url}", soft_wrap=True)
    told = {"commit": commit.oid, "url": commit.commit_url, "pull_request": commit.pr_url}
    return {"folder": folder, "repo_id": repo_id, **told}


def push_any(folder: Path, repo_id: str, options: PushOptions, collection: str | None, story: Story) -> dict[str, Any]:
    """Publish a direction, a merged model, or all directions of a folder, and print where they are.

    Raises:
        ConfigError: an option is of a single direction.
        HubPushError: one could not be pushed; the message says which were.
    """
    given = {name: value for name, value in asdict(options).items() if value is not None}
    given["private"] = options.private or None
    if collection is None and not directions_in(folder):
        return push_direction(folder, repo_id, given, story)
    if "subfolder" in given:
        raise ConfigError("--subfolder is of one direction; the folders of these are called by their names.")
    kept = on_interrupt("What was pushed is published. To run the command again is safe.")
    with kept, quiet(story), story.step("Push", told=False):
        done = publish_directions(folder, repo_id, collection=collection, **given)
    for place, commit in done.items():
        story.show(f"Published {place}: {commit.pr_url or commit.commit_url}", soft_wrap=True)
    return {
        "folder": folder,
        "repo_id": repo_id,
        "collection": collection,
        "directions": {place: commit.oid for place, commit in done.items()},
    }


def extend_collection(
    collection: str, repo_ids: Sequence[str], note: str | None, private: bool, story: Story
) -> dict[str, Any]:
    """Add repositories to a collection of the Hub, and print where it is.

    Raises:
        ConfigError: an id is none.
        HubPushError: the Hub refuses, or cannot be reached.
    """
    with quiet(story), story.step("Add", told=False):
        found = add_to_collection(collection, repo_ids, note=note, private=private)
    story.show(f"{len(found.added)} added, {len(found.present)} there already: {found.url}", soft_wrap=True)
    return asdict(found)
