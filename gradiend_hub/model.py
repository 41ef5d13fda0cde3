"""`GradiendModel`: a base model with feature directions applied at a strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradiend_hub.adapter.edited_model import EditedModel
from gradiend_hub.adapter.quantized import quantized_layers
from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.adapter.tuner import check_name
from gradiend_hub.artifact.config import GradiendConfig, Origin, check_strength
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import ARTIFACT_FILES, CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.probes import take_along

from .base_model import base_commit, base_name, check_base_model, described, load_recorded_base, require_plain
from .errors import ArtifactNotFoundError, BaseModelError, ConfigError, GradiendError

if TYPE_CHECKING:
    from gradiend_hub.hub.resolve import ResolvedRepo

__all__ = ["EditReceipt", "GradiendModel", "MergedDirection", "load_processing_class"]

_SELF_TEST = "gradiend_hub.evaluation.selftest:verify"
"""Measures the self-test in an artifact's folder; a name, since it is built upon models."""

_PUSH = "gradiend_hub.cards.rewritten:push_rewritten"
"""Publishes a merged model with its card; a name, since cards are built upon models."""

PEFT_SAVING = {
    "safe_serialization": True,
    "save_embedding_layers": "auto",
    "state_dict": None,
    "path_initial_model_for_weight_conversion": None,
}
"""Arguments of PEFT's `save_pretrained` that have no meaning for a direction, and their defaults."""


@dataclass(frozen=True)
class MergedDirection:
    """Record of a direction that was merged into a model for good.

    Attributes:
        direction: repository, or name of the folder, of the direction; `folder` and `commit` where it was read from.
        config: of the direction.
        strength: at which it was merged, and `receipt` what that changed.
        processing_class: tokenizer or image processor that was given for the base model; `None` for the one beside it, which
            `hub` is for.
    """

    direction: str
    folder: Path | None
    commit: str | None
    config: GradiendConfig
    strength: float
    receipt: EditReceipt
    processing_class: Any
    hub: Mapping[str, Any]


class GradiendModel(EditedModel):
    """A base model with one or more feature directions: a `PeftModel` whose directions are merged in place.

    Being merged, they cost nothing at inference. The touched original weights are kept, so every change of strength
    is exact, and strength 0 is the base model to the bit. Inference may run in many threads; changing the strength, or
    giving strengths by row, while another thread runs the model may not. A merged model can be sharded (FSDP) or offloaded,
    but its strength can no longer be changed then.

    Use `GradiendModel.from_pretrained` or `GradiendModel.from_direction`.
    """

    def __init__(
        self, model: nn.Module, peft_config: GradiendConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._found: dict[str, ResolvedRepo] = {}  # where directions were read from
        self._hub: dict[str, Any] = {}  # arguments for what belongs to the base model and is loaded later
        self.processing_class: Any = None

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
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
        force_download: bool = False,
        **of_peft: Any,
    ) -> None:
        """Load a further direction of the base model; it is inactive until `set_strength` or `set_adapter` names it.

        Arguments and errors are those of `from_pretrained`; further ones of PEFT's `load_adapter` are refused.
        """
        if of_peft:
            raise ConfigError(
                f"load_adapter: {', '.join(of_peft)} has no meaning for a direction, which is read whole, in fp32, and not "
                "trained. Leave it out, or load with PeftModel."
            )
        hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        found, config, direction = _read(
            model_id, revision=revision, subfolder=subfolder, force_download=force_download, **hub
        )
        allowed = _allowed(config, allow_related, allow_unverified_base)
        self._add(adapter_name, direction, config, **allowed)
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
        self._require_loaded(adapter_name)
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

    def _delete(self, adapter_name: str) -> None:
        super()._delete(adapter_name)
        self._found.pop(adapter_name, None)

    @property
    def direction(self) -> Direction:
        """The active direction, with its encoder (read from disk at the first use)."""
        return self._direction(self._only_active())

    def _direction(self, name: str) -> Direction:
        """A direction under the base model's parameter names, with its encoder."""
        names = {stored: found for found, stored in self._attached[name].stored_names.items()}
        return self._stored_direction(name).renamed(names)

    def _stored_direction(self, name: str) -> Direction:
        """A direction under the parameter names of its artifact, with its encoder."""
        if name not in self._directions:  # a fresh adapter, which PEFT's add_adapter has made
            return self.base_model.direction_of(name).renamed(self._attached[name].stored_names)
        if name in self._found and not self._directions[name].has_encoder:
            self._found[name].complete([ENCODER_FILE])
            folder = self._found[name].folder  # with its own configuration: that of the model may be changed by now
            self._directions[name] = Direction.load(folder, GradiendConfig.from_pretrained(str(folder)))
        return self._directions[name]

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer (or image processor): the one that was given, else the one beside the base model."""
        if self.processing_class is None:
            self.processing_class = load_processing_class(self.get_base_model(), self.active_peft_config, self._hub)
        return self.processing_class

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
        from .encoding import encode_rows  # tokenizing and objectives are not needed to apply a direction
        from .objectives import make_objective

        config, base = self.active_peft_config, self.get_base_model()
        objective = make_objective(
            base, processing_class or self.tokenizer, name=config.objective, options=config.objective_options
        )
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
        return resolve_name(_SELF_TEST)(self, self._found[name].folder, full=full)

    # ---------------------------------------------------------------------------------------------------------- saving

    def save_pretrained(
        self,
        save_directory: str | Path,
        adapter_name: str | None = None,
        *,
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
        **of_peft: Any,
    ) -> None:
        """Write directions as artifacts: configuration, decoder, encoder; what lay beside them, if they were loaded:
        report, probes, and the card with its figures and page.

        Args:
            save_directory: Folder to write to.
            adapter_name: Direction to write to the folder itself; by default the active one.
            selected_adapters: Directions to write instead, laid out as PEFT does: "default" to the folder, every other
                one to a folder of its name within it (`from_pretrained(..., subfolder=name)` loads it).
            is_main_process: Write nothing if this is not the main one of several processes.
            **of_peft: Further arguments of PEFT's `save_pretrained`, at their default.

        Raises:
            ConfigError: If a name is unknown, or an argument has no meaning for a direction.
        """
        if strange := [key for key, value in of_peft.items() if key not in PEFT_SAVING or value != PEFT_SAVING[key]]:
            raise ConfigError(
                f"save_pretrained: {', '.join(strange)} has no meaning for a direction, which is written whole, as "
                "safetensors, without the base model. Leave it out."
            )
        if adapter_name is not None and selected_adapters is not None:
            raise ConfigError("save_pretrained: give `adapter_name` or `selected_adapters`, not both.")
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; give a folder.")
        if selected_adapters is None:
            places = {adapter_name or self._only_active(): folder}
        else:
            places = {name: folder if name == "default" else folder / name for name in selected_adapters}
        self._require_loaded(*places)
        for name, place in places.items() if is_main_process else ():
            self._save(name, place)

    def _save(self, name: str, folder: Path) -> None:
        """Write one direction to a folder."""
        direction, config = self._stored_direction(name), self.peft_config[name]
        folder.mkdir(parents=True, exist_ok=True)
        direction.save(folder, dtype=config.dtype)
        replace(config, parameters=direction.spec(), has_bias=direction.has_bias).save_pretrained(str(folder))
        if (found := self._found.get(name)) is not None:
            from gradiend_hub.hub.published import keep_origin

            found.complete(ARTIFACT_FILES)
            take_along(found.folder, folder)
            keep_origin(folder, found.commit)

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        strength: float | Mapping[str, float] | None = None,
    ) -> Any:
        """Return the plain base model with the edit in its weights for good, as PEFT's.

        Its `push_to_hub(repo_id)` publishes it with its tokenizer and a card that names its parents, if one direction was
        merged; the arguments are those of `gradiend_hub.hub.rewritten.publish_rewritten`.

        Args:
            progressbar: Whether to show progress.
            safe_merge: Refuse weights that would be NaN or infinite.
            adapter_names: Directions to merge; by default the active ones.
            strength: Strength to merge at, as in `set_strength`; by default the current one.
        """
        if strength is not None:
            self.set_strength(strength)
        names = list(adapter_names or self.active_adapters)
        merged = self._described_merge(names[0]) if len(names) == 1 else None
        model = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        if merged is not None:
            model.push_to_hub = partial(_push_merged, model, merged)
        return model

    def _described_merge(self, name: str) -> MergedDirection | None:
        """Return the record of merging a direction, for a card; `None` for one that changes nothing, or has no feature."""
        found, config, strength = self._found.get(name), self.peft_config.get(name), self.strengths.get(name)
        if config is None or not config.feature_classes or not strength or list(self.active_adapters) != [name]:
            return None
        try:
            receipt = self.receipt
        except GradiendError:  # of sharded weights
            return None
        place = "a direction" if found is None else found.repo_id or str(found.folder)
        folder, commit = (None, None) if found is None else (found.folder, found.commit)
        return MergedDirection(place, folder, commit, config, strength, receipt, self.processing_class, dict(self._hub))

    def to_lora(
        self, folder: str | Path, *, rank: int | None = None, strength: float = 1.0, adapter_name: str | None = None
    ) -> Any:
        """Write a direction as a LoRA for readers without this package; `gradiend_hub.export.to_lora` has the rest.

        Args:
            folder: Where to write.
            rank: Largest rank; by default that of the direction, or 8 if it is dense or sparse.
            strength: Strength that the scale 1 of the LoRA is to stand for.
            adapter_name: The direction; by default the active one.

        Returns:
            A `gradiend_hub.export.AdapterExport`: what was written, and what a LoRA has no place for.
        """
        from .export import to_lora

        name = adapter_name or self._only_active()
        self._require_loaded(name)
        parts = self._direction(name), self.peft_config[name], self.get_base_model()
        return to_lora(*parts, folder, rank=rank, strength=strength)

    def push_to_hub(self, repo_id: str, *, subfolder: str | None = None, **options: Any) -> Any:
        """Publish the active direction in one commit; of several, each into the folder of its name.

        Args:
            repo_id: `namespace/name`, or `name` for the user's own namespace.
            subfolder: Folder of the repository to push to.
            **options: Of `gradiend_hub.hub.publish.publish_folder`.

        Raises:
            HubPushError: the upload failed; the message names the folder where the artifact is kept.
        """
        from gradiend_hub.hub.in_memory import push_written

        names = list(self.active_adapters) if len(self.active_adapters) > 1 else [self._only_active()]
        if len(names) == 1:
            places: dict[str, str | None] = {names[0]: subfolder}
        else:
            places = {name: f"{subfolder}/{name}" if subfolder else name for name in names}

        def write(folder: Path) -> dict[str | None, Path]:
            found = {name: folder / name if len(names) > 1 else folder for name in names}
            for name, place in found.items():
                self._save(name, place)
            return {places[name]: place for name, place in found.items()}

        return push_written(write, repo_id, **options)


def _push_merged(model: nn.Module, merged: MergedDirection, repo_id: str, **options: Any) -> Any:
    """Publish a merged model with its card."""
    return resolve_name(_PUSH)(model, merged, repo_id, **options)


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
    return kind.load_processor(base, revision=base_commit(base_model), **given)


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
