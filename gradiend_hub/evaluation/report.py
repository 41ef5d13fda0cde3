"""The record of everything measured; cards, plots and tables are rendered from it and from nothing else.

Every field that was not measured is `None` or empty. Fields are only ever added, with such a default, so that a report of
an older version of this library is read by a newer one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from gradiend_hub.artifact.files import MOST_REPORT_BYTES, REPORT_FILE, SCHEMA_VERSION, own_file
from gradiend_hub.artifact.validation import TWO, at_most, is_number, read_as, read_json
from gradiend_hub.errors import ArtifactError, SchemaVersionError
from gradiend_hub.printable import legible_json, printable

from .continuations import GenerationReport
from .records import (
    MOST_POINTS,
    Completion,
    Decisions,
    EncoderReport,
    Interval,
    LoraReport,
    Name,
    Points,
    StrengthPoint,
    flat_encoder,
)
from .shown import report_html, split_html


@dataclass(frozen=True)
class SplitReport:
    """A direction measured on one set of rows.

    Attributes:
        encoder: what the encoder reads; `None` for a direction that was published without one.
        curve: what each strength changes, from the lowest to the highest strength.
        search: the doses that were tried to find the strength unit; empty where it was only used.
        scored: neutral tokens behind each language-modelling score.
        control: curves of random directions of equal sparsity, and of equal norm, or, where `control_norms` is given, of
            about equal worst damage at strength ±1: it holds their norms at −1 and at +1, relative to the direction's.
        break_point: the nearest negative and positive strength at which the language-modelling score is under
            `BREAK_QUALITY`; `None` on a side where that was not seen.
        completions: what the model writes at some strengths.
        decisions: what a classifier decides at some strengths; empty for other models.
        missing: what could not be measured and why, in words.
        unit_limit: what is not safe at a dose above the unit: a damage set, or "generation"; `None` where the unit was only
            used, or is limited by its effect.
        band_limits: the same of both ends of the safe band, the negative first; `None` where it was not seen, or, in reports
            of version 0.1, where neutral text alone was read.
        generation: what the model goes on with at 0, ±1 and the ends of the band; `None` for models that generate no text.
        lora: what the direction does as a plain LoRA; `None` where the unit was only used, or it has no such form.
    """

    encoder: EncoderReport | None
    curve: Points
    search: Points
    scored: int = field(metadata={"formerly": "scored_tokens"})
    control: Annotated[list[Points], at_most(MOST_POINTS, "curves")] = field(default_factory=list)
    break_point: Annotated[list[float | None], TWO] | None = None
    completions: list[Completion] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    decisions: list[Decisions] = field(default_factory=list)
    control_norms: list[Interval] = field(default_factory=list)
    unit_limit: str | None = None
    band_limits: Annotated[list[str | None], TWO] | None = None
    generation: GenerationReport | None = None
    lora: LoraReport | None = None

    def __repr__(self) -> str:  # that of a dataclass is pages of numbers
        correlation = None if self.encoder is None else self.encoder.correlation
        read = "" if correlation is None else f", the encoder's correlation {correlation:.3f}"
        return f"SplitReport({len(self.curve)} strengths{read})"

    def _repr_html_(self) -> str:
        return split_html(self)

    def at(self, strength: float) -> StrengthPoint:
        """The measured point at `strength`."""
        return next(p for p in self.curve if p.strength == strength)

    def control_range(self, strength: float, wanted: str, other: str) -> tuple[float, float] | None:
        """Lowest and highest `reading(wanted, other)` of the random directions; `None` if they were not read there."""
        points = (p for drawn in self.control for p in drawn if p.strength == strength)
        values = [v for p in points if (v := p.reading(wanted, other).value) is not None]
        return (min(values), max(values)) if values else None

    def flat(self) -> dict[str, float]:
        """The scalars that a trainer logs."""
        values = {} if self.encoder is None else flat_encoder(self.encoder)
        scores = [p.quality for p in self.curve if abs(p.strength) == 1 and p.quality is not None]
        if scores:
            values["quality"] = min(scores)
        for point in self.curve:
            if abs(point.strength) == 1 and point.effect is not None:
                values[f"probability_{point.effect_of()[0]}"] = point.effect
        return values


@dataclass(frozen=True)
class LayerShare:
    """Share of the edit at strength 1 that falls on one transformer layer (or module outside of the layers).

    Attributes:
        layer: its name in the base model.
        tensors: parameters with a non-zero Δ.
        entries: weights with a non-zero Δ.
        share: of ‖Δ‖².
        relative_norm: ‖Δ‖ / ‖W‖ within the layer.
    """

    layer: Name
    tensors: int
    entries: int
    share: float
    relative_norm: float


@dataclass(frozen=True)
class BenchmarkResult:
    """One bias benchmark at one strength.

    Attributes:
        name: of the benchmark, e.g. "StereoSet intrasentence".
        strength: of the edit; 0 is the base model.
        scores: its figures by their published names.
        intervals: 95 % intervals of the scores, where they have one.
        rows: number of items behind them.
        source: where the data came from: a Hub id with its revision, or the file's name with its digest.
        citation: BibTeX of the benchmark.
    """

    name: Name
    strength: float
    scores: dict[Name, float]
    intervals: dict[Name, Interval] = field(default_factory=dict)
    rows: int = 0
    source: str = ""
    citation: str = ""


@dataclass(frozen=True)
class ReferenceReport:
    """Figures by which similarities to other directions are judged, measured at training on whole vectors.

    Measures are named "cosine", "spearman", "overlap 1000", "mass_overlap 1000" (of the 1000 largest entries), and so on.

    Attributes:
        rows: training rows behind them.
        split_half: by measure, how alike the direction is learned from two halves of the rows: the ceiling of a similarity.
        control: by measure, how alike the direction is to each of some directions of coin labels on the same rows.
        gradient_cosine: cosine of the decoder and the plain class-mean gradient, at the decoder's coordinates; `None` where
            the target is no difference of gradients.
    """

    rows: int
    split_half: dict[str, float] = field(default_factory=dict)
    control: dict[str, list[float]] = field(default_factory=dict)
    gradient_cosine: float | None = None


@dataclass(frozen=True)
class Parent:
    """A direction that a combination is made of.

    Attributes:
        direction: its repository, or the name of its folder, and `revision` its commit.
        weight: its strength in the sum.
        feature_classes: its classes.
    """

    direction: str
    revision: str | None
    weight: float
    feature_classes: list[str]


@dataclass
class Report:
    """Everything that is known about a direction by measurement; `gradiend_report.json`.

    Attributes:
        feature_classes: the class of positive strength first.
        base_model: path or id of the base model, and `base_revision` its commit.
        scope: the tensors and weights that were in scope, in words.
        steps: optimizer steps.
        training: the training arguments that shape the result; `default_arguments` names those that have
            their default; `None` in reports of version 0.1.
        data: rows per split and a digest of the training rows.
        splits: measurements by split; the strength unit was chosen on "eval".
        seconds: wall time by phase.
        versions: of the libraries that took part.
        layers: where the edit at strength 1 falls.
        dtype_loss: share of the edit that is lost when the base is stored in "float16", "bfloat16" or "int8".
        history: the training log: one record per logging step.
        seeds: one record per training run, where several were compared.
        side_effects: results of bias benchmarks; empty if none was run.
        examples: three rows of the data.
        energy_kwh: energy of the training, if it was metered.
        usage: only in reports of version 0.1: code that was run on the saved artifact, "code", and its "output".
        direction: in a report by somebody else than the author, the repository (or folder's name) of what was measured, and
            `direction_revision` its commit.
        converged: whether the direction was learned: on rows that were not trained on, the encoder's correlation and both
            class means reach 0.5, with opposite signs, and beyond chance; `None` when that is not known.
        verdict: why it does not count as learned, or why that was not judged, in words; empty where it does.
        settings: how the strength unit was chosen, e.g. "quality_floor" and "goal"; empty in reports of version 0.1.
        references: what similarities to other directions are judged by; `None` where it was not measured.
        parents: the directions that a combination is made of; empty for one that was trained.
    """

    feature_classes: Annotated[list[Name], TWO]
    base_model: Name
    base_revision: Name | None = None
    scope: str = ""
    steps: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    splits: dict[Name, SplitReport] = field(default_factory=dict)
    seconds: dict[Name, float] = field(default_factory=dict)
    versions: dict[Name, Name] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    layers: list[LayerShare] = field(default_factory=list)
    dtype_loss: dict[Name, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[dict[str, Any]] = field(default_factory=list)
    side_effects: list[BenchmarkResult] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    energy_kwh: float | None = None
    usage: dict[str, str] | None = None
    direction: Name | None = None
    direction_revision: Name | None = None
    default_arguments: list[Name] | None = None
    converged: bool | None = None
    verdict: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    references: ReferenceReport | None = None
    parents: list[Parent] = field(default_factory=list)

    def __repr__(self) -> str:  # that of a dataclass is pages of numbers
        names, base = " / ".join(printable(c, 80) for c in self.feature_classes), printable(self.base_model, 80)
        return f"Report({names} of {base}, measured on: {', '.join(self.splits) or 'nothing'})"

    def _repr_html_(self) -> str:
        return report_html(self)

    @property
    def lora(self) -> LoraReport | None:
        """Effect of the direction as a plain LoRA, on the split that the strength unit was chosen on."""
        return next((split.lora for split in self.splits.values() if split.lora), None)

    def save(self, path: str | Path) -> None:
        """Write `gradiend_report.json` into a folder, or the file that a path ending in `.json` names."""
        text = json.dumps(legible_json(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        _file(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def find(cls, folder: str | Path) -> Report | None:
        """The report in a folder, if there is one; raises as `load` does if it is damaged."""
        path = own_file(Path(folder), REPORT_FILE)
        return None if path is None else cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote. Names and types of all fields are checked: it may be a stranger's.

        Raises:
            SchemaVersionError: written by a newer version of this library.
            ArtifactError: no report there, or not one that this library wrote.
        """
        path = _file(path)
        try:
            fields = read_json(path, MOST_REPORT_BYTES, _renamed_interval)
            if not isinstance(fields, dict) or not {"schema_version", "splits"} <= fields.keys():
                raise ValueError("it has no schema_version or no splits")
            version = fields["schema_version"]
            if is_number(version) and version > SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"{path} has schema {version}; this version of gradiend_hub reads {SCHEMA_VERSION}."
                )
            return read_as(cls, fields)
        except SchemaVersionError:
            raise
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is missing or not a report of this library: {error}") from error


def _renamed_interval(fields: dict[str, Any]) -> dict[str, Any]:
    """Intervals by their present names: "quality" was called "lm_score" up to version 0.1."""
    if isinstance(fields.get("lm_score"), list):
        fields["quality"] = fields.pop("lm_score")
    return fields


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / REPORT_FILE
