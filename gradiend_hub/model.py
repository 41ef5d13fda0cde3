"""`GradiendModel`: a base model with feature directions applied at a strength."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradiend_hub.adapter.quantized import quantized_layers
from gradiend_hub.adapter.tuner import check_name
from gradiend_hub.artifact.config import GradiendConfig, Origin, check_strength
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, GGUF_FILES, LORA_FILES, WEIGHTS_FILE

from .base_model import base_commit, base_name, check_base_model, described, load_recorded_base, require_plain
from .errors import ArtifactNotFoundError, BaseModelError, ConfigError
from .stored_model import StoredModel

if TYPE_CHECKING:
    from gradiend_hub.hub.resolve import ResolvedRepo
    from gradiend_hub.objectives import Objective

_FROM_HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
"""Arguments of `from_pretrained` that say where a direction is read from."""

_SELF_TEST = "gradiend_hub.evaluation.selftest:verify"
"""Measures the self-test in an artifact's folder; a name, since it is built upon models."""


class GradiendModel(StoredModel):
    """A base model with one or more feature directions: a `PeftModel` whose directions are merged in place.

    Being merged, they cost nothing at inference. The touched original weights are kept, so every change of strength
    is exact, and strength 0 is the base model to the bit. Inference may run in many threads; changing the strength, or
    giving strengths by row, while another thread runs the model may not. A merged model can be sharded (FSDP) or offloaded,
    but its strength can no longer be changed then.

    Use `GradiendModel.from_pretrained` or `GradiendModel.from_direction`.
    """

    def __repr__(self) -> str:
        base = self.get_base_model()
        name = f" {base_name(base)!r}" if base_name(base) else ""
        if not self.base_model.layers:
            return f"GradiendModel({type(base).__name__}{name}, unloaded)"
        directions = {
            name: "/".join(config.feature_classes or ["no feature"]) for name, config in self.peft_config.items()
        }
        return (
            f"GradiendModel({type(base).__name__}{name}, directions={directions}, strengths={self.strengths}, "
            f"{'merged' if self._merged else 'unmerged'})"
        )

    @classmethod
    def from_pretrained(
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
        force_download: bool = False,
        allow_related: bool = False,
        allow_unverified_base: bool = False,
        processing_class: Any = None,
        device: str | torch.device | None = None,
        **base_kwargs: Any,
    ) -> GradiendModel:
        """Load a direction from a folder or the Hub, and apply it to its base model.

        Args:
            repo_or_path: Repository id or folder of the direction.
            base_model: The base model: an object (edited in place), a path or id, or `None` for the one that the
                direction names, at the recorded commit.
            strength: Strength to apply; `None` takes the recommended one, if what was measured supports it.
            adapter_name: Name for this direction in the model.
            revision: Branch, tag or commit of the direction's repository.
            token: Hub token.
            cache_dir: Folder of the Hub cache.
            local_files_only: Use what is cached, and no network.
            subfolder: Folder within the repository.
            force_download: Download the direction's files again, whatever is in the cache.
            allow_related: Accept a fine-tuned relative of the base model, with a warning.
            allow_unverified_base: Accept a direction that has no sampled weights of its base model, so that nothing tells
                whether this is it.
            processing_class: The base model's tokenizer (or image processor), if it is not to be loaded from the base
                model's path.
            device: Device to load the base model to; for several, pass `device_map`.
            **base_kwargs: Passed to the base model's `from_pretrained`, e.g. `dtype`, `device_map`.

        Raises:
            ArtifactNotFoundError: If there is no direction.
            ArtifactError: If its files are damaged.
            BaseModelError: If the base model cannot be loaded.
            BaseModelMismatchError: If the base model is not the one that the direction was learned on.
            EditError: If applying the direction changes nothing.
        """
        if isinstance(repo_or_path, nn.Module):
            raise ConfigError("The direction comes first: GradiendModel.from_pretrained(repo_or_path, base_model).")
        hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        found, config, direction = _read(
            repo_or_path, revision=revision, subfolder=subfolder, force_download=force_download, **hub
        )
        if strength is None:
            config.require_supported_strength()
            strength = config.strength
        if device is not None:
            base_kwargs.setdefault("device_map", {"": device})
        if not isinstance(base_model, nn.Module):
            base_model = load_recorded_base(config, base_model, **{**hub, **base_kwargs})
        elif base_kwargs:
            raise ConfigError(f"{sorted(base_kwargs)} would load a base model, but `base_model` is an object already.")
        allowed = _allowed(config, allow_related, allow_unverified_base)
        model = cls._applied(base_model, direction, config, strength, adapter_name, **allowed)
        try:
            model._refuse_overwhelming(direction)
        except BaseException:
            model.unload()
            raise
        model._found[adapter_name], model._hub = found, hub
        model.processing_class = processing_class
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
        processing_class: Any = None,
    ) -> GradiendModel:
        """Apply a direction that is in memory; nothing is read or written.

        Args:
            base_model: The base model. It is edited in place; `unload()` gives it back as it was.
            direction: The direction; its tensors are used, not copied.
            config: Its configuration. The list of stored tensors is taken from the direction.
            strength: Strength to apply; 0 is the base model, bit for bit.
            adapter_name: Name for this direction in the model.
            allow_related: Accept a fine-tuned relative of the base model, with a warning.
            processing_class: The base model's tokenizer (or image processor), if it is not to be loaded from the base
                model's path.
        """
        model = cls._applied(base_model, direction, config, strength, adapter_name, allow_related=allow_related)
        model.processing_class = processing_class
        return model

    @classmethod
    def _applied(
        cls,
        base_model: nn.Module,
        direction: Direction,
        config: GradiendConfig,
        strength: float,
        adapter_name: str,
        **allowed: Any,
    ) -> GradiendModel:
        """Apply a direction; `allowed` as in `check_base_model`."""
        check_strength(strength)
        require_plain(base_model)
        peaks = direction.peaks()
        names = check_base_model(base_model, direction, **allowed)
        config = described(config, direction, base_model)
        model = cls(base_model, config, adapter_name, low_cpu_mem_usage=True)
        try:
            model._fill(adapter_name, direction, names, peaks)
            model.base_model.set_strength(adapter_name, strength)
            if model._merged:
                model.base_model.merge_exactly([adapter_name])
            model._check_effect()
        except BaseException:
            model.unload()
            raise
        return model

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        *,
        allow_related: bool = False,
        allow_unverified_base: bool = False,
        **hub: Any,
    ) -> None:
        """Load a further direction of the base model; it is inactive until `set_strength` or `set_adapter` names it.

        Args:
            model_id: Repository id or folder of the direction.
            adapter_name: Name for this direction in the model.
            allow_related: As of `from_pretrained`, which has the errors, too.
            allow_unverified_base: As of `from_pretrained`.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder` and `force_download`. Further arguments
                of PEFT's `load_adapter` are refused.
        """
        if strange := [name for name in hub if name not in _FROM_HUB]:
            raise ConfigError(
                f"load_adapter: {', '.join(strange)} has no meaning for a direction, which is read whole, in fp32, and not "
                "trained. Leave it out, or load with PeftModel."
            )
        found, config, direction = _read(model_id, **hub)
        self._add(adapter_name, direction, config, **_allowed(config, allow_related, allow_unverified_base))
        self._found[adapter_name] = found

    def add_direction(
        self, adapter_name: str, direction: Direction, config: GradiendConfig, *, allow_related: bool = False
    ) -> None:
        """Add a direction that is in memory; it is inactive until `set_strength` or `set_adapter` names it."""
        self._add(adapter_name, direction, config, allow_related=allow_related)

    def _add(self, adapter_name: str, direction: Direction, config: GradiendConfig, **allowed: Any) -> None:
        check_name(adapter_name)
        if adapter_name in self.peft_config:
            raise ConfigError(f"There is a direction {adapter_name!r} already; delete it first, or use `swap`.")
        base, peaks = self.get_base_model(), direction.peaks()
        names = check_base_model(base, direction, **allowed)
        self._attach(adapter_name, direction, described(config, direction, base), names, peaks)
        if self._merged and any(quantized_layers(base)):
            self.unmerge_adapter()

    def swap(
        self, model_id: str | Path, adapter_name: str = "default", *, strength: float | None = None, **hub: Any
    ) -> None:
        """Replace a direction by another one: PEFT's hotswap, at any size. The new one gets the old one's strength.

        If the new direction cannot be loaded, or not be applied at that strength, the old one stays. One that was not
        active is replaced by one that is not.
        """
        self.base_model.require_loaded(adapter_name)
        active = list(self.active_adapters)
        strength = self._attached[adapter_name].strength if strength is None else strength
        check_strength(strength)
        temporary = f"{adapter_name}_swapped"
        self.load_adapter(model_id, temporary, **hub)
        try:
            with self._all_or_nothing():
                self.base_model.set_strength(temporary, strength)
                self._set_active([temporary if name == adapter_name else name for name in active])
                self._check_effect()
        except BaseException:
            self._delete(temporary)
            raise
        found, direction, config = self._found[temporary], self._directions[temporary], self.peft_config[temporary]
        names = {stored: name for name, stored in self._attached[temporary].stored_names.items()}
        self._set_active([name for name in active if name != adapter_name])
        self._delete(adapter_name)
        self._attach(adapter_name, direction, config, names, direction.peaks())
        self._delete(temporary)
        self._found[adapter_name] = found
        self.base_model.set_strength(adapter_name, strength)
        self._set_active(active)

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer (or image processor): the one that was given, else the one beside the base model."""
        if self.processing_class is None:
            self.processing_class = load_processing_class(self.get_base_model(), self.active_peft_config, self._hub)
        return self.processing_class

    def make_objective(self, processing_class: Any = None) -> Objective:
        """Make the objective of the active direction on this base model, with the direction's options.

        Args:
            processing_class: The base model's tokenizer, if it is not to be loaded from the base model's path.
        """
        from .objectives import make_objective  # tokenizing and objectives are not needed to apply a direction

        config, processor = self.active_peft_config, processing_class or self.tokenizer
        return make_objective(self.get_base_model(), processor, name=config.objective, options=config.objective_options)

    def encode(self, rows: Any, batch_size: int = 32, *, processing_class: Any = None) -> torch.Tensor:
        """Read feature values `h = tanh(⟨w_e, ∇L⟩ + b_e)` of rows: fp32 `[N]`.

        A value is near +1 where the word that stands in the text (the factual one) is of the first class, near −1 where it
        is of the second, whatever gradient the encoder reads, and near 0 for other words.

        Args:
            rows: Records with the columns `masked`, `factual`, `alternative`, `factual_class` and `alternative_class`
                (or those of the direction's objective); other classes than the direction's are read, too.
            batch_size: Rows per forward pass.
            processing_class: The base model's tokenizer, if it is not to be loaded from the base model's path.
        """
        from .encoding import encode_rows

        config, base, objective = self.active_peft_config, self.get_base_model(), self.make_objective(processing_class)
        with self.strength_at(0.0):
            return encode_rows(base, objective, self.direction, config, rows, batch_size=batch_size)

    def verify(self, *, full: bool = False) -> Any:
        """Measure the active direction's self-test again: its encodings, probabilities, files and base model.

        Args:
            full: Also measure what the report claims, as far as that needs no data beside the artifact.

        Returns:
            A `gradiend_hub.evaluation.selftest.Verification`: a check per value, and whether all passed.

        Raises:
            ArtifactNotFoundError: the direction was not loaded from an artifact, or that has no self-test.
            ArtifactError: the self-test is damaged.
        """
        name = self._only_active()
        if name not in self._found:
            raise ArtifactNotFoundError(
                f"The direction {name!r} was not loaded from files, so there is nothing to verify."
            )
        self._found[name].complete()
        if full:
            self._found[name].complete([*LORA_FILES, *GGUF_FILES])
        return resolve_name(_SELF_TEST)(self, self._found[name].folder, full=full)


def load_processing_class(base_model: nn.Module, config: GradiendConfig, hub: Mapping[str, Any]) -> Any:
    """The tokenizer (or image processor) beside a base model.

    Args:
        base_model: The model.
        config: Of a direction of it.
        hub: `token`, `cache_dir` and `local_files_only` for its repository.

    Raises:
        BaseModelError: It has no name or path.
    """
    from .objectives import objective_class, objective_name

    base = base_name(base_model) or config.base_model_name_or_path
    if not base:
        raise BaseModelError(
            "The base model has no name or path, so its tokenizer is unknown. Pass it as `processing_class` to "
            "GradiendModel.from_pretrained or from_direction."
        )
    kind = objective_class(objective_name(base_model, config.objective))
    given = {name: value for name, value in hub.items() if value}
    # the direction's author has chosen the base: no code beside it runs, and nobody is asked on the way whether it may
    return kind.load_processor(base, revision=base_commit(base_model), trust_remote_code=False, **given)


def _read(repo_or_path: str | Path, **arguments: Any) -> tuple[ResolvedRepo, GradiendConfig, Direction]:
    """Resolved folder, configuration and decoder of a stored direction; its values are still to be checked."""
    from gradiend_hub.hub.resolve import APPLIED, resolve_folder

    found = resolve_folder(repo_or_path, **arguments, required=(CONFIG_FILE, WEIGHTS_FILE), wanted=APPLIED)
    config = GradiendConfig.from_pretrained(str(found.folder))
    if found.repo_id is not None:
        config = config.without_local_base(found.repo_id)
        hub = {name: arguments.get(name) for name in ("token", "cache_dir", "local_files_only")}
        config.origin = Origin(found.repo_id, arguments.get("subfolder"), {"revision": found.commit, **hub})
    return found, config, Direction.load(found.folder, config, encoder=False, check=False)


def _allowed(config: GradiendConfig, related: bool, unverified: bool) -> dict[str, Any]:
    """Arguments of `check_base_model`. PEFT stores no samples of the base of what it has trained, which has no feature."""
    return {"allow_related": related, "allow_unverified": unverified or config.feature_classes is None}
