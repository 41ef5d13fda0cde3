"""Encodings of every feature's rows by every direction's encoder: one backward pass a row serves all directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from gradiend_hub.artifact.direction import Direction
from gradiend_hub.data import Row
from gradiend_hub.encoding import encoder_tensors, preactivations, reading_sign
from gradiend_hub.gradients import GradientReader, Scope
from gradiend_hub.gradients.pairs import read_pair
from gradiend_hub.objectives import Example, Objective
from gradiend_hub.progress import progress
from gradiend_hub.scope import PackedParameter, parameters_of

from .tables import Matrix
from .vectors import Array

_JOINED = 2**18
"""Most entries of whole parameters that are one product."""


@dataclass(frozen=True)
class Encoder:
    """An encoder of a set: w_e by parameter name of the base model, b_e, and which gradient it reads."""

    direction: Direction
    source: str


@dataclass(frozen=True)
class CrossEncodings:
    """Feature values of all directions on the rows of all features.

    Attributes:
        directions: names of the directions that have an encoder.
        features: name of the feature that each row belongs to, [N].
        rows: the rows, [N].
        labels: +1 where the row's word is of its feature's first class, else −1, [N].
        h: feature values, [directions, N]; positive where the word in the text is of the direction's first class.
        pairs: feature classes of each direction, first one first.
        notes: what is missing.
    """

    directions: tuple[str, ...]
    features: tuple[str, ...]
    rows: tuple[Row, ...]
    labels: Array
    h: Array
    pairs: Mapping[str, tuple[str, str]]
    notes: tuple[str, ...] = ()

    def means(self) -> Matrix:
        """Mean h of every direction on every transition f → c, factual to alternative class: [directions, transitions]."""
        named = [f"{row.factual_class}→{row.alternative_class}" for row in self.rows]
        columns = tuple(dict.fromkeys(named))
        chosen = [np.array([name == column for name in named]) for column in columns]
        values = np.stack([self.h[:, where].mean(1) for where in chosen], 1)
        return Matrix("mean feature value", self.directions, columns, values, notes=self.notes)

    def auc(self) -> Matrix:
        """Area under the ROC curve of every direction on every feature's rows; 0.5 reads nothing: [directions, features]."""
        columns = tuple(dict.fromkeys(self.features))
        values = np.full((len(self.directions), len(columns)), np.nan)
        for j, column in enumerate(columns):
            of = np.array([name == column for name in self.features])
            up, down = of & (self.labels > 0), of & (self.labels < 0)
            if up.any() and down.any():
                for i, h in enumerate(self.h):
                    values[i, j] = mannwhitneyu(h[up], h[down]).statistic / (up.sum() * down.sum())
        return Matrix("AUC", self.directions, columns, values, notes=self.notes)

    def anchors(self) -> Matrix:
        """Mean h on the rows of each class, over the directions of each class, turned so that a perfect diagonal is +1.

        [anchor, class]: over all directions that have the anchor as one of their classes, +h for the first and −h for the
        second, averaged within a transition first (arXiv 2602.23993; the sign of the source is in h already).
        """
        classes = tuple(dict.fromkeys(name for name in self.directions for name in self.pairs[name] if name))
        transitions = [(row.factual_class, row.alternative_class) for row in self.rows]
        values = np.full((len(classes), len(classes)), np.nan)
        unique = list(dict.fromkeys(transitions))
        means = {t: self.h[:, [other == t for other in transitions]].mean(1) for t in unique}
        for i, anchor in enumerate(classes):
            for j, column in enumerate(classes):
                found = [
                    (1 if anchor == self.pairs[name][0] else -1) * means[transition][number]
                    for number, name in enumerate(self.directions)
                    if anchor in self.pairs[name]
                    for transition in unique
                    if transition[0] == column
                ]
                if found:
                    values[i, j] = float(np.mean(found))
        return Matrix("anchored mean feature value", classes, classes, values, notes=self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Means, AUC and anchors as JSON values."""
        return {name: getattr(self, name)().to_dict() for name in ("means", "auc", "anchors")}

    def _repr_html_(self) -> str:
        return self.means()._repr_html_() + self.auc()._repr_html_()


def encode_all(
    base: nn.Module, objective: Objective, encoders: Sequence[Encoder], examples: Sequence[Example]
) -> Array:
    """Feature values of examples by several encoders: [encoders, N], in (−1, 1).

    One forward and one backward pass a row and kind of source gradient serve all encoders, whose products with the gradient
    are taken in the form in which they are stored. A value is that of `encoding.encode_rows`. Quantised weights have no
    gradient of their own: there each encoder reads the rows by itself.

    Args:
        base: the base model, unedited.
        encoders: with the base model's parameter names.
    """
    names = dict.fromkeys(name for encoder in encoders for name in encoder.direction.parameters)
    scope = Scope.dense(parameters_of(base, names))
    signs = np.array([reading_sign(encoder.source) for encoder in encoders])[:, None]
    if any(isinstance(parameter, PackedParameter) for parameter in scope.parameters.values()):
        found = []
        for encoder in progress(encoders, "encoding", len(encoders)):
            tensors, bias = encoder_tensors(encoder.direction)
            found.append(preactivations(base, objective, examples, tensors, bias, source=encoder.source))
        return np.asarray(signs * np.tanh(torch.stack(found).double().cpu().numpy()))
    kinds = sorted({encoder.source for encoder in encoders})
    readers = {kind: [i for i, encoder in enumerate(encoders) if encoder.source == kind] for kind in kinds}
    z = np.empty((len(encoders), len(examples)))
    with GradientReader(base, scope, reuse=True) as reader:
        parts = [_parts(encoder.direction, scope, reader.device) for encoder in encoders]
        for number, example in enumerate(progress(examples, "encoding", len(examples))):
            batch = objective.collate_pairs([example]).to(reader.device)
            for kind in kinds:
                gradient, _ = read_pair(reader, objective, batch, source=kind, target=kind)
                for i in readers[kind]:
                    bias = encoders[i].direction.encoder_bias
                    z[i, number] = bias + sum(float(_at(gradient, places) @ values) for places, values in parts[i])
    return np.asarray(signs * np.tanh(z))


def _parts(direction: Direction, scope: Scope, device: torch.device) -> list[tuple[slice | Tensor, Tensor]]:
    """Places in a flat gradient [n] and an encoder's values there, on a device; a low-rank one's are computed.

    All chosen entries are one part, and so are small whole parameters that lie side by side: a product for each of many
    parameters and directions would take longer than the backward pass.
    """
    whole: list[tuple[slice, list[Tensor]]] = []
    chosen: list[tuple[Tensor, Tensor]] = []
    for name, where in scope.slices().items():
        part = direction.parameters.get(name)
        if part is None:
            continue
        assert part.encoder is not None
        values = part.encoder if isinstance(part.encoder, Tensor) else part.dense(part.encoder).flatten()
        if part.indices is not None:
            chosen.append((where.start + part.indices.long(), values))
        elif whole and whole[-1][0].stop == where.start and where.stop - whole[-1][0].start <= _JOINED:
            whole[-1] = slice(whole[-1][0].start, where.stop), [*whole[-1][1], values]
        else:
            whole.append((where, [values]))
    found: list[tuple[slice | Tensor, Tensor]] = [
        (where, (torch.cat(of) if len(of) > 1 else of[0]).to(device)) for where, of in whole
    ]
    if chosen:
        places, of_chosen = (torch.cat(of).to(device) for of in zip(*chosen, strict=True))
        found.append((places, of_chosen))
    return found


def _at(vector: Tensor, places: slice | Tensor) -> Tensor:
    """Values of a flat vector; `index_select` is several times as fast as indexing by a tensor."""
    return vector[places] if isinstance(places, slice) else vector.index_select(0, places)
