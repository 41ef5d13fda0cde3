"""State dictionaries for PEFT: the tensors it saves of an adapter, and those it loads into one, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import BASE_FILE, ENCODER_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint, require_same_base
from gradiend_hub.artifact.storage import KEY_PREFIX, read_fingerprint, sidecar_name
from gradiend_hub.errors import ArtifactError, BaseModelMismatchError

from .layer import VALUE_NAMES, GradiendLayer, gradiend_layers

logger = logging.getLogger(__name__)


class AdapterState:
    """The part of a tuner that PEFT asks for state dictionaries."""

    layers: list[GradiendLayer]
    model: nn.Module

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: GradiendConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The adapter's tensors under the artifact's keys, in the type that the configuration names."""
        found = {}
        for path, layer in _named_layers(model):
            for kind in VALUE_NAMES:
                tensor = state_dict.get(f"{path}.{kind}.{adapter_name}")
                if tensor is not None:
                    prefix = KEY_PREFIX if path.startswith(KEY_PREFIX) else ""
                    values = tensor.to(getattr(torch, config.dtype)) if tensor.is_floating_point() else tensor
                    name = layer.adapters[adapter_name].stored_names[layer.site.name]
                    found[f"{prefix}{sidecar_name(name)}.{kind}.{adapter_name}"] = values
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: GradiendConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Find the place of every stored tensor, and check what PEFT is about to load.

        Raises:
            ArtifactError: If tensors are missing, unknown, of the wrong size, or hold unusable values.
            BaseModelMismatchError: If the model is not the one that the artifact was learned on.
                A new adapter is taken off the model then; one that had values keeps them.
        """
        stored = {key.removeprefix(KEY_PREFIX): tensor for key, tensor in state_dict.items()}
        mapped: dict[str, torch.Tensor] = {}
        layers: dict[GradiendLayer, list[str]] = {}  # a module may have several names
        for path, layer in _named_layers(model):
            if adapter_name in layer.adapters:
                layers.setdefault(layer, []).append(path)
        is_new = not any(adapter_name in layer._peaks for layer in layers)
        peaks: dict[GradiendLayer, tuple[float, float]] = {}
        try:
            for layer, paths in layers.items():
                key = sidecar_name(layer.adapters[adapter_name].stored_names[layer.site.name])
                values: dict[str, torch.Tensor] = {}
                for kind in VALUE_NAMES:
                    if adapter_name in getattr(layer, kind):
                        room = getattr(layer, kind)[adapter_name]
                        values[kind] = _fitting(layer, kind, stored.pop(f"{key}.{kind}", None), room)
                        mapped |= dict.fromkeys((f"{path}.{kind}.{adapter_name}" for path in paths), values[kind])
                weight, bias, indices = (values.get(kind) for kind in VALUE_NAMES)
                assert weight is not None
                peaks[layer] = layer.checked(adapter_name, weight, bias, indices)
            if stored:
                raise ArtifactError(
                    f"adapter_model.safetensors holds {len(stored)} tensors that its configuration does not name, e.g. "
                    f"{min(stored)[:120]!r}."
                )
            if is_new:
                config.require_supported_strength()
                _compare_base(config, adapter_name, layers)
        except (ArtifactError, BaseModelMismatchError):
            if is_new:
                _withdraw(model, adapter_name)
            raise
        for layer in layers:
            if adapter_name in layer.merged_adapters:
                layer.unmerge()
            layer._peaks[adapter_name] = peaks[layer]
        if not is_new and config.origin is not None:
            logger.warning(
                "The values of %r were replaced; its configuration stays that of the former ones, and their encoder and "
                "report are not saved with the new ones. To replace a direction whole, use GradiendModel.swap.",
                adapter_name,
            )
            config.origin = None
        return mapped


def _compare_base(config: GradiendConfig, adapter_name: str, layers: Iterable[GradiendLayer]) -> None:
    """Compare the base model with the samples of the artifact that the adapter is loaded from, if they can be had."""
    if config.origin is None:
        return
    path = config.origin.file(BASE_FILE) or config.origin.file(ENCODER_FILE)
    read = (None if path is None else read_fingerprint(path, config)) or Fingerprint({})
    plain = [layer for layer in layers if layer.site.quantized is None and _is_whole(layer.base_parameter)]
    if plain:
        names = {stored: name for name, stored in plain[0].adapters[adapter_name].stored_names.items()}
        fingerprint = read.renamed(names)
        originals = {layer.site.name: layer.original() for layer in plain}
        # an adapter that PEFT has trained belongs to no feature, and PEFT stores no samples of its base model
        allow_unverified = config.origin.allow_unverified_base or config.feature_classes is None
        require_same_base(fingerprint, originals, "model", allow_unverified=allow_unverified)


def _is_whole(parameter: torch.Tensor) -> bool:
    """Tell whether all values of a parameter are in this process's memory."""
    return not parameter.is_meta and not isinstance(parameter, DTensor)


def _named_layers(model: nn.Module) -> Iterator[tuple[str, GradiendLayer]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, GradiendLayer):
            yield path.removeprefix("_fsdp_wrapped_module."), module


def _fitting(layer: GradiendLayer, kind: str, tensor: torch.Tensor | None, room: torch.Tensor) -> torch.Tensor:
    """A stored tensor that fits where it goes."""
    name = layer.site.name
    if tensor is None:
        raise ArtifactError(f"adapter_model.safetensors lacks {kind} of {name}; it does not match its configuration.")
    if tensor.shape != room.shape or tensor.is_floating_point() != room.is_floating_point():
        raise ArtifactError(
            f"{kind} of {name}: expected {room.dtype} {list(room.shape)}, found {tensor.dtype} {list(tensor.shape)}."
        )
    return tensor


def _withdraw(model: nn.Module, adapter_name: str) -> None:
    """Take an adapter that could not be loaded off a model, and its side-cars where nothing else uses them."""
    for layer in list(gradiend_layers(model)):
        layer.drop(adapter_name)
        if not layer.adapters:
            layer.detach()
    getattr(model, "peft_config", {}).pop(adapter_name, None)
    for tuner in model.modules():
        if isinstance(tuner, AdapterState):
            tuner.layers = list(gradiend_layers(model))
            if not getattr(tuner, "peft_config", None):  # PEFT would take the base for one with adapters
                tuner.model.__dict__.pop("peft_config", None)
