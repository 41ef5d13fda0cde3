"""Pushing a model that a direction was merged into: its own files by their names, in one commit or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import CommitInfo

from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE
from gradiend_hub.errors import ArtifactError

from .part import Part
from .patience import PushApi
from .push import Push, push_options

__all__ = ["is_rewritten", "publish_rewritten"]

MODEL_CONFIG: Final = "config.json"
MODEL_FILES: Final = (
    MODEL_CONFIG,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*preprocessor_config.json",
    "processor_config.json",
    "chat_template.j*",
    CARD_FILE,
    "LICENSE",
)
"""What transformers writes for a model with its tokenizer or processor; nothing else of the folder is pushed."""


def is_rewritten(folder: str | Path) -> bool:
    """Tell whether a folder holds a whole model and no direction."""
    folder = Path(folder)
    return (folder / MODEL_CONFIG).is_file() and not (folder / CONFIG_FILE).exists()


def publish_rewritten(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    commit_message: str = "Upload rewritten model",
    **options: Any,
) -> CommitInfo:
    """Push a merged model with its card to the Hub in one commit; see `publish_folder`, which pushes directions so.

    Args:
        folder: what `gradiend-hub merge` wrote, with its card; without one nobody could tell what the model is.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        token: access token; by default the one that the user logged in with.
        commit_message: first line of the commit message.
        **options: `private`, `revision`, `create_pr`, `tag`, `subfolder` and `overwrite` of `publish_folder`.

    Raises:
        HubPushError: nothing was committed. The message says why, and how to repeat it.
    """
    of_push = push_options(options)
    part = _RewrittenPart(Path(folder), repo_id, "model", MODEL_FILES, **options)
    return Push(PushApi(token=token), [part], repo_id, message=commit_message, **of_push).send()


@dataclass
class _RewrittenPart(Part):
    """A model's files."""

    def check_config(self) -> None:
        missing = [name for name in (MODEL_CONFIG, CARD_FILE) if not (self.folder / name).is_file()]
        missing += [] if any(self.folder.glob("model*.safetensors")) else ["model*.safetensors"]
        if missing:
            raise ArtifactError(f"the folder is not a merged model with its card, it has no {' and no '.join(missing)}")
        if self.base_id is not None:
            raise ArtifactError("a merged model needs no other base model, so base_id is not for it")
