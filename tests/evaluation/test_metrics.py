"""Metrics as `evaluate` modules: known answers, alone, in batches and combined, without a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from datasets import load_dataset
from scipy import stats
from sklearn.metrics import roc_auc_score

from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import read_rows
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation import StrengthProbe, encoder_report
from gradiend_hub.evaluation.benchmarks import crows_pairs
from gradiend_hub.evaluation.metrics import EncoderCorrelation, LanguageModelingScore, ProbabilityShift, StereotypeScore
from tests.conftest import PRONOUNS
from tests.evaluation.test_probe import CLASSES, model_of

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
            "quality": 1 / 1.4,
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


def test_the_metrics_give_what_the_evaluation_has(masked_path: Path, tmp_path: Path) -> None:
    """Of the rows and tokens behind a report, each metric makes the report's own figure."""
    base = load_base_model(masked_path)
    model, objective = model_of(base, unit=0.5)
    rows = read_rows(load_dataset(str(PRONOUNS), split="test[:24]"), CLASSES)
    probe = StrengthProbe(model, objective, rows, ["The lamp is red.", "A dog slept in the garden."])
    before, after, point = probe.values(0.0), probe.values(0.5), probe.measure(1.0)  # by dose: strength times unit
    own, nll = probe.items.row_class == 1, [of.sets["neutral"].nll for of in (before, after)]
    shift = ProbabilityShift().compute(predictions=after.probability[own, 0], references=before.probability[own, 0])
    assert shift["probability"] == pytest.approx(point.effect)
    assert shift["base_probability"] == pytest.approx(probe.measure(0.0).reading(*CLASSES).value)
    quality = LanguageModelingScore().compute(predictions=nll[1], references=nll[0])
    assert quality["quality"] == pytest.approx(point.quality)
    both = evaluate.combine([ProbabilityShift(), LanguageModelingScore()])
    assert both.compute(predictions=nll[1], references=nll[0])["quality"] == pytest.approx(point.quality)
    h, labels = torch.tensor(H, dtype=torch.float64), torch.tensor(LABELS)
    report = encoder_report(h[:4], labels[:4], CLASSES, h[4:])
    found = EncoderCorrelation().compute(predictions=H, references=LABELS)
    assert (found["correlation"], found["auc"]) == (report.correlation, report.auc)
    path = tmp_path / "pairs.csv"
    path.write_text(
        "sent_more,sent_less,bias_type\nShe ran.,He ran.,x\nHe slept.,She slept.,x\nThey ate.,They ate.,x\n"
    )
    run = crows_pairs(base, objective.processor, path)
    pairs = [[row[f"log_likelihood_{side}"] for row in run.rows] for side in ("more", "less")]
    score = StereotypeScore().compute(predictions=pairs[0], references=pairs[1])
    assert score["stereotype_score"] == run.result.scores["stereotype_score"]
    model.unload()
