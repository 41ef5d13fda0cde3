"""Would a direction fit a base model? Told from its configuration and a few of its values; no model is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from gradiend_hub.adapter.sites import SiteMap, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.fingerprint import (
    BaseModelRelation,
    Fingerprint,
    identifies,
    sample_positions,
)
from gradiend_hub.artifact.tensor_files import (
    DTYPES,
    INDEX,
    WEIGHTS,
    StoredTensor,
    TensorFile,
    checkpoint_files,
)
from gradiend_hub.base_model import skeleton
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, first_line
from gradiend_hub.hub.remote_tensors import RemoteTensorFile

REMOTE_TENSORS = 16
"""Tensors of a base model on the Hub that are looked at, and `REMOTE_VALUES` of each."""
REMOTE_VALUES = 8

_Tensors = TensorFile | RemoteTensorFile


@dataclass(frozen=True)
class BaseFit:
    """Answer to the question whether a direction fits a base model.

    Attributes:
        base: the base model that was asked about.
        fits: whether the direction is applied to it without a further option.
        relation: "same", "same up to rounding", "related" or "different", by the values that were compared; "unknown" where
            there was nothing to compare.
        why: the evidence, in words.
    """

    base: str
    fits: bool
    relation: str
    why: str


def base_fit(folder: Path, base: str, **hub: Any) -> BaseFit:
    """Compare the samples that a direction carries of its base model with the files of a model.

    Of a folder, and of a model in the cache, all that were sampled are compared; of a model on the Hub, a few values of some
    tensors, each asked for by its place in the file, so that no weights are downloaded. A fine-tune that has changed none of
    them looks the same.

    Args:
        folder: of the direction.
        base: folder or repository of the model.
        **hub: `token` and `cache_dir`.

    Raises:
        ArtifactError: the direction is damaged.
        BaseModelError: there is no such model, or its files cannot be read.
    """
    config = GradiendConfig.from_pretrained(str(folder))
    fingerprint = Direction.stream(folder, config, encoder=False).fingerprint
    try:
        model = skeleton(config, base, **hub)
        sites = SiteMap(model)
        names = resolve_names(model, config.parameters or {}, sites.parameters)
        wrong = [name for name, found in names.items() if not _has_shape(config, name, sites.parameters[found])]
    except BaseModelMismatchError as error:
        return BaseFit(base, False, "different", str(error))
    if wrong:
        return BaseFit(base, False, "different", f"{wrong[0]} has another shape there.")
    if fingerprint is None or not identifies(fingerprint):
        why = "Its parameters have the names and shapes, but the direction has no sampled weights to compare with."
        return BaseFit(base, False, "unknown", why)
    places = {name: stored for stored, spelled in spellings(model, sites, names).items() for name in spelled}
    known, found = _values(fingerprint, places, *_files(base, config, hub))
    if not known:
        why = "Its files keep none of the touched parameters under the name and type that they have in the model."
        return BaseFit(base, False, "unknown", why)
    match = Fingerprint(known, fingerprint.dtype).compare(found)
    equal = {
        BaseModelRelation.SAME: "All are equal.",
        BaseModelRelation.ROUNDED: "All are equal up to the rounding of types.",
    }
    values = sum(len(samples) for samples in known.values())
    why = f"{values:,} sampled values of {len(known)} of {len(config.parameters or {})} tensors were compared. "
    why += equal.get(match.relation) or match.evidence()
    if match.relation is BaseModelRelation.RELATED:
        why += " It is a relative, such as a fine-tune: --allow-related applies the direction all the same."
    return BaseFit(base, match.relation in equal, match.relation.value, why)


def _has_shape(config: GradiendConfig, name: str, parameter: torch.Tensor) -> bool:
    return list((config.parameters or {})[name]["shape"]) == list(parameter.shape)


def spellings(model: nn.Module, sites: SiteMap, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Parameter of a direction → names that it may have in a file: all tied ones, with and without the prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    aliases: dict[int, list[str]] = {}
    for name, parameter in sites.parameters.items():
        aliases.setdefault(id(parameter), []).append(name)
    tied = {stored: aliases[id(sites.parameters[name])] for stored, name in names.items()}
    return {
        stored: [*dict.fromkeys(n for name in same for n in (name, prefix + name, name.removeprefix(prefix)))]
        for stored, same in tied.items()
    }


def _files(base: str, config: GradiendConfig, hub: Mapping[str, Any]) -> tuple[list[_Tensors], bool]:
    """The files of a model, and whether they are on the Hub."""
    folder = Path(base)
    if not folder.is_dir():
        revision = config.revision if base == config.base_model_name_or_path else None
        wanted = ["config.json", WEIGHTS, INDEX, "model-*.safetensors"]
        try:
            folder = Path(
                snapshot_download(base, revision=revision, allow_patterns=wanted, local_files_only=True, **hub)
            )
            return [TensorFile(path) for path in checkpoint_files(folder)], False
        except (LocalEntryNotFoundError, HFValidationError, BaseModelError, OSError):
            return _remote_files(base, revision, hub), True
    return [TensorFile(path) for path in checkpoint_files(folder)], False


def _remote_files(base: str, revision: str | None, hub: Mapping[str, Any]) -> list[_Tensors]:
    api = HfApi(token=hub.get("token"))
    try:
        path = api.hf_hub_download(base, INDEX, revision=revision, cache_dir=hub.get("cache_dir"))
        names = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
    except EntryNotFoundError:
        names = [WEIGHTS]
    except (HfHubHTTPError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"The weights of {base} cannot be looked at: {first_line(error)}") from error
    return [RemoteTensorFile(base, str(name), revision, hub.get("token")) for name in names]


def _values(
    fingerprint: Fingerprint, places: Mapping[str, str], files: list[_Tensors], remote: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sampled values of the direction and those of the files, by parameter; of what is on the Hub, some."""
    there: dict[str, tuple[_Tensors, StoredTensor]] = {}
    for file in files:
        for tensor in file.tensors:
            name = places.get(tensor.name)
            if name is not None and name in fingerprint.samples and tensor.code in DTYPES and all(tensor.shape):
                there.setdefault(name, (file, tensor))
    # the largest first: a fine-tune by adapters leaves the small ones alone
    chosen = sorted(there, key=lambda name: there[name][1].start - there[name][1].stop)
    if remote:
        chosen = chosen[:: math.ceil(len(chosen) / REMOTE_TENSORS) or 1]
    known: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name in chosen:
        file, tensor = there[name]
        positions = sample_positions(math.prod(tensor.shape))
        some = slice(None, None, max(1, len(positions) // REMOTE_VALUES) if remote else 1)
        known[name], found[name] = fingerprint.samples[name][some], file.values_at(tensor, positions[some])
    return known, found
