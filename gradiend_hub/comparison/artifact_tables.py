"""Tables of several directions from their artifacts alone: similarities and predicted effects, beside null and ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradiend_hub.errors import ConfigError

from .judging import judged_effects, judged_similarity
from .members import Member
from .parts import parts_of
from .similarity import Sides, similarity
from .tables import Matrix, Profile
from .vectors import Frame, Of, Vectors, products


@dataclass(frozen=True)
class ArtifactTables:
    """Tables of directions that need the artifacts alone, and no base model.

    Attributes:
        members: The directions.
        frame: Their parameters, aligned.
        notes: What every table notes.
    """

    members: tuple[Member, ...]
    frame: Frame
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the directions."""
        return tuple(member.name for member in self.members)

    def similarity(self, measure: str, of: Of, top_k: int | float, by: str | None) -> Matrix | Profile:
        """Measure how alike the directions are; arguments, result and errors are those of `DirectionSet.similarity`."""
        if measure == "fisher_cosine":
            return self._fisher_cosine(of, by)
        sides = Sides(self.oriented(of))
        if by is None:
            return self._of_parts(sides, measure, of, top_k, None)
        parts = parts_of(self.frame.shapes, by)
        return Profile(by, {part: self._of_parts(sides, measure, of, top_k, names) for part, names in parts.items()})

    def oriented(self, of: Of) -> Vectors:
        """Vectors that point to where the first class becomes likelier."""
        if of == "decoder":
            return Vectors(self.frame, [m.direction for m in self.members], [float(m.sign) for m in self.members])
        if missing := [member.name for member in self.members if member.reader is None]:
            raise ConfigError(
                f"similarity(of='encoder'): {', '.join(missing)} has no encoder. That of decoders, predicted and measured "
                "effects stay possible."
            )
        # along an encoder's weights the loss of the first class's word rises, whatever the source
        return Vectors(self.frame, [m.reader for m in self.members if m.reader], [-1.0] * len(self.members), "encoder")

    def _of_parts(self, sides: Sides, measure: str, of: Of, top_k: int | float, names: Sequence[str] | None) -> Matrix:
        values = similarity(sides, measure, top_k, names)
        apart = self._disjoint(sides.left)
        notes = [*self.notes]
        if apart.any() and names is None:
            values = np.where(apart, 0.0, values)
            i, j = (int(k) for k in np.argwhere(apart)[0])
            notes.append(f"{self.names[i]} and {self.names[j]} share no parameter, which is a similarity of 0.")
        name = f"{measure} of {of}s" + (f", the largest {top_k}" if measure.endswith("overlap") else "")
        if of == "encoder":
            notes.append("Null and ceiling of encoders are not measured.")
            return Matrix(name, self.names, self.names, values, notes=tuple(notes), symmetric=True)
        judged = judged_similarity(self.members, sides.left, measure, top_k, names)
        notes += judged.notes
        return Matrix(name, self.names, self.names, values, judged.null, judged.ceiling, tuple(notes), symmetric=True)

    def _disjoint(self, vectors: Vectors) -> Any:
        touched = [vectors.touched(i) for i in range(len(vectors))]
        return np.array([[not (one & other) for other in touched] for one in touched])

    def _fisher_cosine(self, of: Of, by: str | None) -> Matrix:
        known, gradients = self.gradients()
        plain = [m.name for i, m in enumerate(self.members) if i not in known or not m.is_damage_aware]
        if of != "decoder" or by is not None or plain:
            reason = f"{plain[0]} carries none" if plain else "it is that of whole decoders"
            raise ConfigError(
                "similarity('fisher_cosine') needs the Fisher information that damage-aware directions carry with their "
                f"gradient, and {reason}. The other measures stay possible."
            )
        # the decoder is F⁻¹ times the gradient, so that ⟨d_i, F d_j⟩ = ⟨d_i, g_j⟩
        inner = products(self.oriented("decoder"), gradients)
        scale = np.sqrt(np.abs(np.outer(np.diag(inner), np.diag(inner))))
        values = np.clip((inner + inner.T) / 2 / np.where(scale > 0, scale, np.nan), -1, 1)
        judged = judged_similarity(self.members, self.oriented("decoder"), "fisher_cosine", 1000)
        notes = (*self.notes, "Null and ceiling in this metric are not measured.", *judged.notes)
        return Matrix("fisher_cosine of decoders", self.names, self.names, values, notes=notes, symmetric=True)

    def gradients(self) -> tuple[list[int], Vectors]:
        """Numbers of the directions whose gradient is known, and these gradients."""
        found = [(i, gradient) for i, m in enumerate(self.members) if (gradient := m.gradient) is not None]
        directions, factors = [g for _, (g, _) in found], [f for _, (_, f) in found]
        return [i for i, _ in found], Vectors(self.frame, directions, factors)

    def predicted(self, chosen: Sequence[int]) -> Matrix:
        """Predicted effects of some directions on all features whose gradient is known."""
        known, gradients = self.gradients()
        own = edits(self.frame, self.members)
        every = products(own, gradients)
        columns = tuple(self.names[i] for i in known)
        judged = judged_effects(self.members, self.frame, own, gradients, known, every)
        unknown = [name for name in self.names if name not in columns]
        notes = [*self.notes, *self.unmeasured(), *judged.notes]
        apart = self._disjoint(own)
        if pair := next(((i, j) for i in chosen for j in known if apart[i, j]), None):
            one, other = (self.names[i] for i in pair)
            notes.append(
                f"{one} and {other} share no parameter, so that 0 is predicted: what {one} does to {other} by way of other "
                "parameters does not show in the artifacts. measured_effects applies it."
            )
        if unknown:
            notes.append(
                f"The gradient of {', '.join(unknown)} is not known, so effects on it are not predicted; similarities and "
                "measured effects stay possible."
            )
        rows = list(chosen)
        return Matrix(
            "predicted change of log-odds at strength +1",
            tuple(self.names[i] for i in rows),
            columns,
            every[rows],
            None if judged.null is None else judged.null[rows],
            None if judged.ceiling is None else judged.ceiling[rows],
            tuple(notes),
        )

    def unmeasured(self) -> list[str]:
        names = [m.name for m in self.members if m.report is None or not (m.report.splits or m.report.parents)]
        return [f"Unmeasured, so that strength 1 is no calibrated dose: {', '.join(names)}."] if names else []


def edits(frame: Frame, members: Sequence[Member]) -> Vectors:
    """Edits at strength 1."""
    weights, biases = zip(*(member.config.coefficients(1.0) for member in members), strict=True)
    return Vectors(frame, [member.direction for member in members], weights, with_bias=biases)
