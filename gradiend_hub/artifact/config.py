"""`GradiendConfig`: everything that a direction says about itself, stored as `adapter_config.json`.

It is a `PeftConfig`, so PEFT and transformers read it as they read LoRA's. Every value is checked when an object is
made, whether it comes from a user or from a stranger's file.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig
from peft.utils.peft_types import PeftType, TaskType

from gradiend_hub.errors import ArtifactError, ConfigError

from .fields import DirectionFields, Name, Revision, read_fields
from .files import (
    BASE_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
    is_damaged,
    own_file,
)
from .names import hub_id
from .validation import NAME, Limit, at_most, is_number

logger = logging.getLogger(__name__)

COMPANION_FILES = (ENCODER_FILE, BASE_FILE, REPORT_FILE, PROBES_FILE, REFERENCES_FILE)
"""Files beside the config that PEFT does not know; a save through plain PEFT takes them along."""


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


_KINDS = {
    "peft_type": Annotated[str, Limit("'GRADIEND'", GRADIEND.__eq__)] | None,
    "task_type": TaskType | None,
    "inference_mode": bool,
    "auto_mapping": Annotated[dict[Name, Annotated[str, NAME]], at_most(100, "entries")] | None,
    "revision": Revision | None,
    **dict.fromkeys(("base_model_name_or_path", "peft_version"), Annotated[str, NAME] | None),
}
"""Types of the fields of PEFT."""


@dataclass(frozen=True)
class Origin:
    """The artifact that a configuration was read from: PEFT hands its tuner nothing else that leads to the other files.

    Attributes:
        folder_or_repo: Folder, or repository on the Hub.
        subfolder: Folder within it.
        hub_arguments: Of `hf_hub_download`, e.g. the revision.
        allow_unverified_base: Whether the user accepts a base model that nothing in the artifact identifies.
        named_strength: Whether the user, and not the author, has chosen the strength.
    """

    folder_or_repo: str
    subfolder: str | None
    hub_arguments: dict[str, Any]
    allow_unverified_base: bool = False
    named_strength: bool = False

    def file(self, name: str) -> Path | None:
        """Local path of a file of the artifact, downloaded if it is on the Hub; `None` if there is no such file."""
        folder = Path(self.folder_or_repo, self.subfolder or "")
        if folder.is_dir():
            return own_file(folder, name)
        try:
            for anew in ({}, {"force_download": True}):
                options = {**self.hub_arguments, **anew}
                path = Path(hf_hub_download(self.folder_or_repo, name, subfolder=self.subfolder, **options))
                if not is_damaged(path):
                    return path
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
        raise ArtifactError(
            f"{name} of {self.folder_or_repo} has other bytes than the Hub lists, also after it was downloaded again."
        )


@dataclass
class GradiendConfig(DirectionFields, PeftConfig):  # type: ignore[misc]
    """Configuration of a feature direction, as a PEFT method.

    PEFT's own field `revision` is the commit of the *base model* that the direction was learned on. A configuration that
    was read from an artifact knows it as its `origin`, which is no field and not stored.

    Args:
        feature_classes: The two classes of the feature, the one that positive strength makes likelier first. `None`
            only for a fresh PEFT adapter that belongs to no feature.
        fillers: Words of each class that may fill the slot, e.g. `{"3SG": ["he", "she"], "3PL": ["they"]}`.
        objective: How an example becomes a slot with two losses, e.g. `"masked_lm"`; `None` takes the one that fits
            the base model's head.
        objective_options: Options of the objective, e.g. `{"per_token": False}` of `"preference"`; the trainer adds those
            that it finds in the rows.
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
            the number of stored entries, or `None` for all of them (dense). With `"rank": r`, a matrix is stored by
            its factors, and with `"stacked": True` each of the matrices that the first dimension counts.
        has_bias: Whether the decoder's bias vector is stored beside its weight vector.
        dtype: Type of the stored values: `"float32"`, `"float16"` or `"bfloat16"`.
        decoder_sign: Sign of the decoder weight that makes the first class likelier, +1 or -1; by default computed
            from `source` and `target` once and stored.
        strength_unit: Size σ of one unit of strength, so that strength 1 is the recommended dose.
        strength: Strength at which the direction is applied when it is loaded.
        feature_factor: Feature value `|ff|` that the decoder is asked for; 1 is the class itself, 0 the pure bias.
        safe_band: Lowest and highest strength at which the base model keeps its quality, as measured.
        break_point: Nearest negative and positive strength at which the base model was seen to break; `None` for a side on
            which it was not.
        schema_version: Major version of the artifact's format.
        gradiend_version: Version of gradiend_hub that wrote the artifact.
        transformers_version: Version of transformers that named the parameters.

    Raises:
        ConfigError: If a value has the wrong type or is out of range.
        SchemaVersionError: If `schema_version` is newer than this library.
    """

    def __post_init__(self) -> None:
        self.check(**_KINDS)
        super().__post_init__()
        self.peft_type = GRADIEND
        self.origin: Origin | None = None

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
        return read_fields(Path(path_json_file))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> GradiendConfig:
        """Read a configuration from a folder or a Hub repository, as `PeftConfig.from_pretrained`.

        A configuration from the Hub does not choose what is opened on the reader's disk: where it names a folder instead
        of a repository as its base model, it names none.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            subfolder: Folder within it.
            **kwargs: As in PEFT, and `allow_unverified_base`: whether PEFT may put the direction on a base model that
                nothing in the artifact identifies; and `strength`: the one to apply instead of the recommended one.

        Raises:
            ArtifactError: If a field is unusable, or the file is of another PEFT method, or a link to another place.
        """
        path = str(pretrained_model_name_or_path)
        allow_unverified_base, strength = bool(kwargs.pop("allow_unverified_base", False)), kwargs.pop("strength", None)
        folder = Path(path, subfolder or "")
        is_local = (folder / CONFIG_FILE).exists()
        for name in (CONFIG_FILE, WEIGHTS_FILE, *COMPANION_FILES) if is_local else ():
            own_file(folder, name)  # PEFT would follow a link
        try:
            config = super().from_pretrained(path, subfolder=subfolder, **kwargs)
        except ConfigError as error:
            raise ArtifactError(f"{path} holds an unusable adapter_config.json. {error}") from error
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{path} holds no GRADIEND direction: {error!r} in adapter_config.json.") from error
        if not isinstance(config, GradiendConfig):
            raise ArtifactError(f"{path} holds a {config.peft_type} adapter, not a GRADIEND direction.")
        hub_arguments = cls._split_kwargs(kwargs)[0]
        if not is_local:  # PEFT would download the vectors, however large they are
            resolve_name("gradiend_hub.hub.sizes:require_listed_sizes")(config, path, subfolder, hub_arguments)
        if strength is not None:
            check_strength(strength)
            config.strength = float(strength)
        config.origin = Origin(path, subfolder, hub_arguments, allow_unverified_base, strength is not None)
        return config if is_local else config.without_local_base(path)

    def require_supported_strength(self) -> None:
        """Refuse a strength that its author recommends, and nothing that was measured supports.

        Raises:
            ArtifactError: It is not supported.
        """
        if self.origin is not None and not self.origin.named_strength:
            resolve_name("gradiend_hub.evaluation.plausibility:require_supported_strength")(self)

    def without_local_base(self, where: str) -> GradiendConfig:
        """A configuration from the Hub, or one without a base model, with a warning, if it names a place on a disk.

        Args:
            where: How the warning calls the direction.
        """
        name = self.base_model_name_or_path
        if name is None or hub_id(name) is not None:
            return self
        logger.warning(
            "%s names the base model %r, which is a path (or a folder here) and no repository on the Hub. It is not opened: "
            "pass the base model yourself.",
            where,
            name,
        )
        return self.replaced(base_model_name_or_path=None, revision=None)

    def replaced(self, **fields: Any) -> GradiendConfig:
        """A copy with other values in some fields, checked; it comes from where this one comes from."""
        result = copy.copy(self)
        # what stays as it is was checked, and checking a large model's parameters takes longer than editing them
        changed = {name: value for name, value in fields.items() if getattr(self, name) != value}
        for name, value in changed.items():
            setattr(result, name, value)
        result.check(changed, **_KINDS)
        return result

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and take along the encoder, report and probes of the artifact it came from.

        transformers' own `model.load_adapter` does not say where a configuration came from: what `model.save_pretrained`
        writes after it can be applied, but has no encoder, and this is logged. PEFT's and our loaders keep it all.
        """
        super().save_pretrained(save_directory, **kwargs)
        if self.origin is None:
            if self.feature_classes is not None and not Path(save_directory, ENCODER_FILE).exists():
                logger.warning(
                    "%s is saved without an encoder, so it can be applied, but not encode. To keep the encoder of a "
                    "stored direction, load it with GradiendModel.from_pretrained or PeftModel.from_pretrained.",
                    save_directory,
                )
            return
        for name in COMPANION_FILES:
            source, target = self.origin.file(name), Path(save_directory, name)
            if source is not None and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
