"""Record of what was pushed from a folder, kept beside it: a card that is still so on the Hub was edited by nobody else."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from huggingface_hub.utils.sha import git_hash

from gradiend_hub.artifact.validation import read_json

logger = logging.getLogger(__name__)

_FILE: Final = Path(".cache", "gradiend_hub", "pushed.json")
"""Hidden, as the notes of `hf download` are; a push takes no hidden file along."""
_MOST_BYTES: Final = 2**20


class Memory:
    """Digests of what was last pushed from a folder to a repository, or downloaded into it with `hf download`.

    Args:
        folder: of the direction.
        repo_id: the repository.
    """

    def __init__(self, folder: Path, repo_id: str) -> None:
        self._folder, self._repo_id = folder, repo_id

    def knows(self, name: str, content: bytes) -> bool:
        """Tell whether this content of a file in the repository was pushed from the folder, or downloaded into it."""
        return self._notes().get(self._repo_id, {}).get(name) == _digest(content) or self._downloaded(name) == git_hash(
            content
        )

    def note(self, name: str, content: bytes | None) -> None:
        """Remember what was pushed, or forget it (`None`); nothing where the folder cannot be written."""
        notes = self._notes()
        notes.setdefault(self._repo_id, {})[name] = "" if content is None else _digest(content)
        try:
            (self._folder / _FILE).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / _FILE).write_text(json.dumps(notes, indent=1), encoding="utf-8")
        except OSError as error:
            logger.debug("What was pushed is not remembered: %s", error)

    def _notes(self) -> dict[str, dict[str, str]]:
        with suppress(OSError, ValueError):
            notes = read_json(self._folder / _FILE, _MOST_BYTES)
            if isinstance(notes, dict) and all(isinstance(by_name, dict) for by_name in notes.values()):
                return notes
        return {}

    def _downloaded(self, name: str) -> str | None:
        """Return git's hash of the file as `hf download --local-dir` has last written it: the second line of its note."""
        note = self._folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        with suppress(OSError, ValueError, IndexError):
            return note.read_text(encoding="utf-8").splitlines()[1].strip()
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
