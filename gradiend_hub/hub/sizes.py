"""Sizes that the Hub lists for a direction's files, before they are downloaded: a stranger's 64 GiB would fill the disk."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from itertools import islice
from typing import Any, Final

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from gradiend_hub.artifact.fields import MOST_BYTES, DirectionFields, stored_size
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    GGUF_FILES,
    LORA_FILES,
    MOST_CARD_BYTES,
    MOST_PROBES_BYTES,
    MOST_REFERENCES_BYTES,
    MOST_REPORT_BYTES,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.artifact.summary import MOST_SUMMARY_BYTES
from gradiend_hub.errors import ArtifactError

from .patience import bounded
from .retry import FAILURES

_MOST_BY_NAME: Final[Mapping[str, int]] = {
    CONFIG_FILE: MOST_BYTES,
    REPORT_FILE: MOST_REPORT_BYTES,
    PROBES_FILE: MOST_PROBES_BYTES,
    CARD_FILE: MOST_CARD_BYTES,
    SUMMARY_FILE: MOST_SUMMARY_BYTES,
    REFERENCES_FILE: MOST_REFERENCES_BYTES,
}
"""Largest files that are downloaded, of those that do not grow with the base model."""

_MOST_OTHER_BYTES: Final = 2**26
"""Largest figure, page or other file."""
_MOST_FILES: Final = 1000
"""Files of a folder that are looked at."""
_TENSORS: Final = (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE)
_LORAS: Final = (*(name for name in LORA_FILES if name.endswith(WEIGHTS_FILE)), *GGUF_FILES)
VECTOR_FILES: Final = frozenset((*_TENSORS, *_LORAS))
"""Files that grow with the base model; the configuration says how far."""
_PER_PARAMETER: Final = 2**17
"""Bytes of a parameter beside its vectors: entries of headers, and samples of the base model."""
_AT_LEAST: Final = 2**24
"""Bytes of a file of tensors that nobody minds."""
_PER_NUMBER: Final = 32
"""Bytes of each number of a vector in one file, at most: a value, a bias and an index, each of eight bytes."""


def most_bytes(name: str) -> float:
    """Return the size of the largest file of a name that is downloaded; that of vectors is checked with `require_sizes`."""
    return math.inf if name in VECTOR_FILES else _MOST_BY_NAME.get(name, _MOST_OTHER_BYTES)


def most_tensor_bytes(config: DirectionFields) -> int:
    """Return a size that no file of vectors of this direction reaches."""
    specs = (config.parameters or {}).values()
    return _AT_LEAST + sum(_PER_PARAMETER + _PER_NUMBER * stored_size(spec) for spec in specs)


def _most_lora_bytes(config: DirectionFields) -> int:
    """Return a size that no LoRA of this direction reaches: factors of full rank have twice as many numbers."""
    specs = (config.parameters or {}).values()
    return _AT_LEAST + sum(_PER_PARAMETER + _PER_NUMBER * int(math.prod(spec["shape"])) for spec in specs)


def listed_sizes(api: HfApi, repo_id: str, names: Collection[str], revision: str | None) -> dict[str, int]:
    """Return the sizes that the Hub lists for some files, in bytes; those that are not there are left out.

    Args:
        api: its client.
        repo_id: the repository, at a `revision`.
        names: of the files, or patterns of the names of all files in a folder ("assets/*.png").

    Raises:
        one of `retry.FAILURES`: the Hub does not tell.
    """
    folders = {name.rpartition("/")[0] for name in names if "*" in name}
    with bounded():
        rows = [*api.get_paths_info(repo_id, [name for name in names if "*" not in name], revision=revision)]
        for folder in folders:
            with suppress(EntryNotFoundError):
                rows += islice(api.list_repo_tree(repo_id, folder, revision=revision), _MOST_FILES)
    found = {row.path: row.size for row in rows if isinstance(row, RepoFile)}
    return {path: size for path, size in found.items() if any(fnmatch(path, name) for name in names)}


def require_config_size(repo_id: str, size: int) -> None:
    """Refuse to download a configuration that nobody reads.

    Raises:
        ArtifactError: it is too large.
    """
    _require(repo_id, CONFIG_FILE, size, MOST_BYTES, "of which nobody reads more than")


def require_sizes(repo_id: str, sizes: Mapping[str, int], config: DirectionFields) -> None:
    """Refuse to download files of tensors that are larger than the configuration accounts for.

    Args:
        repo_id: the repository, for the message.
        sizes: bytes by name of the file, in the folder of the direction.
        config: of the direction.

    Raises:
        ArtifactError: one is.
    """
    limits = dict.fromkeys(_TENSORS, most_tensor_bytes(config)) | dict.fromkeys(_LORAS, _most_lora_bytes(config))
    for name, most in limits.items():
        _require(repo_id, name, sizes.get(name, 0), most, "and its configuration accounts for less than")


def require_listed_sizes(config: DirectionFields, repo_id: str, subfolder: str | None, hub: Mapping[str, Any]) -> None:
    """Do that for a loader of others, which downloads whatever is there; nothing where the Hub cannot be asked.

    Args:
        config: of the direction.
        repo_id: the repository, and `subfolder` the direction's folder in it.
        hub: arguments of `hf_hub_download`, e.g. `revision` and `token`.

    Raises:
        ArtifactError: a file is larger than the configuration accounts for. Nothing of it was downloaded.
    """
    if hub.get("local_files_only") or is_offline_mode():
        return
    place = f"{subfolder}/" if subfolder else ""
    api = HfApi(token=hub.get("token"))
    try:
        found = listed_sizes(api, repo_id, [place + name for name in _TENSORS], hub.get("revision"))
    except (*FAILURES, OSError, ValueError):
        return  # the loader is going to say why
    require_sizes(repo_id, {name.removeprefix(place): size for name, size in found.items()}, config)


def _require(repo_id: str, name: str, size: int, most: int, why: str) -> None:
    if size > most:
        raise ArtifactError(
            f"{name} of {repo_id} has {size:,} bytes, {why} {most:,}. It was not downloaded. Expected a direction "
            "that its own configuration describes; ask its author."
        )
