"""The record of everything measured; cards, plots and tables are rendered from it and from nothing else.

Every field that was not measured is `None` or empty. Fields are only ever added, with such a default, so that a report of
an older version of this library is read by a newer one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from gradiend_hub.artifact.files import MOST_REPORT_BYTES, REPORT_FILE, SCHEMA_VERSION, own_file
from gradiend_hub.artifact.validation import NAME, Limit, at_most, is_number, read_as, read_json
from gradiend_hub.errors import ArtifactError, SchemaVersionError
from gradiend_hub.printable import legible

from .continuations import GenerationReport
from .damage import NEUTRAL, Damage, worst

MOST_POINTS = 2000
"""Points of a curve, and doses of a search, that are read."""

HELD_EFFECT = 0.95
"""Share of the direction's effect that a LoRA has to hold to be published beside it."""

MOST_PICTURE = 2**17
"""Most letters of a picture in a report."""

_PICTURE = Limit(
    f"a picture as data:image/png;base64, of at most {MOST_PICTURE} letters",
    lambda uri: len(uri) <= MOST_PICTURE and uri.startswith("data:image/png;base64,"),
)
_TWO = Limit("a list of two", lambda values: len(values) == 2)
Name = Annotated[str, NAME]
Interval = Annotated[list[float], _TWO]
"""[lower, upper] end of a 95 % interval."""


class Estimate(NamedTuple):
    """A measured value with its 95 % interval; `None` for what was not measured."""

    value: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class OutputReport:
    """Figures of the encoder at one word.

    Attributes:
        feature_class: class whose word it is (the class whose token gives the source gradient).
        rows: rows in which the word gives the source gradient.
        mean: mean h.
        std: standard deviation of h (n − 1).
        accuracy: share of rows whose h has the sign of the class.
    """

    feature_class: Name
    rows: int
    mean: float
    std: float
    accuracy: float


@dataclass(frozen=True)
class Encoding:
    """One encoded slot, for plots that show the sentence behind a point.

    Attributes:
        text: the text with `[MASK]` at the slot.
        output: the word (or token) that fills it.
        kind: name of the feature class, "neutral" (neutral text) or "other" (another token of a feature row's text).
        h: its feature value.
    """

    text: str
    output: str = field(metadata={"formerly": "filler"})
    kind: Name
    h: float


@dataclass(frozen=True)
class EncoderReport:
    """Separation of the classes by feature values h.

    Attributes:
        correlation: Pearson's r of h and the labels ±1; `None` with rows of one class only. It rises with saturation alone;
            read it beside `neutral_abs_mean`.
        accuracy: share of rows whose h has the label's sign.
        auc: area under the ROC curve; 1 is a perfect order whatever the scale; `None` with rows of one class only.
        class_means: mean h by class (the class whose token gives the source gradient).
        class_stds: standard deviation of h by class (n − 1).
        neutral_abs_mean: mean |h| on neutral text, which should be near 0; `None` when not measured.
        rows: number of rows by class.
        neutral_rows: number of slots in neutral text.
        correlation_with_neutral: Pearson's r with the neutral slots as label 0.
        spearman: Spearman's rank correlation of h and the labels.
        ternary_accuracy: share of rows and neutral slots that are sorted right by the thresholds ±0.5 into the two classes
            and neutral.
        other_abs_mean: mean |h| on other tokens of the feature rows' texts, and `other_rows` their number.
        intervals: 95 % intervals of "correlation", "accuracy", "neutral_abs_mean" and "mean CLASS".
        outputs: the figures by word, most frequent first.
        held_out: the report on the rows whose word no training row had; `None` if there are none.
        encodings: some of the encoded slots, with what fills them.
        null_correlation: 95 % interval of the correlation when the classes are dealt out to the rows at random; a
            correlation within it says nothing.
        reads: "input": h is positive where the output that stands in the input is of the first class, and a row is counted
            for that class. "source", in reports of version 0.1: the same by the output that gives the source gradient.
    """

    correlation: float | None
    accuracy: float
    auc: float | None
    class_means: dict[Name, float]
    class_stds: dict[Name, float]
    neutral_abs_mean: float | None
    rows: dict[Name, int]
    neutral_rows: int
    correlation_with_neutral: float | None = None
    spearman: float | None = None
    ternary_accuracy: float | None = None
    other_abs_mean: float | None = field(default=None, metadata={"formerly": "other_token_abs_mean"})
    other_rows: int = field(default=0, metadata={"formerly": "other_token_rows"})
    intervals: dict[Name, Interval] = field(default_factory=dict)
    outputs: dict[str, OutputReport] = field(default_factory=dict, metadata={"formerly": "fillers"})
    held_out: EncoderReport | None = None
    encodings: list[Encoding] = field(default_factory=list, metadata={"formerly": "samples"})
    null_correlation: Interval | None = None
    reads: Name = "source"


@dataclass(frozen=True)
class StrengthPoint:
    """One measured strength.

    Attributes:
        strength: in units of the recommended dose.
        probability: `probability[c][d]` is the mean probability of the words of class d on rows whose factual class is c.
            A class without rows has no entry c.
        nll: mean negative log-likelihood per scored token of neutral text, in nats (for a masked model, the negative
            pseudo-log-likelihood per masked token).
        accuracy: share of those tokens that the model ranks first.
        quality: the base model's nll divided by this nll; 1 is undamaged.
        quality_low: lower end of its one-sided 95 % interval (paired over the same tokens).
        kl: mean KL(base‖edited) of the whole next-word distribution per scored token, in nats.
        intervals: 95 % intervals of "d on c" (the probability of d's words on c's rows), "nll", "quality", "kl", of the
            `readings`, and of the values of `slot` as "slot NAME".
        readings: other figures of the rows, by name, as the objective has them, e.g. the share of pairs whose completion of
            the first class is the likelier one.
        damage: damage by set; "neutral" is the one whose figures stand above, and "own" that of the rows' own texts.
        slot: KL(base‖edited) at the rows' slots in nats, of all but the classes' outputs, "collateral", and of the outputs
            of a class among each other, "within CLASS".
    """

    strength: float
    probability: dict[Name, dict[Name, float]]
    nll: float | None
    accuracy: float | None
    quality: float | None = field(metadata={"formerly": "lm_score"})
    quality_low: float | None = field(metadata={"formerly": "lm_score_low"})
    kl: float | None = None
    intervals: dict[Name, Interval] = field(default_factory=dict)
    readings: dict[Name, float] = field(default_factory=dict)
    damage: dict[Name, Damage] = field(default_factory=dict)
    slot: dict[Name, float] = field(default_factory=dict)

    def worst(self, *, bound: bool = True) -> tuple[str, float] | None:
        """Return the damage set with the lowest quality, and that quality; its lower end, unless `bound` is false."""
        if not self.damage and self.quality is not None and self.quality_low is not None:  # a report of version 0.1
            return NEUTRAL, self.quality_low if bound else self.quality
        return worst(self.damage, bound=bound)

    def reading(self, wanted: str, other: str) -> Estimate:
        """The mean probability of the words of class `wanted` on rows whose factual class is `other`."""
        value = self.probability.get(other, {}).get(wanted)
        return Estimate() if value is None else Estimate(value, self.intervals.get(f"{wanted} on {other}"))

    @property
    def effect(self) -> float | None:
        """P(c₊) on rows of c₋ at a positive strength, P(c₋) on rows of c₊ at a negative one; `None` where not measured."""
        return self.reading(*self.effect_of()).value

    @property
    def effect_interval(self) -> Interval | None:
        """95 % interval of `effect`."""
        return self.reading(*self.effect_of()).interval

    def effect_of(self) -> tuple[str, str]:
        """The class that this strength should make likelier, and the other one, on whose rows that shows."""
        classes = next((list(of) for of in self.probability.values()), [])
        if self.strength == 0 or len(classes) != 2:
            return "", ""
        return (classes[0], classes[1]) if self.strength > 0 else (classes[1], classes[0])

    @property
    def perplexity(self) -> float | None:
        """exp(nll): of use for causal models, whose nll is a likelihood of the text. Infinite where it overflows."""
        if self.nll is None:
            return None
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


Points = Annotated[list[StrengthPoint], at_most(MOST_POINTS, "points")]


@dataclass(frozen=True)
class Completion:
    """Text that a model writes at one slot, by strength.

    Attributes:
        text: the text with `[MASK]` (masked models), the beginning that is continued (causal models), the text that is
            labelled, or the name of the image.
        by_strength: strength as text ("-1.0", "0.0", …) to the likeliest fillers with their probabilities
            `[[word, p], …]` (masked, classifiers) or to the greedy continuation (causal).
        image: a small picture of the input, as a `data:` address; `None` for texts.
    """

    text: str
    by_strength: dict[str, list[Annotated[list[str | float], _TWO]] | str]
    image: Annotated[str, _PICTURE] | None = None


@dataclass(frozen=True)
class Decisions:
    """Decisions of a classifier at one strength.

    Attributes:
        strength: in units of the recommended dose.
        accuracy: share of the inputs of each class whose label is the likeliest one.
        changed: share of the inputs that get another label than from the base model.
        flipped: share of the counterfactual pairs whose two inputs get different labels; `None` where rows are no pairs.
        intervals: 95 % intervals of "accuracy CLASS", "changed" and "flipped".
    """

    strength: float
    accuracy: dict[str, float]
    changed: float
    flipped: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraReport:
    """The direction at strength ±1 as a plain LoRA, beside the direction itself, on the same rows and texts.

    Attributes:
        rank: of every module, and `modules` their number.
        energy: share of ‖Δ‖² that it holds.
        left_out: parameters that a LoRA has no place for.
        effect: share of the direction's change of P(wanted class) that it has, by strength ("-1.0", "1.0").
        quality: lowest quality on any damage set, by strength.
    """

    rank: int
    modules: int
    energy: float
    left_out: int
    effect: dict[Name, float]
    quality: dict[Name, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Tell whether it does at both signs what the direction does, `HELD_EFFECT` of it at least."""
        return len(self.effect) == 2 and min(self.effect.values()) >= HELD_EFFECT


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
            `strength.BREAK_QUALITY`; `None` on a side where that was not seen.
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
    break_point: Annotated[list[float | None], _TWO] | None = None
    completions: list[Completion] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    decisions: list[Decisions] = field(default_factory=list)
    control_norms: list[Interval] = field(default_factory=list)
    unit_limit: str | None = None
    band_limits: Annotated[list[str | None], _TWO] | None = None
    generation: GenerationReport | None = None
    lora: LoraReport | None = None

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


def flat_encoder(encoder: EncoderReport) -> dict[str, float]:
    """The scalars of an encoder report, as far as they were measured."""
    figures = {"correlation": encoder.correlation, "accuracy": encoder.accuracy, "auc": encoder.auc}
    figures |= {f"mean_{name}": mean for name, mean in encoder.class_means.items()}
    figures["neutral_abs_mean"] = encoder.neutral_abs_mean
    return {name: value for name, value in figures.items() if value is not None}


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
        verdict: why it does not count as learned, in words; empty where it does, or where that is not known.
        settings: how the strength unit was chosen: "quality_floor" and "goal"; empty in reports of version 0.1.
        references: what similarities to other directions are judged by; `None` where it was not measured.
        parents: the directions that a combination is made of; empty for one that was trained.
    """

    feature_classes: Annotated[list[Name], _TWO]
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

    @property
    def lora(self) -> LoraReport | None:
        """Effect of the direction as a plain LoRA, on the split that the strength unit was chosen on."""
        return next((split.lora for split in self.splits.values() if split.lora), None)

    def save(self, path: str | Path) -> None:
        """Write `gradiend_report.json` into a folder, or the file that a path ending in `.json` names."""
        text = json.dumps(_legible(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
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


def _legible(value: Any) -> Any:
    """A JSON value whose texts can be read back: a model may have written, or a row have held, control characters."""
    if isinstance(value, dict):
        return {_legible(name): _legible(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_legible(item) for item in value]
    return legible(value) if isinstance(value, str) else value


def _renamed_interval(fields: dict[str, Any]) -> dict[str, Any]:
    """Intervals by their present names: "quality" was called "lm_score" up to version 0.1."""
    if isinstance(fields.get("lm_score"), list):
        fields["quality"] = fields.pop("lm_score")
    return fields


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / REPORT_FILE
