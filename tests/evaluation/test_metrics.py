"""Metrics as `evaluate` modules: known answers, alone, in batches and combined, without a network."""

from __future__ import annotations

import math
from typing import Any

import evaluate
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from gradiend_hub.errors import DataError
from gradiend_hub.evaluation.metrics import EncoderCorrelation, LanguageModelingScore, ProbabilityShift, StereotypeScore

H = [0.9, 0.2, -0.7, -0.1, 0.3]
LABELS = [1.0, 1.0, -1.0, -1.0, 0.0]
ALL = (EncoderCorrelation, ProbabilityShift, LanguageModelingScore, StereotypeScore)


def test_encoder_correlation() -> None:
    found = EncoderCorrelation().compute(predictions=H, references=LABELS)
    assert found == pytest.approx(
        {
            "correlation": stats.pearsonr(H[:4], LABELS[:4]).statistic,
            "spearman": stats.spearmanr(H[:4], LABELS[:4]).statistic,
            "accuracy": 1.0,
            "auc": roc_auc_score([1, 1, 0, 0], H[:4]),
            "ternary_accuracy": 3 / 5,
            "correlation_with_neutral": stats.pearsonr(H, LABELS).statistic,
            "neutral_abs_mean": 0.3,
        }
    )


def test_batches_give_what_all_rows_give() -> None:
    metric = EncoderCorrelation()
    for start in (0, 2, 4):
        metric.add_batch(predictions=H[start : start + 2], references=LABELS[start : start + 2])
    assert metric.compute() == EncoderCorrelation().compute(predictions=H, references=LABELS)


def test_the_others() -> None:
    edited, base = [0.5, 0.7], [0.2, 0.2]
    shift = ProbabilityShift().compute(predictions=edited, references=base)
    assert shift == pytest.approx({"probability": 0.6, "base_probability": 0.2, "probability_shift": 0.4})
    score = LanguageModelingScore().compute(predictions=[4.0, 2.0], references=[3.0, 1.5])
    assert score == pytest.approx({"quality": 0.75, "nll": 3.0, "base_nll": 2.25})
    pairs = StereotypeScore().compute(predictions=[-1.0, -5.0, -2.0, -3.0], references=[-2.0, -4.0, -2.0, -4.0])
    assert pairs == pytest.approx({"stereotype_score": 200 / 3})
    with pytest.raises(DataError, match="all pairs are equally likely"):
        StereotypeScore().compute(predictions=[1.0], references=[1.0])


def test_metrics_combine() -> None:
    both = evaluate.combine([ProbabilityShift(), LanguageModelingScore()])
    found = both.compute(predictions=[0.5, 0.7], references=[0.2, 0.2])
    assert found == pytest.approx(
        {
            "probability": 0.6,
            "base_probability": 0.2,
            "probability_shift": 0.4,
            "quality": 1 / 3,
            "nll": 0.6,
            "base_nll": 0.2,
        }
    )


@pytest.mark.parametrize("kind", ALL)
def test_metrics_describe_themselves_and_name_nan(kind: Any) -> None:
    metric = kind()
    assert metric.description and metric.inputs_description and metric.citation.startswith("@")
    with pytest.raises(DataError, match=r"predictions are not finite at \[1\] \(1 of 2\)"):
        metric.compute(predictions=[0.1, math.nan], references=[1.0, -1.0])


@pytest.mark.parametrize("kind", ALL)
def test_empty_lists_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind().name}: there are no predictions"):
        kind().compute(predictions=[], references=[])


@pytest.mark.parametrize(("edited", "base"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 2.0)])
def test_a_score_is_a_ratio_of_likelihoods_above_zero(edited: float, base: float) -> None:
    with pytest.raises(ValueError, match="both have to be above 0"):
        LanguageModelingScore().compute(predictions=[edited] * 2, references=[base] * 2)
