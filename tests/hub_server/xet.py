"""The Xet content store over HTTP: xorbs (packed chunks), shards (file tables), reconstructions.

`hf_xet` is how huggingface_hub transfers large files by default. It uploads chunks packed into xorbs, then a shard that
says which chunk ranges make up which file; it downloads by asking for that plan. Format: huggingface.co/docs/xet.
"""

from __future__ import annotations

import hashlib
import re
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEADER = 48
"""Bytes of a shard's header, and of each of its records."""

_HAS_VERIFICATION = 1 << 31
_HAS_SHA256 = 1 << 30


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `end` (exclusive) of a xorb; `size` bytes of a file."""

    xorb: str
    start: int
    end: int
    size: int


@dataclass(frozen=True)
class File:
    """One file of a shard: its Xet hash, its sha256 if the client declared it, and its parts."""

    hash: str
    sha256: str | None
    terms: list[Term]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its serialized xorb, and its size when unpacked."""

    start: int
    end: int
    size: int


def _hash_text(raw: bytes) -> str:
    """Text form of a 32-byte hash: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def files_of_shard(shard: bytes) -> Iterator[File]:
    """The file table of a serialized shard."""
    position = _HEADER
    while position + _HEADER <= len(shard):
        raw = shard[position : position + 32]
        flags, count = struct.unpack_from("<II", shard, position + 32)
        position += _HEADER
        if raw == b"\xff" * 32:
            return
        terms = []
        for _ in range(count):
            _flags, size, start, end = struct.unpack_from("<IIII", shard, position + 32)
            terms.append(Term(_hash_text(shard[position : position + 32]), start, end, size))
            position += _HEADER
        if flags & _HAS_VERIFICATION:
            position += _HEADER * count
        sha256 = None
        if flags & _HAS_SHA256:
            sha256 = _hash_text(shard[position : position + 32])
            position += _HEADER
        yield File(_hash_text(raw), sha256, terms)


class ContentStore:
    """Xorbs and shards on disk."""

    def __init__(self, root: Path, url: str) -> None:
        self.url = url
        self._xorbs = root / "xorbs"
        self._shards = root / "shards"
        self._by_sha256: dict[str, File] = {}
        self._files: dict[str, File] = {}
        self._xorbs.mkdir(parents=True, exist_ok=True)
        self._shards.mkdir(parents=True, exist_ok=True)
        for shard in self._shards.iterdir():
            self._register(shard.read_bytes())

    def _register(self, shard: bytes) -> None:
        for file in files_of_shard(shard):
            for term in file.terms:
                if not self.xorb_path(term.xorb).exists():
                    raise ValueError(f"shard refers to missing xorb {term.xorb}")
            self._files[file.hash] = file
            if file.sha256:
                self._by_sha256[file.sha256] = file

    def xorb_path(self, name: str) -> Path:
        """Where the xorb is, or would be."""
        return self._xorbs / name

    def add_xorb(self, name: str, content: bytes) -> bool:
        """Store a xorb; False if it was there."""
        path = self.xorb_path(name)
        if path.exists():
            return False
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        temporary.write_bytes(content)
        temporary.replace(path)
        return True

    def add_shard(self, content: bytes) -> None:
        """Register the files of a shard; ValueError if one of its xorbs is missing."""
        self._register(content)
        (self._shards / hashlib.sha256(content).hexdigest()).write_bytes(content)

    def file(self, name: str) -> File | None:
        """A file by its Xet hash."""
        return self._files.get(name)

    def by_sha256(self, sha256: str) -> File | None:
        """A file by the sha256 of its content."""
        return self._by_sha256.get(sha256)

    def _chunks(self, xorb: str) -> list[Chunk]:
        """The chunks of a serialized xorb: 8-byte headers with packed and unpacked length, then the data."""
        content = self.xorb_path(xorb).read_bytes()
        chunks, position = [], 0
        while position + 8 <= len(content) and content[position] == 0:
            packed = int.from_bytes(content[position + 1 : position + 4], "little")
            unpacked = int.from_bytes(content[position + 5 : position + 8], "little")
            chunks.append(Chunk(position, position + 8 + packed, unpacked))
            position += 8 + packed
        return chunks

    def plan(self, file: File, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """How to rebuild bytes `first` to `last` (inclusive): chunk ranges, and where to fetch them."""
        last = file.size - 1 if last is None else last
        terms: list[dict[str, Any]] = []
        parts: dict[str, list[tuple[int, int]]] = {}
        skipped, position = 0, 0
        for term in file.terms:
            end = position + term.size
            if position <= last and end > first:
                chunks = self._chunks(term.xorb)
                low, low_position = term.start, position
                while low_position + chunks[low].size <= first and low < term.end - 1:
                    low_position += chunks[low].size
                    low += 1
                if not terms:
                    skipped = max(0, first - low_position)
                high, high_position = low, low_position
                while high < term.end and high_position <= last:
                    high_position += chunks[high].size
                    high += 1
                part = {"start": low, "end": high}
                terms.append({"hash": term.xorb, "unpacked_length": high_position - low_position, "range": part})
                parts.setdefault(term.xorb, []).append((low, high))
            position = end
        fetch = {xorb: [self._blob(xorb, *part) for part in _united(of)] for xorb, of in parts.items()}
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch}

    def _blob(self, xorb: str, low: int, high: int) -> dict[str, Any]:
        """Where some chunks of a xorb are fetched."""
        chunks = self._chunks(xorb)
        where = {"start": chunks[low].start, "end": chunks[high - 1].end - 1}
        return {"range": {"start": low, "end": high}, "url": f"{self.url}/blob/{xorb}", "url_range": where}

    def rebuild(self, file: File, target: Path) -> None:
        """Write the content of a file, fetched as any client would fetch it.

        Raises:
            ValueError: the content has another sha256 than the client declared.
        """
        import hf_xet

        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{uuid.uuid4().hex}")
        expiry = int(time.time()) + 3600
        try:
            with hf_xet.XetSession().new_file_download_group(
                endpoint=self.url, token=access_token("read"), token_expiry_unix_secs=expiry
            ) as group:
                group.start_download_file(hf_xet.XetFileInfo(file.hash, file.size), str(temporary))
            with temporary.open("rb") as content:
                found = _sha256(content)
            if found != file.sha256:
                raise ValueError(f"sha256 mismatch: {file.sha256} declared, {found} uploaded")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _united(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of chunks without those that overlap: a file may repeat chunks, and the client takes one range for each."""
    united: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if united and low < united[-1][1]:
            united[-1] = (united[-1][0], max(high, united[-1][1]))
        else:
            united.append((low, high))
    return united


def _sha256(content: Any) -> str:
    digest = hashlib.sha256()
    while block := content.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def access_token(kind: str) -> str:
    """The short-lived token of the store; `kind` is read or write."""
    return f"{kind}:{uuid.uuid4().hex}"


def allows(authorization: str | None, kind: str) -> bool:
    """Whether an Authorization header carries a token for this kind of access."""
    match = re.fullmatch(r"Bearer (read|write):\w+", authorization or "")
    return match is not None and match[1] in ("write", kind)
