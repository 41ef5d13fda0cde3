"""The self-test that travels with an artifact: a few rows with the values that its author measured, and digests.

`gradiend_probes.jsonl` holds digests of the artifact's content, rows with their encodings, and class probabilities of
these rows at three strengths. `gradiend_hub.evaluation.selftest` writes it and measures it again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open

from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError

from .config import GradiendConfig
from .fields import require_classes
from .files import (
    ASSETS_FOLDER,
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    GGUF_FILES,
    HTML_FILE,
    LORA_FILES,
    MOST_PROBES_BYTES,
    MOST_REPORT_BYTES,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    figures,
    file_sha256,
    own_file,
)
from .validation import NAME, parse_json, read_as, read_json, read_text

STRENGTHS = (-1.0, 0.0, 1.0)
MOST_ROWS = 256
MOST_DAMAGED_BYTES = 2**28
Name = Annotated[str, NAME]

TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference of an encoding or a probability, by the coarsest type that took part. In fp32 other kernels and
batch sizes move them by about 1e-5."""

_FREE_FIELDS = (
    "auto_mapping",
    "base_model_name_or_path",
    "gradiend_version",
    "inference_mode",
    "peft_type",
    "peft_version",
    "task_type",
    "transformers_version",
)
"""Fields of `adapter_config.json` that a save through another version or to another place may change."""


_LATER_FIELDS = ("objective_options",)
"""Fields that artifacts of version 0.1 do not have: they count in a digest where they say something."""


@dataclass(frozen=True)
class Probes:
    """`gradiend_probes.jsonl`: a line of identity, then a line per row.

    Attributes:
        sha256: digest of the content of each file of the artifact; see `content_digests`.
        dtype: type of the base model's weights when the values were measured.
        probability: strength (as text) → class of the rows → class of the words → mean probability.
        rows: the rows as records of their objective, and `encodings` their feature values; empty if the direction has
            no encoder.
        reads: "input": encodings are positive where the factual output is of the first class; "source" (version 0.1): where
            the output that gives the source gradient is.
        samples_sha256: digest of the rows as the base model reads them, tokens and slots.
        quantization: method and bits of the base model's quantised layers, if it had any.
    """

    sha256: dict[Name, Name]
    dtype: Name
    probability: dict[Name, dict[Name, dict[Name, float]]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    encodings: list[float] = field(default_factory=list)
    reads: Name = "source"
    samples_sha256: Name | None = None
    quantization: Name | None = None
    schema_version: int = SCHEMA_VERSION

    def save(self, folder: Path) -> None:
        """Write `gradiend_probes.jsonl`."""
        head = {name: value for name, value in asdict(self).items() if name not in ("rows", "encodings")}
        lines = [head, *map(dict, self.rows)]
        for line, h in zip(lines[1:], self.encodings, strict=bool(self.encodings)):
            line["h"] = h
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        (folder / PROBES_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Probes:
        """Read and check `gradiend_probes.jsonl`.

        Raises:
            ArtifactNotFoundError: the direction was published without one.
            ArtifactError: it is damaged, or not one of this library.
        """
        path = own_file(folder, PROBES_FILE)
        if path is None:
            raise ArtifactNotFoundError(
                f"{folder} has no {PROBES_FILE}, so the direction has no self-test. Measure it yourself with "
                "`gradiend-hub evaluate`."
            )
        try:
            head, *lines = map(parse_json, read_text(path, MOST_PROBES_BYTES).removesuffix("\n").split("\n"))
            encodings = [line.pop("h") for line in lines if "h" in line]
            probes = read_as(cls, {**head, "rows": lines, "encodings": encodings}, PROBES_FILE)
            if len(lines) > MOST_ROWS or len(encodings) not in (0, len(lines)):
                raise ValueError(f"it has {len(lines)} rows, {len(encodings)} of them with an encoding")
            if probes.schema_version > SCHEMA_VERSION or probes.dtype not in TOLERANCES:
                raise ValueError(f"schema {probes.schema_version} and dtype {probes.dtype!r} are unknown here")
            probes._require_claims(require_classes(GradiendConfig.from_pretrained(str(folder)).feature_classes))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{path} is not a self-test of this library: {error}.") from error
        return probes

    def _require_claims(self, classes: tuple[str, str]) -> None:
        """Raise `ValueError` unless there is something to compare for every class and strength."""
        wanted = {strength: {name: {*classes} for name in classes} for strength in STRENGTHS}
        found = {float(s): {of: {*words} for of, words in by.items()} for s, by in self.probability.items()}
        if found != wanted or {row.get("factual_class") for row in self.rows} != {*classes}:
            raise ValueError(f"expected rows of {' and '.join(classes)}, and probabilities at strengths {STRENGTHS}")
        if ENCODER_FILE in self.sha256 and not self.encodings:
            raise ValueError(f"expected an encoding of every row, because there is a {ENCODER_FILE}")


def content_digests(folder: Path) -> dict[str, str]:
    """sha256 of what each file says: names, types, shapes and bytes of tensors, and sorted JSON.

    The same content written by another version of safetensors or PEFT, or with other white space, has the same digest. A
    file that is too damaged to say anything has that of its bytes.
    """
    config = GradiendConfig.from_pretrained(str(folder)).to_dict()
    said = {n: v for n, v in config.items() if n not in _FREE_FIELDS and not (v is None and n in _LATER_FIELDS)}
    digests = {CONFIG_FILE: _digest_json(said)}
    for name in (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REFERENCES_FILE, REPORT_FILE):
        if path := own_file(folder, name):
            digests[name] = _digest_file(path)
    return digests


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _digest_file(path: Path) -> str:
    try:
        return _digest_json(read_json(path, MOST_REPORT_BYTES)) if path.name == REPORT_FILE else _digest_tensors(path)
    except (SafetensorError, ValueError):
        if (size := path.stat().st_size) > MOST_DAMAGED_BYTES:  # of a file without end
            return f"not read, {size:,} bytes"
        return file_sha256(path)


def _digest_tensors(path: Path) -> str:
    digest = hashlib.sha256()
    with safe_open(str(path), framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def renew_digests(folder: Path) -> None:
    """Write the digests of what was saved, after an artifact was loaded and saved again on purpose."""
    probes, digests = Probes.load(folder), content_digests(folder)
    encodings = probes.encodings if ENCODER_FILE in digests else []
    replace(probes, sha256=digests, encodings=encodings).save(folder)


def take_along(source: Path, folder: Path) -> None:
    """Copy what lies beside a direction: report, card with figures, page, references and self-test; what is there stays.

    The self-test gets the digests of the files in the new folder, whose values may be stored in another type.
    """
    has_figures = (folder / ASSETS_FOLDER).exists()
    beside = (
        REPORT_FILE,
        SUMMARY_FILE,
        CARD_FILE,
        HTML_FILE,
        REFERENCES_FILE,
        *LORA_FILES,
        *GGUF_FILES,
        PROBES_FILE,
    )  # digests last
    for name in (*figures(source), *beside):
        found, target = own_file(source, name), folder / name
        if found is None or target.exists() or (has_figures and name.startswith(ASSETS_FOLDER)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)
        if name == PROBES_FILE:
            try:
                renew_digests(folder)
            except ValueError as error:
                target.unlink()
                warnings.warn(f"The direction is saved without its self-test: {error}", stacklevel=4)
