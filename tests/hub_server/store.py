"""Repositories on disk: git, large objects by sha256, and what git does not know (visibility, discussions)."""

from __future__ import annotations

import fnmatch
import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.hub_server.errors import HubError
from tests.hub_server.git import Change, GitRepository

_LFS_EXTENSIONS = (
    "7z arrow bin bin.* bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt "
    "pth rar safetensors tar.* tar tflite tgz wasm xz zip zst"
)
_LFS_PATTERNS = (*(f"*.{extension}" for extension in _LFS_EXTENSIONS.split()), "saved_model/**/*", "*tfevents*")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS)


@dataclass
class Metadata:
    """What a repository is beside its git content; stored as JSON."""

    private: bool
    created: float
    gated: str | bool = False
    granted: list[str] = field(default_factory=list)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    downloads: int = 0
    likes: int = 0


class Repository:
    """One model, dataset or space."""

    def __init__(self, root: Path, repo_type: str, repo_id: str) -> None:
        self.root = root
        self.type = repo_type
        self.id = repo_id
        self.git = GitRepository(root / "git")
        self.lock = threading.RLock()
        """Held by a commit, a merge and every change of `metadata`."""
        self._metadata_file = root / "metadata.json"
        if self._metadata_file.exists():
            self.metadata = Metadata(**json.loads(self._metadata_file.read_text())["metadata"])

    @classmethod
    def create(cls, root: Path, repo_type: str, repo_id: str, *, private: bool) -> Repository:
        """A repository with the Hub's initial commit, a .gitattributes file."""
        GitRepository.create(root / "git")
        repository = cls(root, repo_type, repo_id)
        repository.metadata = Metadata(private=private, created=time.time())
        repository.git.commit(
            "refs/heads/main",
            None,
            [Change(".gitattributes", GITATTRIBUTES.encode())],
            title="initial commit",
            description="",
            author="system",
        )
        repository.save()
        return repository

    @property
    def namespace(self) -> str:
        """User or organisation that owns the repository."""
        return self.id.split("/")[0]

    def save(self) -> None:
        """Write the metadata to disk, atomically."""
        content = {"type": self.type, "id": self.id, "metadata": asdict(self.metadata)}
        temporary = self._metadata_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self._metadata_file)

    def large_path(self, oid: str) -> Path:
        """Where the large object with this sha256 is, or would be."""
        return self.root / "lfs" / oid[:2] / oid[2:4] / oid

    def has_large(self, oid: str, size: int | None = None) -> bool:
        """Whether the large object is stored, with this size if one is given."""
        path = self.large_path(oid)
        return path.is_file() and (size is None or path.stat().st_size == size)

    def scratch_path(self, *names: str) -> Path:
        """A path for an unfinished upload; its folder exists."""
        path = self.root.joinpath("incoming", *names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep_large(self, temporary: Path, oid: str) -> None:
        """Make a finished, checked upload visible under its sha256."""
        path = self.large_path(oid)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)


def stored_as_large(gitattributes: str, path: str) -> bool:
    """Whether .gitattributes sends `path` to LFS. The last matching line decides, as in git."""
    large = False
    for line in gitattributes.splitlines():
        pattern, *attributes = line.split() or [""]
        if not attributes or pattern.startswith("#"):
            continue
        target = path if "/" in pattern else path.rsplit("/", 1)[-1]
        if fnmatch.fnmatchcase(target, pattern.replace("**/", "*")):
            large = "filter=lfs" in attributes
    return large


class Store:
    """All repositories of one data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._moved: dict[tuple[str, str], str] = {}  # former id → present one; gone when the server stops
        for file in root.glob("repos/*/*/*/metadata.json"):
            stored = json.loads(file.read_text())
            self._repositories[stored["type"], stored["id"]] = Repository(file.parent, stored["type"], stored["id"])

    def _path(self, repo_type: str, repo_id: str) -> Path:
        return self.root / "repos" / repo_type / Path(*repo_id.split("/"))

    def get(self, repo_type: str, repo_id: str) -> Repository | None:
        """The repository, or None."""
        return self._repositories.get((repo_type, repo_id))

    def all(self, repo_type: str) -> list[Repository]:
        """All repositories of one type, by id."""
        with self._lock:
            return [repository for key, repository in sorted(self._repositories.items()) if key[0] == repo_type]

    def create(self, repo_type: str, repo_id: str, *, private: bool) -> Repository:
        """A new repository; 409 if it exists."""
        with self._lock:
            if (repo_type, repo_id) in self._repositories:
                raise HubError(409, f"You already created this {repo_type} repo")
            repository = Repository.create(self._path(repo_type, repo_id), repo_type, repo_id, private=private)
            self._repositories[repo_type, repo_id] = repository
            self._moved.pop((repo_type, repo_id), None)  # a new repository takes the place of a redirection
            return repository

    def moved(self, repo_type: str, repo_id: str) -> str | None:
        """Present id of a repository that was called so; None if none was, or another one is called so now."""
        return None if (repo_type, repo_id) in self._repositories else self._moved.get((repo_type, repo_id))

    def move(self, repo_type: str, former: str, present: str) -> None:
        """Give a repository another id, from which its former ones lead on; 409 if that is taken."""
        with self._lock:
            if (repo_type, present) in self._repositories:
                raise HubError(409, f"A repository called {present} exists already")
            repository = self._repositories.pop((repo_type, former))
            with repository.lock:
                place = self._path(repo_type, present)
                place.parent.mkdir(parents=True, exist_ok=True)
                repository.root.rename(place)
                (place / "metadata.json").write_text(
                    json.dumps({"type": repo_type, "id": present, "metadata": asdict(repository.metadata)})
                )
            self._repositories[repo_type, present] = Repository(place, repo_type, present)
            ids = {key: present if to == former else to for key, to in self._moved.items()}
            self._moved = ids | {(repo_type, former): present}
            self._moved.pop((repo_type, present), None)
