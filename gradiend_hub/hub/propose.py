"""A pull request that adds one report beside a published direction, and touches none of its files."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import CommitInfo

from gradiend_hub.artifact.files import CONFIG_FILE, MOST_REPORT_BYTES, REPORTS_FOLDER
from gradiend_hub.errors import HubPushError

from .local_files import LocalFile
from .patience import PushApi
from .push import Push, refusal


class ReportProposal(Push):
    """A pull request to be opened with a report that is yet to be measured, to a repository that exists.

    Args:
        report: where the report is going to be; its name is also its name in the folder `reports` of the repository.
        repo_id: repository of the direction. A user without write permission may open pull requests, too.
        token: access token; by default the one that the user logged in with.
    """

    def __init__(self, report: str | Path, repo_id: str, *, token: str | bool | None = None) -> None:
        self.report = Path(report)
        self.name = f"{REPORTS_FOLDER}/{self.report.name}"
        super().__init__(
            PushApi(token=token),
            [],  # it adds a file that is not there
            repo_id,
            message=f"Add the report {self.report.name}",
            description=f"Once it is merged, `gradiend-hub refresh {repo_id}` shows it on the card.",
            create_pr=True,
        )

    @property
    def files(self) -> list[LocalFile]:
        return [LocalFile(self.report, self.name)]

    def check(self) -> None:
        """Find out, before anything is measured, whether the pull request can be opened.

        Raises:
            HubPushError: offline, no such repository, no direction in it, it has a report of this name already, or this
                one is larger than what is read.
        """
        if refused := refusal(self.repo_id):
            raise self._failure(refused, "Nothing was sent.")
        if self.report.is_file() and (size := self.report.stat().st_size) > MOST_REPORT_BYTES:
            most = f"it has {size:,} bytes, and nobody reads a report of more than {MOST_REPORT_BYTES:,}"
            raise self._failure(f"{most}; measure fewer strengths or benchmarks at a time", "Nothing was sent.")
        # a commit to a former name is not led on
        self.repo_id = self._try(lambda: self.api.repo_info(self.repo_id).id)
        found = self._try(lambda: {row.path for row in self.api.get_paths_info(self.repo_id, [self.name, CONFIG_FILE])})
        if CONFIG_FILE not in found:
            raise self._failure(f"there is no direction in it ({CONFIG_FILE} is missing)", "Nothing was sent.")
        if self.name in found:
            raise self._failure(f"it has a {self.name} already; choose another name", "Nothing was sent.")

    def send(self) -> CommitInfo:
        """Open the pull request. Failures that may pass are retried, and it is never opened twice.

        Raises:
            HubPushError: it was not opened; the message has the command that does it later.
        """
        self.check()
        return self._committed()

    def _failure(self, why: str, state: str) -> HubPushError:
        message = f"Could not propose {self.name} to {self.repo_id}: {why}.\n{state}"
        if self.report.is_file():
            command = ["hf", "upload", self.repo_id, str(self.report), self.name, "--create-pr"]
            message += f"\nThe report is kept in {self.report}. To propose it later: {shlex.join(command)}"
        return HubPushError(message)
