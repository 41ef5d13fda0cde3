"""The base model of a training, and its tokenizer: opened where they are named, and what readers will lack."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.base_model import base_commit, base_name, load_base_model
from gradiend_hub.errors import ConfigError
from gradiend_hub.objectives import objective_class
from gradiend_hub.scope import refuse_peft_model

from .args import GradiendTrainingArguments

logger = logging.getLogger(__name__)


def opened_base(model: nn.Module | str | Path, config: GradiendConfig, args: GradiendTrainingArguments) -> nn.Module:
    """Load a base model if it is named, move it to the device, and let it recompute activations if that is asked for."""
    base = model
    if not isinstance(base, nn.Module):
        base = load_base_model(base, objective=config.objective, revision=config.revision)
    refuse_peft_model(base)
    base = base.to(args.device)
    if args.gradient_checkpointing:  # of the base model: `Trainer` would ask the solver for it
        layers: Any = base
        newer = getattr(layers, "activation_checkpointing_enable", None)  # the name since transformers 5.23
        (newer or layers.gradient_checkpointing_enable)(args.gradient_checkpointing_kwargs)
    return base


def name_the_base(base: nn.Module, config: GradiendConfig, args: GradiendTrainingArguments) -> None:
    """Say what readers of the direction will lack, where the base model has no name that they know."""
    name = config.base_model_name_or_path
    level = logging.WARNING if args.push_to_hub or args.hub_model_id else logging.INFO
    if name is None:
        logger.warning(
            "This %s has no name, so readers of the direction must have it: GradiendModel.from_pretrained(FOLDER, "
            "base_model=…, processing_class=…). base_model_id records the Hub id under which it can be found.",
            type(base).__name__,
        )
    elif hub_id(name) is None:
        logger.log(
            level,
            "The base model was loaded from %s, which others do not have. base_model_id='USER/NAME' records the Hub id "
            "under which they find it; without one, they must pass it as base_model.",
            name,
        )


def processor_of(base: nn.Module, objective: str) -> Any:
    """Load what makes inputs of a base model, e.g. its tokenizer, at the commit that the model is of.

    Raises:
        ConfigError: the model has no name to load it by.
    """
    name = base_name(base)
    if name is None:
        raise ConfigError(
            f"This {type(base).__name__} was not loaded from a folder or the Hub, so its tokenizer is not known. Give it as "
            "processing_class."
        )
    return objective_class(objective).load_processor(name, revision=base_commit(base))


def config_for(config: GradiendConfig, base: nn.Module, args: GradiendTrainingArguments) -> GradiendConfig:
    """Copy a configuration for a new direction of a base model, whose identity and measurements are its own.

    The base model's name is `base_model_id`, that of the model itself, or, for one that has none, that of the configuration.
    """
    own = {
        "base_model_name_or_path": args.base_model_id or base_name(base) or config.base_model_name_or_path,
        "revision": None if args.base_model_id else base_commit(base),
        "auto_mapping": None,
        "gradiend_version": None,
        "transformers_version": None,
    }
    if config.parameters is not None:  # it is that of another direction
        own |= {"parameters": None, "has_bias": False, "safe_band": None, "break_point": None}
        own |= {"strength_unit": 1.0, "strength": 1.0}
    return replace(copy.deepcopy(config), **own)  # type: ignore[arg-type]
