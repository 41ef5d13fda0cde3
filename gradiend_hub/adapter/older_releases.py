"""Additions for releases of PEFT and transformers that lack them; each part can go when its releases are not supported.

* PEFT before 0.21 saves and loads the tensors of every method alike: `PeftModel.from_pretrained` would neither check values
  nor compare the base model, and `save_pretrained` would ignore the stored type and names. It learns to ask the tuner.
* transformers before 5.20 does not find the stored values of an adapter in many models, whatever its method: it reports them
  as missing, and goes on with others. Its own `load_adapter` is refused.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from packaging.version import Version
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load

from gradiend_hub.artifact.config import GRADIEND, GradiendConfig
from gradiend_hub.errors import ConfigError

from .state import AdapterState

OWN_LOADER = "5.20"
"""Release of transformers from which on its own `load_adapter` finds the values."""

State = dict[str, torch.Tensor]


def ask_the_tuner() -> None:
    """Let PEFT's two functions for state dictionaries ask the tuner, where PEFT does not do so by itself."""
    if hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        return
    for name, ours in (("get_peft_model_state_dict", _stored), ("set_peft_model_state_dict", _load)):
        former = getattr(save_and_load, name)
        replaced = _for_directions(former, ours)
        for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == "peft"]:
            if vars(module).get(name) is former:  # imported by its name
                setattr(module, name, replaced)


def refuse_loading_by_transformers(config: GradiendConfig) -> None:
    """Refuse to attach a stored direction to a bare model where transformers would not find its values.

    Raises:
        ConfigError: the release is too old for that.
    """
    if config.parameters is not None and Version(transformers.__version__) < Version(OWN_LOADER):
        raise ConfigError(
            f"transformers {transformers.__version__} does not find the values of an adapter by itself; {OWN_LOADER} does. "
            "Use GradiendModel.from_pretrained(folder) or PeftModel.from_pretrained(base_model, folder)."
        )


def _for_directions(former: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PEFT's, with ours in its place where the adapter is a direction."""

    @functools.wraps(former)
    def chosen(
        model: Any, state_dict: State | None = None, adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        state_dict = kwargs.pop("peft_model_state_dict", state_dict)
        plain = getattr(model, "_orig_mod", model)
        if plain.peft_config[adapter_name].peft_type is GRADIEND:
            return ours(plain, state_dict, adapter_name, **kwargs)
        return former(model, state_dict, adapter_name, *args, **kwargs)

    return chosen


def _stored(model: Any, state_dict: State | None, adapter_name: str, **_: Any) -> State:
    """The adapter's tensors by the artifact's keys."""
    state_dict = model.state_dict() if state_dict is None else state_dict
    found = AdapterState._get_adapter_state_dict(model, model.peft_config[adapter_name], adapter_name, state_dict, [])
    return {key.removesuffix(f".{adapter_name}"): tensor for key, tensor in found.items()}


def _load(model: Any, state_dict: State, adapter_name: str, low_cpu_mem_usage: bool = False, **_: Any) -> Any:
    """Load stored tensors into an adapter, checked; returns torch's account of missing and unexpected keys."""
    config = model.peft_config[adapter_name]
    mapped = AdapterState._remap_adapter_state_dict_for_load(model, config, adapter_name, dict(state_dict))
    result = model.load_state_dict(mapped, strict=False, assign=low_cpu_mem_usage)
    for module in model.modules() if low_cpu_mem_usage else ():
        if hasattr(module, "_move_adapter_to_device_of_base_layer"):
            module._move_adapter_to_device_of_base_layer(adapter_name)
    return result
