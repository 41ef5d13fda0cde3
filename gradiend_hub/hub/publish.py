"""Pushing a saved direction: one commit or nothing.

`upload_folder` of huggingface_hub may split a folder into several commits, and commits again when the answer to a
commit was lost. Here all files go into one `create_commit` on a known parent, and each attempt first looks whether the
repository already holds them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from gradiend_hub.artifact.files import (
    ARTIFACT_FILES,
    ASSETS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    LORA_FOLDER,
    PROBES_FILE,
    REPORTS_FOLDER,
    SUMMARY_FILE,
    require_within,
)
from gradiend_hub.artifact.validation import read_json
from gradiend_hub.errors import ArtifactError, HubPushError
from gradiend_hub.printable import listed

from .names import hub_id
from .patience import bounded, in_time
from .published import published_card, published_config, renewed_probes
from .retry import FAILURES, disk_error, is_silent, is_transient, summary, with_retries

__all__ = ["publish_folder", "refusal"]

logger = logging.getLogger(__name__)

UPLOADED: Final = {
    "model": (*ARTIFACT_FILES, f"{REPORTS_FOLDER}/*.json"),
    "dataset": ("*.json", "*.jsonl", CARD_FILE, "LICENSE"),
}
"""Files that are pushed unless the caller asks for others: those that a direction, or data that was built, consists of. Of
any other one in the folder, nobody knows what is in it."""

NOT_UPLOADED: Final = (".*", "*/.*", "checkpoint-*/*")
"""Never pushed: hidden files, and the checkpoints of a training run."""

_DEFAULT_BRANCH: Final = "main"
_UNKNOWN_STATE: Final = "The state of the repository is unknown; a repeated push finds out, and never commits twice."
_T = TypeVar("_T")


@dataclass(frozen=True)
class _File:
    """A file to push: where it is, its path in the repository, and its content if that is not the one on disk."""

    path: Path
    name: str
    content: bytes | None = None

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") if self.content is None else io.BytesIO(self.content) as content:
            return sha_fileobj(content).hex()

    def equals(self, remote: RepoFile) -> bool:
        """Return whether the repository has the same bytes. It names large files by sha256 and small ones as git does."""
        if remote.size != (self.path.stat().st_size if self.content is None else len(self.content)):
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == git_hash(self.path.read_bytes() if self.content is None else self.content)

    def addition(self) -> CommitOperationAdd:
        """A new operation for each attempt: used ones remember what the repository held before."""
        return CommitOperationAdd(self.name, self.path if self.content is None else self.content)


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
) -> CommitInfo:
    """Push a saved direction to the Hub in one commit that adds or replaces files and deletes none.

    The repository and the branch are created if they do not exist. Failures that may pass are retried with growing
    waits. Nothing is committed if the repository already holds these files, be it from an earlier push, or from an
    attempt whose answer was lost.

    A generated card is published with the repository's id in its code. The path of a base model on this machine is not
    published: name the base with `base_id`, or those who load the direction have to pass `base_model=`.

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
        repo_type: "model", or "dataset" for a folder of feature data.
        base_id: repository of the base model, written into the published config and card together with its head commit;
            by default the one that the config names.

    Returns:
        The new commit, or the current head if there was nothing to do.

    Raises:
        HubPushError: nothing was committed. The message has the reason, the state of the repository, and the command
            that pushes the folder again.
    """
    push = _Push(
        api=PushApi(token=token),
        folder=Path(folder),
        repo_id=repo_id,
        private=private,
        revision=revision,
        message=commit_message,
        create_pr=create_pr,
        patterns=UPLOADED[repo_type] if allow_patterns is None else tuple(allow_patterns),
        repo_type=repo_type,
        base_id=base_id,
    )
    push.check()
    return push.run()


class PushApi(HfApi):
    """The Hub's client, whose uploads of large files end: with the files stored, or with an error."""

    def preupload_lfs_files(self, repo_id: str, additions: Iterable[CommitOperationAdd], **options: Any) -> None:
        additions = list(additions)
        upload = super().preupload_lfs_files
        in_time(lambda: upload(repo_id, additions, **options), sum(addition.upload_info.size for addition in additions))


def refusal(repo_id: str, base_id: str | None = None) -> str | None:
    """Return why no push can begin, whatever the files are: an id that is none, or no network; else `None`."""
    for name in [repo_id, *([] if base_id is None else [base_id])]:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            return f"the repository id is not valid. {error}"
    return "this process is offline (HF_HUB_OFFLINE=1)" if is_offline_mode() else None


@dataclass
class _Push:
    """One push in progress."""

    api: HfApi
    folder: Path
    repo_id: str
    private: bool | None
    revision: str | None
    message: str
    create_pr: bool
    patterns: tuple[str, ...]
    repo_type: str
    base_id: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of `adapter_config.json`."""
    parent: str | None = None
    """Head of the branch when it was last read."""

    @property
    def branch(self) -> str:
        return self.revision or _DEFAULT_BRANCH

    @cached_property
    def files(self) -> list[_File]:
        names = [name for name in _names(self.folder) if not _matches(name, NOT_UPLOADED)]
        chosen = [name for name in names if _matches(name, self.patterns) and self._is_one(name)]
        known = {name.split("/")[0] for name in chosen}
        if left := {name if (top := name.split("/")[0]) in known else top for name in {*names} - {*chosen}}:
            logger.warning(f"Not published, since it is no part of a direction: {listed(sorted(left))}.")
        for name in (ASSETS_FOLDER, REPORTS_FOLDER, *chosen):
            try:
                require_within(self.folder / name, self.folder)
            except ArtifactError as error:
                raise self._failure(str(error).rstrip("."), "Nothing was sent.") from error
        return [_File(self.folder / name, name) for name in chosen]

    def _is_one(self, name: str) -> bool:
        """Tell whether a file is what its name says, where other files may have such a name."""
        if self.patterns is not UPLOADED["model"] or not name.startswith(f"{REPORTS_FOLDER}/"):
            return True
        try:
            report = read_json(self.folder / name, 2**24)
        except (OSError, ValueError):
            return False
        return isinstance(report, dict) and {"schema_version", "splits", "feature_classes"} <= report.keys()

    def check(self) -> None:
        """Find what is wrong without the Hub, before the first request."""
        if self.repo_type == "model":
            self._check_config()
        elif self.base_id is not None:
            raise self._failure("a data set has no base model, so base_id is not for it", "Nothing was sent.")
        if not self.files:
            raise self._failure(f"no file of the folder matches {', '.join(self.patterns)}", "Nothing was sent.")
        if reason := refusal(self.repo_id, self.base_id):
            raise self._failure(reason, "Nothing was sent.")

    def _check_config(self) -> None:
        try:
            self.config = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            reason = f"the folder is not a saved direction, it has no {CONFIG_FILE}"
            raise self._failure(reason, "Nothing was sent.") from error
        except (OSError, ValueError) as error:
            raise self._failure(f"{CONFIG_FILE} cannot be read: {error}", "Nothing was sent.") from error
        if not isinstance(self.config, dict):
            raise self._failure(f"{CONFIG_FILE} is not a JSON object", "Nothing was sent.")

    def run(self) -> CommitInfo:
        """Create what is missing, then commit."""
        is_private = self._try(self._create_repository)
        if self.private and not is_private:
            advice = "make it private in its settings, or push without asking for a private repository"
            raise self._failure(f"a private push was asked for, but it exists and is public; {advice}", self._state())
        self._try(self._create_branch)
        if self.repo_type == "model":
            self._name_what_is_published()
        known = self._try(self._pull_requests)
        return self._try(lambda: self._landed(known) or self._commit(), landed=lambda: self._landed(known))

    def _name_what_is_published(self) -> None:
        """Put the ids of the repository and of the base model into card and config, and no path of this machine."""
        contents: dict[str, str] = {}
        base, base_id, commit = self.config.get("base_model_name_or_path"), self.base_id, self.config.get("revision")
        if base_id is None and base is not None and hub_id(base) is None:
            logger.warning(
                f"{CONFIG_FILE} names the base model {base!r}, which is a path and no repository on the Hub, so it is not "
                "published. Others will have to pass `base_model=`. Publish the base model, too, and name it with "
                "`base_id=` (gradiend-hub push --base-id)."
            )
            contents[CONFIG_FILE] = published_config(self.config, None, commit)
        elif base_id is not None and base_id != base:
            commit = self._try(self._base_commit)
            contents[CONFIG_FILE] = published_config(self.config, base_id, commit)
            if (probes := self.folder / PROBES_FILE).is_file():
                contents[PROBES_FILE] = renewed_probes(probes.read_text(encoding="utf-8"), contents[CONFIG_FILE])
        if CONFIG_FILE in contents:
            for file in self.files:
                if file.name.startswith(f"{LORA_FOLDER}/") and file.name.endswith(CONFIG_FILE):
                    fields = json.loads(file.path.read_text(encoding="utf-8"))
                    contents[file.name] = published_config(fields, base_id, commit)
                elif file.name == SUMMARY_FILE:
                    said = json.loads(file.path.read_text(encoding="utf-8"))
                    named = {"base_model": base_id, "base_revision": commit}
                    contents[file.name] = json.dumps({**said, **named}, ensure_ascii=False) + "\n"
        if (card := self.folder / CARD_FILE).is_file():
            text = card.read_bytes().decode("utf-8", errors="surrogateescape")
            contents[CARD_FILE] = published_card(text, self.repo_id, base_id, commit)
        self.files = [
            replace(file, content=contents[file.name].encode("utf-8", errors="surrogateescape"))
            if file.name in contents
            else file
            for file in self.files
        ]

    def _base_commit(self) -> str | None:
        """Head commit of the base model's repository; `None`, with a warning, if this token does not see it."""
        assert self.base_id is not None
        try:
            return self.api.repo_info(self.base_id).sha
        except RepositoryNotFoundError:
            logger.warning(f"The base model {self.base_id} is not on the Hub, or this token does not see it.")
            return None

    def _try(self, action: Callable[[], _T], *, landed: Callable[[], _T | None] = lambda: None) -> _T:
        """Result of `action`, or of `landed` if the action failed for good but did its work; else HubPushError."""
        try:
            with bounded():
                return with_retries(action)
        except (*FAILURES, ValueError, OSError, LookupError) as error:
            state = None
            if is_transient(error) or is_silent(error):
                try:
                    with bounded():
                        done = landed()
                except FAILURES:
                    state = _UNKNOWN_STATE
                else:
                    if done is not None:
                        return done
            raise self._failure(_reason(error), state or self._state()) from error

    def _create_repository(self) -> bool:
        """Create the repository if it does not exist; whether it is private."""
        self.repo_id = self.api.create_repo(
            self.repo_id, private=self.private, exist_ok=True, repo_type=self.repo_type
        ).repo_id
        return bool(self.api.repo_info(self.repo_id, repo_type=self.repo_type).private)

    def _create_branch(self) -> None:
        if not self.create_pr and self.branch != _DEFAULT_BRANCH and not self.branch.startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True, repo_type=self.repo_type)

    def _landed(self, known_pull_requests: set[str]) -> CommitInfo | None:
        """The commit that holds our files, however the attempt that made it seemed to end."""
        self.parent = self._head(self.branch)
        if self._is_published(self.parent):
            logger.info(f"{self.repo_id} has these files at commit {self.parent}.")
            return self._commit_info(self.parent)
        for ref in sorted(self._pull_requests() - known_pull_requests):
            commit = self._head(ref)
            if self._is_published(commit):
                return self._commit_info(commit, pull_request=ref)
        return None

    def _commit(self) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id,
            [file.addition() for file in self.files],
            commit_message=self.message,
            revision=self.branch,
            create_pr=self.create_pr,
            # with its parent given, a commit that is sent twice lands once
            parent_commit=None if self.create_pr else self.parent,
            repo_type=self.repo_type,
        )

    def _head(self, revision: str) -> str:
        commit = self.api.repo_info(self.repo_id, revision=revision, repo_type=self.repo_type).sha
        assert commit is not None
        return commit

    def _is_published(self, commit: str) -> bool:
        """Return whether the commit holds every file with our content."""
        rows = self.api.get_paths_info(
            self.repo_id, [file.name for file in self.files], revision=commit, repo_type=self.repo_type
        )
        remote = {row.path: row for row in rows if isinstance(row, RepoFile)}
        return all(file.name in remote and file.equals(remote[file.name]) for file in self.files)

    def _pull_requests(self) -> set[str]:
        """Refs of all pull requests; not asked for when none is to be opened."""
        if not self.create_pr:
            return set()
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True, repo_type=self.repo_type)
        return {request.ref for request in refs.pull_requests or ()}

    def _commit_info(self, commit: str, pull_request: str | None = None) -> CommitInfo:
        page = f"{self.api.endpoint}/{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo_id}"
        number = pull_request.rsplit("/", 1)[-1] if pull_request else None
        # huggingface_hub 1 knows one endpoint, 2 is told
        endpoint = {"_endpoint": self.api.endpoint} if "_endpoint" in CommitInfo.__dataclass_fields__ else {}
        return CommitInfo(
            commit_url=f"{page}/commit/{commit}",
            commit_message=self.message,
            commit_description="",
            oid=commit,
            pr_url=f"{page}/discussions/{number}" if number else None,
            **endpoint,
        )

    def _state(self) -> str:
        """Say what the repository holds after a failure, as far as the Hub tells."""
        try:
            with bounded():
                head = self._head(self.branch)
        except RepositoryNotFoundError:
            return "Nothing was uploaded: the repository does not exist, or this token does not see it."
        except RevisionNotFoundError:
            return f"Nothing was committed: the repository has no branch {self.branch}."
        except FAILURES:
            return _UNKNOWN_STATE
        return f"Nothing was committed: {self.branch} of the repository is at {head[:8]}, without this push."

    def _failure(self, reason: str, state: str) -> HubPushError:
        if self.repo_type != "model":
            return HubPushError(f"Could not push to the data set {self.repo_id}: {reason}.\n{state} Push it again.")
        command = ["gradiend-hub", "push", str(self.folder), self.repo_id]
        command += ["--base-id", self.base_id] if self.base_id else []
        command += ["--private"] if self.private else []
        command += ["--revision", self.revision] if self.revision else []
        command += ["--create-pr"] if self.create_pr else []
        return HubPushError(
            f"Could not push {self.folder} to {self.repo_id}: {reason}.\n{state}\n"
            f"The files are kept in {self.folder}. To push them again: {shlex.join(command)}"
        )


def _names(folder: Path) -> list[str]:
    """Names of all files of a folder and the folders in it; links to folders are not followed, but they are named."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _reason(error: Exception) -> str:
    """Say why a push failed, in the user's terms."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"the Hub needs a valid token, log in with `hf auth login` ({summary(error)})"
    if status == 403:
        return f"the token may not write there ({summary(error)})"
    if (refused := disk_error(error)) is not None:
        return f"a file cannot be read or written here ({refused})"
    if isinstance(error, LookupError):
        return f"the Hub has sent an answer without what was asked for ({summary(error)})"
    if isinstance(error, ValueError) and status is None:
        return " ".join(str(error).split())
    return summary(error)
