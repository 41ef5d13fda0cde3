"""From a folder or a repository id to files on disk, pinned to one commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from huggingface_hub import (
    HfApi,
    constants,
    get_token,
    is_offline_mode,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.artifact.fields import StoredFields
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    is_damaged,
)
from gradiend_hub.artifact.names import is_inside, is_revision
from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError

from .one_line import one_line
from .patience import bounded, in_time
from .retry import FAILURES, disk_error, summary, with_retries
from .sizes import VECTOR_FILES, listed_sizes, most_bytes, require_config_size, require_sizes

logger = logging.getLogger(__name__)

APPLIED: Final = (CONFIG_FILE, WEIGHTS_FILE, BASE_FILE)
"""Files that applying a direction needs."""

DOWNLOADED: Final = (*APPLIED, ENCODER_FILE, REFERENCES_FILE, REPORT_FILE, PROBES_FILE, SUMMARY_FILE, CARD_FILE)
"""The only files of a stranger's repository that reach this machine; none of them can run code."""


@dataclass(frozen=True)
class ResolvedRepo:
    """Files of a direction on disk.

    Attributes:
        folder: where they are.
        commit: the commit that they belong to, None for a local folder.
        repo_id: the repository that they come from, None for a local folder.
    """

    folder: Path
    commit: str | None
    repo_id: str | None
    _source: _Source | None = field(default=None, compare=False, repr=False)

    def complete(self, wanted: Iterable[str] = DOWNLOADED) -> None:
        """Download further files of the direction, at the same commit; by default all others.

        Raises:
            ArtifactNotFoundError: they cannot be had.
            ArtifactError: one is damaged, also after it was downloaded again.
        """
        if self._source is not None and self.commit is not None:
            self._source.also(self.commit, tuple(wanted))


def resolve_folder(
    repo_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    required: Iterable[str] = (CONFIG_FILE,),
    wanted: Iterable[str] = DOWNLOADED,
    force_download: bool = False,
) -> ResolvedRepo:
    """Find the files of a direction: in a local folder, or in the cache of the Hub after downloading what is missing.

    The revision is resolved to a commit first, so that all files are of one version even if the branch moves meanwhile.
    A large repository of another kind is not downloaded: the required files come first. Every file is compared with the
    digest that the Hub has listed for it, also if it was in the cache; what is damaged is downloaded again.

    Args:
        repo_or_path: an existing folder, else a repository id. A folder is used as it is.
        revision: branch, tag or commit of the repository, by default its main branch.
        token: access token; by default the one that the user logged in with.
        cache_dir: directory of the cache, by default that of huggingface_hub.
        local_files_only: use the cache alone, as HF_HUB_OFFLINE=1 does for the whole process.
        subfolder: folder in the repository or path that holds the direction.
        required: names of the files that must be there.
        wanted: names of the files to download, if they are there; by default all that a direction consists of.
        force_download: download them again, whatever is in the cache.

    Raises:
        ArtifactError: a file is damaged, also after it was downloaded again.
        ArtifactNotFoundError: no such folder or repository, no access to it, no required file in it, or the Hub cannot
            be reached and the cache does not have it, or cannot be written. The message says which.
    """
    path = Path(repo_or_path).expanduser()
    if path.is_dir():
        folder = path / subfolder if subfolder else path
        _require(folder, required, f"the folder {folder}")
        return ResolvedRepo(folder, None, None)
    repo_id = str(repo_or_path)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ArtifactNotFoundError(
            f"There is no folder {repo_id}, and this is not a repository id on the Hub either (namespace/name)."
        ) from error
    if subfolder is not None and not is_inside(subfolder):
        raise ArtifactNotFoundError(f"{subfolder!r} is no name of a folder in a repository.")
    if revision is not None and not is_revision(revision):
        raise ArtifactNotFoundError(f"{repo_id} has no branch, tag or commit {revision!r}: no revision is called so.")
    offline = local_files_only or is_offline_mode()
    source = _Source(repo_id, revision, token, cache_dir, offline, subfolder, force_download)
    try:
        return source.fetch(tuple(required), tuple(wanted))
    except (*FAILURES, OSError) as error:
        raise ArtifactNotFoundError(source.explain(error)) from error


@dataclass(frozen=True)
class _Source:
    """A direction in a repository on the Hub."""

    repo_id: str
    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    offline: bool
    subfolder: str | None
    force_download: bool

    def fetch(self, required: tuple[str, ...], wanted: tuple[str, ...]) -> ResolvedRepo:
        """Download what the cache does not have."""
        commit, reached = with_retries(lambda: self._commit(required))
        where = f"commit {commit[:8]} of {self.repo_id}"
        readable = self._readable(commit, required, wanted) if reached else wanted
        folder = self._download(commit, required)
        _require(folder, required, f"{folder.name} in {where}" if self.subfolder else where)
        self._download(commit, [name for name in readable if name not in required])
        if BASE_FILE in wanted and ENCODER_FILE not in wanted and not (folder / BASE_FILE).is_file():
            self._download(commit, [ENCODER_FILE])  # of version 0.1, which stored the samples of the base model there
        return ResolvedRepo(folder, commit, self.repo_id, self)

    def _readable(self, commit: str, required: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Look at the sizes that the Hub lists; those of the wanted files that are small enough to be read.

        Raises:
            ArtifactError: the configuration is larger than that, or the vectors are larger than it says.
        """
        place = f"{self.subfolder}/" if self.subfolder else ""
        names = [place + name for name in dict.fromkeys((*required, *wanted))]
        if self._is_cached(commit, names):
            return wanted
        names.append(place + ENCODER_FILE)  # of version 0.1, which has the samples of the base model
        try:
            listed = listed_sizes(HfApi(token=self.token), self.repo_id, names, commit)
        except (*FAILURES, OSError):
            return wanted  # what is not in the cache cannot be downloaded then, either
        sizes = {name.removeprefix(place): size for name, size in listed.items()}
        require_config_size(self.repo_id, sizes.get(CONFIG_FILE, 0))
        if CONFIG_FILE in sizes and sizes.keys() & VECTOR_FILES:
            folder = self._download(commit, [CONFIG_FILE])
            require_sizes(self.repo_id, sizes, StoredFields.read(folder))
        large = [name for name, size in sizes.items() if size > most_bytes(name)]
        for name in large:
            logger.warning(f"{name} of {self.repo_id} has {sizes[name]:,} bytes, more than are read. It is left out.")
        return tuple(name for name in sizes if name not in large and any(fnmatch(name, one) for one in wanted))

    def _is_cached(self, commit: str, names: list[str]) -> bool:
        """Tell whether the cache has all of these files that there are at a commit."""
        options: dict[str, Any] = {"cache_dir": self.cache_dir, "local_files_only": True, "allow_patterns": names}
        try:
            snapshot_download(self.repo_id, revision=commit, **options)
        except (*FAILURES, OSError, ValueError):
            return False
        return not self.force_download

    def names(self, commit: str) -> list[str]:
        """Names of all files of the direction's folder in the repository; none while offline."""
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        if self.offline:
            return []
        try:
            with bounded():
                every = with_retries(lambda: HfApi(token=self.token).list_repo_files(self.repo_id, revision=commit))
        except (*FAILURES, OSError) as error:
            raise ArtifactNotFoundError(self.explain(error)) from error
        return [name.removeprefix(prefix) for name in every if name.startswith(prefix)]

    def also(self, commit: str, wanted: tuple[str, ...]) -> None:
        """Download further files of a commit."""
        try:
            self._download(commit, wanted if self.offline else self._readable(commit, (CONFIG_FILE,), wanted))
        except (*FAILURES, OSError) as error:
            raise ArtifactNotFoundError(self.explain(error)) from error

    def _commit(self, required: tuple[str, ...]) -> tuple[str, bool]:
        """Commit of the revision, and whether the Hub is there: without it, the cache's, with a warning."""
        api = HfApi(token=self.token)
        if not hasattr(api, "resolve_revision"):  # below huggingface_hub 2.2, which use the cache without a word
            return self._snapshot(self.revision, required).name, not self.offline
        with bounded() as answered:
            resolved = api.resolve_revision(
                self.repo_id, revision=self.revision, cache_dir=self.cache_dir, local_files_only=self.offline
            )
        commit: str = resolved.resolved
        reached = not self.offline and (commit == self.revision or bool(answered))
        if not self.offline and not reached:
            logger.warning(
                f"The Hub cannot be reached, so {self.repo_id} is used as it is in the cache: commit {commit[:12]}, which "
                f"{self.revision or 'main'} was at{self._when()}. There may be a newer one."
            )
        return commit, reached

    def _when(self) -> str:
        """Say when the cache last heard of the revision."""
        home = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        ref = home / repo_folder_name(repo_id=self.repo_id, repo_type="model") / "refs" / (self.revision or "main")
        return time.strftime(" on %Y-%m-%d at %H:%M", time.localtime(ref.stat().st_mtime)) if ref.is_file() else ""

    def _download(self, commit: str, patterns: Iterable[str]) -> Path:
        """Files that match the patterns, checked; the path of the direction's folder."""
        patterns = tuple(patterns)
        folder = with_retries(lambda: self._snapshot(commit, patterns, force=self.force_download)) / (
            self.subfolder or ""
        )
        found = [path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)]
        for name in [name for name in found if is_damaged(folder / name)]:
            if not self.offline:
                logger.warning(f"{name} of {self.repo_id} is damaged in the cache; it is downloaded again.")
                with_retries(lambda name=name: self._snapshot(commit, [name], force=True))  # type: ignore[misc]
            if self.offline or is_damaged(folder / name):
                again = (
                    "this call is offline; run it once online" if self.offline else "so it is after a second download"
                )
                raise ArtifactError(
                    f"{name} of {self.repo_id} at commit {commit[:8]} has other bytes than the Hub lists: {again}. The file "
                    f"is {folder / name}."
                )
        return folder

    def _snapshot(self, revision: str | None, patterns: Iterable[str], *, force: bool = False) -> Path:
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        names = [prefix + pattern for pattern in (CONFIG_FILE, *patterns)]  # the client complains where none is there

        def download() -> str:
            return snapshot_download(
                self.repo_id,
                revision=revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.offline,
                force_download=force and not self.offline,
                allow_patterns=names,
            )

        def size() -> int:
            rows = HfApi(token=self.token).get_paths_info(self.repo_id, names, revision=revision)
            return sum(getattr(row, "size", 0) for row in rows)

        with bounded(), one_line(f"Downloading {self.repo_id}"):
            return Path(in_time(download, size, "sent"))

    def explain(self, error: Exception) -> str:
        """Say why the repository could not be read, and what to do."""
        if (refused := disk_error(error)) is not None:
            return (
                f"{self.repo_id} could not be written to the cache {self.cache_dir or constants.HF_HUB_CACHE} ({refused}). "
                "Make room or give permission there, or name another folder with cache_dir= or HF_HOME."
            )
        page = f"{constants.ENDPOINT}/{self.repo_id}"
        sent = self.token is not False and bool(self.token or get_token())
        if isinstance(error, GatedRepoError):
            return f"{self.repo_id} is gated: ask for access at {page}, " + _token_advice(sent)
        if isinstance(error, RevisionNotFoundError):
            return f"{self.repo_id} has no branch, tag or commit {self.revision!r}."
        if isinstance(error, RepositoryNotFoundError):
            missing = f"{self.repo_id} is neither a folder on this machine nor a repository that the Hub shows "
            if sent:
                return f"{missing}to this token: it does not exist, or it is private and the token has no access to it."
            return f"{missing}without a token: it does not exist, or it is private; if it is, {_token_advice(sent)}"
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            return f"The Hub does not accept this token ({summary(error)}): {_token_advice(False)}"
        if self.offline:
            return (
                f"{self.repo_id} is neither a folder on this machine nor complete in the cache for revision "
                f"{self.revision or 'main'}, and this call is offline (HF_HUB_OFFLINE=1 or local_files_only=True). "
                "Run it once online to fill the cache."
            )
        return (
            f"{self.repo_id} is no folder on this machine, could not be downloaded from {constants.ENDPOINT}, and the cache "
            f"does not have all of it ({summary(error)}). Try again: what was downloaded so far is kept."
        )


def other_files(found: ResolvedRepo, patterns: Iterable[str]) -> list[str]:
    """Names of the files beside a direction, in its folder or repository, that match none of the patterns.

    Raises:
        ArtifactNotFoundError: the Hub does not list them.
    """
    patterns = (*patterns, ".gitattributes", ".cache/*", "reports/*")
    if found._source is None:
        names = [path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if not path.is_dir()]
    else:
        names = found._source.names(found.commit or "main")
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def _token_advice(sent: bool) -> str:
    if sent:
        return "with the account of the token that you use."
    return "log in with `hf auth login`, or pass token=."


def _require(folder: Path, required: Iterable[str], where: str) -> None:
    missing = [name for name in required if not (folder / name).is_file()]
    if missing:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise ArtifactNotFoundError(
            f"There is no direction in {where}: {', '.join(missing)} is missing "
            f"(found: {', '.join(found[:8]) or 'nothing'})."
        )
