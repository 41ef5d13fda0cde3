"""Encodings of rows that the encoder has not seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu, pearsonr, spearmanr
from torch import Tensor

from gradiend_hub.data import Row, require_classes
from gradiend_hub.data.casing import Casing
from gradiend_hub.encoding import encoder_tensors, preactivations, reading_sign
from gradiend_hub.errors import DataError
from gradiend_hub.gradients import neutral_source
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Example, Objective, examples_of, neutral_examples, other_examples
from gradiend_hub.printable import legible_json

from .intervals import (
    Array,
    Numbers,
    bounded_interval,
    chance_correlation,
    correlation_interval,
    groups_of,
    mean_error,
    share_interval,
    spread,
)
from .records import EncoderReport, Encoding, OutputReport

SAMPLES = 120
"""Encoded slots of each kind that a report lists."""

NEUTRAL_TEXTS, OTHER_TOKENS = 160, 64
"""Neutral texts and other tokens of feature rows that are encoded, of which the mean |h| is read."""

MOST_ROW = 2000
"""Letters of a row, as JSON, that a report holds."""

TERNARY_THRESHOLD = 0.5


def encoder_report(
    h: Tensor,
    labels: Tensor,
    feature_classes: Sequence[str],
    neutral: Tensor | None = None,
    *,
    other: Tensor | None = None,
    words: Sequence[str] | None = None,
    trained_words: Collection[str] | None = None,
    casing: Casing | None = None,
    groups: Numbers | None = None,
    seed: int | None = None,
) -> EncoderReport:
    """Summarise feature values.

    Args:
        h: of the rows, [N].
        labels: ±1, [N].
        neutral: of slots in neutral text, [M].
        other: of other tokens of the rows' texts, [K].
        words: the word of each row that gives the source gradient, [N].
        trained_words: words that training rows had; the rows of the others are summarised once more in `held_out`.
        casing: tells which spellings are one word; by default, case does not count.
        groups: number of the template or document that each row is from, [N]: rows of one group are not independent.
        seed: of the bootstrap and of random labels; without one, no intervals are computed.

    Raises:
        DataError: no rows, or a feature value that is not finite.
    """
    if not len(h):
        raise DataError("There are no rows to encode.")
    for what, values in (("rows", h), ("neutral slots", neutral), ("other tokens", other)):
        if values is not None and not bool(values.isfinite().all()):
            bad = (~values.isfinite()).nonzero().flatten().tolist()
            raise DataError(f"Feature values are not finite for {what} {bad[:5]} ({len(bad)} of {len(values)}).")
    key = (casing or Casing()).key
    words = None if words is None else [*map(key, words)]
    x, y = h.double().numpy(), labels.double().numpy()
    silent = np.zeros(0) if neutral is None else neutral.double().numpy()
    of_class = dict(zip(feature_classes, (x[y > 0], x[y < 0]), strict=True))
    present = {name: values for name, values in of_class.items() if len(values)}
    both = len(present) == 2
    right = (x > 0) == (y > 0)
    sorted_right = np.concatenate([x * y >= TERNARY_THRESHOLD, abs(silent) < TERNARY_THRESHOLD])
    all_x, all_y = np.concatenate([x, silent]), np.concatenate([y, np.zeros(len(silent))])
    held_out, known = None, {*map(key, trained_words or ())}
    if words is not None and known and (new := np.array([word not in known for word in words])).any():
        own: dict[str, Any] = {"words": [*compress(words, new)], "groups": None if groups is None else groups[new]}
        held_out = encoder_report(h[new], labels[new], feature_classes, **own, casing=casing, seed=seed)
    return EncoderReport(
        correlation=_correlation(pearsonr, x, y) if both else None,
        accuracy=float(right.mean()),
        auc=float(mannwhitneyu(x[y > 0], x[y < 0]).statistic / ((y > 0).sum() * (y < 0).sum())) if both else None,
        class_means={c: float(values.mean()) for c, values in present.items()},
        class_stds={c: _spread(values) for c, values in present.items()},
        neutral_abs_mean=float(abs(silent).mean()) if len(silent) else None,
        rows={c: len(values) for c, values in of_class.items()},
        neutral_rows=len(silent),
        correlation_with_neutral=_correlation(pearsonr, all_x, all_y) if both and len(silent) else None,
        spearman=_correlation(spearmanr, x, y) if both else None,
        ternary_accuracy=float(sorted_right.mean()),
        other_abs_mean=float(other.abs().double().mean()) if other is not None and len(other) else None,
        other_rows=0 if other is None else len(other),
        intervals={} if seed is None else _intervals(x, y, right, silent, feature_classes, groups, seed),
        null_correlation=chance_correlation(x, y, groups, seed=seed) if both and seed is not None else None,
        outputs={} if words is None else _by_word(x, y, words, feature_classes),
        held_out=held_out,
    )


def _correlation(measure: Any, x: Array, y: Array) -> float:
    """A constant encoder has no correlation, which is worth 0 and not NaN."""
    return float(measure(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def _spread(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _intervals(
    x: Array, y: Array, right: Any, silent: Array, classes: Sequence[str], groups: Numbers | None, seed: int
) -> dict[str, list[float]]:
    intervals = {"accuracy": share_interval(right.astype(np.float64), groups)}
    if len(set(y)) == 2 and len(x) > 2:
        intervals["correlation"] = correlation_interval(x, y, groups, seed=seed)
    for name, own in zip(classes, (y > 0, y < 0), strict=True):
        if own.sum() > 1:
            error = mean_error(x[own], None if groups is None else groups[own])
            intervals[f"mean {name}"] = bounded_interval(float(x[own].mean()), *error, low=-1.0)
    if len(silent) > 1:
        intervals["neutral_abs_mean"] = bounded_interval(float(abs(silent).mean()), *mean_error(abs(silent)))
    return intervals


def _by_word(x: Array, y: Array, words: Sequence[str], feature_classes: Sequence[str]) -> dict[str, OutputReport]:
    """Figures by word, most frequent first."""
    found: dict[str, OutputReport] = {}
    for word, count in Counter(words).most_common():
        own = np.array([w == word for w in words])
        sign = np.sign(y[own].sum()) or 1.0
        found[word] = OutputReport(
            feature_classes[0] if sign > 0 else feature_classes[1],
            count,
            float(x[own].mean()),
            _spread(x[own]),
            float(((x[own] > 0) == (y[own] > 0)).mean()),
        )
    return found


def measure_encoder(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    *,
    trained_words: Collection[str] | None = None,
    encoded: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> EncoderReport:
    """Everything that the active direction's encoder reads from rows, neutral texts, and other tokens of the rows' texts.

    Args:
        trained_words: words that training rows had.
        encoded: feature values of the rows, [N], if they are known.
        seed: decides which tokens are encoded, and the bootstrap.

    Raises:
        ArtifactError: the direction was published without its encoder.
        DataError: a row is unusable, or a feature value not finite.
    """
    config, base = model.active_peft_config, model.get_base_model()
    classes, sign = require_classes(config.feature_classes), reading_sign(config.source)
    encoder, bias = encoder_tensors(model.direction)
    examples = examples_of(objective, rows)
    quiet = neutral_examples(objective, spread(texts, NEUTRAL_TEXTS), seed=seed)
    others = other_examples(objective, spread(rows, OTHER_TOKENS), config.fillers, seed=seed)
    neutral_kind = neutral_source(config.source)

    def read(part: Sequence[Example], source: str) -> Tensor:
        z = preactivations(base, objective, part, encoder, bias, source=source, batch_size=batch_size)
        return torch.tanh(z)

    with model.strength_at(0.0):
        h = sign * read(examples, config.source) if encoded is None else encoded
        neutral, other = read(quiet, neutral_kind), read(others, neutral_kind)
    words = [str(row.factual) for row in rows] if config.fillers else None
    labels = torch.tensor([row.label(classes, "factual") for row in rows])
    report = encoder_report(
        h,
        labels,
        classes,
        neutral,
        other=other,
        words=words,
        trained_words=trained_words if words else None,
        casing=Casing(config.fillers),
        groups=groups_of(rows),
        seed=seed,
    )
    of_rows = [
        Encoding(*objective.describe(example.factual), row.factual_class, value, _record(objective, row))
        for row, example, value in zip(rows, examples, h.tolist(), strict=True)
    ]
    kinds = [[encoding for encoding in of_rows if encoding.kind == name] for name in classes]
    kinds += [
        [Encoding(*objective.describe(e.factual), kind, value) for e, value in zip(part, found.tolist(), strict=True)]
        for part, found, kind in ((quiet, neutral, "neutral"), (others, other, "other"))
    ]
    return replace(report, reads="input", encodings=[e for kind in kinds for e in spread(kind, SAMPLES)])


def _record(objective: Objective, row: Row) -> dict[str, Any] | None:
    """Return a row as a report holds it; `None` if it is too large, or would not be read back as it is."""
    record = objective.record(row)
    small = len(json.dumps(record, ensure_ascii=False)) <= MOST_ROW
    return record if small and legible_json(record) == record else None
