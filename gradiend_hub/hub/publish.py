"""Pushing a saved direction: one commit or nothing.

`upload_folder` of huggingface_hub may split a folder into several commits, and commits again when the answer to a
commit was lost. Here all files go into one `create_commit` on a known parent, and each attempt first looks whether the
repository already holds them.
"""

from __future__ import annotations

import json
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE, LORA_FOLDER, PROBES_FILE, SUMMARY_FILE
from gradiend_hub.artifact.validation import parse_json
from gradiend_hub.errors import ArtifactError, GradiendError, HubPushError
from gradiend_hub.printable import listed

from .local_files import UPLOADED, LocalFile, chosen_files, require_publishable
from .names import hub_id
from .patience import bounded, in_time
from .published import merged_card, published_card, published_config, renewed_probes
from .retry import FAILURES, disk_error, is_silent, is_transient, summary, with_retries

__all__ = ["publish_folder", "refusal"]

logger = logging.getLogger(__name__)

_DEFAULT_BRANCH: Final = "main"
_PAGES: Final = {"dataset": "datasets/", "space": "spaces/"}
_NEUTRAL: Final = frozenset({".gitattributes", ".gitignore", CARD_FILE, "LICENSE"})
"""Files that a repository may have before a direction is pushed to it."""
_OVERWRITE: Final = "To push all the same: overwrite=True (--overwrite)"
_UNKNOWN_STATE: Final = "The state of the repository is unknown; a repeated push finds out, and never commits twice."
_T = TypeVar("_T")


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
    """Push a saved direction to the Hub in one commit that adds or replaces files and deletes none.

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
        subfolder=subfolder,
        tag=tag,
        allow_unmeasured=allow_unmeasured,
        overwrite=overwrite,
    )
    push.check()
    commit = push.run()
    if tag is not None:
        push.set_tag(commit.oid)
    return commit


class PushApi(HfApi):
    """The Hub's client, whose uploads of large files end: with the files stored, or with an error."""

    def preupload_lfs_files(self, repo_id: str, additions: Iterable[CommitOperationAdd], **options: Any) -> None:
        additions = list(additions)
        upload = super().preupload_lfs_files
        size = sum(addition.upload_info.size for addition in additions)
        in_time(lambda: upload(repo_id, additions, **options), lambda: size)


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
    subfolder: str | None = None
    tag: str | None = None
    allow_unmeasured: bool = False
    overwrite: bool = False
    card: LocalFile | None = None
    """Our card, before it is merged with that of the repository."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of `adapter_config.json`."""
    parent: str | None = None
    """Head of the branch when it was last read."""

    @property
    def kind(self) -> str:
        """Name of what is pushed, for people."""
        return {"model": "direction", "dataset": "data set", "space": "Space"}[self.repo_type]

    @property
    def branch(self) -> str:
        return self.revision or _DEFAULT_BRANCH

    @property
    def place(self) -> str:
        """Prefix of the names of the direction's files in the repository."""
        return f"{self.subfolder}/" if self.subfolder else ""

    @cached_property
    def files(self) -> list[LocalFile]:
        try:
            return chosen_files(self.folder, self.patterns, self.subfolder)
        except ArtifactError as error:
            raise self._failure(str(error).rstrip("."), "Nothing was sent.") from error

    def check(self) -> None:
        """Find what is wrong without the Hub, before the first request."""
        if self.repo_type == "model":
            self._check_config()
        elif self.base_id is not None:
            raise self._failure(f"a {self.kind} has no base model, so base_id is not for it", "Nothing was sent.")
        if self.subfolder is not None and not _is_inside(self.subfolder):
            raise self._failure(f"{self.subfolder!r} is no name of a folder in a repository", "Nothing was sent.")
        if self.tag is not None and self.create_pr:
            raise self._failure("a pull request has no commit to tag before it is merged", "Nothing was sent.")
        if not self.files:
            raise self._failure(f"no file of the folder matches {', '.join(self.patterns)}", "Nothing was sent.")
        if reason := refusal(self.repo_id, self.base_id):
            raise self._failure(reason, "Nothing was sent.")
        if self.repo_type == "model":
            try:
                require_publishable(self.folder, self.patterns, self.allow_unmeasured)
            except (GradiendError, OSError, ValueError) as error:
                raise self._failure(" ".join(str(error).split()).rstrip("."), "Nothing was sent.") from error

    def _check_config(self) -> None:
        try:
            self.config = parse_json((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
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
        self.card = next((file for file in self.files if file.name == self.place + CARD_FILE), None)
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
            for name in (file.name.removeprefix(self.place) for file in self.files):
                if name.startswith(f"{LORA_FOLDER}/") and name.endswith(CONFIG_FILE):
                    fields = json.loads((self.folder / name).read_text(encoding="utf-8"))
                    contents[name] = published_config(fields, base_id, commit)
                elif name == SUMMARY_FILE:
                    said = json.loads((self.folder / name).read_text(encoding="utf-8"))
                    named = {"base_model": base_id, "base_revision": commit}
                    contents[name] = json.dumps({**said, **named}, ensure_ascii=False) + "\n"
        if (card := self.folder / CARD_FILE).is_file():
            text = card.read_bytes().decode("utf-8", errors="surrogateescape")
            contents[CARD_FILE] = published_card(text, self.repo_id, base_id, commit, self.subfolder)
        for name, text in contents.items():
            self._put(self.place + name, text.encode("utf-8", errors="surrogateescape"))

    def _put(self, name: str, content: bytes) -> None:
        """Publish other content than that on disk under a name."""
        self.files = [replace(file, content=content) if file.name == name else file for file in self.files]

    def _respect(self, names: set[str]) -> None:
        """Look at what the repository holds at `parent`, and take what people have written there into our card.

        Raises:
            ArtifactError: it holds what we would destroy.
        """
        if self.overwrite:
            return
        config, card = self.place + CONFIG_FILE, self.place + CARD_FILE
        if self.repo_type == "model" and config in names:
            theirs = self._read(config)
            try:
                kind = json.loads(theirs).get("peft_type")
            except (ValueError, AttributeError):
                kind = None
            if kind != "GRADIEND":
                raise ArtifactError(
                    f"its {config} is of {f'a {kind} adapter' if kind else 'no adapter'}, which this push would replace. "
                    f"{_OVERWRITE}"
                )
        elif not self.subfolder and names - _NEUTRAL and not {file.name for file in self.files} - _NEUTRAL & names:
            others = listed(sorted(names - _NEUTRAL))
            raise ArtifactError(f"it holds something else ({others}). Name another repository. {_OVERWRITE}")
        if self.repo_type == "space" and not names - _NEUTRAL:
            return  # a new one has a card that the Hub has written
        if self.card is not None and card in names:
            texts = (self.card.read(), self._read(card))
            merged = merged_card(*(text.decode("utf-8", errors="surrogateescape") for text in texts))
            if merged is None:
                keep = f"To keep it, download it into your folder: hf download {self.repo_id} {card}. "
                raise ArtifactError(
                    f"its {card} was written or changed by hand, and this push would replace it. "
                    f"{'' if self.repo_type == 'space' else keep}{_OVERWRITE}"
                )
            self._put(card, merged.encode("utf-8", errors="surrogateescape"))

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
                f"Published to {self.repo_id} as commit {commit}, but without the tag {self.tag!r}: {_reason(error)}. "
                f"To set it: hf repos tag create {self.repo_id} {self.tag} --revision {commit}"
            ) from error

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
                except (*FAILURES, ValueError, OSError, LookupError):
                    state = _UNKNOWN_STATE
                else:
                    if done is not None:
                        return done
            raise self._failure(_reason(error), state or self._state()) from error

    def _create_repository(self) -> bool:
        """Create the repository if it does not exist; whether it is private."""
        self.repo_id = self.api.create_repo(
            self.repo_id,
            private=self.private,
            exist_ok=True,
            repo_type=self.repo_type,
            space_sdk="gradio" if self.repo_type == "space" else None,
        ).repo_id
        return bool(self.api.repo_info(self.repo_id, repo_type=self.repo_type).private)

    def _create_branch(self) -> None:
        if not self.create_pr and self.branch != _DEFAULT_BRANCH and not self.branch.startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True, repo_type=self.repo_type)

    def _landed(self, known_pull_requests: set[str]) -> CommitInfo | None:
        """The commit that holds our files, however the attempt that made it seemed to end."""
        self.parent, names = self._head_and_names(self.branch)
        self._respect(names)
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
        return self._head_and_names(revision)[0]

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
            return HubPushError(f"Could not push to the {self.kind} {self.repo_id}: {reason}.\n{state} Push it again.")
        command = ["gradiend-hub", "push", str(self.folder), self.repo_id]
        command += ["--base-id", self.base_id] if self.base_id else []
        command += ["--private"] if self.private else []
        command += ["--revision", self.revision] if self.revision else []
        command += ["--create-pr"] if self.create_pr else []
        command += ["--subfolder", self.subfolder] if self.subfolder else []
        command += ["--tag", self.tag] if self.tag else []
        command += ["--allow-unmeasured"] if self.allow_unmeasured else []
        command += ["--overwrite"] if self.overwrite else []
        return HubPushError(
            f"Could not push {self.folder} to {self.repo_id}: {reason}.\n{state}\n"
            f"The files are kept in {self.folder}. To push them again: {shlex.join(command)}"
        )


def _is_inside(subfolder: str) -> bool:
    """Return whether this is a plain relative path of folders."""
    parts = PurePosixPath(subfolder).parts
    return bool(parts) and "/".join(parts) == subfolder and not subfolder.startswith("/") and ".." not in parts


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
