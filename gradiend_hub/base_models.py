"""Loading a base model by path or Hub id, with a clear word when it is not one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from .errors import BaseModelError

_AUTO_CLASSES = {"masked_lm": AutoModelForMaskedLM, "causal_lm": AutoModelForCausalLM}


def load_base_model(
    name_or_path: str | Path, *, objective: str | None = None, revision: str | None = None, **kwargs: Any
) -> nn.Module:
    """Load a base model with its language-modelling head.

    Args:
        name_or_path: folder or Hub id.
        objective: "masked_lm" or "causal_lm"; default: what the checkpoint's architecture is.
        revision: commit, branch or tag of a Hub id.
        **kwargs: passed to `from_pretrained`. Without a `dtype`, a CPU computes in float32 (gradients in bf16 are slow
            and coarse there) and an accelerator in the checkpoint's own type.

    Raises:
        BaseModelError: nothing there, no weights, or nothing with a language-modelling head.
    """
    name = str(Path(name_or_path).absolute()) if Path(name_or_path).is_dir() else str(name_or_path)
    options = {k: kwargs[k] for k in ("token", "cache_dir", "local_files_only") if k in kwargs}
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main", **options)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"There is no base model at {name!r}: expected a folder with a config.json or the id of a model on the Hub. "
            f"({str(error).splitlines()[0]})"
        ) from error
    if objective is None:
        architecture = (config.architectures or [""])[0]
        objective = "masked_lm" if architecture.endswith(("ForMaskedLM", "ForPreTraining")) else "causal_lm"
    kwargs.setdefault("dtype", torch.float32 if not torch.accelerator.is_available() else "auto")
    try:
        return load_whole(_AUTO_CLASSES[objective], name, revision=revision or "main", **kwargs)
    except BaseModelError:
        raise
    except OSError as error:
        raise BaseModelError(f"The base model {name!r} has no weights to load: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise BaseModelError(
            f"{name!r} is a {config.model_type} checkpoint that {_AUTO_CLASSES[objective].__name__} cannot load, so it "
            f"has no head for the objective {objective!r}. Choose another base or objective."
        ) from error


def load_whole(model_class: Any, name: str, **arguments: Any) -> nn.Module:
    """`from_pretrained` of a transformers class that refuses what transformers accepts: a checkpoint with weights missing.

    Raises:
        BaseModelError: the checkpoint lacks parameters, e.g. the head, which would have random values.
    """
    model: nn.Module
    model, loading = model_class.from_pretrained(name, **arguments, output_loading_info=True)
    missing, tied = set(loading["missing_keys"]), defaultdict(set)
    for parameter, tensor in model.named_parameters(remove_duplicate=False):
        tied[tensor].add(parameter)  # under one of its names the checkpoint has it
    if lost := sorted(min(names) for names in tied.values() if names <= missing):
        some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise BaseModelError(
            f"The base model {name!r} lacks {len(lost)} parameters of a {type(model).__name__}, which would be random: "
            f"{some}. Expected a checkpoint with its language-modelling head; choose the one that it was saved without."
        )
    return model
