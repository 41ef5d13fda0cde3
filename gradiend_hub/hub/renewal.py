"""A commit of files that are made of what a repository holds, e.g. its card. Nothing that comes between is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo

from gradiend_hub.errors import HubPushError

from .local_files import LocalFile
from .patience import PushApi
from .push import Push, refusal


def renew_files(
    repo_id: str,
    make: Callable[[str, str], Mapping[str, bytes]],
    *,
    what: str,
    again: str,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str,
    create_pr: bool = False,
) -> CommitInfo:
    """Replace files of a repository by others that are made of its present commit. They are made anew if it moves on.

    Args:
        repo_id: the repository, by its present or a former name.
        make: is given the repository's present name and a commit, and returns the content of the files by name.
        what: how messages call the files, and `again` the command that does it once more.
        token: access token; by default the one that the user logged in with.
        revision: branch, by default `main`.
        commit_message: first line of the commit message.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The new commit, or the present one if the files are as they should be.

    Raises:
        HubPushError: nothing was committed.
    """
    renewal = _Renewal(
        PushApi(token=token),
        [],
        repo_id,
        revision=revision,
        message=commit_message,
        create_pr=create_pr,
        make=make,
        what=what,
        again=again,
    )
    renewal.check()
    return renewal.run()


@dataclass
class _Renewal(Push):
    """A push whose files are made of the commit that it is to follow."""

    make: Callable[[str, str], Mapping[str, bytes]] = lambda name, commit: {}
    what: str = ""
    again: str = ""
    made: list[LocalFile] = field(default_factory=list)
    made_of: str | None = None

    @property
    def files(self) -> list[LocalFile]:
        return self.made

    def check(self) -> None:
        if refused := refusal(self.repo_id):
            raise self._failure(refused, "Nothing was sent.")

    def run(self) -> CommitInfo:
        self.repo_id = self._try(lambda: self.api.repo_info(self.repo_id).id)
        return self._committed()

    def _follow(self, names: set[str]) -> None:
        if self.parent is not None and self.parent != self.made_of:
            contents = self.make(self.repo_id, self.parent)
            self.made = [LocalFile(Path(name), name, content) for name, content in contents.items()]
            self.made_of = self.parent

    def _failure(self, why: str, state: str) -> HubPushError:
        return HubPushError(
            f"Could not renew {self.what} of {self.repo_id}: {why}.\n{state} To do it again is safe: {self.again}"
        )
