"""`StoredModel`: an edited model that knows the artifacts of its directions, and writes, publishes and exports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from torch import nn

from gradiend_hub.adapter.edited_model import EditedModel
from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import ARTIFACT_FILES, ENCODER_FILE
from gradiend_hub.artifact.probes import take_along

from .errors import ConfigError, GradiendError

if TYPE_CHECKING:
    from gradiend_hub.hub.resolve import ResolvedRepo

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


class StoredModel(EditedModel):
    """An `EditedModel` whose directions have files: where each was read from, and where they are written to.

    `GradiendModel` adds what loads them and ties them to a base model.
    """

    def __init__(
        self, model: nn.Module, peft_config: GradiendConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._found: dict[str, ResolvedRepo] = {}  # where directions were read from
        self._hub: dict[str, Any] = {}  # arguments for what belongs to the base model and is loaded later
        self.processing_class: Any = None

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
        self.base_model.require_loaded(*places)
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
        """Merge as `EditedModel.merge_and_unload`, and let the plain model that is returned be published with its parents.

        Its `push_to_hub(repo_id)` publishes it with its tokenizer and a card that names its parents, if one direction was
        merged; the arguments are those of `gradiend_hub.hub.publish.publish_rewritten`.
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
        self.base_model.require_loaded(name)
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

    def _delete(self, adapter_name: str) -> None:
        super()._delete(adapter_name)
        self._found.pop(adapter_name, None)


def _push_merged(model: nn.Module, merged: MergedDirection, repo_id: str, **options: Any) -> Any:
    """Publish a merged model with its card."""
    return resolve_name(_PUSH)(model, merged, repo_id, **options)
