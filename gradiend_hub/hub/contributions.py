"""Files that people have added to a folder of somebody's repository: merged, or in an open pull request, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from gradiend_hub.artifact.names import hub_id

from .patience import bounded
from .retry import FAILURES

_MOST_REQUESTS: Final = 50
"""Pull requests that are looked at, the newest first."""
_MOST_COMMITS: Final = 500
"""Commits whose authors are looked at."""
_MOST_FILES: Final = 100
"""Files of a folder that are listed, of the repository and of each pull request."""
_OPEN: Final = ("open", "draft")


@dataclass(frozen=True)
class Contribution:
    """A file that somebody has added.

    Attributes:
        name: its path in the repository, and `size` in bytes.
        by: user who has committed it or opened the pull request, as the Hub says; `None` if it does not.
        pull_request: number of the open pull request that it is in; `None` for a file of the repository.
        revision: where it is read from.
    """

    name: str
    size: int
    by: str | None
    pull_request: int | None
    revision: str


class Contributions:
    """The contributions to one repository at a commit.

    Args:
        repo_id: the repository, by its present or a former name.
        commit: its commit that counts as merged.
        token: access token; by default the one that the user logged in with.
    """

    def __init__(self, repo_id: str, commit: str, token: str | bool | None = None) -> None:
        self.repo_id, self.commit = repo_id, commit
        self.api = HfApi(token=token)

    def listed(self, *folders: str) -> list[Contribution]:
        """Files in some folders: those of the repository, then those of open pull requests; each content once.

        Raises:
            one of `retry.FAILURES`: the Hub does not tell.
        """
        with bounded():  # and not again and again: what others say is not worth a long wait
            return list(self._listed(folders))

    def read(self, file: Contribution) -> Path:
        """Download a file.

        Raises:
            one of `retry.FAILURES`, OSError: it cannot be had.
        """
        with bounded():
            return Path(self.api.hf_hub_download(self.repo_id, file.name, revision=file.revision))

    def leads_here(self, name: str | None) -> bool:
        """Tell whether a name is the repository's, or a former one of it, from which the Hub leads on."""
        if name == self.repo_id or hub_id(name) is None:
            return name == self.repo_id
        try:
            with bounded():
                return self.api.repo_info(str(name)).id == self._present_id()
        except (*FAILURES, OSError):
            return False

    def same_file(self, name: str, revision: str) -> bool | None:
        """Tell whether a file of another commit is that of ours; `None` if the Hub does not know such a commit."""
        try:
            with bounded():
                files = [self.api.get_paths_info(self.repo_id, [name], revision=at) for at in (self.commit, revision)]
        except (RevisionNotFoundError, HfHubHTTPError):
            return None
        ids = [found[0].blob_id for found in files if found and isinstance(found[0], RepoFile)]
        return ids[0] == ids[1] if len(ids) == 2 else None

    def _listed(self, folders: tuple[str, ...]) -> Iterator[Contribution]:
        merged = [file for folder in folders for file in self._files(folder, self.commit)]
        requests = [
            request
            for request in islice(
                self.api.get_repo_discussions(self.repo_id, discussion_type="pull_request"), _MOST_REQUESTS
            )
            if request.is_pull_request and request.status in (*_OPEN, "merged")
        ]
        proposed = {
            request.num: [file for folder in folders for file in self._files(folder, f"refs/pr/{request.num}")]
            for request in requests
        }
        owner, authors = ("", {}) if not merged else (self._present_id().split("/")[0], self._authors())
        known = set()
        for file in merged:
            known.add((file.path, file.blob_id))
            by = authors.get(file.last_commit.oid) if file.last_commit else None
            if by in (None, owner):  # who merges a pull request may be named as the one who has committed
                from_request = next(
                    (r for r in requests if r.status == "merged" and _holds(proposed[r.num], file)), None
                )
                by = from_request.author if from_request else by
            yield Contribution(file.path, file.size, by, None, self.commit)
        for request in requests:
            for file in proposed[request.num] if request.status in _OPEN else ():
                if (file.path, file.blob_id) not in known:
                    known.add((file.path, file.blob_id))
                    yield Contribution(file.path, file.size, request.author, request.num, f"refs/pr/{request.num}")

    def _files(self, folder: str, revision: str) -> list[RepoFile]:
        try:
            entries = self.api.list_repo_tree(self.repo_id, folder, revision=revision, expand=True)
            return [entry for entry in islice(entries, _MOST_FILES) if isinstance(entry, RepoFile)]
        except (EntryNotFoundError, RevisionNotFoundError):
            return []

    def _present_id(self) -> str:
        """Ask the Hub for the repository's present name, which differs from the given one after a renaming."""
        return self.api.repo_info(self.repo_id).id

    def _authors(self) -> dict[str, str]:
        """Who has made each of the last commits."""
        commits = islice(self.api.list_repo_commits(self.repo_id, revision=self.commit), _MOST_COMMITS)
        return {commit.commit_id: commit.authors[0] for commit in commits if commit.authors}


def _holds(files: list[RepoFile], file: RepoFile) -> bool:
    return any((other.path, other.blob_id) == (file.path, file.blob_id) for other in files)
