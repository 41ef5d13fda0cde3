"""`GradiendConfig`: everything that a direction says about itself, stored as `adapter_config.json`.

It is a `PeftConfig`, so PEFT and transformers read it as they read LoRA's. Every value is checked when an object is
made, whether it comes from a user or from a stranger's file.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig
from peft.utils.peft_types import PeftType, TaskType

from gradiend_hub.errors import ArtifactError, ConfigError, SchemaVersionError

from .files import ENCODER_FILE, PROBES_FILE, REPORT_FILE, SCHEMA_VERSION

__all__ = ["GRADIEND", "GradiendConfig", "decoder_sign", "require_classes"]

logger = logging.getLogger(__name__)

COMPANION_FILES = (ENCODER_FILE, REPORT_FILE, PROBES_FILE)
"""Files beside the config that PEFT does not know; a save through plain PEFT takes them along."""

GRADIENT_NAMES = ("factual", "alternative", "diff")
VALUE_DTYPES = ("float32", "float16", "bfloat16")
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48


def _extend_peft_type(name: str) -> PeftType:
    """Add a member to PEFT's closed enum of methods, which `register_peft_method` and transformers require."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


GRADIEND = _extend_peft_type("GRADIEND")
"""The PEFT type of feature directions."""


def decoder_sign(source: str, target: str) -> int:
    """Sign `o` that makes `o * w_d` raise the probability of the first class.

    The label of a training row is the sign of the class whose token gives the source gradient, and adding the target
    `g_f - g_a` to the weights lowers the probability of the factual token. Both choices may flip the orientation.
    The sign of the bias `b_d` follows from the target alone, see `GradiendConfig.coefficients`.
    """
    return (1 if source == "alternative" else -1) * (-1 if target == "alternative" else 1)


def _check(ok: bool, name: str, expected: str, found: object) -> None:
    if not ok:
        text = repr(found)
        raise ConfigError(f"GradiendConfig.{name}: expected {expected}, found {text[:80]}{'…' * (len(text) > 80)}.")


def require_classes(feature_classes: Sequence[str] | None) -> tuple[str, str]:
    """The pair (c₊, c₋) of a configuration that is going to be trained or evaluated."""
    if feature_classes is None or len(feature_classes) != 2:
        raise ConfigError(
            f"GradiendConfig.feature_classes must name two classes, the one of positive strength first; "
            f"found {feature_classes!r}."
        )
    return feature_classes[0], feature_classes[1]


def is_number(value: object) -> bool:
    """Whether a value is a finite number (and no truth value)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_strength(value: object) -> None:
    """Refuse what is no strength (or feature factor). Numbers of numpy are, too; a configuration stores Python's only.

    Raises:
        ConfigError: If it is no finite number.
    """
    if type(value) is float and math.isfinite(value):  # the usual case, a hundred times for each change of strength
        return
    real = isinstance(value, Real) and not isinstance(value, (bool, int)) and math.isfinite(value)
    if not (real or is_number(value)):
        raise ConfigError(f"A strength or feature factor must be a finite number, found {value!r}.")


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass
class GradiendConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of a feature direction, as a PEFT method.

    PEFT's own field `revision` is the commit of the *base model* that the direction was learned on.

    Args:
        feature_classes: The two classes of the feature, the one that positive strength makes likelier first. `None`
            only for a fresh PEFT adapter that belongs to no feature.
        fillers: Words of each class that may fill the slot, e.g. `{"3SG": ["he", "she"], "3PL": ["they"]}`.
        objective: How an example becomes a slot with two losses, e.g. `"masked_lm"`; `None` takes the one that fits
            the base model's head.
        source: Gradient that the encoder reads: `"alternative"`, `"factual"` or `"diff"`. The factual gradient vanishes
            where the model is right already, so that such rows cannot be told apart by it (on the bundled masked
            model, accuracy 1.00 where the factual word has a probability below 0.8, and 0.46 above).
        target: Gradient that the decoder predicts: `"diff"`, `"factual"` or `"alternative"`.
        scope: Parameters to learn on (and those of a fresh adapter): fnmatch patterns of parameter names, or one
            pattern; `None` is the default scope.
        exclude: Patterns of parameter names to leave out of the scope.
        layers: Transformer layers of the scope, e.g. `"8-11"` or `"0,2,4"`.
        density: Share of the entries in scope that the direction keeps, in (0, 1].
        parameters: Stored tensors: parameter name to `{"shape": [...], "entries": int | None}`, where `entries` is
            the number of stored entries, or `None` for all of them (dense).
        has_bias: Whether the decoder's bias vector is stored beside its weight vector.
        dtype: Type of the stored values: `"float32"`, `"float16"` or `"bfloat16"`.
        decoder_sign: Sign of the decoder weight that makes the first class likelier, +1 or -1; by default computed
            from `source` and `target` once and stored.
        strength_unit: Size σ of one unit of strength, so that strength 1 is the recommended dose.
        strength: Strength at which the direction is applied when it is loaded.
        feature_factor: Feature value `|ff|` that the decoder is asked for; 1 is the class itself, 0 the pure bias.
        safe_band: Lowest and highest strength at which the base model keeps its quality, as measured.
        break_point: Lowest and highest strength at which the base model was seen to break.
        schema_version: Major version of the artifact's format.
        gradiend_version: Version of gradiend_hub that wrote the artifact.
        transformers_version: Version of transformers that named the parameters.

    Raises:
        ConfigError: If a value has the wrong type or is out of range.
        SchemaVersionError: If `schema_version` is newer than this library.
    """

    feature_classes: list[str] | None = None
    fillers: dict[str, list[str]] | None = None
    objective: str | None = None
    source: str = "alternative"
    target: str = "diff"
    scope: list[str] | str | None = None
    exclude: list[str] | None = None
    layers: str | None = None
    density: float = 1.0
    parameters: dict[str, dict[str, Any]] | None = None
    has_bias: bool = False
    dtype: str = "float32"
    decoder_sign: int | None = None
    strength_unit: float = 1.0
    strength: float = 1.0
    feature_factor: float = 1.0
    safe_band: list[float] | None = None
    break_point: list[float] | None = None
    schema_version: int = SCHEMA_VERSION
    gradiend_version: str | None = None
    transformers_version: str | None = None

    def __post_init__(self) -> None:
        _check(_is_count(self.schema_version) and self.schema_version > 0, "schema_version", "an integer ≥ 1",
               self.schema_version)  # fmt: skip
        if self.schema_version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"This direction has format {self.schema_version}, but this gradiend_hub reads up to {SCHEMA_VERSION}. "
                "Update it: pip install -U gradiend-hub"
            )
        self._check_peft_fields()
        super().__post_init__()
        self.peft_type = GRADIEND
        self._check_feature()
        self._check_scope()
        self._check_strengths()
        self._check_parameters()
        if self.decoder_sign is None:
            self.decoder_sign = decoder_sign(self.source, self.target)
        self._source: Callable[[str], str | None] | None = (
            None  # finds a companion file of the artifact it was read from
        )
        self._stored_names: dict[str, str] = {}  # parameter name in the model that it is attached to → in the artifact

    def _check_peft_fields(self) -> None:
        for name in ("base_model_name_or_path", "revision", "peft_version", "gradiend_version", "transformers_version"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, str), name, "a string or None", value)
        tasks = [task.value for task in TaskType]
        _check(self.task_type is None or self.task_type in tasks, "task_type", f"one of {tasks} or None",
               self.task_type)  # fmt: skip
        _check(self.peft_type in (None, GRADIEND), "peft_type", "'GRADIEND'", self.peft_type)
        _check(isinstance(self.inference_mode, bool), "inference_mode", "true or false", self.inference_mode)
        mapping = self.auto_mapping
        strings = isinstance(mapping, dict) and all(isinstance(item, str) for pair in mapping.items() for item in pair)
        _check(mapping is None or strings, "auto_mapping", "a dictionary of strings or None", mapping)

    def _check_feature(self) -> None:
        classes = self.feature_classes
        _check(classes is None or (_is_strings(classes) and len(set(classes)) == len(classes) == 2), "feature_classes",
               "a list of two different class names", classes)  # fmt: skip
        fillers = self.fillers
        _check(fillers is None or isinstance(fillers, dict), "fillers", "a dictionary of class names to words", fillers)
        for name, words in (fillers or {}).items():
            _check(isinstance(name, str) and (classes is None or name in classes), "fillers",
                   f"the names of feature_classes {classes} as keys", name)  # fmt: skip
            _check(_is_strings(words) and bool(words), f"fillers[{name!r}]", "a non-empty list of words", words)
        _check(self.objective is None or (isinstance(self.objective, str) and bool(self.objective)), "objective",
               "a name or None", self.objective)  # fmt: skip
        _check(self.source in GRADIENT_NAMES, "source", f"one of {GRADIENT_NAMES}", self.source)
        _check(self.target in GRADIENT_NAMES, "target", f"one of {GRADIENT_NAMES}", self.target)
        _check(self.decoder_sign is None or (self.decoder_sign in (1, -1) and is_number(self.decoder_sign)),
               "decoder_sign", "1 or -1", self.decoder_sign)  # fmt: skip

    def _check_scope(self) -> None:
        scope = self.scope
        _check(scope is None or isinstance(scope, str) or _is_strings(scope), "scope", "patterns of parameter names",
               scope)  # fmt: skip
        _check(self.exclude is None or _is_strings(self.exclude), "exclude", "a list of patterns of parameter names",
               self.exclude)  # fmt: skip
        _check(self.layers is None or isinstance(self.layers, str), "layers", "a string like '8-11'", self.layers)
        _check(is_number(self.density) and 0 < self.density <= 1, "density", "a number in (0, 1]", self.density)

    def _check_strengths(self) -> None:
        _check(is_number(self.strength_unit) and self.strength_unit > 0, "strength_unit", "a number > 0",
               self.strength_unit)  # fmt: skip
        _check(is_number(self.strength), "strength", "a finite number", self.strength)
        _check(is_number(self.feature_factor), "feature_factor", "a finite number", self.feature_factor)
        for name in ("safe_band", "break_point"):
            band = getattr(self, name)
            _check(
                band is None
                or (isinstance(band, list) and len(band) == 2 and all(map(is_number, band)) and band[0] <= band[1]),
                name, "[lowest, highest] or None", band,
            )  # fmt: skip

    def _check_parameters(self) -> None:
        _check(isinstance(self.has_bias, bool), "has_bias", "true or false", self.has_bias)
        _check(self.dtype in VALUE_DTYPES, "dtype", f"one of {VALUE_DTYPES}", self.dtype)
        _check(self.parameters is None or (isinstance(self.parameters, dict) and bool(self.parameters)), "parameters",
               "a non-empty dictionary of parameter names, or None", self.parameters)  # fmt: skip
        for name, spec in (self.parameters or {}).items():
            _check(isinstance(name, str) and bool(name) and all(name.split(".")), "parameters", "parameter names", name)
            where = f"parameters[{name!r}]"
            keys = {"shape", "entries"}
            _check(isinstance(spec, dict) and set(spec) == keys, where, "the keys 'shape' and 'entries'", spec)
            shape, entries = spec["shape"], spec["entries"]
            sizes = isinstance(shape, list) and all(_is_count(size) and size > 0 for size in shape)
            _check(sizes and len(shape) <= MAX_DIMENSIONS, f"{where}.shape", "a list of positive sizes", shape)
            numel = math.prod(shape)
            _check(numel <= MAX_ELEMENTS, f"{where}.shape", f"at most {MAX_ELEMENTS} elements", shape)
            _check(entries is None or (_is_count(entries) and 0 < entries <= numel), f"{where}.entries",
                   f"None or 1…{numel}", entries)  # fmt: skip

    def coefficients(self, strength: float, feature_factor: float | None = None) -> tuple[float, float]:
        """Factors `(c_w, c_b)` of the decoder's weight and bias: the edit is `Δ = c_w·w_d + c_b·b_d`.

        With the target `"diff"` this is `σ·|s|·dec(ff)`, the sign of `ff` chosen so that a positive strength makes the
        first class likelier: adding g_f − g_a lowers one token and raises the other. The target `"factual"` or
        `"alternative"` is the gradient of one token, and adding it only lowers that token; the edit is then
        `−σ·|s|·dec(ff)`, with the `ff` that stands for the wanted class: a step down its loss.
        """
        factor = self.feature_factor if feature_factor is None else feature_factor
        sign = -1 if self.decoder_sign == -1 else 1
        bias_sign = 1 if self.target == "diff" else -1
        return self.strength_unit * strength * factor * sign, self.strength_unit * abs(strength) * bias_sign

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read the raw fields of `adapter_config.json`.

        Raises:
            ArtifactError: If the file is no JSON object.
            SchemaVersionError: If a newer version of the library wrote it.
        """
        try:
            fields = json.loads(Path(path_json_file).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{path_json_file} is not valid JSON: {error}. Download the direction again."
            ) from error
        if not isinstance(fields, dict):
            raise ArtifactError(f"{path_json_file}: expected a JSON object, found {type(fields).__name__}.")
        version = fields.get("schema_version", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{path_json_file} has format {version}, but this gradiend_hub reads up to {SCHEMA_VERSION}. "
                "Update it: pip install -U gradiend-hub"
            )
        return fields

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> GradiendConfig:
        """Read a configuration from a folder or a Hub repository, as `PeftConfig.from_pretrained`.

        Raises:
            ArtifactError: If a field is unusable, or the file is of another PEFT method.
        """
        path = str(pretrained_model_name_or_path)
        try:
            config = super().from_pretrained(path, subfolder=subfolder, **kwargs)
        except ConfigError as error:
            raise ArtifactError(f"{path} holds an unusable adapter_config.json. {error}") from error
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{path} holds no GRADIEND direction: {error!r} in adapter_config.json.") from error
        if not isinstance(config, GradiendConfig):
            raise ArtifactError(f"{path} holds a {config.peft_type} adapter, not a GRADIEND direction.")
        hub_arguments = cls._split_kwargs(kwargs)[0]
        config._source = partial(_companion, path, subfolder, **hub_arguments)
        return config

    def stored(self) -> GradiendConfig:
        """The same under the parameter names of the artifact that it was read from; a model's may differ by a prefix."""
        names = self._stored_names
        if self.parameters is None or all(names.get(name, name) == name for name in self.parameters):
            return self
        result = replace(self, parameters={names.get(name, name): spec for name, spec in self.parameters.items()})
        result._source = self._source
        return result

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and take along the encoder, report and probes of the artifact it came from.

        transformers' own `model.load_adapter` does not say where a configuration came from: what `model.save_pretrained`
        writes after it can be applied, but has no encoder, and this is logged. PEFT's and our loaders keep it all.
        """
        super(GradiendConfig, self.stored()).save_pretrained(save_directory, **kwargs)
        if self._source is None:
            if self.feature_classes is not None and not Path(save_directory, ENCODER_FILE).exists():
                logger.warning(
                    "%s is saved without an encoder, so it can be applied, but not encode. To keep the encoder of a "
                    "stored direction, load it with GradiendModel.from_pretrained or PeftModel.from_pretrained.",
                    save_directory,
                )
            return
        for name in COMPANION_FILES:
            source, target = self._source(name), Path(save_directory, name)
            if source and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)


def _companion(folder_or_repo: str, subfolder: str | None, name: str, **hub_arguments: Any) -> str | None:
    """Local path of a file of an artifact, downloaded if it is on the Hub; `None` if the artifact has no such file."""
    folder = Path(folder_or_repo, subfolder or "")
    if folder.is_dir():
        return str(folder / name) if (folder / name).is_file() else None
    try:
        return str(hf_hub_download(folder_or_repo, name, subfolder=subfolder, **hub_arguments))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
