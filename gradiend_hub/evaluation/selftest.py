"""The self-test of an artifact, measured again: `verify` needs the artifact and the base model, and no other data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gradiend_hub.artifact.fingerprint import BaseModelRelation
from gradiend_hub.artifact.probes import STRENGTHS, TOLERANCES, Probes, content_digests
from gradiend_hub.base_model import original_parameters
from gradiend_hub.data import Row, read_rows, require_classes
from gradiend_hub.encoding import reading_sign
from gradiend_hub.errors import ArtifactError, DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective
from gradiend_hub.printable import dose, legible_json, printable
from gradiend_hub.scope import packed_parameters

from .claims import check_summary, measured_again
from .plausibility import count_figures, implausible
from .probe import StrengthProbe
from .published import Check, compared, unmeasured
from .report import Report

ROWS_PER_CLASS = 4


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        checks: one line per file, for the base model, and for each value.
        tolerance: largest difference of a value that passes.
        figures: number of figures that the report claims, and `measured` how many of them were measured here.
        rows: rows of the self-test, which the author chose.
        unmeasured: which figures were not measured and why, in words; only where all that can be were.
        implausible: what in the report or the configuration is impossible or contradicts the rest, in words.
    """

    checks: list[Check]
    tolerance: float
    figures: int = 0
    measured: int = 0
    rows: int = 0
    implausible: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Return whether every check passed, and nothing is impossible."""
        return all(check.passed for check in self.checks) and not self.implausible

    @property
    def remarks(self) -> list[str]:
        """Say what was measured here and what was not, a line each."""
        of_report = f"{self.measured or 'none'} measured here" + (
            "; the others are the author's word, and so is the digest of the file" if self.figures else ""
        )
        return [
            f"measured here: the self-test's values, on {self.rows} rows that the author chose.",
            f"report: {self.figures:,} figures, {of_report}." if self.figures else "report: none.",
            *(f"not measured: {line}" for line in self.unmeasured),
        ]


def write_probes(folder: str | Path, model: GradiendModel, rows: Sequence[Row], objective: Objective) -> None:
    """Measure a few rows and write `gradiend_probes.jsonl` into the folder of the saved direction.

    Args:
        folder: Where `save_pretrained` has written, and the report if there is one; their digests are taken here.
        model: The base model with the direction.
        rows: Candidates; the first few of each class are taken, the shortest first.
        objective: Of the base model.
    """
    chosen: list[Row] = []
    for name in sorted({row.factual_class for row in rows}):
        of_class = [row for row in rows if row.factual_class == name and _is_legible(objective.record(row))]
        chosen += map(objective.small_row, sorted(of_class, key=lambda row: len(objective.show(row)))[:ROWS_PER_CLASS])
    encodings, probability = _measure(model, chosen, objective)
    probes = Probes(
        content_digests(Path(folder)),
        _dtype(model.get_base_model()),
        probability,
        [objective.record(row) for row in chosen],
        encodings,
        reads="input",
        quantization=_quantization(model.get_base_model()),
        samples_sha256=_samples_digest(objective, chosen),
    )
    probes.save(Path(folder))


def _is_legible(record: dict[str, Any]) -> bool:
    """Tell whether a row can be read back as it is: no text of it gives orders to a terminal."""
    stored = json.loads(json.dumps(record))  # tuples become lists in a file
    return bool(legible_json(stored) == stored)


def _samples_digest(objective: Objective, rows: Sequence[Row]) -> str:
    """Digest what the objective makes of rows, so that another tokenizer than the author's shows."""
    digest = hashlib.sha256()
    for row in rows:
        example = objective.example(row)
        for sample in (example.factual, example.alternative):
            digest.update(sample.content())
    return digest.hexdigest()


def _measure(
    model: GradiendModel, rows: Sequence[Row], objective: Objective
) -> tuple[list[float], dict[str, dict[str, dict[str, float]]]]:
    encodings: list[float] = []
    if model.direction.has_encoder:
        encodings = model.encode([objective.record(row) for row in rows], processing_class=objective.processor).tolist()
    probe = StrengthProbe(model, objective, rows)
    return encodings, {str(strength): probe.measure(strength).probability for strength in STRENGTHS}


def _dtype(base: nn.Module) -> str:
    """The coarsest type of the base model's weights in which the direction works. Kernels of quantised layers compute in 16
    bits or less: others of the same layer, on another kind of CPU or on an accelerator, give what other roundings give."""
    names = {str(p.dtype).removeprefix("torch.") for p in base.parameters()}
    if _quantization(base) is not None:
        names.add("bfloat16")
    return max(names & TOLERANCES.keys(), key=lambda name: TOLERANCES[name], default="float32")


def _quantization(base: nn.Module) -> str | None:
    """Method and bits of a base model's quantised layers; `None` if there are none."""
    if not any(map(packed_parameters, base.modules())):
        return None
    config = getattr(getattr(base, "config", None), "quantization_config", None) or {}
    fields = config if isinstance(config, dict) else config.to_dict()
    bits = 4 if fields.get("load_in_4bit") else 8 if fields.get("load_in_8bit") else fields.get("bits")
    method = fields.get("quant_method") or "quantised"
    return str(getattr(method, "value", method)) + (f", {bits} bits" if bits else "")


def verify(model: GradiendModel, folder: str | Path, *, full: bool = False) -> Verification:
    """Measure the self-test of an artifact again, and compare the digests of its files.

    Args:
        model: the base model with the direction.
        folder: of the artifact.
        full: also measure again what the report claims of the edit, of its LoRA, of the rows that it holds, and of what
            the model writes.

    Raises:
        ArtifactNotFoundError: the artifact has no self-test.
        ArtifactError: the self-test is damaged.
    """
    folder, base, config = Path(folder), model.get_base_model(), model.active_peft_config
    probes = Probes.load(folder)
    # never what the self-test asks for; that the decoder is stored in the type of the config was checked in loading it
    tolerance = max(TOLERANCES[_dtype(base)], TOLERANCES[config.dtype])
    objective = model.make_objective()
    try:
        rows = read_rows(
            probes.rows, require_classes(config.feature_classes), read=objective.read, what="the self-test"
        )
    except DataError as error:
        raise ArtifactError(f"The self-test in {folder} is unusable. {error}") from error
    checks = [*_of_files(probes, folder), *_of_base(probes, model)]
    if probes.samples_sha256 is not None:
        mine = _samples_digest(objective, rows)
        found = "the same" if mine == probes.samples_sha256 else "others"
        checks.append(Check("tokens of the rows", "as the author's", found, mine == probes.samples_sha256))
    checks += _of_values(probes, model, objective, rows, tolerance)
    report = None
    with suppress(ArtifactError):  # one that cannot be read: its digest says so
        report = Report.find(folder)
    measured = measured_again(model, objective, report, folder, tolerance) if full and report is not None else []
    return Verification(
        [*checks, *check_summary(folder, config, report, base=False), *measured],
        tolerance,
        figures=0 if report is None else count_figures(report),
        measured=sum(check.figures for check in measured),
        rows=len(rows),
        implausible=implausible(config, report),
        unmeasured=unmeasured(report) if full and report is not None else [],
    )


def _of_files(probes: Probes, folder: Path) -> list[Check]:
    """Compare the digests of the files."""
    claimed, found = probes.sha256, content_digests(folder)
    return [
        Check(name, claimed.get(name, "none")[:16], found.get(name, "none")[:16], claimed.get(name) == found.get(name))
        for name in sorted(claimed.keys() | found.keys())
    ]


def _of_base(probes: Probes, model: GradiendModel) -> list[Check]:
    """Compare the base model's values, the form of its weights, and their type."""
    checks, base = [], model.get_base_model()
    if (fingerprint := model.direction.fingerprint) is not None:
        relation = fingerprint.compare(original_parameters(base)).relation
        same = relation in (BaseModelRelation.SAME, BaseModelRelation.ROUNDED)
        checks.append(Check("base model", "same", relation.value, same))
    dtype, quantization = _dtype(base), _quantization(base)
    if probes.quantization != quantization:
        claimed, form = probes.quantization or "not quantised", quantization or "not quantised"
        checks.append(Check("form of the weights", claimed, form, probes.quantization is None))
    elif probes.dtype != dtype:
        finer = TOLERANCES[probes.dtype] <= TOLERANCES[dtype]
        checks.append(Check("weights (see --dtype)", probes.dtype, dtype, finer))
    return checks


def _of_values(
    probes: Probes, model: GradiendModel, objective: Objective, rows: Sequence[Row], tolerance: float
) -> list[Check]:
    """Measure encodings and probabilities, and compare them."""
    encodings, probability = _measure(model, rows, objective)
    encodings = encodings or [math.nan] * len(rows)
    # the self-tests of version 0.1 hold values by the output that gives the source gradient
    sign = reading_sign(model.active_peft_config.source) if probes.reads == "source" else 1
    checks = [
        compared(f"h: {printable(objective.show(row))}", sign * value, found, tolerance)
        for row, value, found in zip(rows, probes.encodings, encodings, strict=bool(probes.encodings))
    ]
    for strength, by_class in probes.probability.items():
        at = dose(float(strength))
        for of, wanted in by_class.items():
            for name, value in wanted.items():
                found = probability[str(float(strength))].get(of, {}).get(name, math.nan)
                checks.append(compared(f"P({name}) on {of} rows at {at}", value, found, tolerance))
    return checks
