"""Names that saving, loading, uploading and the tests share, and finding these files in a stranger's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from huggingface_hub.utils.sha import git_hash, sha_fileobj

from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError

SCHEMA_VERSION: Final = 1
"""Major version of the artifact. A reader refuses a higher one."""

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
ENCODER_FILE: Final = "gradiend_encoder.safetensors"
BASE_FILE: Final = "gradiend_base.safetensors"
"""Sampled values of the base model; up to version 0.1 they lay in the encoder's file."""
REPORT_FILE: Final = "gradiend_report.json"
PROBES_FILE: Final = "gradiend_probes.jsonl"
REFERENCES_FILE: Final = "gradiend_references.safetensors"
SUMMARY_FILE: Final = "gradiend_summary.json"
CARD_FILE: Final = "README.md"
HTML_FILE: Final = "report.html"
LORA_FOLDER: Final = "lora"
"""Folder of the direction at strength 1 as a plain LoRA, or of one for each sign."""
LORA_SIGNS: Final = {1: "plus", -1: "minus"}
"""Names of the folders of both, where one is not the opposite of the other."""
LORA_FILES: Final = tuple(
    f"{LORA_FOLDER}/{place}{name}"
    for place in ("", *(f"{sign}/" for sign in LORA_SIGNS.values()))
    for name in (CONFIG_FILE, WEIGHTS_FILE)
)
GGUF_FOLDER: Final = "gguf"
"""Folder of the direction at strength 1 as a LoRA for llama.cpp, if there is one."""
GGUF_FILE: Final = "adapter.gguf"
"""Name of its file if one is enough; else "plus.gguf" and "minus.gguf"."""
GGUF_FILES: Final = tuple(f"{GGUF_FOLDER}/{name}" for name in (GGUF_FILE, *(f"{s}.gguf" for s in LORA_SIGNS.values())))
EVAL_RESULTS_FOLDER: Final = ".eval_results"
"""Folder of benchmark results in the Hub's own form."""
ASSETS_FOLDER: Final = "assets"
"""Folder of the card's figures."""
MOST_REPORT_BYTES: Final = 2**24
"""Largest report that is read."""
MOST_PROBES_BYTES: Final = 2**20
"""Largest self-test that is read."""
MOST_REFERENCES_BYTES: Final = 2**26
"""Largest file of reference directions that is read."""
MOST_CARD_BYTES: Final = 2**22
"""Largest card that is read."""
REPORTS_FOLDER: Final = "reports"
"""Folder of the reports that others than the author have added."""

SLOT: Final = "[MASK]"
"""Placeholder of the slot in a row's `masked` text, whatever the model's own mask token is."""

HUB_TAGS: Final = ("gradiend", "feature-direction")
"""Tags of a direction on the Hub."""
REWRITTEN_TAGS: Final = ("gradiend-rewritten",)
"""Tags of a model that a direction was merged into; a search for directions does not find it."""

PICTURES: Final = (".png", ".svg")
"""Ends of the names of figures."""

ARTIFACT_FILES: Final = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ENCODER_FILE,
    BASE_FILE,
    REPORT_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    SUMMARY_FILE,
    CARD_FILE,
    HTML_FILE,
    *(f"{ASSETS_FOLDER}/*{end}" for end in PICTURES),
    *LORA_FILES,
    *GGUF_FILES,
    f"{EVAL_RESULTS_FOLDER}/gradiend-*.yaml",
    "LICENSE",
)
"""All files that belong to a direction, as patterns of their names."""


def own_file(folder: Path, name: str) -> Path | None:
    """Path of a file in the folder of an artifact; `None` if there is none.

    A link may lead to another place of the folder, or into the cache of the Hub that the folder is a part of.

    Raises:
        ArtifactError: it is a link that leads anywhere else, or no plain file. Reading, copying or publishing it would
            do that with whatever file of this machine its maker has named.
    """
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    require_within(path, folder)
    if not path.is_file():
        raise ArtifactError(f"{path} is no file. Expected a plain file; remove it, or download the direction again.")
    return path


def require_file(folder: Path, name: str) -> Path:
    """Path of a file that has to be in the folder of an artifact.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactError: as in `own_file`.
    """
    path = own_file(folder, name)
    if path is None:
        raise ArtifactNotFoundError(f"There is no {name} in {folder}; is this the folder of a direction?")
    return path


def figures(folder: Path) -> Iterator[str]:
    """Names of the figures in the folder of an artifact, with that of their own folder.

    Raises:
        ArtifactError: as in `own_file`, or their folder is a link that leads out.
    """
    assets = folder / ASSETS_FOLDER
    if not assets.exists() and not assets.is_symlink():
        return
    require_within(assets, folder)
    for path in sorted(assets.iterdir() if assets.is_dir() else ()):
        if path.suffix in PICTURES and own_file(folder, name := f"{ASSETS_FOLDER}/{path.name}"):
            yield name


def is_damaged(path: Path) -> bool:
    """Tell whether a file in the cache of the Hub has other bytes than the Hub has listed.

    The cache calls a file by the digest in the Hub's listing, and links to it: sha256 of a large file, and what git calls a
    small one. A file that has no such name (on a disk without links) is not looked at.
    """
    expected = path.readlink().name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", expected):
        return file_sha256(path) != expected
    return re.fullmatch("[0-9a-f]{40}", expected) is not None and git_hash(path.read_bytes()) != expected


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def require_within(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of the folder of an artifact, and not into the cache of the Hub that it is a part of.

    Raises:
        ArtifactError: it does.
    """
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{path} is a link that leads in a circle. Put the file itself there.") from error
    # LINK in HOME/models--NAME/snapshots/COMMIT leads to HOME/models--NAME/blobs or to HOME/blobs
    cache = next((above for above in home.parents if above.name == "snapshots"), None)
    stores = [] if cache is None else [cache.parent / "blobs", cache.parents[1] / "blobs"]
    if not any(real.is_relative_to(place) for place in (home, *stores)):
        raise ArtifactError(
            f"{path} is a link to {real}, outside of the direction's folder, so it is neither read, copied nor published. "
            "Put the file itself there."
        )
