"""`GradiendTuner`: attaches directions to a model, and answers PEFT's questions about them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from gradiend_hub.artifact.config import GradiendConfig, check_strength
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.errors import ConfigError, EditError
from gradiend_hub.scope import select_parameters

from .arithmetic import Part
from .attached import AttachedDirection
from .layer import GradiendLayer, gradiend_layers
from .older_releases import refuse_loading_by_transformers
from .quantized import make_layer, refuse_quantized
from .sites import Site, SiteMap, check_shapes, refuse_offloaded, refuse_sharded, resolve_names
from .slot import ForwardHooks
from .state import AdapterState


class GradiendTuner(AdapterState, BaseTuner):  # type: ignore[misc]
    """PEFT's tuner for feature directions: one `GradiendLayer` for every parameter, as a child of its owner."""

    prefix: str = "gradiend_"
    tuner_layer_cls = GradiendLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    targeted_parameter_names: list[str]
    peft_config: dict[str, GradiendConfig]
    active_adapters: list[str]
    model: nn.Module
    _frozen: tuple[nn.Parameter, ...] = ()
    former_configs: dict[str, Any] | None = None
    """Configurations of adapters that the base model brought along, and gets back."""

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **options: Any) -> None:
        if isinstance(peft_config, GradiendConfig):  # PeftModel hands over a dictionary
            refuse_loading_by_transformers(peft_config)
        super().__init__(model, peft_config, adapter_name, **options)

    # ------------------------------------------------------------------------------------------------------ injection

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Attach an adapter with zero values (on the meta device with `low_cpu_mem_usage`).

        PEFT's version walks over all modules and matches names; a direction lists its parameters. Everything is checked
        before anything is attached.

        Raises:
            BaseModelMismatchError: If the model lacks a parameter, or its shape is another one.
            BaseModelError: If a parameter is offloaded.
            ConfigError: If the adapter's name cannot be one, or the scope of a fresh adapter is empty.
        """
        config = self.peft_config[adapter_name]
        check_name(adapter_name)
        self._check_new_adapter_config(config)
        sites = SiteMap(model)
        if config.parameters is None:  # of a fresh adapter, which is dense
            selected = select_parameters(self.model, scope=config.scope, exclude=config.exclude, layers=config.layers)
            config.parameters = {name: {"shape": list(p.shape), "entries": None} for name, p in selected.items()}
        names = resolve_names(model, config.parameters, sites.parameters)
        specs = {found: config.parameters[stored] for stored, found in names.items()}
        check_shapes(model, sites.parameters, specs)
        if hasattr(model, "hf_device_map"):  # a model that is empty as a whole, without a map, may be filled later
            refuse_offloaded({name: sites.parameters[name] for name in specs if name not in sites.quantized})
        if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            self._frozen = tuple(p for p in model.parameters() if p.requires_grad)  # thawed when adapters are unloaded
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        self.layers = list(gradiend_layers(model))
        self._forget(adapter_name)  # of a former tuner on the same model
        known = {(id(layer.site.owner), layer.site.leaf): layer for layer in self.layers}
        hooks = self.layers[0].hooks if self.layers else ForwardHooks()
        attached = AttachedDirection(config, {found: stored for stored, found in names.items()})
        trainable = adapter_name in self.active_adapters and not config.inference_mode
        for name, spec in specs.items():
            layer = self._sidecar(sites[name], known, hooks)
            layer.attach(adapter_name, attached, spec)
            layer.make_room(adapter_name, spec, torch.device("meta") if low_cpu_mem_usage else layer.device)
            layer.set_requires_grad(adapter_name, requires_grad=trainable)
            layer._active_adapter = list(self.active_adapters)
            layer.watch()
        self.targeted_parameter_names = list(dict.fromkeys([*self.targeted_parameter_names, *specs]))

    def _sidecar(
        self, site: Site, known: Mapping[tuple[int, str], GradiendLayer], hooks: ForwardHooks
    ) -> GradiendLayer:
        """The one side-car of a parameter, attached now if there is none yet."""
        layer = known.get((id(site.owner), site.leaf))
        if layer is None:
            layer = make_layer(site, hooks)
            self.layers.append(layer)
            layer.hang(site)
        elif layer.site.host is not site.host:
            layer.hang(site)
        return layer

    def _forget(self, adapter_name: str) -> None:
        """Drop an adapter, and the side-cars that nothing else uses."""
        for layer in [layer for layer in self.layers if adapter_name in layer.adapters]:
            layer.drop(adapter_name)
            if not layer.adapters:
                layer.detach()
                self.layers.remove(layer)

    def fill(self, adapter_name: str, direction: Direction, peaks: Mapping[str, tuple[float, float]]) -> None:
        """Give an attached adapter its values.

        Args:
            adapter_name: The adapter.
            direction: Its direction, under the model's parameter names.
            peaks: As `direction.peaks()` returns them.
        """
        for layer in self._layers_of(adapter_name):
            layer.fill(adapter_name, direction.parameters[layer.site.name], peaks[layer.site.name])

    def peaks_of(self, adapter_name: str) -> dict[str, tuple[float, float]]:
        """Return the largest absolute value of weight and bias by parameter, as they were when the adapter was filled."""
        return {layer.site.name: layer._peaks[adapter_name] for layer in self._layers_of(adapter_name)}

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep an adapter's values in fp32, or round them to the base model's type if PEFT's caller asks for that.

        An edit is W + σΔ either way; Δ is that of the rounded values then.
        """
        for layer in self._layers_of(adapter_name):
            layer.cast(adapter_name, torch.float32 if autocast_adapter_dtype else layer.dtype)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """Abstract in PEFT, whose `inject_adapter` calls it for every module; ours goes by parameters and never does."""

    # ------------------------------------------------------------------------------------------------ PEFT's questions

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise EditError(
                "adapter_names is not supported by GRADIEND directions, which edit weights. "
                "Use GradiendModel and model(**batch, strengths=[...]) for different strengths in one batch."
            )
        try:
            yield
        except (KeyboardInterrupt, SystemExit):  # hooks that always run do not run then
            for layer in self.layers:
                layer.slot.recover()
            raise

    def _check_merge_allowed(self) -> None:
        """Allow everything: tied weights are edited once, wherever they are used, so nothing can go wrong."""

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if adapter_names:
            self.require_loaded(*adapter_names)
        if merge:
            refuse_quantized(self.model)
            refuse_sharded(self.model)
        plan: list[tuple[GradiendLayer, list[str], list[Part] | None]] = []
        for layer in self.layers:  # all of them before anything is written
            chosen = (adapter_names or layer.merged_adapters or layer.active_adapters) if merge else []
            names = [name for name in chosen if name in layer.adapters]
            if names != layer.merged_adapters or safe_merge:
                plan.append((layer, names, layer.check_merge(names, safe_merge)))
            else:
                if layer.merged:
                    layer.check_in_place()
                plan.append((layer, names, None))
        for layer, names, parts in tqdm(plan, disable=not progressbar, desc="Merging" if merge else "Unloading"):
            if layer.disable_adapters:
                layer.enable_adapters(True)
            if parts is not None and names != layer.merged_adapters:
                layer.write_merged(names, parts)
            layer.detach()  # drops the originals of one layer before the next one is touched
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.model.__dict__.pop("peft_config", None)
        if self.former_configs is not None:
            self.model.__dict__["peft_config"] = self.former_configs
        self.layers = []
        return self.model

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As in PEFT, but refused as a whole if a layer is quantised, a name unknown, or nothing would change.

        Raises:
            EditError: If it cannot be merged, or the type of the weights swallows all of it.
        """
        self.require_loaded(*(adapter_names or ()))
        refuse_quantized(self.model)
        refuse_sharded(self.model)
        before = [layer.merged_adapters for layer in self.layers]
        for layer in self.layers:  # and not those of other methods on the same model
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        shares = [part for layer in self.layers for part in layer.parts(layer.merged_adapters)]
        if any(bool(part.weight.any()) for part in shares) and not self.has_effect():
            for layer, names in zip(self.layers, before, strict=True):
                layer.merge_exactly(names)
            raise EditError(
                "The edit changes no weight: it is smaller than the spacing of the base model's numbers. Use a larger "
                "strength, or load the base model in float32."
            )

    def unmerge_adapter(self) -> None:
        """Give the base model its own weights back, bit for bit."""
        for layer in self.layers:
            if layer.site.quantized is None:
                layer.unmerge()

    def delete_adapter(self, adapter_name: str) -> None:
        """As in PEFT, whose releases before 0.21 would delete what is merged."""
        if any(adapter_name in layer.merged_adapters for layer in self.layers):
            raise ConfigError(f"{adapter_name!r} cannot be deleted while it is merged. Call `unmerge_adapter()` first.")
        super().delete_adapter(adapter_name)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for layer in self.layers:
            layer.enable_adapters(enabled)

    def has_effect(self) -> bool:
        """Tell whether any weight differs from the base model's; stops looking at the first one that does."""
        return any(layer.has_effect() for layer in self.layers)

    def require_loaded(self, *names: str) -> None:
        """Raise `ConfigError` where one of these directions is not in the model, or all of them were unloaded."""
        if not self.layers:
            raise ConfigError("The directions of this model were unloaded: it is the plain model now. Load one anew.")
        if unknown := [name for name in names if name not in self.peft_config]:
            raise ConfigError(
                f"There is no direction {unknown[0]!r} in this model; loaded are {list(self.peft_config)}."
            )

    def merge_exactly(self, adapter_names: list[str]) -> None:
        """Make these the merged adapters on all layers, and no others. Nothing is written if one of them cannot be."""
        plan = []
        for layer in [layer for layer in self.layers if layer.site.quantized is None]:
            names = [name for name in adapter_names if name in layer.adapters]
            if names != layer.merged_adapters:
                plan.append((layer, names, layer.check_merge(names)))
        for layer, names, parts in plan:
            layer.write_merged(names, parts)
            layer.watch()

    def _apply(self, fn: Any, recurse: bool = True) -> GradiendTuner:
        """After a move or a change of type, merged weights are summed and rounded again from the moved originals."""
        super()._apply(fn, recurse)
        for layer in self.layers:
            layer.refresh()
        return self

    # -------------------------------------------------------------------------------------------------------- strength

    @property
    def attached(self) -> dict[str, AttachedDirection]:
        """Attached directions by adapter name, with their strengths."""
        return {name: attached for layer in self.layers for name, attached in layer.adapters.items()}

    def _layers_of(self, adapter_name: str) -> list[GradiendLayer]:
        return [layer for layer in self.layers if adapter_name in layer.adapters]

    def set_strength(self, adapter_name: str, strength: float, feature_factor: float | None = None) -> None:
        """Set the strength of one adapter, merged or not. What fails leaves the former strength.

        Raises:
            ConfigError: If there is no such adapter, or one of the numbers is not finite.
            EditError: If the edit is beyond the numbers of a parameter's type, or the parameter was replaced or changed.
        """
        self.require_loaded(adapter_name)
        attached, layers = self.attached[adapter_name], self._layers_of(adapter_name)
        former = attached.state
        attached.set(strength, feature_factor)
        try:
            for layer in layers:
                layer.parts([adapter_name])  # raises what a later forward would raise
            plan = [(layer, layer.merged_parts()) for layer in layers]
        except BaseException:
            attached.set(*former)
            raise
        for layer, parts in plan:
            if adapter_name in layer.merged_adapters:
                layer.rewrite(parts)

    @contextmanager
    def strength_at(self, strength: float) -> Iterator[None]:
        """Within the block, another strength of the active adapters; PEFT's `rescale_adapter_scale` is for LoRA alone."""
        before = {name: attached.state for name, attached in self.attached.items() if name in self.active_adapters}
        try:
            for name in before:
                self.set_strength(name, strength)
            yield
        finally:
            for name, former in before.items():
                if name in self.peft_config:
                    self.set_strength(name, *former)

    # ------------------------------------------------------------------------------------------------------ directions

    def direction_of(self, adapter_name: str) -> Direction:
        """The decoder of one adapter, fp32 on the CPU, under the model's parameter names."""
        return Direction({layer.site.name: layer.direction_of(adapter_name) for layer in self._layers_of(adapter_name)})

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> Direction:
        """Add the adapter `Σ weight_i · Δ_i`, each Δ_i at its current strength. Exact, and sparse stays sparse.

        Raises:
            ConfigError: If a name is unknown or taken, the lists differ in length, or the combination is not linear.
        """
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or adapter_name in self.peft_config or len(adapters) != len(weights) or not adapters:
            raise ConfigError(
                f"add_weighted_adapter: expected as many weights as adapters of {list(self.peft_config)}, and a new "
                f"name; found {adapters}, {weights}, {adapter_name!r}."
            )
        if combination_type != "linear":
            raise ConfigError(
                f"add_weighted_adapter: only 'linear' is exact for directions, found {combination_type!r}."
            )
        check_name(adapter_name)
        for weight in weights:
            check_strength(weight)
        direction = self._weighted(adapters, weights)
        peaks = direction.peaks()
        config = copy.copy(self.peft_config[adapters[0]])
        config.parameters, config.has_bias, config.dtype, config.origin = direction.spec(), False, "float32", None
        config.decoder_sign, config.strength_unit, config.strength, config.feature_factor = 1, 1.0, 1.0, 1.0
        config.safe_band = config.break_point = None
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name, low_cpu_mem_usage=True)
        self.fill(adapter_name, direction, peaks)
        return direction

    @torch.no_grad()
    def _weighted(self, adapters: list[str], weights: list[float]) -> Direction:
        parameters: dict[str, ParameterDirection] = {}
        originals: dict[str, Fingerprint] = {}
        for layer in self.layers:
            name = layer.site.name
            shares = [
                part._replace(c_w=part.c_w * weight, c_b=part.c_b * weight).direction(tuple(layer.shape))
                for adapter, weight in zip(adapters, weights, strict=True)
                for part in layer.parts([adapter])
            ]
            if not shares:
                continue
            parameters[name] = shares[0]
            for share in shares[1:]:
                parameters[name] = parameters[name].plus(name, share)
            if layer.site.quantized is None:
                originals[name] = Fingerprint.of({name: layer.original()})
        if not parameters:
            raise EditError("add_weighted_adapter: all strengths are zero, so there is nothing to combine.")
        samples = {name: values for one in originals.values() for name, values in one.samples.items()}
        dtypes = {one.dtype for one in originals.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        return Direction(parameters, fingerprint=Fingerprint(samples, dtype) if samples else None)


def check_name(adapter_name: str) -> None:
    """Refuse what cannot name an adapter."""
    if not isinstance(adapter_name, str) or "." in adapter_name or not adapter_name:
        raise ConfigError(f"Adapter name {adapter_name!r}: torch wants a word without '.'. Use '_'.")
