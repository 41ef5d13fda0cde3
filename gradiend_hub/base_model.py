"""Base models: loaded by path or Hub id, described in an artifact, and recognised again."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.adapter.sites import SiteMap, refuse_offloaded, refuse_sharded, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.fingerprint import require_same_base
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, ConfigError, first_line
from gradiend_hub.objectives import fitting_objectives, objective_class

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


def load_base_model(
    name_or_path: str | Path, *, objective: str | None = None, revision: str | None = None, **kwargs: Any
) -> nn.Module:
    """Load a base model with its language-modelling head.

    Args:
        name_or_path: folder or Hub id.
        objective: Name of the objective whose head is wanted; default: the one that fits the checkpoint's architecture.
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
            f"({first_line(error)})"
        ) from error
    if objective is None:
        architecture = (config.architectures or [""])[0]
        objective = next(iter(fitting_objectives(architecture, config)), "causal_lm")
    auto_class = objective_class(objective).auto_class
    try:
        return load_whole(auto_class, name, revision=revision or "main", **kwargs)
    except BaseModelError:
        raise
    except OSError as error:
        raise BaseModelError(f"The base model {name!r} has no weights to load: {first_line(error)}") from error
    except ValueError as error:
        raise BaseModelError(
            f"{name!r} is a {config.model_type} checkpoint that {auto_class.__name__} cannot load, so it "
            f"has no head for the objective {objective!r}. Choose another base or objective."
        ) from error


def load_whole(model_class: Any, name: str, **arguments: Any) -> nn.Module:
    """`from_pretrained` of a transformers class that refuses what transformers accepts: a checkpoint with weights missing.

    Raises:
        BaseModelError: the checkpoint lacks parameters, e.g. the head, which would have random values, or its parameters
            have other shapes than its configuration says.
    """
    model: nn.Module
    arguments.setdefault("dtype", "auto" if torch.accelerator.is_available() else torch.float32)
    try:
        model, loading = model_class.from_pretrained(name, **arguments, output_loading_info=True)
    except RuntimeError as error:  # "You set `ignore_mismatched_sizes` to `False`", or torch's own
        if "size" not in str(error):
            raise
        raise BaseModelError(
            f"The weights of the base model {name!r} have other shapes than its config.json says. Expected a checkpoint "
            "that goes with its configuration; of a classifier's, num_labels or id2label may be missing."
        ) from error
    if not Path(name).is_dir() and getattr(model.config, "_commit_hash", None) is None:
        # transformers no longer says which commit it has loaded, and main may move on in the cache
        model.config._commit_hash = _cached_commit(name, arguments.get("revision"), arguments.get("cache_dir"))  # type: ignore[union-attr]
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


def base_name(model: nn.Module) -> str | None:
    """Repository id or absolute path that a transformers model was loaded from; `None` if it has none.

    A relative path would mean something else, or look like a repository id, when it is read in another directory.
    """
    name: str | None = getattr(model, "name_or_path", None) or None
    return str(Path(name).absolute()) if name is not None and Path(name).is_dir() else name


def base_commit(model: nn.Module) -> str | None:
    """Commit of the Hub repository that a transformers model was loaded from; `None` for local ones, or if it is unknown.

    The loaders here record it in the configuration, as transformers did before 5.2x. Otherwise it is the commit in the
    local cache whose weights the model has: main may have moved on since, or another revision have been loaded.
    """
    recorded: str | None = getattr(getattr(model, "config", None), "_commit_hash", None)
    name = base_name(model)
    if recorded is not None or name is None or Path(name).is_dir():
        return recorded
    main = _cached_commit(name)
    snapshots = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).glob("snapshots/*")
    cached = sorted(snapshots, key=lambda folder: (folder.name != main, folder.name))
    if len(cached) > 1:
        cached = [folder for folder in cached if _has_weights_of(folder, model)]
    return cached[0].name if cached else None


def _cached_commit(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str | None:
    """Commit that a revision (default: main) of a repository is at in the local cache; `None` if it is not there."""
    try:
        file = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        return None
    return Path(file).parent.name if isinstance(file, str) else None


def _has_weights_of(folder: Path, model: nn.Module, tensors: int = 16, rows: int = 64) -> bool:
    """Return whether the safetensors files in a folder hold the model's values, as far as some rows of some tensors tell."""
    own, compared = original_parameters(model), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names = [name for name in stored.keys() if name in own]  # noqa: SIM118 - no dictionary
            for name in names[:: max(1, len(names) // tensors)]:
                part, wanted = stored.get_slice(name), own[name]
                if list(part.get_shape()) != list(wanted.shape):
                    return False
                found = part[:rows] if wanted.ndim else stored.get_tensor(name)
                if not torch.equal(found.to(wanted.dtype), (wanted[:rows] if wanted.ndim else wanted).cpu()):
                    return False
                compared += 1
    return compared > 0


def original_parameters(model: nn.Module, sites: SiteMap | None = None) -> dict[str, torch.Tensor]:
    """The base model's parameters by name, without the edits that directions have made; no quantised weights."""
    sites = SiteMap(model) if sites is None else sites
    tensors = {name: value.detach() for name, value in sites.parameters.items() if name not in sites.quantized}
    return tensors | {layer.site.name: layer.original() for layer in gradiend_layers(model) if layer.merged}


def described(config: GradiendConfig, direction: Direction, model: nn.Module) -> GradiendConfig:
    """The configuration with the direction's tensors, and with the base model's identity where it has none yet."""
    import transformers

    mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    known = config.base_model_name_or_path is not None
    return config.replaced(
        parameters=direction.spec(),
        has_bias=direction.has_bias,
        base_model_name_or_path=config.base_model_name_or_path if known else base_name(model),
        revision=config.revision if known else base_commit(model),
        auto_mapping=config.auto_mapping or mapping,
        gradiend_version=config.gradiend_version or version("gradiend_hub"),
        transformers_version=config.transformers_version or transformers.__version__,
        inference_mode=True,
    )


def require_plain(base_model: nn.Module) -> None:
    """Refuse a base model that has directions already: two models would each take the other's edit for the base."""
    if isinstance(base_model, PeftModel):
        raise ConfigError(
            f"base_model is a {type(base_model).__name__}. Pass its base, `get_base_model()`, or add a direction to a "
            "GradiendModel with `load_adapter` or `add_direction`."
        )
    names = list(dict.fromkeys(name for layer in gradiend_layers(base_model) for name in layer.adapters))
    if names:
        raise ConfigError(
            f"This base model has directions already: {names}. Call `unload()` of the model that they are in first, or add "
            "this one to it with `load_adapter` or `add_direction`."
        )


def load_recorded_base(config: GradiendConfig, base: str | Path | None, **arguments: Any) -> nn.Module:
    """Load a base model with the transformers class that the direction names; no code comes from a configuration.

    Args:
        config: Configuration of the direction.
        base: Path or repository id; `None` for the one that the direction names, at the recorded commit.
        **arguments: Passed to `from_pretrained` of the class. Without a `dtype`, a CPU computes in float32 and an
            accelerator in the checkpoint's own type.

    Raises:
        BaseModelError: If the direction names no base model, or a class that transformers does not have, or the model
            cannot be loaded.
        BaseModelMismatchError: If `base` has another architecture than that class; nothing but its configuration was
            read then.
    """
    path, model_class = _recorded(config, base, arguments)
    if "torch_dtype" in arguments:  # the former name, which transformers still takes
        arguments.setdefault("dtype", arguments.pop("torch_dtype"))
    arguments.setdefault("use_safetensors", True)  # a stranger has chosen this model: nothing is unpickled unasked
    try:
        _check_architecture(path, model_class, arguments)
        return load_whole(model_class, path, **arguments)
    except BaseModelError:
        raise
    except (OSError, ValueError) as error:
        raise BaseModelError(_why_not_loaded(path, first_line(error), arguments)) from error


def _recorded(
    config: GradiendConfig, base: str | Path | None, arguments: dict[str, Any]
) -> tuple[str, type[PreTrainedModel]]:
    """Path and class of the base model that a direction names; its commit is added to the arguments."""
    import transformers

    path = str(base) if base is not None else config.base_model_name_or_path
    if not path:
        raise BaseModelError(
            "The direction names no base model that can be loaded here. Name it with `base_model=` (gradiend-hub: --base)."
        )
    name = (config.auto_mapping or {}).get("base_model_class", "")
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise BaseModelError(
            f"The direction names the model class {name[:80]!r}, which transformers does not have. Load the base model "
            "yourself and pass it as `base_model`."
        )
    if config.revision is not None and path == config.base_model_name_or_path:
        arguments.setdefault("revision", config.revision)
    return path, model_class


def skeleton(config: GradiendConfig, base: str | Path | None = None, **arguments: Any) -> nn.Module:
    """The base model that a direction names without its weights: modules, names and ties, on the meta device.

    Arguments and errors are those of `load_recorded_base`; of the base model, only the configuration is read.
    """
    path, model_class = _recorded(config, base, arguments)
    options = {name: value for name, value in arguments.items() if name in HUB_OPTIONS}
    try:
        _check_architecture(path, model_class, options)
        described = model_class.config_class.from_pretrained(path, **options)
        with torch.device("meta"):
            model: nn.Module = model_class(described)
    except (BaseModelError, BaseModelMismatchError):
        raise
    except (OSError, ValueError) as error:
        raise BaseModelError(_why_not_loaded(path, first_line(error), options)) from error
    return model


def _why_not_loaded(path: str, reason: str, arguments: dict[str, Any]) -> str:
    """Say why a base model was not loaded, and what to do."""
    if "safetensors" in reason and arguments.get("use_safetensors"):
        return (
            f"The base model {path} has no weights in safetensors files: {reason} Weights that have to be unpickled are not "
            "loaded, since unpickling can run code. Look for a revision with safetensors (the Hub's converter offers one as "
            "a pull request), or load the model yourself and pass it as `base_model`."
        )
    return (
        f"The base model {path} could not be loaded: {reason} If it has moved, is elsewhere or private, name it with "
        "`base_model=` (gradiend-hub: --base), and log in with `hf auth login` or pass `token=`."
    )


def _check_architecture(path: str, model_class: type[PreTrainedModel], arguments: dict[str, Any]) -> None:
    """Compare model types: transformers would build a model with random weights in place of the missing ones."""
    options = {name: value for name, value in arguments.items() if name in HUB_OPTIONS}
    fields, config_class = PreTrainedConfig.get_config_dict(path, **options)[0], model_class.config_class
    found, wanted = fields.get("model_type"), getattr(config_class, "model_type", "")
    parts = [part.get("model_type") for part in fields.values() if isinstance(part, dict)]
    is_part = wanted in parts or (getattr(config_class, "base_config_key", "") or None) in fields
    if found and wanted and found != wanted and not is_part:
        raise BaseModelMismatchError(
            f"The direction was learned on a {wanted} model ({model_class.__name__}), but {path} is a {str(found)[:80]} "
            "model. Load the base model that the direction names."
        )


def check_base_model(
    model: nn.Module,
    direction: Direction,
    *,
    sites: SiteMap | None = None,
    allow_related: bool = False,
    allow_unverified: bool = True,
) -> dict[str, str]:
    """Map the direction's parameter names to the model's, and compare its fingerprint with the model's values.

    Args:
        model: The model.
        direction: The direction.
        sites: The model's `SiteMap`, if it is at hand.
        allow_related: Accept a fine-tuned relative of the base model, with a warning.
        allow_unverified: Accept a direction that does not tell which model it belongs to, as one made in memory.

    Returns:
        Name in the direction → name in the model.

    Raises:
        BaseModelMismatchError: If a parameter is missing, or the values are those of another model; of a fine-tuned
            relative only without `allow_related`.
        EditError: If the model is sharded.
    """
    refuse_sharded(model)
    sites = SiteMap(model) if sites is None else sites
    names = resolve_names(model, direction.parameters, sites.parameters)
    parameters = original_parameters(model, sites)
    touched = {name: parameters[name] for name in names.values() if name in parameters}
    refuse_offloaded(touched)
    if touched:  # of quantised weights there is nothing to compare
        fingerprint = direction.fingerprint and direction.fingerprint.renamed(names)
        allowed: dict[str, Any] = {"allow_related": allow_related, "allow_unverified": allow_unverified}
        require_same_base(fingerprint, touched, type(model).__name__, **allowed)
    return names
