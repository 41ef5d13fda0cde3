"""A commit of a card that is made of what its repository holds. Nothing that comes between is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo

from gradiend_hub.errors import HubPushError

from .local_files import LocalFile
from .push import Push, refusal


@dataclass
class CardRenewal(Push):
    """A push whose files are made of the commit that it is to follow. They are made anew if the repository moves on.

    Attributes:
        make: is given the repository's present name and a commit, and returns the content of the files by name.
        again: the command that does it once more, for messages.
    """

    make: Callable[[str, str], Mapping[str, bytes]] = lambda name, commit: {}
    again: str = ""
    made: list[LocalFile] = field(default_factory=list)
    made_of: str | None = None

    @property
    def files(self) -> list[LocalFile]:
        return self.made

    def send(self) -> CommitInfo:
        """Replace the files; return the new commit, or the present one if they are as they should be.

        Raises:
            HubPushError: nothing was committed.
        """
        if refused := refusal(self.repo_id):
            raise self._failure(refused, "Nothing was sent.")
        self.repo_id = self._try(lambda: self.api.repo_info(self.repo_id).id)
        return self._committed()

    def _follow(self, names: set[str]) -> None:
        if self.parent is not None and self.parent != self.made_of:
            contents = self.make(self.repo_id, self.parent)
            self.made = [LocalFile(Path(name), name, content) for name, content in contents.items()]
            self.made_of = self.parent

    def _failure(self, why: str, state: str) -> HubPushError:
        return HubPushError(
            f"Could not renew the card of {self.repo_id}: {why}.\n{state} To do it again is safe: {self.again}"
        )
