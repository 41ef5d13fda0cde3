"""The folder's side of a push: which of its files are published, and whether they are a direction that others can use."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Final

from huggingface_hub import CommitOperationAdd
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from gradiend_hub.artifact.files import (
    ARTIFACT_FILES,
    ASSETS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    EVAL_RESULTS_FOLDER,
    LORA_FOLDER,
    MOST_CARD_BYTES,
    MOST_PROBES_BYTES,
    MOST_REPORT_BYTES,
    PROBES_FILE,
    REPORTS_FOLDER,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    own_file,
    require_within,
)
from gradiend_hub.artifact.summary import Summary
from gradiend_hub.artifact.validation import parse_json, read_json, read_text
from gradiend_hub.errors import ArtifactError
from gradiend_hub.printable import listed

logger = logging.getLogger(__name__)

UPLOADED: Final = {
    "model": (*ARTIFACT_FILES, f"{REPORTS_FOLDER}/*.json"),
    "dataset": ("*.json", "*.jsonl", CARD_FILE, "LICENSE"),
    "space": ("app.py", "requirements.txt", CARD_FILE),
}
"""Files that are pushed unless the caller asks for others: those that a direction, data that was built, or a Space
consists of. Of any other one in the folder, nobody knows what is in it."""

NOT_UPLOADED: Final = (".*", "*/.*", "checkpoint-*/*")
"""Never pushed: hidden files but `.eval_results`, and the checkpoints of a training run."""

_READ_REPORT: Final = "gradiend_hub.evaluation.report:Report.find"
"""Reads the report in a folder; a name, since reports are built upon this package."""


@dataclass(frozen=True)
class LocalFile:
    """A file to push: where it is, its path in the repository, and its content if that is not the one on disk."""

    path: Path
    name: str
    content: bytes | None = None

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.content is None else len(self.content)

    def read(self) -> bytes:
        return self.path.read_bytes() if self.content is None else self.content

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") if self.content is None else io.BytesIO(self.content) as content:
            return sha_fileobj(content).hex()

    def equals(self, remote: RepoFile) -> bool:
        """Return whether the repository has the same bytes. It names large files by sha256 and small ones as git does."""
        if remote.size != self.size:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == git_hash(self.read())

    def addition(self) -> CommitOperationAdd:
        """A new operation for each attempt: used ones remember what the repository held before."""
        return CommitOperationAdd(self.name, self.path if self.content is None else self.content)


def chosen_files(folder: Path, patterns: tuple[str, ...], subfolder: str | None) -> list[LocalFile]:
    """Files of the folder that are pushed, to a folder of the repository. Which others are left out is logged.

    Raises:
        ArtifactError: one is a link that leads out of the folder.
    """
    names = [name for name in _names(folder) if not _is_hidden(name)]
    chosen = [name for name in names if matches(name, patterns) and _is_one(folder, name, patterns)]
    known = {name.split("/")[0] for name in chosen}
    if left := {name if (top := name.split("/")[0]) in known else top for name in {*names} - {*chosen}}:
        logger.warning(f"Not published, since it is no part of a direction: {listed(sorted(left))}.")
    for name in (ASSETS_FOLDER, REPORTS_FOLDER, *chosen):
        require_within(folder / name, folder)
    return [LocalFile(folder / name, f"{subfolder}/{name}" if subfolder else name) for name in chosen]


def _is_hidden(name: str) -> bool:
    return matches(name.removeprefix(f"{EVAL_RESULTS_FOLDER}/"), NOT_UPLOADED)


def _is_one(folder: Path, name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a file is what its name says, where other files may have such a name."""
    if patterns is not UPLOADED["model"] or not name.startswith(f"{REPORTS_FOLDER}/"):
        return True
    try:
        report = read_json(folder / name, MOST_REPORT_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"schema_version", "splits", "feature_classes"} <= report.keys()


def require_publishable(folder: Path, patterns: tuple[str, ...], allow_unmeasured: bool) -> None:
    """Refuse what nobody could load or judge: an unusable config, damaged or NaN vectors, a broken report or self-test, and
    a direction that was not measured or has no card. What is not to be pushed is not looked at.

    Raises:
        ArtifactError: saying which file is wrong, and how.
    """
    if not matches(WEIGHTS_FILE, patterns):
        return
    from gradiend_hub.artifact.config import GradiendConfig  # PEFT and torch are not needed for other pushes
    from gradiend_hub.artifact.direction import Direction

    Direction.stream(folder, GradiendConfig.from_pretrained(str(folder))).check()
    _check_probes(folder)
    _check_beside(folder)
    report = resolve_name(_READ_REPORT)(folder)  # as everybody is going to read it
    if not (allow_unmeasured or (report and report.splits)):
        raise ArtifactError(
            "this direction is unmeasured: its strength has no unit yet, and nobody knows what else it changes. Measure it "
            "(trainer.evaluate()), or publish it as it is with allow_unmeasured=True (--allow-unmeasured)"
        )
    if (card := own_file(folder, CARD_FILE)) is not None:
        try:
            read_text(card, MOST_CARD_BYTES)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{CARD_FILE} cannot be read: {error}") from error
    elif matches(CARD_FILE, patterns) and not allow_unmeasured:
        raise ArtifactError(
            f"it has no card ({CARD_FILE}). gradiend_hub.cards.write_card({str(folder)!r}) writes one from config and report"
        )


def _check_probes(folder: Path) -> None:
    path = own_file(folder, PROBES_FILE)
    if path is None:
        return
    number = 1
    try:
        for line in read_text(path, MOST_PROBES_BYTES).splitlines():
            if line.strip() and not isinstance(parse_json(line), dict):
                raise ValueError("it is no JSON object")
            number += 1
    except ValueError as error:
        raise ArtifactError(f"{PROBES_FILE} cannot be read, line {number}: {error}") from error


def _check_beside(folder: Path) -> None:
    """Check the summary, and the configurations of LoRAs: the push writes ids into them."""
    if path := own_file(folder, SUMMARY_FILE):
        Summary.load(path)
    for name in (f"{LORA_FOLDER}/{place}{CONFIG_FILE}" for place in ("", "plus/", "minus/")):
        path = own_file(folder, name)
        try:
            if path and read_json(path, MOST_REPORT_BYTES).get("peft_type") != "LORA":
                raise ValueError("it is of no LoRA")
        except (AttributeError, ValueError) as error:
            raise ArtifactError(f"{name} cannot be used: {error}") from error


def _names(folder: Path) -> list[str]:
    """Names of all files of a folder and the folders in it; links to folders are not followed, but they are named."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name fits one of the glob patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)
