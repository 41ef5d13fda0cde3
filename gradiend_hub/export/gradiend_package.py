"""Directions that the package `gradiend` (0.2) has saved, read as ours.

Its folder has `config.json` (sizes, activations, which entries of which parameters), `gradiend_context.json` (gradients
that are read and predicted, sign of each class), `model.safetensors` (encoder `[1, n]` and decoder `[n, 1]` over the chosen
entries, in the order of the parameters in `config.json`), and those entries in `mapping_indices.safetensors` and
`mapping_masks.safetensors`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fields import MOST_BYTES, MOST_PARAMETERS, Gradient, Name, ParameterName, Shape
from gradiend_hub.artifact.files import own_file, require_file
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.artifact.storage import index_dtype
from gradiend_hub.artifact.validation import at_least, at_most, one_of, read_as, read_json
from gradiend_hub.base_model import check_base_model, described, original_parameters
from gradiend_hub.errors import (
    ArtifactError,
    BaseModelError,
    BaseModelMismatchError,
    ConfigError,
    SchemaVersionError,
    first_line,
)
from gradiend_hub.objectives.registry import objective_name

logger = logging.getLogger(__name__)

CONFIG, CONTEXT, TRAINING = "config.json", "gradiend_context.json", "training.json"
WEIGHTS = ("model.safetensors", "model/model.safetensors")
PICKLED = ("pytorch_model.bin", "model/pytorch_model.bin")
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of parallel and compiled models, which belong to no parameter."""
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ENCODER, DECODER = "encoder.0.linear.", "decoder.0.linear."
T = TypeVar("T")


@dataclass
class _Entries:
    """The stored entries of a parameter: all, those at flat `indices`, or those of a `mask`."""

    name: ParameterName
    shape: Shape
    repr: Annotated[str, one_of("all", "indices", "mask")]
    key: Name | None = None


@dataclass
class _Mapping:
    param_map: Annotated[list[_Entries], at_most(MOST_PARAMETERS, "parameters")]
    indices_file: Name | None = None
    masks_file: Name | None = None


@dataclass
class _Architecture:
    input_dim: Annotated[int, at_least(1)]
    latent_dim: Annotated[int, at_least(1)]
    activation_encoder: Name = "tanh"
    activation_decoder: Name = "id"
    bias_decoder: bool = True
    torch_dtype: Annotated[str, one_of(*CODES)] = "float32"


@dataclass
class _Config:
    architecture: _Architecture
    mapping: _Mapping | None = None
    format_version: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Context:
    source: Gradient
    target: Gradient
    feature_class_encoding_direction: dict[Name, float] | None = None


class _Vectors(NamedTuple):
    """Flat vectors `[n]` of all parameters, fp32."""

    encoder: Tensor
    decoder: Tensor
    decoder_bias: Tensor | None
    encoder_bias: float


def read_gradiend_folder(
    folder: str | Path, *, feature_classes: Sequence[str] | None = None
) -> tuple[Direction, GradiendConfig]:
    """Read what the package `gradiend` has saved as a direction and its configuration; safetensors and JSON only.

    Conventions of both agree in `h = tanh(⟨w_e, s⟩ + b_e)`, in `w_d·h + b_d` and in the sign of a class, so that all values
    are taken as they are:

    * `tanh(preactivations(…))` is the package's `encoded`. `model.encode` answers for the word that stands in the text,
      and has the other sign with the source "alternative".
    * With the target "diff", strength ±s is its `rewrite_base_model(learning_rate=s)` with the feature factor that it
      derives for the first (+) or the second class (−). With other targets, its rewriting takes a step up the loss of the
      class's own token; ours goes down, and differs from it in sign.
    * Its `invert_encoding`, which its training calls where classes are read the wrong way round, negates `b_d` together
      with `w_d`: since the feature value changes sign, too, what is decoded changes from `w_d·h + b_d` to `w_d·h − b_d`. No
      file says whether it was called. The values are those that the package itself decodes with.

    The unit of strength is that of its learning rate, and nothing here has measured how much the model bears: the
    configuration's own strength is 0 until somebody does (`gradiend-hub evaluate`) or names one.

    Args:
        folder: What its `save_pretrained` has written.
        feature_classes: The class that is read as +1, and the other one, where the folder does not tell.

    Raises:
        ArtifactNotFoundError: There is no `config.json` or `gradiend_context.json`.
        SchemaVersionError: A newer version of the package has written it.
        ArtifactError: A file is missing, pickled or damaged, or the files do not fit together; or it is something that no
            direction can be: several feature values at once, or another activation.
        ConfigError: The classes are missing, or not two.
    """
    folder = Path(folder)
    config = _json(_Config, require_file(folder, CONFIG), "config")
    if config.format_version > 0:
        raise SchemaVersionError(
            f"{folder / CONFIG} has format_version {config.format_version}, and 0 is the one that is known here. Save "
            "it again with gradiend 0.2, or update gradiend_hub."
        )
    shape = config.architecture
    _require_direction(folder, shape)
    if config.mapping is None:
        raise ArtifactError(
            f"{folder / CONFIG} has no mapping, so that nothing tells which parameters the values belong to. Save the "
            "ModelWithGradiend (or its ParamMappedGradiendModel), not the bare GradiendModel."
        )
    chosen = _chosen(folder, config.mapping)
    if (found := sum(math.prod(s) if i is None else len(i) for s, i in chosen.values())) != shape.input_dim:
        raise ArtifactError(f"{folder}: config.json says {shape.input_dim} entries, and its mapping chooses {found}.")
    direction = _direction(chosen, _vectors(folder, shape))
    context = _json(_Context, require_file(folder, CONTEXT), "context")
    base = config.metadata.get("base_model")
    fields = GradiendConfig(
        feature_classes=_classes(folder, context, feature_classes),
        source=_source(folder, context.source),
        target=context.target,
        density=min(1.0, direction.entries / direction.numel),
        parameters=direction.spec(),
        has_bias=direction.has_bias,
        dtype=shape.torch_dtype if shape.torch_dtype != "float64" else "float32",
        base_model_name_or_path=hub_id(base) if isinstance(base, str) else None,
        strength=0.0,
    )
    return direction, fields


def import_gradiend(
    folder: str | Path, base_model: nn.Module, *, feature_classes: Sequence[str] | None = None
) -> tuple[Direction, GradiendConfig]:
    """Read a folder as `read_gradiend_folder`, under the base model's names and with its fingerprint: what can be saved.

    The folder tells nothing of its base model's values, so the caller answers for that this is it.

    Raises:
        BaseModelMismatchError: A parameter is missing in the base model, or has another shape.
    """
    direction, config = read_gradiend_folder(folder, feature_classes=feature_classes)
    direction = direction.renamed(check_base_model(base_model, direction))
    parameters = original_parameters(base_model)
    for name, part in direction.parameters.items():
        if name not in parameters or tuple(parameters[name].shape) != part.shape:
            found = list(parameters[name].shape) if name in parameters else "quantised"
            raise BaseModelMismatchError(
                f"{name} is {list(part.shape)} in {folder} and {found} in this {type(base_model).__name__}. Give the base "
                "model that it was trained on."
            )
    known = Fingerprint.of({name: parameters[name] for name in direction.parameters})
    config = config.replaced(base_model_name_or_path=None, objective=_objective_of(base_model))
    return replace(direction, fingerprint=known), described(config, direction, base_model)


def _objective_of(base_model: nn.Module) -> str | None:
    """The objective that the base model's head stands for; `None` if there is none for it here."""
    try:
        return objective_name(base_model)
    except BaseModelError:
        return None


# ------------------------------------------------------------------------------------------------------------- the files


def _json(kind: type[T], path: Path, what: str) -> T:
    """Read one of its JSON files.

    Raises:
        ArtifactError: it is no JSON, or a value does not fit.
    """
    try:
        return read_as(kind, read_json(path, MOST_BYTES), what)
    except (ConfigError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not of the package gradiend: {first_line(error)}") from error


def _require_direction(folder: Path, shape: _Architecture) -> None:
    if shape.latent_dim != 1:
        raise ArtifactError(
            f"{folder} has {shape.latent_dim} feature values at once (latent_dim); a direction has one."
        )
    if (shape.activation_encoder.lower(), shape.activation_decoder) != ("tanh", "id"):
        raise ArtifactError(
            f"{folder} has the activations {shape.activation_encoder} and {shape.activation_decoder}. A direction reads by "
            "tanh and is decoded as it is: expected tanh and id."
        )


def _chosen(folder: Path, mapping: _Mapping) -> dict[str, tuple[tuple[int, ...], Tensor | None]]:
    """Shape and flat indices (`None`: all) of every parameter that has any, in the order of the stored values."""
    chosen: dict[str, tuple[tuple[int, ...], Tensor | None]] = {}
    entries = {kind: [one for one in mapping.param_map if one.repr == kind] for kind in ("indices", "mask")}
    stored = {
        "indices": _selections(folder, "indices_file", mapping.indices_file, entries["indices"]),
        "mask": _selections(folder, "masks_file", mapping.masks_file, entries["mask"]),
    }
    for one in mapping.param_map:
        name, shape, indices = _plain(one.name), tuple(one.shape), None
        if name in chosen:
            raise ArtifactError(f"{folder / CONFIG} lists {name} twice; the folder is damaged or hostile.")
        if one.repr != "all":
            values = stored[one.repr][str(one.key)]
            indices = values if one.repr == "indices" else values.flatten().nonzero().squeeze(1)
            indices = indices.long()
        chosen[name] = shape, None if indices is None else indices.to(index_dtype(math.prod(shape)))
    return chosen


def _plain(name: str) -> str:
    while prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _selections(folder: Path, what: str, file: str | None, entries: Sequence[_Entries]) -> dict[str, Tensor]:
    """Indices or masks by key; indices are integers `[k]`, masks bytes of the parameter's shape."""
    if not entries:
        return {}
    if file is None or Path(file).name != file:
        raise ArtifactError(
            f"{folder / CONFIG}: expected the name of a file beside it as mapping.{what}, found {file!r}."
        )
    if not file.endswith(".safetensors"):
        raise ArtifactError(_pickled(folder / file))
    found = _tensors(_required(folder, file), {str(one.key): None for one in entries})
    for one in entries:
        values = found[str(one.key)]
        is_mask = one.repr == "mask"
        fits = values.dtype in ((torch.uint8, torch.bool) if is_mask else (torch.int32, torch.int64))
        if not fits or (tuple(values.shape) != tuple(one.shape) if is_mask else values.ndim != 1):
            raise ArtifactError(
                f"{folder / file}: expected {'a mask ' + str(one.shape) if is_mask else 'indices [k]'} of {one.name}, found "
                f"{values.dtype} {list(values.shape)}."
            )
        if not is_mask and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < math.prod(one.shape):
            raise ArtifactError(f"{folder / file}: an index of {one.name} is outside of its shape {one.shape}.")
    return found


def _vectors(folder: Path, shape: _Architecture) -> _Vectors:
    path = next((path for name in WEIGHTS if (path := own_file(folder, name))), None)
    if path is None:
        if pickled := next((folder / name for name in PICKLED if (folder / name).exists()), None):
            raise ArtifactError(_pickled(pickled))
        raise ArtifactError(f"{folder} has no {WEIGHTS[0]}. Expected what `save_pretrained` of gradiend 0.2 writes.")
    code, n = CODES[shape.torch_dtype], shape.input_dim
    expected = {f"{ENCODER}weight": (code, [1, n]), f"{ENCODER}bias": (code, [1]), f"{DECODER}weight": (code, [n, 1])}
    if shape.bias_decoder:
        expected[f"{DECODER}bias"] = (code, [n])
    found = {key: values.float().flatten() for key, values in _tensors(path, expected).items()}
    bias = float(found[f"{ENCODER}bias"])
    return _Vectors(found[f"{ENCODER}weight"], found[f"{DECODER}weight"], found.get(f"{DECODER}bias"), bias)


def _required(folder: Path, name: str) -> Path:
    path = own_file(folder, name)
    if path is None:
        raise ArtifactError(f"{folder} has no {name}, which its {CONFIG} names. Copy the whole folder.")
    return path


def _pickled(path: Path) -> str:
    return (
        f"{path} is pickled, and unpickling can run code, so it is not read: save it again with safetensors installed, "
        "`save_pretrained(folder, use_safetensors=True)` of gradiend."
    )


def _tensors(path: Path, expected: Mapping[str, tuple[str, list[int]] | None]) -> dict[str, Tensor]:
    """Read tensors from a file that holds these only; type and shape are compared before any is read.

    Raises:
        ArtifactError: it is damaged, or holds something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            found = set(file.keys())
            if found != expected.keys():
                lost, strange = sorted(expected.keys() - found), sorted(found - expected.keys())
                raise ArtifactError(
                    f"{path}: {'lacks ' + lost[0][:120] if lost else 'holds unexpected ' + strange[0][:120]}; it does not "
                    f"match {CONFIG}."
                )
            for key, wanted in expected.items():
                header = file.get_slice(key)
                if wanted is not None and (header.get_dtype(), list(header.get_shape())) != wanted:
                    raise ArtifactError(
                        f"{path}: expected {key} to be {wanted[0]} {wanted[1]}, found {header.get_dtype()} "
                        f"{header.get_shape()}."
                    )
            return {key: file.get_tensor(key) for key in expected}
    except (SafetensorError, OSError, MemoryError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file: {first_line(error)}. Copy it again."
        ) from error


# ------------------------------------------------------------------------------------------------------- what they mean


def _direction(chosen: Mapping[str, tuple[tuple[int, ...], Tensor | None]], vectors: _Vectors) -> Direction:
    parts, start = {}, 0
    for name, (shape, indices) in chosen.items():
        stop = start + (math.prod(shape) if indices is None else len(indices))
        if stop > start:
            of = slice(start, stop)
            bias = None if vectors.decoder_bias is None else vectors.decoder_bias[of].clone()
            parts[name] = ParameterDirection(
                shape, vectors.decoder[of].clone(), bias, vectors.encoder[of].clone(), indices
            )
        start = stop
    return Direction(parts, vectors.encoder_bias).check()


def _classes(folder: Path, context: _Context, given: Sequence[str] | None) -> list[str]:
    signs = context.feature_class_encoding_direction or {}
    ways = [[name for name, sign in signs.items() if sign * way > 0] for way in (1, -1)]
    told = [ways[0][0], ways[1][0]] if [len(names) for names in ways] == [1, 1] else None
    if given is not None:
        given = [given] if isinstance(given, str) else list(given)
        if told is not None and given != told:
            raise ConfigError(f"feature_classes: {folder / CONTEXT} says {told}, the class of +1 first; found {given}.")
        told = given
    if told is None:
        raise ConfigError(
            f"{folder / CONTEXT} does not tell which two classes are read as +1 and −1 (found {signs or 'none'}). "
            "Name them, the one of +1 first: feature_classes=[…] (gradiend-hub: --classes A,B)."
        )
    return told


def _source(folder: Path, said: str) -> str:
    """The gradient that the encoder reads: early versions wrote it wrong, and training.json has it right then."""
    if (path := own_file(folder, TRAINING)) is None:
        return said
    training = _json(dict[str, Any], path, "training")
    arguments = training.get("training_args")
    trained = arguments.get("source") if isinstance(arguments, dict) else None
    if not isinstance(trained, str) or trained not in ("factual", "alternative", "diff") or trained == said:
        return said
    logger.warning(
        "%s says source %r and %s %r: the latter is what it was trained with.", CONTEXT, said, TRAINING, trained
    )
    return trained
