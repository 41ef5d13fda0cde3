"""`push`: a saved direction, or a merged model, on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from gradiend_hub.errors import ConfigError
from gradiend_hub.hub.publish import publish_folder
from gradiend_hub.hub.rewritten import is_rewritten, publish_rewritten
from gradiend_hub.hub.several import directions_in, publish_directions

from .console import Story, on_interrupt
from .quiet import quiet

__all__ = ["directions_in", "published", "push_direction", "push_directions"]


def push_direction(folder: Path, repo_id: str, options: dict[str, Any], story: Story) -> dict[str, Any]:
    """Publish a folder in one commit, and print where it is.

    Args:
        options: of `publish_folder`; without "commit_message", what is pushed decides.

    Raises:
        HubPushError: the upload failed; the message says how to repeat it.
    """
    kept = on_interrupt("The folder is as it was. To run the command again is safe.")
    with kept, quiet(story), story.step("Push", told=False):
        given = {name: value for name, value in options.items() if name != "commit_message" or value is not None}
        publish = publish_rewritten if is_rewritten(folder) else publish_folder
        commit = publish(folder, repo_id, **given)
    return published(folder, repo_id, commit, story)


def published(folder: Path, repo_id: str, commit: CommitInfo, story: Story) -> dict[str, Any]:
    """Print where a folder was published, and return it."""
    story.show(f"Published {folder}: {commit.pr_url or commit.commit_url}", soft_wrap=True)
    told = {"commit": commit.oid, "url": commit.commit_url, "pull_request": commit.pr_url}
    return {"folder": folder, "repo_id": repo_id, **told}


def push_directions(
    folder: Path, repo_id: str, collection: str | None, options: dict[str, Any], story: Story
) -> dict[str, Any]:
    """Publish all directions of a folder, and print where they are; see `publish_directions`.

    Raises:
        ConfigError: an option is of a single direction.
        HubPushError: one could not be pushed; the message says which were.
    """
    given = {name: value for name, value in options.items() if value is not None}
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
