"""One push in progress: its files go into one commit on a known parent, and each attempt first looks whether they landed.

`upload_folder` of huggingface_hub may split a folder into several commits, and commits again when the answer to a commit was
lost.
"""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, TypeVar

from huggingface_hub import CommitInfo, CommitOperationDelete, HfApi, is_offline_mode
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.artifact.files import CONFIG_FILE, REPORTS_FOLDER
from gradiend_hub.errors import ArtifactError, GradiendError, HubPushError

from .local_files import LocalFile
from .one_line import one_line
from .part import Part
from .patience import bounded
from .retry import FAILURES, is_silent, is_transient, reason, with_retries

logger = logging.getLogger(__name__)

_DEFAULT_BRANCH: Final = "main"
_PAGES: Final = {"dataset": "datasets/", "space": "spaces/"}
_UNKNOWN_STATE: Final = "The state of the repository is unknown; a repeated push finds out, and never commits twice."
_WITH_MEASUREMENTS: Final = "gradiend_hub.cards.refresh:with_measurements"
"""Renders a card; a name, since cards are built upon this package."""
_T = TypeVar("_T")


def refusal(repo_id: str, base_id: str | None = None) -> str | None:
    """Return why no push can begin, whatever the files are: an id that is none, or no network; else `None`."""
    for name in [repo_id, *([] if base_id is None else [base_id])]:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            return f"the repository id is not valid. {error}"
    return "this process is offline (HF_HUB_OFFLINE=1)" if is_offline_mode() else None


def push_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a push out of those of `publish_folder`; what is left is of its parts."""
    return {name: options.pop(name) for name in ("private", "revision", "create_pr", "tag") if name in options}


@dataclass
class Push:
    """One push in progress."""

    api: HfApi
    parts: list[Part]
    repo_id: str
    private: bool | None = None
    revision: str | None = None
    message: str = ""
    create_pr: bool = False
    repo_type: str = "model"
    tag: str | None = None
    description: str = ""
    """Of the commit, or of the pull request."""
    has_reports: bool = False
    """Whether others' reports lie in the repository."""
    parent: str | None = None
    """Head of the branch when it was last read."""

    @property
    def branch(self) -> str:
        return self.revision or _DEFAULT_BRANCH

    @property
    def files(self) -> list[LocalFile]:
        return [file for part in self.parts for file in part.files]

    @property
    def stale(self) -> list[str]:
        return [name for part in self.parts for name in part.stale]

    def send(self) -> CommitInfo:
        """Check, commit, and give the commit its name.

        Raises:
            HubPushError: nothing was committed, or the commit got no name.
        """
        self.check()
        with one_line(f"Uploading {len(self.files)} files to {self.repo_id}"):
            commit = self.run()
            if self.tag is not None:
                self.set_tag(commit.oid)
        return commit

    def check(self) -> None:
        """Find what is wrong without the Hub, before the first request."""
        try:
            for part in self.parts:
                part.check()
            if self.tag is not None and self.create_pr:
                raise ArtifactError("a pull request has no commit to tag before it is merged")
            if refused := refusal(self.repo_id, next((part.base_id for part in self.parts), None)):
                raise ArtifactError(refused)
            for part in self.parts:
                part.check_content()
        except (GradiendError, OSError, ValueError) as error:
            raise self._failure(" ".join(str(error).split()).rstrip("."), "Nothing was sent.") from error

    def run(self) -> CommitInfo:
        """Create what is missing, then commit."""
        is_private = self._try(self._create_repository)
        if self.private and not is_private:
            advice = "make it private in its settings, or push without asking for a private repository"
            raise self._failure(f"a private push was asked for, but it exists and is public; {advice}", self._state())
        self._try(self._create_branch)
        for part in self.parts:
            part.repo_id = self.repo_id
            part.others = self._try(lambda part=part: self._with_measurements(part))  # type: ignore[misc]
            part.name(lambda base_id: self._try(lambda: self._base_commit(base_id)))
        commit = self._committed()
        for part in self.parts:
            part.remember()
        return commit

    def _committed(self) -> CommitInfo:
        """Commit the files, unless an attempt has done so, whatever it was answered."""
        known = self._try(self._pull_requests)
        return self._try(lambda: self._landed(known) or self._commit(), landed=lambda: self._landed(known))

    def _with_measurements(self, part: Part) -> tuple[str, int] | None:
        """Card and number of reports of a direction whose repository has taken reports by others; else `None`."""
        if not self.has_reports or part.subfolder or not (part.folder / CONFIG_FILE).is_file():
            return None
        commit = self._head_and_names(self.branch)[0]
        found: tuple[str, int] | None = resolve_name(_WITH_MEASUREMENTS)(
            part.folder, self.repo_id, commit, self.api.token
        )
        return found

    def _read(self, name: str) -> bytes:
        """A file of the repository at `parent`; the user's cache is left alone."""
        with tempfile.TemporaryDirectory() as cache:
            path = self.api.hf_hub_download(
                self.repo_id, name, revision=self.parent, repo_type=self.repo_type, cache_dir=cache
            )
            return Path(path).read_bytes()

    def set_tag(self, commit: str) -> None:
        """Give a name to the commit."""
        assert self.tag is not None

        def create() -> None:
            tags = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type).tags
            at = next((tag.target_commit for tag in tags if tag.name == self.tag), None)
            if at not in (None, commit):
                raise ArtifactError(f"that tag is at commit {str(at)[:8]} already; choose another name")
            if at is None:
                self.api.create_tag(self.repo_id, tag=self.tag or "", revision=commit, repo_type=self.repo_type)

        try:
            with bounded():
                with_retries(create)
        except (*FAILURES, ValueError, OSError, LookupError) as error:
            raise HubPushError(
                f"Published to {self.repo_id} as commit {commit}, but without the tag {self.tag!r}: {reason(error)}. "
                f"To set it: hf repos tag create {self.repo_id} {self.tag} --revision {commit}"
            ) from error

    def _base_commit(self, base_id: str) -> str | None:
        """Head commit of the base model's repository; `None`, with a warning, if this token does not see it."""
        try:
            return self.api.repo_info(base_id).sha
        except RepositoryNotFoundError:
            logger.warning(f"The base model {base_id} is not on the Hub, or this token does not see it.")
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
                except (*FAILURES, ValueError, OSError, LookupError):
                    state = _UNKNOWN_STATE
                else:
                    if done is not None:
                        return done
            raise self._failure(reason(error), state or self._state()) from error

    def _create_repository(self) -> bool:
        """Create the repository if it does not exist; whether it is private. A renamed one is pushed to by its new name."""
        if (private := self._find_repository()) is None:
            self.repo_id = self.api.create_repo(
                self.repo_id,
                private=self.private,
                exist_ok=True,
                repo_type=self.repo_type,
                space_sdk="gradio" if self.repo_type == "space" else None,
            ).repo_id
            private = bool(self.api.repo_info(self.repo_id, repo_type=self.repo_type).private)
        return private

    def _find_repository(self) -> bool | None:
        """Return whether the repository is private; `None` if it does not exist.

        To create one under its former name would put an empty one in the place of the redirection.
        """
        if "/" not in self.repo_id:  # of the user's own namespace, as `create_repo` takes it
            return None
        try:
            found = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except RepositoryNotFoundError:
            return None
        if found.id != self.repo_id:
            logger.warning(f"{self.repo_id} is called {found.id} now, and is pushed to by that name.")
            self.repo_id = found.id
        names = (row.rfilename for row in getattr(found, "siblings", None) or ())
        self.has_reports = self.repo_type == "model" and any(name.startswith(f"{REPORTS_FOLDER}/") for name in names)
        return bool(found.private)

    def _create_branch(self) -> None:
        if not self.create_pr and self.branch != _DEFAULT_BRANCH and not self.branch.startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True, repo_type=self.repo_type)

    def _landed(self, known_pull_requests: set[str]) -> CommitInfo | None:
        """The commit that holds our files, however the attempt that made it seemed to end."""
        self.parent, names = self._head_and_names(self.branch)
        self._follow(names)
        if not self.stale and self._is_published(self.parent):
            logger.info(f"{self.repo_id} has these files at commit {self.parent}.")
            return self._commit_info(self.parent)
        for ref in sorted(self._pull_requests() - known_pull_requests):
            commit, names = self._head_and_names(ref)
            if not names & {*self.stale} and self._is_published(commit):
                return self._commit_info(commit, pull_request=ref)
        return None

    def _follow(self, names: set[str]) -> None:
        """Make the files ready to follow the commit `parent`, which has files of these names."""
        for part in self.parts:
            part.respect(names, self._read)

    def _commit(self) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id,
            [*(file.addition() for file in self.files), *map(CommitOperationDelete, self.stale)],
            commit_message=self.message,
            commit_description=self.description or None,
            revision=self.branch,
            create_pr=self.create_pr,
            # with its parent given, a commit that is sent twice lands once
            parent_commit=None if self.create_pr else self.parent,
            repo_type=self.repo_type,
        )

    def _head_and_names(self, revision: str) -> tuple[str, set[str]]:
        """Commit of a branch, and the names of all files there."""
        info = self.api.repo_info(self.repo_id, revision=revision, repo_type=self.repo_type)
        assert info.sha is not None
        return info.sha, {row.rfilename for row in getattr(info, "siblings", None) or ()}

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
        page = f"{self.api.endpoint}/{_PAGES.get(self.repo_type, '')}{self.repo_id}"
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
                head = self._head_and_names(self.branch)[0]
        except RepositoryNotFoundError:
            return "Nothing was uploaded: the repository does not exist, or this token does not see it."
        except RevisionNotFoundError:
            return f"Nothing was committed: the repository has no branch {self.branch}."
        except FAILURES:
            return _UNKNOWN_STATE
        return f"Nothing was committed: {self.branch} of the repository is at {head[:8]}, without this push."

    def _failure(self, why: str, state: str) -> HubPushError:
        if self.repo_type != "model":
            kind = {"dataset": "data set", "space": "Space"}[self.repo_type]
            return HubPushError(f"Could not push to the {kind} {self.repo_id}: {why}.\n{state} Push it again.")
        folders = " and ".join(str(part.folder) for part in self.parts)
        again = " && ".join(shlex.join(self._command(part)) for part in self.parts)
        return HubPushError(
            f"Could not push {folders} to {self.repo_id}: {why}.\n{state}\n"
            f"The files are kept in {folders}. To push them again: {again}"
        )

    def _command(self, part: Part) -> list[str]:
        """The command that pushes one part."""
        command = ["gradiend-hub", "push", str(part.folder), self.repo_id]
        command += ["--base-id", part.base_id] if part.base_id else []
        command += ["--private"] if self.private else []
        command += ["--revision", self.revision] if self.revision else []
        command += ["--create-pr"] if self.create_pr else []
        command += ["--subfolder", part.subfolder] if part.subfolder else []
        command += ["--tag", self.tag] if self.tag else []
        command += ["--allow-unmeasured"] if part.allow_unmeasured else []
        return command + (["--overwrite"] if part.overwrite else [])
