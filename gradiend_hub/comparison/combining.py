"""Combining directions: what the parts do to each other, known before anything is applied, and the sum as a direction."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from gradiend_hub import notebook
from gradiend_hub.artifact.config import GradiendConfig, check_strength
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import BASE_FILE, ENCODER_FILE, PROBES_FILE, REFERENCES_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.names import hub_id, shown_name
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.report import Parent

from .members import Member
from .tables import Matrix, Written
from .vectors import Array, Vectors, products

_RENDER = "gradiend_hub.cards:render_artifact"
"""Writes the card; a name, since cards are built upon comparisons."""


@dataclass(frozen=True, eq=False)
class ConflictReport(Written):
    """Effects of the parts of a combination on each other, to first order; nothing was applied to find out.

    Attributes:
        weights: strength of each part; with `orthogonal`, of its own part of the sum.
        effects: what each part adds to each feature's log-odds, [parts, features of the set]; NaN where it is not known.
        total: their sum by feature.
        cosine: signed cosine of the weighted edits.
        cancellation: 1 − ‖Σ‖²/Σ‖part‖²: 0 where the parts are orthogonal, up to 1 where they cancel, below 0 where they
            reinforce each other.
        damage: expected rise of the negative log-likelihood of neutral text, as a share, of each part alone and of the
            "sum"; `None` where no curve was measured at that strength.
        damage_method: "fisher": the parts' damages and the Fisher information that is in damage-aware directions; else
            "independent": their sum, as if the parts' edits did not meet.
        metric: of the projection, with `orthogonal`: "Fisher", "Euclidean", or both.
        cost: with `orthogonal`, share of each part's effect on its own feature that the projection cost.
        notes: what to know.
    """

    weights: dict[str, float]
    effects: Matrix
    total: dict[str, float]
    cosine: Matrix
    cancellation: float
    damage: dict[str, float | None]
    damage_method: str
    metric: str | None = None
    cost: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        damage = self.damage["sum"]
        lines = [str(self.effects), f"cancellation {self.cancellation:+.2f}"]
        lines.append(
            "expected damage: unknown" if damage is None else f"expected damage {damage:+.2%} ({self.damage_method})"
        )
        if self.metric:
            lost = ", ".join(f"{name} {share:.0%}" for name, share in self.cost.items())
            lines.append(f"projected in the {self.metric} metric; it cost of the own effect: {lost}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        rest = str(self).splitlines()[len(self.effects.rows) + 2 :]
        return self.effects._repr_html_() + self.cosine._repr_html_() + notebook.lines(rest)


@dataclass(frozen=True, eq=False)
class Combination:
    """A combined direction and what is expected of it; `direction, report = …` takes it apart.

    Attributes:
        direction: the sum.
        report: the conflicts of its parts.
        config: its configuration.
        record: the report of its artifact, with its parents; nothing is measured yet.
    """

    direction: Direction
    report: ConflictReport
    config: GradiendConfig
    record: Report

    def __iter__(self) -> Iterator[Any]:
        return iter((self.direction, self.report))

    def _repr_html_(self) -> str:
        return self.report._repr_html_() + self.direction._repr_html_()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the combination as an artifact of its own: config, decoder, report, and a card that names the parents."""
        place = Path(folder)
        if place.is_file():
            raise ConfigError(f"{place} is a file; give a folder.")
        place.mkdir(parents=True, exist_ok=True)
        for stale in (ENCODER_FILE, BASE_FILE, PROBES_FILE, REFERENCES_FILE):
            (place / stale).unlink(missing_ok=True)
        self.direction.save(place)
        self.record.save(place)
        config = copy.deepcopy(self.config)
        config.origin = None
        config.feature_classes, classes = None, config.feature_classes  # whose save would ask where the encoder is
        config.save_pretrained(str(place))
        config.feature_classes = classes
        fields = json.loads((place / "adapter_config.json").read_text(encoding="utf-8")) | {"feature_classes": classes}
        (place / "adapter_config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")
        resolve_name(_RENDER)(place, config, self.record)


def combined(members: Sequence[Member], weights: Sequence[float], edits: Sequence[Sequence[float]]) -> Direction:
    """Σ_k weight_k·Δ_k, exact: sparse stays sparse, and ranks add.

    Args:
        weights: strength of each part.
        edits: for each part, coefficients of the members' edits that it is made of (the identity without a projection).

    Raises:
        ConfigError: Nothing is left.
    """
    factors = np.asarray(weights) @ np.asarray(edits)
    total: Direction | None = None
    for member, factor in zip(members, factors, strict=True):
        if factor == 0:
            continue
        c_w, c_b = (c * float(factor) for c in member.config.coefficients(1.0))
        parts = {
            name: ParameterDirection(part.shape, part.delta(c_w, c_b), indices=part.indices)
            for name, part in member.direction.parameters.items()
        }
        one = Direction(parts)
        total = one if total is None else total + total.align(one)
    if total is None:
        raise ConfigError("combine: all weights are zero, so there is nothing to combine. Give one that is not.")
    prints = [member.direction.fingerprint for member in members if member.direction.fingerprint is not None]
    samples = {name: values for one in reversed(prints) for name, values in one.samples.items()}
    return replace(total, fingerprint=Fingerprint(samples, prints[0].dtype).only(total.parameters) if samples else None)


def projected(members: Sequence[Member], effects: Array) -> Array:
    """Coefficients of the members' edits that make each part leave the others' features alone: [parts, members].

    From Δ_i multiples of the others' edits are taken until it moves none of their features. A damage-aware direction is its
    gradient divided by the Fisher information, so that this is the projection in the Fisher metric; a plain one is its
    gradient, and the projection Euclidean.

    Args:
        effects: what each member's edit does to each member's feature, [members, members].
    """
    count = len(members)
    found = np.eye(count)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        moved = effects[np.ix_(others, others)]  # [of the others' edits, on the others' features]
        found[i, others] = -np.linalg.lstsq(moved.T, effects[i, others], rcond=1e-8)[0]
    return found


def conflicts(
    members: Sequence[Member],
    weights: Mapping[str, float],
    parts: Array,
    effects: Matrix,
    edits: Vectors,
    *,
    orthogonal: bool,
) -> ConflictReport:
    """Foresee what a combination does.

    Args:
        members: of the combination.
        parts: coefficients of the members' edits in each part, [parts, members].
        effects: predicted effects of the members' edits at strength 1 on the features of the whole set.
        edits: the members' edits at strength 1.
    """
    names, values = list(weights), np.array(list(weights.values()))
    mixed = values[:, None] * parts
    gram = mixed @ products(edits) @ mixed.T
    norms = np.sqrt(np.diag(gram).clip(min=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = gram / np.outer(norms, norms)
    added = Matrix(
        "change of log-odds that each part adds",
        tuple(names),
        effects.columns,
        mixed @ effects.values,
        notes=effects.notes,
    )
    damage, method, notes = _damage(members, values, effects)
    own = {name: effects.columns.index(name) for name in names if name in effects.columns}
    cost = {}
    if orthogonal:
        for number, name in enumerate(names):
            before = float(effects.values[number, own[name]])
            cost[name] = 1 - float((parts @ effects.values)[number, own[name]]) / before if before else math.nan
        notes += [
            f"{n} hardly differs from the other parts: {c:.0%} of its effect are gone."
            for n, c in cost.items()
            if c > 0.9
        ]
    metrics = {"Fisher" if member.is_damage_aware else "Euclidean" for member in members}
    return ConflictReport(
        dict(weights),
        added,
        {column: float(total) for column, total in zip(effects.columns, added.values.sum(0), strict=True)},
        Matrix("cosine of the parts", tuple(names), tuple(names), cosine, symmetric=True),
        float(1 - gram.sum() / np.trace(gram)) if np.trace(gram) else 0.0,
        dict(zip([*names, "sum"], damage, strict=True)),
        method,
        " and ".join(sorted(metrics)) if orthogonal else None,
        cost,
        tuple(notes),
    )


def _damage(members: Sequence[Member], weights: Array, effects: Matrix) -> tuple[list[float | None], str, list[str]]:
    """Expected damage of each part and of the sum, how it was computed, and notes."""
    each = [damage_at(member, float(weight)) for member, weight in zip(members, weights, strict=True)]
    unknown = [member.name for member, damage in zip(members, each, strict=True) if damage is None]
    if unknown:
        note = f"Expected damage is unknown: no curve of {', '.join(unknown)} has its strength."
        return [*each, None], "independent", [note]
    sizes = np.sqrt(np.clip(np.array(each, dtype=float), 0, None))
    inside = [effects.columns.index(m.name) for m in members if m.name in effects.columns]
    if len(inside) < len(members) or not all(member.is_damage_aware for member in members):
        return [*each, float(np.sum(sizes**2))], "independent", []
    # ⟨Δ_i, F Δ_j⟩ is what i does to j's feature, as j's gradient is F times its decoder
    square = effects.values[:, inside]
    scale = np.sqrt(np.abs(np.outer(np.diag(square), np.diag(square))))
    alike = np.clip((square + square.T) / 2 / np.where(scale > 0, scale, 1), -1, 1)
    np.fill_diagonal(alike, 1.0)
    signed = np.sign(weights) * sizes
    return [*each, float(max(0.0, signed @ alike @ signed))], "fisher", []


def damage_at(member: Member, strength: float) -> float | None:
    """Rise of the negative log-likelihood of neutral text at a strength, as a share, between two points of the curve."""
    if strength == 0:
        return 0.0
    if member.report is None:
        return None
    for split in (member.report.splits.get("test"), *member.report.splits.values()):
        curve = [] if split is None else [(p.strength, 1 / p.quality - 1) for p in split.curve if p.quality]
        for (low, before), (high, after) in pairwise(sorted(curve)):
            if low <= strength <= high:
                return before + (after - before) * (strength - low) / (high - low)
    return None


def described_sum(
    members: Sequence[Member], weights: Mapping[str, float], direction: Direction
) -> tuple[GradiendConfig, Report]:
    """Configuration and report of a combination; its feature classes are those of its first part."""
    first = members[0]
    config = copy.deepcopy(first.config)
    config.origin = None
    classes = config.feature_classes
    config.feature_classes = classes[::-1] if classes and next(iter(weights.values())) < 0 else classes
    config.parameters, config.has_bias = direction.spec(), direction.has_bias
    config.dtype, config.density = "float32", 1.0
    config.decoder_sign, config.strength_unit, config.strength, config.feature_factor = 1, 1.0, 1.0, 1.0
    config.safe_band = config.break_point = None
    parents = [
        Parent(hub_id(m.source) or shown_name(m.source or m.name), m.commit, float(w), list(m.classes))
        for m, w in zip(members, weights.values(), strict=True)
    ]
    report = Report(
        feature_classes=list(config.feature_classes or ("first", "second")),
        base_model=shown_name(config.base_model_name_or_path),
        base_revision=config.revision,
        versions={name: version(name) for name in ("gradiend_hub", "torch", "transformers", "peft")},
        parents=parents,
    )
    return config, report


def check_weights(weights: Mapping[str, float], known: Sequence[str]) -> None:
    """Refuse weights that are no finite numbers, or of directions that are not in the set."""
    if not isinstance(weights, Mapping) or not weights:
        raise ConfigError(
            f"combine: expected a strength for each direction, e.g. {{{known[0]!r}: 1.0}}; found {weights!r}."
        )
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(f"combine: there is no direction {name!r} in this set; it has {', '.join(known)}.")
        check_strength(weight)
