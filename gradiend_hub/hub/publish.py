"""Pushing saved directions, suites of them, merged models, data sets and Spaces: one commit or nothing; see `push`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import CommitInfo

from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE
from gradiend_hub.errors import ArtifactError, ConfigError, HubPushError
from gradiend_hub.printable import listed

from .collections import add_to_collection
from .local_files import UPLOADED
from .part import Part
from .patience import PushApi
from .push import Push, push_options

MODEL_CONFIG: Final = "config.json"
MODEL_FILES: Final = (
    MODEL_CONFIG,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*preprocessor_config.json",
    "processor_config.json",
    "chat_template.j*",
    CARD_FILE,
    "LICENSE",
)
"""What transformers writes for a model with its tokenizer or processor; nothing else of the folder is pushed."""


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


def directions_in(folder: str | Path) -> list[Path]:
    """The folders of directions in a folder that is neither one itself nor a model, in the order of their names.

    Checkpoints of a training are none.
    """
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).exists() for name in (CONFIG_FILE, MODEL_CONFIG)):
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


def is_rewritten(folder: str | Path) -> bool:
    """Tell whether a folder holds a whole model and no direction."""
    folder = Path(folder)
    return (folder / MODEL_CONFIG).is_file() and not (folder / CONFIG_FILE).exists()


def publish_rewritten(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    commit_message: str = "Upload rewritten model",
    **options: Any,
) -> CommitInfo:
    """Push a merged model with its card to the Hub in one commit; see `publish_folder`, which pushes directions so.

    Args:
        folder: what `gradiend-hub merge` wrote, with its card; without one nobody could tell what the model is.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        token: access token; by default the one that the user logged in with.
        commit_message: first line of the commit message.
        **options: `private`, `revision`, `create_pr`, `tag`, `subfolder` and `overwrite` of `publish_folder`.

    Raises:
        HubPushError: nothing was committed. The message says why, and how to repeat it.
    """
    of_push = push_options(options)
    part = _RewrittenPart(Path(folder), repo_id, "model", MODEL_FILES, **options)
    return Push(PushApi(token=token), [part], repo_id, message=commit_message, **of_push).send()


@dataclass
class _RewrittenPart(Part):
    """A model's files."""

    def check_config(self) -> None:
        missing = [name for name in (MODEL_CONFIG, CARD_FILE) if not (self.folder / name).is_file()]
        missing += [] if any(self.folder.glob("model*.safetensors")) else ["model*.safetensors"]
        if missing:
            raise ArtifactError(f"the folder is not a merged model with its card, it has no {' and no '.join(missing)}")
        if self.base_id is not None:
            raise ArtifactError("a merged model needs no other base model, so base_id is not for it")
