"""Records of single measurements: what an encoder reads, what one strength changes, what a model writes there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from gradiend_hub.artifact.validation import NAME, TWO, Limit, at_most

from .damage import NEUTRAL, Damage, worst

BREAK_QUALITY = 0.9
"""Language-modelling score under which the model counts as broken."""

MOST_POINTS = 2000
"""Points of a curve, doses of a search, and encodings, that are read."""

HELD_EFFECT = 0.95
"""Share of the direction's effect that a LoRA has to hold to be published beside it."""

MOST_PICTURE = 2**17
"""Most letters of a picture in a report."""

_PICTURE = Limit(
    f"a picture as data:image/png;base64, of at most {MOST_PICTURE} letters",
    lambda uri: len(uri) <= MOST_PICTURE and uri.startswith("data:image/png;base64,"),
)
Name = Annotated[str, NAME]
Interval = Annotated[list[float], TWO]
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
        row: the row as the objective reads it, from which anybody can measure `h`; `None` for other slots, for rows that
            are too large (pictures), and in reports of earlier versions.
    """

    text: str
    output: str = field(metadata={"formerly": "filler"})
    kind: Name
    h: float
    row: dict[str, Any] | None = None


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
    encodings: Annotated[list[Encoding], at_most(MOST_POINTS, "encodings")] = field(
        default_factory=list, metadata={"formerly": "samples"}
    )
    null_correlation: Interval | None = None
    reads: Name = "source"


def flat_encoder(encoder: EncoderReport) -> dict[str, float]:
    """The scalars of an encoder report, as far as they were measured."""
    figures = {"correlation": encoder.correlation, "accuracy": encoder.accuracy, "auc": encoder.auc}
    figures |= {f"mean_{name}": mean for name, mean in encoder.class_means.items()}
    figures["neutral_abs_mean"] = encoder.neutral_abs_mean
    return {name: value for name, value in figures.items() if value is not None}


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
    by_strength: dict[str, list[Annotated[list[str | float], TWO]] | str]
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
