"""Fields of a direction's configuration, read without PEFT, whose import takes seconds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from gradiend_hub.errors import ArtifactError, ConfigError, SchemaVersionError
from gradiend_hub.printable import printable

from .files import CONFIG_FILE, SCHEMA_VERSION, require_file
from .names import is_revision
from .validation import (
    FILLED,
    NAME,
    POSITIVE,
    SHARE,
    Limit,
    at_least,
    at_most,
    check_fields,
    is_number,
    one_of,
    read_as,
    read_json,
)

GRADIENT_NAMES = ("factual", "alternative", "diff")
VALUE_DTYPES = ("float32", "float16", "bfloat16")
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48
MOST_BYTES = 2**24
"""Largest `adapter_config.json` that is read: it names every parameter in scope."""
MOST_PARAMETERS = 2**18
MOST_WORDS = 2**15
"""Words of a class; lists of given names have thousands."""


def decoder_sign(source: str, target: str) -> int:
    """Sign `o` that makes `o * w_d` raise the probability of the first class.

    The label of a training row is the sign of the class whose token gives the source gradient, and adding the target
    `g_f - g_a` to the weights lowers the probability of the factual token. Both choices may flip the orientation.
    The sign of the bias `b_d` follows from the target alone, see `GradiendConfig.coefficients`.
    """
    return (1 if source == "alternative" else -1) * (-1 if target == "alternative" else 1)


def require_classes(feature_classes: Sequence[str] | None) -> tuple[str, str]:
    """The pair (c₊, c₋) of a configuration that is going to be trained or evaluated."""
    if feature_classes is None or len(feature_classes) != 2:
        raise ConfigError(
            f"GradiendConfig.feature_classes must name two classes, the one of positive strength first; "
            f"found {feature_classes!r}."
        )
    return feature_classes[0], feature_classes[1]


def matrix_shape(shape: Sequence[int], stacked: bool = False) -> tuple[int, ...]:
    """A parameter as a matrix `(o, i)`, or `(E, o, i)` if its first dimension counts matrices; the last ones are joined."""
    lead = 2 if stacked else 1
    return (*shape[:lead], math.prod(shape[lead:]))


def stored_size(spec: Mapping[str, Any]) -> int:
    """Numbers of each stored vector of a parameter, by its `StoredTensor`."""
    if (rank := spec.get("rank")) is not None:
        *stack, rows, columns = matrix_shape(spec["shape"], bool(spec.get("stacked")))
        return math.prod(stack) * int(rank) * (rows + columns)
    return int(math.prod(spec["shape"]) if spec["entries"] is None else spec["entries"])


Shape = Annotated[
    list[Annotated[int, at_least(1)]],
    Limit(f"a list of at most {MAX_DIMENSIONS} sizes", lambda shape: len(shape) <= MAX_DIMENSIONS),
    Limit(f"a shape of at most {MAX_ELEMENTS} elements", lambda shape: math.prod(shape) <= MAX_ELEMENTS),
]


class StoredValues(TypedDict):
    """Shape of a parameter in scope, and how many of its entries are stored; `None` for all of them (dense)."""

    shape: Shape
    entries: Annotated[int, at_least(1)] | None


class StoredTensor(StoredValues, total=False):
    """The same, or the rank of a matrix that is stored by its factors: one for decoder, its bias and encoder.

    With `stacked`, the first dimension counts matrices (the experts of a layer), and each has factors of its own.
    """

    rank: Annotated[int, at_least(1)] | None
    stacked: bool


Name = Annotated[str, FILLED, NAME]
ParameterName = Annotated[str, Limit("a parameter's name", lambda name: bool(name) and all(name.split("."))), NAME]
Revision = Annotated[
    str,
    Limit("a branch, tag or commit", lambda name: not name or is_revision(name)),
    NAME,
]
Band = Annotated[list[float], Limit("[lowest, highest]", lambda band: len(band) == 2 and band[0] <= band[1])]
Ends = Annotated[
    list[float | None],
    Limit("[lowest, highest], one of which may be null", lambda ends: len(ends) == 2 and ends != [None, None]),
]
Classes = Annotated[
    list[Name], Limit("a list of two different class names", lambda names: len(names) == len(set(names)) == 2)
]
Words = Annotated[list[Name], Limit("a non-empty list of words", bool), at_most(MOST_WORDS, "words")]
Patterns = Annotated[list[Name], at_most(1000, "patterns")]
Gradient = Annotated[str, one_of(*GRADIENT_NAMES)]
Stored = Annotated[
    dict[ParameterName, StoredTensor],
    Limit("a non-empty dictionary from parameter names to their stored form", bool),
    at_most(MOST_PARAMETERS, "parameters"),
]


@dataclass
class DirectionFields:
    """The fields of `GradiendConfig`, which describes them, beside those of every PEFT method."""

    feature_classes: Classes | None = None
    fillers: dict[Name, Words] | None = None
    objective: Name | None = None
    objective_options: dict[Name, bool | int | float | str] | None = None
    source: Gradient = "alternative"
    target: Gradient = "diff"
    scope: Patterns | Annotated[str, NAME] | None = None
    exclude: Patterns | None = None
    layers: Annotated[str, NAME] | None = None
    density: Annotated[float, SHARE] = 1.0
    parameters: dict[str, dict[str, Any]] | None = None
    has_bias: bool = False
    dtype: Annotated[str, one_of(*VALUE_DTYPES)] = "float32"
    decoder_sign: Annotated[int, one_of(1, -1)] | None = None
    strength_unit: Annotated[float, POSITIVE] = 1.0
    strength: float = 1.0
    feature_factor: float = 1.0
    safe_band: Band | None = None
    break_point: Ends | None = None
    schema_version: Annotated[int, at_least(1)] = SCHEMA_VERSION
    gradiend_version: Annotated[str, NAME] | None = None
    transformers_version: Annotated[str, NAME] | None = None

    def check(self, names: Collection[str] | None = None, **kinds: Any) -> None:
        """Check all values, and compute the decoder's sign if it is not given.

        Args:
            names: fields to check, if the others were checked before.
            kinds: types of fields that are annotated elsewhere.

        Raises:
            ConfigError: a value has the wrong type or is out of range.
            SchemaVersionError: `schema_version` is newer than this library.
        """
        if is_number(self.schema_version) and self.schema_version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"This direction has format {self.schema_version}, but this gradiend_hub reads up to {SCHEMA_VERSION}. "
                "Update it: pip install -U gradiend-hub"
            )
        # code reads `parameters` as plain dictionaries
        check_fields(self, "GradiendConfig.", names, parameters=Stored | None, **kinds)
        if self.feature_classes is not None and (strange := {*(self.fillers or {})} - {*self.feature_classes}):
            raise ConfigError(
                f"GradiendConfig.fillers: expected the names of feature_classes {self.feature_classes} as keys, found "
                f"{sorted(strange)[0]!r}."
            )
        for name, spec in ((self.parameters if names is None or "parameters" in names else None) or {}).items():
            if (spec["entries"] or 0) > (numel := math.prod(spec["shape"])):
                raise ConfigError(
                    f"GradiendConfig.parameters[{name!r}].entries: expected None or 1…{numel}, found {spec['entries']}."
                )
            _check_rank(f"GradiendConfig.parameters[{name!r}]", spec)
        if self.decoder_sign is None:
            self.decoder_sign = decoder_sign(self.source, self.target)


def _check_rank(where: str, spec: dict[str, Any]) -> None:
    """Refuse factors of what is no matrix, or that are larger than it has sides.

    Raises:
        ConfigError: naming what was expected.
    """
    rank, shape, stacked = spec.get("rank"), spec["shape"], bool(spec.get("stacked"))
    if rank is None:
        if stacked:
            raise ConfigError(f"{where}.stacked: expected a rank beside it, found none.")
        return
    if spec["entries"] is not None:
        raise ConfigError(f"{where}: expected a rank or a number of entries, found both: {rank} and {spec['entries']}.")
    if len(shape) < 2 + stacked:
        kind = "a stack of matrices" if stacked else "a matrix"
        raise ConfigError(f"{where}.rank: expected the shape of {kind} beside it, found {shape}. Store it dense.")
    if rank > (most := min(matrix_shape(shape, stacked)[-2:])):
        raise ConfigError(f"{where}.rank: expected 1…{most}, the smaller side of {shape}, found {rank}.")


@dataclass
class StoredFields(DirectionFields):
    """`adapter_config.json` as it is read without PEFT."""

    base_model_name_or_path: Annotated[str, NAME] | None = None
    revision: Revision | None = None

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def read(cls, folder: Path) -> StoredFields:
        """Read the configuration of a direction.

        Raises:
            ArtifactError: a field is unusable, or the file is of another PEFT method.
            SchemaVersionError: a newer version of the library wrote it.
        """
        fields = read_fields(require_file(folder, CONFIG_FILE))
        if (method := fields.get("peft_type")) != "GRADIEND":
            raise ArtifactError(f"{folder} holds a {printable(method, 40)} adapter, not a GRADIEND direction.")
        try:
            return read_as(cls, fields, "GradiendConfig")
        except ConfigError as error:
            raise ArtifactError(f"{folder} holds an unusable {CONFIG_FILE}. {error}") from error


def read_fields(path: Path) -> dict[str, Any]:
    """Read the raw fields of `adapter_config.json`.

    Raises:
        ArtifactError: the file is no JSON object.
        SchemaVersionError: a newer version of the library wrote it.
    """
    try:
        fields = read_json(path, MOST_BYTES)
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}. Download the direction again.") from error
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found {type(fields).__name__}.")
    version = fields.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has format {version}, but this gradiend_hub reads up to {SCHEMA_VERSION}. "
            "Update it: pip install -U gradiend-hub"
        )
    return fields
