"""Pushing saved directions, data sets and Spaces: one commit or nothing; see `push`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from .local_files import UPLOADED
from .part import Part
from .patience import PushApi
from .push import Push, push_options

__all__ = ["publish_folder", "publish_folders"]


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload direction",
    create_pr: bool = False,
    allow_patterns: Sequence[str] | None = None,
    repo_type: str = "model",
    base_id: str | None = None,
    subfolder: str | None = None,
    tag: str | None = None,
    allow_unmeasured: bool = False,
    overwrite: bool = False,
) -> CommitInfo:
    """Push a saved direction to the Hub in one commit.

    The commit adds or replaces files. It removes those of a former direction at the same place that this one has not; a file
    of any other kind stays.

    The repository and the branch are created if they do not exist. Failures that may pass are retried with growing
    waits. Nothing is committed if the repository already holds these files, be it from an earlier push, or from an
    attempt whose answer was lost.

    A generated card is published with the repository's id in its code. The path of a base model on this machine is not
    published: name the base with `base_id`, or those who load the direction have to pass `base_model=`.

    A direction is looked at before the first request: what nobody could load is not sent. What others have put into the
    repository stays: text that was written around a generated card on the Hub, and its licence, tags and other metadata,
    go into the new card; a card that was written by hand or changed within, and a repository with something else than a
    direction, are refused.

    Args:
        folder: what `save_pretrained` wrote; it must contain `adapter_config.json`.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        token: access token; by default the one that the user logged in with.
        private: visibility of a new repository. True is refused for a repository that is public already.
        revision: branch to push to, by default `main`.
        commit_message: first line of the commit message.
        create_pr: open a pull request instead of committing to the branch.
        allow_patterns: glob patterns of the files to push, by default those that a direction consists of. Which others of
            the folder are left out is logged.
        repo_type: "model"; "dataset" for a folder of feature data; or "space" for one of gradio.
        base_id: repository of the base model, written into the published config and card together with its head commit;
            by default the one that the config names.
        subfolder: folder of the repository to push to, so that one repository can hold several directions; by default the
            repository itself.
        tag: name to give to the commit, e.g. "v1". A tag that exists already does not move.
        allow_unmeasured: publish a direction that has no report or no card, too.
        overwrite: replace a card that was edited on the Hub, and add to a repository with something else.

    Returns:
        The new commit, or the current head if there was nothing to do.

    Raises:
        HubPushError: nothing was committed. The message has the reason, the state of the repository, and the command
            that pushes the folder again.
    """
    return publish_folders(
        {subfolder: folder},
        repo_id,
        token=token,
        private=private,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
        allow_patterns=allow_patterns,
        repo_type=repo_type,
        base_id=base_id,
        tag=tag,
        allow_unmeasured=allow_unmeasured,
        overwrite=overwrite,
    )


def publish_folders(
    folders: Mapping[str | None, str | Path],
    repo_id: str,
    *,
    token: str | bool | None = None,
    commit_message: str = "Upload directions",
    allow_patterns: Sequence[str] | None = None,
    repo_type: str = "model",
    **options: Any,
) -> CommitInfo:
    """Push several saved directions to one repository, all in one commit.

    Args:
        folders: folder of the repository (`None` for the repository itself) to what `save_pretrained` wrote.
        **options: further ones of `publish_folder`, which has the other arguments, too.

    Raises:
        HubPushError: nothing was committed.
    """
    patterns = UPLOADED[repo_type] if allow_patterns is None else tuple(allow_patterns)
    of_push = push_options(options)
    parts = [
        Part(Path(folder), repo_id, repo_type, patterns, subfolder=subfolder, **options)
        for subfolder, folder in folders.items()
    ]
    return Push(PushApi(token=token), parts, repo_id, message=commit_message, repo_type=repo_type, **of_push).send()
