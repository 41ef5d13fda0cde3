"""Bare git repositories, driven through the git command."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub_server.errors import no_such_revision, stale_parent

NO_COMMIT = "0" * 40
"""As `old` of `move_ref`: the ref must not exist yet."""

_POINTER = re.compile(rb"^version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n$")
_LONGEST_POINTER = 200
_LOG_FORMAT = "%H%x00%an%x00%ct%x00%s%x00%b%x1e"


def timestamp(seconds: float) -> str:
    """Unix time in the only date format that the client parses."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def lfs_pointer(oid: str, size: int) -> bytes:
    """The file that git stores in place of a large object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


@dataclass(frozen=True)
class LargeObject:
    """What an LFS pointer points to: sha256 in hex and size in bytes."""

    oid: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One row of a tree. `size` is that of the content, also where git itself stores a pointer."""

    path: str
    is_directory: bool
    oid: str
    size: int = 0
    large: LargeObject | None = None
    pointer_size: int = 0


@dataclass(frozen=True)
class Change:
    """One operation of a commit: `content` is written to `path`, or the path is deleted when it is None."""

    path: str
    content: bytes | None


class GitRepository:
    """One bare repository. Safe for concurrent callers: refs move by compare-and-swap only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pointers: dict[str, LargeObject | None] = {}
        self._trees: dict[str, list[Entry]] = {}

    @classmethod
    def create(cls, directory: Path) -> GitRepository:
        """An empty repository with `main` as its default branch."""
        directory.mkdir(parents=True)
        repository = cls(directory)
        repository.run("init", "-q", "--bare", "-b", "main", "--template=")
        return repository

    def _process(self, arguments: tuple[str, ...], stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_DIR": str(self.directory),
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": str(self.directory),
            "LC_ALL": "C",
        }
        return subprocess.run(
            ["git", "-c", "core.quotePath=false", *arguments], input=stdin, capture_output=True, env=environment
        )

    def run(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        """Output of a git command that must succeed."""
        process = self._process(arguments, stdin)
        if process.returncode:
            raise RuntimeError(f"git {' '.join(arguments)}: {process.stderr.decode()}")
        return process.stdout

    def succeeds(self, *arguments: str) -> bool:
        """Whether a git command exits with 0."""
        return self._process(arguments).returncode == 0

    # revisions

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, tag, full ref or (abbreviated) commit stands for."""
        if revision.startswith("refs/"):
            candidates = [revision]
        else:
            candidates = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
            if re.fullmatch(r"[0-9a-f]{40}", revision):
                candidates = [revision]
            elif re.fullmatch(r"[0-9a-f]{7,39}", revision):
                candidates.append(revision)
        for candidate in candidates:
            process = self._process(("rev-parse", "--verify", "-q", "--end-of-options", f"{candidate}^{{commit}}"))
            if process.returncode == 0:
                return process.stdout.decode().strip()
        raise no_such_revision(revision)

    def writable_ref(self, revision: str) -> str:
        """The ref that a commit to `revision` moves: a branch, or an existing refs/pr/N."""
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if not self.has_ref(ref):
            raise no_such_revision(revision)
        return ref

    def has_ref(self, ref: str) -> bool:
        """Whether the full ref exists."""
        return self.succeeds("rev-parse", "--verify", "-q", ref)

    def refs(self) -> list[tuple[str, str]]:
        """Full name and commit of every ref; annotated tags are peeled."""
        lines = self.run("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").decode().splitlines()
        return [(fields[0], fields[-1]) for fields in (line.split() for line in lines)]

    def move_ref(self, ref: str, new: str, old: str) -> bool:
        """Compare-and-swap: point `ref` from `old` to `new`; False if it is elsewhere by now."""
        return self.succeeds("update-ref", ref, new, old)

    def delete_ref(self, ref: str) -> None:
        """Delete a ref that exists."""
        self.run("update-ref", "-d", ref)

    # content

    def tree(self, commit: str) -> list[Entry]:
        """All files and directories of a commit, in git's order."""
        if commit not in self._trees:
            self._trees[commit] = self._read_tree(commit)
        return self._trees[commit]

    def _read_tree(self, commit: str) -> list[Entry]:
        rows = []
        for line in self.run("ls-tree", "-r", "-t", "-z", "--long", commit).decode().split("\0"):
            if line:
                fields, path = line.split("\t", 1)
                _mode, kind, oid, size = fields.split()
                rows.append((kind, oid, 0 if kind == "tree" else int(size), path))
        self._read_pointers({oid for kind, oid, size, _ in rows if kind == "blob" and size < _LONGEST_POINTER})
        entries = []
        for kind, oid, size, path in rows:
            large = self._pointers.get(oid)
            if kind == "tree":
                entries.append(Entry(path, True, oid))
            elif large:
                entries.append(Entry(path, False, oid, large.size, large, size))
            else:
                entries.append(Entry(path, False, oid, size))
        return entries

    def _read_pointers(self, oids: set[str]) -> None:
        unknown = sorted(oids - self._pointers.keys())
        if not unknown:
            return
        output = self.run("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in unknown).encode())
        position = 0
        for oid in unknown:
            start = output.index(b"\n", position) + 1
            size = int(output[position:start].split()[2])
            match = _POINTER.match(output[start : start + size])
            self._pointers[oid] = LargeObject(match[1].decode(), int(match[2])) if match else None
            position = start + size + 1

    def entry(self, commit: str, path: str) -> Entry | None:
        """The file or directory at `path`, or None."""
        return next((entry for entry in self.tree(commit) if entry.path == path), None)

    def blob(self, oid: str) -> bytes:
        """Content of a blob."""
        return self.run("cat-file", "blob", oid)

    def text(self, commit: str, path: str) -> str:
        """Content of a small text file, empty if it is missing or a large object."""
        entry = self.entry(commit, path)
        return self.blob(entry.oid).decode("utf-8", "replace") if entry and not entry.large else ""

    # history

    def history(self, commit: str, *, limit: int, skip: int = 0) -> list[dict[str, Any]]:
        """Newest commits first, in the shape of the commits API."""
        output = self.run("log", f"--format={_LOG_FORMAT}", f"--skip={skip}", f"-n{limit}", commit).decode()
        commits = []
        for record in filter(None, (part.strip("\n") for part in output.split("\x1e"))):
            oid, author, seconds, title, body = record.split("\0")
            commits.append(
                {
                    "id": oid,
                    "title": title,
                    "message": body.strip(),
                    "authors": [{"user": author, "avatar": ""}],
                    "date": timestamp(int(seconds)),
                }
            )
        return commits

    def last_change(self, commit: str, path: str) -> dict[str, Any]:
        """The newest commit that touched `path`."""
        fields = self.run("log", "-1", "--format=%H%x00%s%x00%ct", commit, "--", path).decode().strip().split("\0")
        return {"id": fields[0], "title": fields[1], "date": timestamp(int(fields[2]))}

    def commit(
        self, ref: str, parent: str | None, changes: Iterable[Change], *, title: str, description: str, author: str
    ) -> str:
        """Build one commit on a scratch ref, then move `ref` by compare-and-swap; 412 if somebody was faster."""
        scratch = f"refs/hub/tmp/{uuid.uuid4().hex}"
        message = (f"{title}\n\n{description}" if description else title).encode()
        who = f"{author} <{author}@users.noreply.localhost> {int(time.time())} +0000"
        stream = bytearray(f"commit {scratch}\nmark :1\nauthor {who}\ncommitter {who}\ndata {len(message)}\n".encode())
        stream += message + b"\n"
        if parent:
            stream += f"from {parent}\n".encode()
        for change in changes:
            path = _quoted(change.path)
            if change.content is None:
                stream += b"D " + path + b"\n"
            else:
                stream += b"M 100644 inline " + path + f"\ndata {len(change.content)}\n".encode()
                stream += change.content + b"\n"
        stream += b"get-mark :1\n"
        new = self.run("fast-import", "--quiet", "--force", stdin=bytes(stream)).decode().strip()
        moved = self.move_ref(ref, new, parent or NO_COMMIT)
        self.delete_ref(scratch)
        if not moved:
            raise stale_parent()
        return new


def _quoted(path: str) -> bytes:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'.encode()
