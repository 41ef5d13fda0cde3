"""`EditedModel`: a base model with directions in memory: their strengths, which are active, and merging."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import ConfigError, EditError

from .attached import AttachedDirection
from .quantized import quantized_layers
from .receipt import EditReceipt, receipt_of
from .rows import GroupedCache, by_row, run_groups
from .schedule import Schedule, SteppedStrengths, generate_by
from .side_path import NoRowsError, SidePath
from .sites import refuse_sharded
from .tuner import GradiendTuner

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_NORM = 1e4
"""‖Δ‖/‖W‖ beyond which a direction that was loaded is not applied: no measured band reaches that far."""

_ROWS_LOCK = threading.RLock()


class EditedModel(PeftModel):  # type: ignore[misc]
    """A `PeftModel` whose directions are merged in place, from kept originals. Knows no files, and no other base model.

    `GradiendModel` adds what an artifact is: where directions come from, whose base model it is, and saving.
    """

    base_model: GradiendTuner

    def __init__(
        self, model: nn.Module, peft_config: GradiendConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        with warnings.catch_warnings():  # PEFT asks transformers for an attribute by its former name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            former = model.__dict__.pop("peft_config", None)  # of a LoRA on the base: PEFT would write ours among them
            try:
                super().__init__(model, peft_config, adapter_name, **kwargs)
            except BaseException:
                if former is not None:
                    model.__dict__["peft_config"] = former
                raise
            self.base_model.former_configs = former
        # Whether active directions are merged; plain PEFT's merge_adapter changes it, too.
        self._merged = not any(quantized_layers(model))
        self._row_strengths: Any = None  # of `strengths_by_row`
        self._directions: dict[str, Direction] = {}  # under the parameter names of their artifacts

    def _attach(
        self,
        adapter_name: str,
        direction: Direction,
        config: GradiendConfig,
        names: Mapping[str, str],
        peaks: Mapping[str, tuple[float, float]],
    ) -> None:
        """Attach a further direction that was checked, inactive, at its recommended strength."""
        self.add_adapter(adapter_name, config, low_cpu_mem_usage=True)
        self._fill(adapter_name, direction, names, peaks)

    def _fill(
        self,
        adapter_name: str,
        direction: Direction,
        names: Mapping[str, str],
        peaks: Mapping[str, tuple[float, float]],
    ) -> None:
        """Give an attached direction its values, under this model's parameter names."""
        self._directions[adapter_name] = direction
        peaks = {names[name]: bounds for name, bounds in peaks.items()}
        self.base_model.fill(adapter_name, direction.renamed(names), peaks)

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
        if not wanted:
            raise ConfigError(
                f"set_strength: no direction is named or active; loaded are {list(self.peft_config)}. Name one: "
                "set_strength({name: strength})."
            )
        self.base_model.require_loaded(*wanted)
        active = list(self.active_adapters)
        with self._all_or_nothing():
            for name, value in wanted.items():
                self.base_model.set_strength(name, value, feature_factor)
            self._set_active([*active, *(name for name in wanted if name not in active)])
            self._check_effect()

    @property
    def _attached(self) -> dict[str, AttachedDirection]:
        return self.base_model.attached

    @contextmanager
    def _all_or_nothing(self, *, for_good: bool = True) -> Iterator[None]:
        """Restore strengths and active directions if the block fails, or at its end unless the change is for good."""
        active = list(self.active_adapters)
        before = {name: attached.state for name, attached in self._attached.items()}
        done = False
        try:
            yield
            done = for_good
        finally:
            if not done:
                for name, state in before.items():
                    if name in self.peft_config and self._attached[name].state != state:
                        self.base_model.set_strength(name, *state)
                self._set_active([name for name in active if name in self.peft_config])

    @property
    def strengths(self) -> dict[str, float]:
        """Current strength of every active direction."""
        return {name: self._attached[name].strength for name in self.active_adapters}

    @property
    def strength(self) -> float:
        """Current strength of the active direction."""
        strengths = self.strengths
        if len(strengths) != 1:
            raise ConfigError(f"{len(strengths)} directions are active; ask for `strengths`: {strengths}.")
        return next(iter(strengths.values()))

    @contextmanager
    def strength_at(self, strength: float | Mapping[str, float], feature_factor: float | None = None) -> Iterator[Self]:
        """Within the block, another strength; afterwards the former one, to the bit."""
        with self._all_or_nothing(for_good=False):
            self.set_strength(strength, feature_factor)
            yield self

    def _check_effect(self) -> None:
        """Raise `EditError` if a non-zero strength changes no weight; stops looking at the first one that changed."""
        if self._adapters_disabled or not any(self.strengths.values()):
            return
        if not self.base_model.has_effect():
            raise EditError(
                f"At strength {self.strengths} no weight changes: Δ is zero, or smaller than the spacing of the "
                f"{self.base_model_torch_dtype} numbers. Use a larger strength, or load the base model in float32."
            )

    def _refuse_overwhelming(self, direction: Direction) -> None:
        """Warn of an edit that is larger than the weights it edits, and refuse one that is nothing but noise to them.

        That takes a pass over the weights, which is left out where the largest entries cannot add up to that much.
        """
        name = self._only_active()
        attached, samples = self._attached[name], direction.fingerprint.samples if direction.fingerprint else {}
        if not attached.strength or not self._merged:
            return
        c_w, c_b = (abs(c) for c in attached.config.coefficients(attached.strength, attached.feature_factor))
        parts = direction.parameters
        peaks = {attached.stored_names[n]: bounds for n, bounds in self.base_model.peaks_of(name).items()}
        delta = sum(parts[n].entries * (c_w * w + c_b * b) ** 2 for n, (w, b) in peaks.items())
        whole = sum(parts[n].numel * float(values.square().mean()) for n, values in samples.items() if n in parts)
        if delta < 0.25 * whole:  # of a sample, the norm is uncertain
            return
        ratio = self.receipt.relative_norm
        said = f"At strength {attached.strength:g} the edit is {ratio:.3g} times as large as the weights it edits (‖Δ‖/‖W‖)"
        if not ratio <= _MOST_NORM:
            raise EditError(f"{said}; nothing of the base model would be left. Use a smaller strength.")
        if ratio > 1:
            warnings.warn(f"{said}; little of the base model is left. Use a smaller strength.", stacklevel=3)

    @property
    def receipt(self) -> EditReceipt:
        """Account of the current edit, measured on the weights (one pass over the touched parameters)."""
        return receipt_of(self.base_model.layers)

    def forward(self, *args: Any, strengths: Any = None, **kwargs: Any) -> Any:
        """Run the base model with the edit.

        Args:
            *args: Of the base model.
            strengths: Strengths by row instead of the current one: a sequence `[batch]` for the active direction, a
                dictionary of such sequences by name (active directions that it lacks stay as they are), or a callable that
                gets the arguments of the forward (e.g. `input_ids`) and returns either. The rows of each strength are
                run by themselves, with the weights changed in between: no other thread may run the model meanwhile,
                but for calls with strengths, which wait for each other. Low-rank directions on linear layers and norms run
                all rows at once beside the base model's weights; `gradiend_hub.adapter.side_path` says in which bits
                that differs from merged weights.
            **kwargs: Of the base model.

        Raises:
            ConfigError: With `strengths`, if they are no finite numbers, or not one for each row.
            EditError: With `strengths`, if an input cannot be divided into rows, or an output (a loss) not be joined.
        """
        strengths = self._row_strengths if strengths is None else strengths
        if strengths is None:
            return super().forward(*args, **kwargs)
        return self._by_row(super().forward, strengths, args, kwargs)

    def generate(self, *args: Any, strengths: Any = None, schedule: Schedule | None = None, **kwargs: Any) -> Any:
        """Generate with the edit.

        Args:
            *args: Of the base model.
            strengths: Strengths by row as in `forward`, each group of rows with its own cache.
            schedule: A function `(step, tokens [rows, tokens so far])` that returns the strength of every step: a number,
                one for each row, or either by name. Step 0 reads the prompt, and step k the k-th new token.
                `gradiend_hub.adapter.schedule` says what a cache holds then.
            **kwargs: Of the base model.

        Raises:
            ConfigError: If strengths are no finite numbers, or not one for each row.
            EditError: With `schedule`, if rows differ in strength and a direction has no place beside the weights.
        """
        if schedule is not None:
            if strengths is not None:
                raise ConfigError("generate: give either `strengths` or `schedule`; a schedule may return one by row.")
            return self._scheduled(super().generate, schedule, args, kwargs)
        strengths = self._row_strengths if strengths is None else strengths
        if strengths is None:
            return super().generate(*args, **kwargs)
        defaults: Any = self.get_base_model().generation_config
        padding = kwargs.get("pad_token_id", defaults.pad_token_id)
        if padding is None:
            padding = defaults.eos_token_id
            padding = padding[0] if isinstance(padding, list) else padding
        return self._by_row(super().generate, strengths, args, kwargs, padding=0 if padding is None else padding)

    @contextmanager
    def strengths_by_row(self, strengths: Any) -> Iterator[Self]:
        """Within the block, the `strengths` of every forward and generation that names none: for pipelines, which call the
        model themselves. A function of the inputs fits batches of every size.
        """
        former, self._row_strengths = self._row_strengths, strengths
        try:
            yield self
        finally:
            self._row_strengths = former

    def _scheduled(
        self, generate: Callable[..., Any], schedule: Schedule, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> Any:
        if self._adapters_disabled:
            raise ConfigError("schedule: the directions are disabled. Leave it out, or the block that disables them.")
        self.base_model.require_loaded()
        current, loaded, base = self.strengths, list(self.peft_config), self.get_base_model()
        with (
            _ROWS_LOCK,
            self._all_or_nothing(for_good=False),
            SteppedStrengths(self.base_model, self.set_strength) as at,
        ):
            return generate_by(schedule, generate, base, current, loaded, at.apply, args, inputs)

    def _by_row(
        self, run: Callable[..., Any], strengths: Any, args: tuple[Any, ...], inputs: dict[str, Any], **options: Any
    ) -> Any:
        if self._adapters_disabled:
            raise ConfigError(
                "strengths: the directions are disabled. Leave `strengths` out, or the block that disables them."
            )
        self.base_model.require_loaded()
        groups = by_row(strengths, self.strengths, list(self.peft_config), args, inputs)
        with _ROWS_LOCK, self._all_or_nothing(for_good=False):
            names = list(dict.fromkeys([*self.active_adapters, *(n for of in groups.strengths for n in of)]))
            cached = any(isinstance(value, GroupedCache) for value in (*args, *inputs.values()))
            if SidePath.fits(self.base_model, names) and not cached:
                if any(self._attached[name].strength for name in names):
                    self.set_strength(dict.fromkeys(names, 0.0))
                try:
                    with SidePath(self.base_model, groups.by_adapter()):
                        return run(*args, **inputs)
                except NoRowsError:  # of a layer that joins the rows
                    pass
            return run_groups(groups, run, self.set_strength, args, inputs, **options)

    # -------------------------------------------------------------------------------------- which directions are active

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = True) -> None:
        """Make these directions the active ones, at their own strengths (the recommended one if it never was set).

        Raises:
            ConfigError: If a name is unknown, or the directions are to learn (`inference_mode=False`).
            EditError: If they change nothing; the former ones stay active.
        """
        if not inference_mode:
            raise ConfigError(
                "set_adapter(inference_mode=False): the directions of a GradiendModel do not learn. Train with "
                "GradiendTrainer, or a fresh adapter with peft.get_peft_model(model, GradiendConfig(...))."
            )
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self.base_model.require_loaded(*names)
        with self._all_or_nothing():
            self._set_active(names)
            self._check_effect()

    def _set_active(self, names: list[str]) -> None:
        """Activate exactly these, and merge them if this model merges."""
        former = list(self.active_adapters)
        if names == former:
            return
        if self._merged:
            refuse_sharded(self.base_model.model)
        self.base_model.merge_exactly([])
        try:
            self._name_active(names)
            if self._merged:
                self.base_model.merge_exactly(names)
        except BaseException:
            self._name_active(former)
            if self._merged:
                self.base_model.merge_exactly(former)
            raise

    def _name_active(self, names: list[str]) -> None:
        self.base_model.set_adapter(names, inference_mode=True)
        self.active_adapter = names[0] if names else next(iter(self.peft_config))  # PEFT looks its configuration up

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge directions in place, as they are from the start."""
        self.base_model.merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        self._merged = True

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        strength: float | Mapping[str, float] | None = None,
    ) -> Any:
        """Return the plain base model with the edit in its weights for good, as PEFT's.

        Args:
            progressbar: Whether to show progress.
            safe_merge: Refuse weights that would be NaN or infinite.
            adapter_names: Directions to merge; by default the active ones.
            strength: Strength to merge at, as in `set_strength`; by default the current one.
        """
        if strength is not None:
            self.set_strength(strength)
        return self.base_model.merge_and_unload(progressbar, safe_merge, adapter_names)

    def unmerge_adapter(self) -> None:
        """Keep the base model's weights in place; the edit is computed anew in every forward (slower)."""
        self.base_model.unmerge_adapter()
        self._merged = False

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a direction; if it was the only active one, no direction is active afterwards."""
        self.base_model.require_loaded(adapter_name)
        if len(self.peft_config) == 1:
            raise ConfigError(
                f"{adapter_name!r} is the only direction; `unload()` gives the base model back without it."
            )
        self._set_active([name for name in self.active_adapters if name != adapter_name])
        self._delete(adapter_name)

    def _delete(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        if self.active_adapter == adapter_name:
            self.active_adapter = next(iter(self.peft_config))
        self._directions.pop(adapter_name, None)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add the direction `Σ weight_i · Δ_i`, each at its current strength (`GradiendTuner.add_weighted_adapter`)."""
        direction = self.base_model.add_weighted_adapter(adapters, weights, adapter_name, combination_type)
        self._directions[adapter_name] = direction

    def _only_active(self) -> str:
        if len(self.active_adapters) != 1:
            raise ConfigError(
                f"{len(self.active_adapters)} directions are active: {self.active_adapters}; activate one."
            )
        return str(self.active_adapters[0])
