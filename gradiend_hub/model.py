"""`GradiendModel`: a base model with a feature direction applied at a strength."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from .adapter import GradiendTuner, gradiend_layers
from .adapter.layer import Changes, GradiendLayer
from .adapter.sites import base_parameters, resolve_names
from .config import GradiendConfig
from .constants import CARD_FILE, PROBES_FILE, REPORT_FILE
from .direction import Direction
from .errors import BaseModelError, BaseModelMismatchError, ConfigError, EditError
from .fingerprint import BaseModelRelation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EditReceipt", "GradiendModel"]


@dataclass(frozen=True)
class EditReceipt:
    """What an edit does to the base model's weights.

    Attributes:
        tensors: Parameters that are touched.
        entries: Weights with a non-zero Δ.
        relative_norm: `‖Δ‖ / ‖W‖` over the touched parameters.
        by_layer: The same for each transformer layer (or module outside of the layers).
        swallowed: Share of the entries whose value did not change, because the weights' type is too coarse for Δ.
    """

    tensors: int
    entries: int
    relative_norm: float
    by_layer: dict[str, float]
    swallowed: float


class GradiendModel(PeftModel):
    """A base model with one or more feature directions; a `PeftModel` whose directions are merged in place.

    Being merged, it costs nothing at inference; the touched original weights are kept, so that every change of strength,
    and strength 0, is exact.

    Use `GradiendModel.from_pretrained` or `GradiendModel.from_direction`.
    """

    base_model: GradiendTuner

    def __init__(
        self, model: nn.Module, peft_config: GradiendConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        with warnings.catch_warnings():  # PEFT asks transformers for an attribute by its former name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            super().__init__(model, peft_config, adapter_name, **kwargs)
        self._directions: dict[str, Direction] = {}
        self._folders: dict[str, Path] = {}

    # -------------------------------------------------------------------------------------------------------- creation

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        repo_or_path: str | Path,
        base_model: nn.Module | str | Path | None = None,
        *,
        strength: float | None = None,
        adapter_name: str = "default",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
        allow_related: bool = False,
        **base_kwargs: Any,
    ) -> GradiendModel:
        """Load a direction from a folder or the Hub, and apply it to its base model.

        Args:
            repo_or_path: Repository id or folder of the direction.
            base_model: The base model: an object (edited in place), a path or id, or `None` for the one that the
                direction names, at the recorded commit.
            strength: Strength to apply; `None` takes the recommended one.
            adapter_name: Name for this direction in the model.
            revision: Branch, tag or commit of the direction's repository.
            token: Hub token.
            cache_dir: Folder of the Hub cache.
            local_files_only: Use what is cached, and no network.
            subfolder: Folder within the repository.
            allow_related: Accept a fine-tuned relative of the base model, with a warning.
            **base_kwargs: Passed to the base model's `from_pretrained`, e.g. `dtype`, `device_map`.

        Raises:
            ArtifactNotFoundError: If there is no direction.
            ArtifactError: If its files are damaged.
            BaseModelMismatchError: If the base model is not the one that the direction was learned on.
            EditError: If applying changes nothing.
        """
        folder = _resolve(
            repo_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            subfolder=subfolder,
        )  # fmt: skip
        config = GradiendConfig.from_pretrained(str(folder))
        direction = Direction.load(folder, config, encoder=False)
        if base_model is None or isinstance(base_model, (str, Path)):
            hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            base_model = _load_base(config, base_model, {**hub, **base_kwargs})
        elif base_kwargs:
            raise ConfigError(f"{sorted(base_kwargs)} would load a base model, but `base_model` is an object already.")
        model = cls.from_direction(
            base_model, direction, config, strength=config.strength if strength is None else strength,
            adapter_name=adapter_name, allow_related=allow_related,
        )  # fmt: skip
        model._folders[adapter_name] = folder
        model.eval()
        return model

    @classmethod
    def from_direction(
        cls,
        base_model: nn.Module,
        direction: Direction,
        config: GradiendConfig,
        *,
        strength: float = 0.0,
        adapter_name: str = "default",
        allow_related: bool = False,
    ) -> GradiendModel:
        """Apply a direction that is in memory.

        Args:
            base_model: The base model; it is edited in place and given back by `unload()`.
            direction: The direction; its tensors are used, not copied.
            config: Its configuration; the stored tensors it lists are replaced by the direction's.
            strength: Strength to apply; 0 is the base model, bit for bit.
            adapter_name: Name for this direction in the model.
            allow_related: Accept a fine-tuned relative of the base model, with a warning.
        """
        config = _describe(config, direction, base_model)
        names = _check_base(base_model, direction, allow_related)
        config.inference_mode = True
        _check_strength(strength)
        model = cls(base_model, config, adapter_name)
        try:
            model.base_model.fill(adapter_name, direction.renamed(names))
            model._directions[adapter_name] = direction.renamed(names)
            for layer in gradiend_layers(model):
                layer.strength[adapter_name] = 0.0
                layer.merge_exactly([adapter_name])
            model.set_strength(strength)
        except BaseException:
            model.unload()
            raise
        return model

    # -------------------------------------------------------------------------------------------------------- strength

    def set_strength(self, strength: float | Mapping[str, float], feature_factor: float | None = None) -> None:
        """Apply at another strength, from the kept originals.

        Args:
            strength: Strength of the active direction(s), or one by name (which are activated): positive makes the
                first class likelier, negative the second, 0 is the base model.
            feature_factor: Feature value that the decoder is asked for, if not the recorded one; 0 is the pure bias.

        Raises:
            ConfigError: If a strength is NaN or infinite, or a name unknown.
            EditError: If the edit changes nothing at a strength other than 0; the former strength is kept.
        """
        wanted = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(self.active_adapters, strength)
        for name, value in wanted.items():
            _check_strength(value)
            if name not in self.peft_config:
                raise ConfigError(f"There is no direction {name!r} in this model; loaded are {list(self.peft_config)}.")
        before = {name: self._state(name) for name in wanted}
        self._activate(wanted)
        try:
            for name, value in wanted.items():
                self.base_model.set_strength(name, float(value), feature_factor)
            self._check_effect()
        except BaseException:
            for name, (value, factor) in before.items():
                self.base_model.set_strength(name, value, factor)
            raise

    @property
    def strengths(self) -> dict[str, float]:
        """Current strength of every active direction."""
        return {name: self._state(name)[0] for name in self.active_adapters}

    @property
    def strength(self) -> float:
        """Current strength of the active direction."""
        strengths = self.strengths
        if len(strengths) != 1:
            raise ConfigError(f"{len(strengths)} directions are active; ask for `strengths`: {strengths}.")
        return next(iter(strengths.values()))

    @contextmanager
    def strength_at(
        self, strength: float | Mapping[str, float], feature_factor: float | None = None
    ) -> Iterator[GradiendModel]:
        """Within the block, another strength; afterwards the former one, to the bit."""
        active = list(self.active_adapters)
        before = {name: self._state(name) for name in self.peft_config}
        try:
            self.set_strength(strength, feature_factor)
            yield self
        finally:
            if self.active_adapters != active:
                self._set_active(active)
            for name, state in before.items():
                if self._state(name) != state:
                    self.base_model.set_strength(name, *state)

    def _state(self, adapter_name: str) -> tuple[float, float]:
        layer = next(layer for layer in gradiend_layers(self) if adapter_name in layer.strength)
        return layer.strength[adapter_name], layer.feature_factor[adapter_name]

    def _activate(self, names: Mapping[str, float]) -> None:
        new = [name for name in names if name not in self.active_adapters]
        if new:
            self._set_active([*self.active_adapters, *new])

    def _set_active(self, names: list[str]) -> None:
        """Make these directions the active ones; they are merged if any direction is merged now."""
        merged = any(layer.merged for layer in gradiend_layers(self))
        for layer in gradiend_layers(self):
            if layer.merged:
                layer.merge_exactly([])
        self.base_model.set_adapter(names, inference_mode=True)
        self.active_adapter = names[0] if len(names) == 1 else names
        for layer in gradiend_layers(self) if merged else ():
            layer.merge_exactly([name for name in names if name in layer.gradiend_weight])

    def _check_effect(self) -> None:
        """Raise `EditError` if a non-zero strength changes no weight; stops at the first one that changed."""
        if self._adapters_disabled or not any(self.strengths.values()):
            return
        if not any(
            changes.entries > changes.swallowed for changes in map(GradiendLayer.changes, gradiend_layers(self))
        ):
            raise EditError(
                f"At strength {self.strengths} no weight changes: every entry of the edit is smaller than the spacing of "
                f"{self.dtype} numbers. Use a larger strength, or load the base model in float32."
            )

    @property
    def receipt(self) -> EditReceipt:
        """Account of the current edit, measured on the weights (one pass over the touched parameters)."""
        changes = {layer.site.name: layer.changes() for layer in gradiend_layers(self)}
        touched = [change for change in changes.values() if change.entries]
        entries = sum(change.entries for change in touched)
        groups: dict[str, list[Changes]] = {}
        for name, change in changes.items():
            groups.setdefault(_layer_of(name), []).append(change)
        return EditReceipt(
            tensors=len(touched),
            entries=entries,
            relative_norm=_relative_norm(list(changes.values())),
            by_layer={name: _relative_norm(group) for name, group in groups.items()},
            swallowed=sum(change.swallowed for change in touched) / entries if entries else 0.0,
        )

    # ------------------------------------------------------------------------------------------------------- the parts

    @property
    def direction(self) -> Direction:
        """The active direction, with its encoder (read from disk at the first use)."""
        name = self.active_adapters[0]
        direction = self._directions[name]
        if not direction.has_encoder and name in self._folders:
            config = self.peft_config[name]
            stored = GradiendConfig.from_pretrained(str(self._folders[name]))
            full = Direction.load(self._folders[name], stored)
            names = {stored: found for found, stored in config._stored_names.items()}
            direction = self._directions[name] = full.renamed(names)
        return direction

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        from transformers import AutoTokenizer

        config = self.active_peft_config
        base = config.base_model_name_or_path or getattr(self.get_base_model(), "name_or_path", None)
        if not base:
            raise BaseModelError("The base model has no name or path, so its tokenizer is unknown. Load one yourself.")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, revision=config.revision)
        return tokenizer

    def encode(self, rows: Any, batch_size: int = 32) -> torch.Tensor:
        """Feature values `h` of rows (METHOD.md, section 1), fp32 `[N]`; near +1 for the first class."""
        from .gradients.directional import encode

        return encode(self, rows, batch_size=batch_size)

    # ---------------------------------------------------------------------------------------------------------- saving

    def save_pretrained(self, save_directory: str | Path, adapter_name: str | None = None, **_: Any) -> None:  # type: ignore[override]
        """Save one direction (by default the active one) as an artifact: config, decoder, encoder, report, probes, card."""
        folder, name = Path(save_directory), adapter_name or self.active_adapters[0]
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; give a folder.")
        if name not in self.peft_config:
            raise ConfigError(f"There is no direction {name!r} in this model; loaded are {list(self.peft_config)}.")
        folder.mkdir(parents=True, exist_ok=True)
        active = self.active_adapter
        self.active_adapter = name
        try:
            direction, config = self.direction, self.peft_config[name]
        finally:
            self.active_adapter = active
        direction.save(folder, dtype=config.dtype)
        source = self._folders.get(name)
        for companion in (REPORT_FILE, PROBES_FILE, CARD_FILE) if source else ():
            if (source / companion).is_file() and not (folder / companion).exists():
                shutil.copyfile(source / companion, folder / companion)
        saved = replace(config, parameters=direction.spec())
        saved.save_pretrained(str(folder))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Publish the active direction in one commit; arguments as of `gradiend_hub.hub.publish.publish_folder`."""
        from .hub.publish import publish_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return publish_folder(folder, repo_id, **kwargs)


def _resolve(repo_or_path: str | Path, **kwargs: Any) -> Path:
    folder = Path(repo_or_path, kwargs["subfolder"] or "")
    if folder.is_dir():
        return folder
    from .hub.publish import resolve_folder

    return Path(resolve_folder(str(repo_or_path), **kwargs).folder)


def _check_strength(strength: float) -> None:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise ConfigError(f"A strength must be a finite number, found {strength!r}.")


def _layer_of(name: str) -> str:
    """`bert.encoder.layer.3.output.dense.weight` → `bert.encoder.layer.3`; without a number, the owning module."""
    parts = name.split(".")
    depth = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: depth + 1]) or name


def _relative_norm(changes: list[Changes]) -> float:
    weight = math.sqrt(sum(change.weight_square for change in changes))
    delta = math.sqrt(sum(change.delta_square for change in changes))
    return delta / weight if weight else (math.inf if delta else 0.0)


def _describe(config: GradiendConfig, direction: Direction, base_model: nn.Module) -> GradiendConfig:
    """The configuration with the direction's tensors, and with the base model's name if it has none yet."""
    mapping = config.auto_mapping
    if mapping is None:
        mapping = {"base_model_class": type(base_model).__name__, "parent_library": type(base_model).__module__}
    described = replace(
        config,
        parameters=direction.spec(),
        has_bias=direction.has_bias,
        base_model_name_or_path=config.base_model_name_or_path or getattr(base_model, "name_or_path", None) or None,
        auto_mapping=mapping,
    )
    described._source = config._source
    return described


def _check_base(base_model: nn.Module, direction: Direction, allow_related: bool) -> dict[str, str]:
    """Map the direction's names to the model's, and compare the fingerprint with the base model's values."""
    names = resolve_names(base_model, direction.parameters)
    if direction.fingerprint is None:
        return names
    tensors: dict[str, torch.Tensor] = dict(base_parameters(base_model))
    tensors |= {layer.site.name: layer.original() for layer in gradiend_layers(base_model) if layer.merged}
    match = direction.fingerprint.renamed(names).compare(tensors)
    if match.relation is BaseModelRelation.DIFFERENT:
        raise BaseModelMismatchError(
            f"{type(base_model).__name__} is not the base model of this direction. {match.evidence()} "
            "Load the base model that the direction names."
        )
    if match.relation is BaseModelRelation.RELATED:
        if not allow_related:
            raise BaseModelMismatchError(
                f"This {type(base_model).__name__} is a relative (e.g. a fine-tune) of the direction's base model. "
                f"{match.evidence()} Pass allow_related=True to apply the direction all the same."
            )
        warnings.warn(f"Applying a direction to a relative of its base model. {match.evidence()}", stacklevel=3)
    return names


def _load_base(config: GradiendConfig, base: str | Path | None, arguments: dict[str, Any]) -> nn.Module:
    """Load the base model with the transformers class that the direction names; never code from a configuration."""
    import transformers

    path = str(base) if base is not None else config.base_model_name_or_path
    if not path:
        raise BaseModelError("The direction names no base model; pass `base_model`.")
    class_name = (config.auto_mapping or {}).get("base_model_class", "")
    model_class = getattr(transformers, class_name, None) if class_name.isidentifier() else None
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise BaseModelError(
            f"The direction names the model class {class_name!r}, which transformers does not have. "
            "Load the base model yourself and pass it as `base_model`."
        )
    revision = config.revision if base is None or path == config.base_model_name_or_path else None
    model: nn.Module = model_class.from_pretrained(path, revision=revision or "main", **arguments)
    return model
