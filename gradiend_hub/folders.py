"""Folders that are written: refused if they hold something, and never left half written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, first_line


def require_empty(folder: Path, instead: str) -> None:
    """Raise `ConfigError` if there is something at `folder`, or nothing can be written there.

    Args:
        instead: what to use then, for the message.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; expected a folder. Use {instead}.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found:
        raise ConfigError(f"The folder {folder} is not empty ({', '.join(found[:4])}). Use {instead}.")
    require_writable(folder)


def require_writable(folder: Path) -> None:
    """Raise `ConfigError` if nothing can be written in `folder`, or where it is to be made. Nothing is left there."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"Nothing can be written in {folder}: {nearest} is a file. Name another folder.")
    try:  # a question of permissions says nothing of disks that are only read
        Path(tempfile.mkdtemp(dir=nearest)).rmdir()
    except OSError as error:
        raise ConfigError(
            f"Nothing can be written in {folder}: {error.strerror or first_line(error)} in {nearest}. Name another folder."
        ) from error


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`, whose files are moved there at the end; on an error they are removed.

    Files of the same name in `folder` are replaced, all others stay.

    Raises:
        ConfigError: nothing can be written there.
    """
    require_writable(folder)
    above = folder.absolute().parent
    made = [path for path in (above, *above.parents) if not path.exists()]
    above.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=above))
    try:
        partial.chmod(0o777 & ~_umask())  # as of any other new folder
        yield partial
        if folder.is_dir() and any(folder.iterdir()):
            _move_into(partial, folder)
        else:
            if folder.is_dir():
                folder.rmdir()
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:  # nearest first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
    shutil.rmtree(partial, ignore_errors=True)


def _move_into(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_dir() and (target / path.name).is_dir():
            _move_into(path, target / path.name)
        else:
            path.replace(target / path.name)


def new_file_mode() -> int:
    """Permissions of a new file of this process, as `open` gives them."""
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
