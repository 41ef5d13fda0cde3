"""Encoder reports with known answers, and encodings against plain gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.data import TextRow
from gradiend_hub.encoding import preactivations
from gradiend_hub.errors import ArtifactError, DataError
from gradiend_hub.evaluation import encoder_report, flat_encoder
from gradiend_hub.gradients import GradientReader, Scope, neutral_source, read_pair, select_parameters
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import make_objective

CLASSES = ["3SG", "3PL"]


def test_known_answers() -> None:
    h = torch.tensor([0.9, 0.7, -0.1, -0.8, -0.6, 0.2])
    labels = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    report = encoder_report(h, labels, CLASSES, neutral=torch.tensor([0.1, -0.3]))
    assert report.correlation == pytest.approx(stats.pearsonr(h.numpy(), labels.numpy()).statistic)
    assert report.accuracy == pytest.approx(4 / 6)
    positive, negative = h[:3].numpy(), h[3:].numpy()
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert report.auc == pytest.approx(wins / 9)
    assert report.class_means == pytest.approx({"3SG": 0.5, "3PL": -0.4})
    assert report.class_stds == pytest.approx({"3SG": positive.std(ddof=1), "3PL": negative.std(ddof=1)})
    assert report.neutral_abs_mean == pytest.approx(0.2)
    assert report.rows == {"3SG": 3, "3PL": 3}
    assert report.neutral_rows == 2
    flat = flat_encoder(report)
    assert flat["mean_3SG"] == pytest.approx(0.5)
    both = torch.cat([h, torch.tensor([0.1, -0.3])]).numpy(), [*labels.tolist(), 0.0, 0.0]
    assert report.correlation_with_neutral == pytest.approx(stats.pearsonr(*both).statistic)
    assert report.spearman == pytest.approx(stats.spearmanr(h.numpy(), labels.numpy()).statistic)
    assert report.ternary_accuracy == pytest.approx((2 + 2 + 2) / 8)  # of 3SG, of 3PL, of the neutral slots
    assert (report.intervals, report.outputs, report.held_out) == ({}, {}, None)
    assert flat.keys() == {"correlation", "accuracy", "auc", "mean_3SG", "mean_3PL", "neutral_abs_mean"}


def test_report_without_neutral_text_and_of_a_constant_encoder() -> None:
    labels = torch.tensor([1.0, -1.0])
    report = encoder_report(torch.tensor([0.5, 0.5]), labels, CLASSES)
    assert (report.correlation, report.auc, report.accuracy) == (0.0, 0.5, 0.5)
    assert report.neutral_abs_mean is None
    assert report.neutral_rows == 0
    assert report.class_stds == {"3SG": 0.0, "3PL": 0.0}
    assert "neutral_abs_mean" not in flat_encoder(report)
    perfect = encoder_report(torch.tensor([1.0, -1.0]), labels, CLASSES)
    assert perfect.correlation == pytest.approx(1.0)
    assert perfect.auc == perfect.accuracy == 1.0


def test_values_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match=r"not finite for rows \[1\] \(1 of 3\)"):
        encoder_report(torch.tensor([0.1, math.nan, 0.2]), torch.tensor([1.0, -1.0, 1.0]), CLASSES)
    good, labels = torch.tensor([0.1, 0.2]), torch.tensor([1.0, -1.0])
    with pytest.raises(DataError, match=r"not finite for neutral slots \[0\]"):
        encoder_report(good, labels, CLASSES, torch.tensor([math.inf, 0.0]))
    with pytest.raises(DataError, match=r"not finite for other tokens \[1\]"):
        encoder_report(good, labels, CLASSES, other=torch.tensor([0.0, math.nan]))
    with pytest.raises(DataError, match="no rows to encode"):
        encoder_report(torch.empty(0), torch.empty(0), CLASSES)


def test_one_class_has_no_correlation() -> None:
    report = encoder_report(torch.tensor([0.5, -0.1, 0.7]), torch.ones(3), CLASSES, torch.tensor([0.6]), seed=0)
    assert (report.correlation, report.auc, report.spearman, report.correlation_with_neutral) == (None,) * 4
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.class_means == pytest.approx({"3SG": 1.1 / 3})
    assert report.rows == {"3SG": 3, "3PL": 0}
    assert report.intervals.keys() == {"accuracy", "mean 3SG"}
    assert flat_encoder(report).keys() == {"accuracy", "mean_3SG", "neutral_abs_mean"}


def test_intervals_words_and_held_out_words() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1.0, -1.0] * 100)
    h = torch.tanh(labels + 0.8 * torch.randn(200, generator=generator))
    words = ["He" if label > 0 else "they" for label in labels.tolist()]
    words[::10] = ["she"] * 20  # every tenth row, all of them of the first class
    report = encoder_report(h, labels, CLASSES, 0.1 * h, words=words, trained_words=["he", "They"], seed=3)
    x = h.double().numpy()
    expected = stats.bootstrap(
        (x[labels.numpy() > 0],), np.mean, method="percentile", random_state=1
    ).confidence_interval
    assert report.intervals["mean 3SG"] == pytest.approx([expected.low, expected.high], abs=0.02)
    by_fisher = stats.pearsonr(x, labels.numpy()).confidence_interval()
    assert report.intervals["correlation"] == pytest.approx(by_fisher, abs=0.05)
    right = int(((h > 0) == (labels > 0)).sum())
    assert report.intervals["accuracy"] == pytest.approx(stats.binomtest(right, 200).proportion_ci(method="wilson"))
    assert report.intervals.keys() == {"accuracy", "correlation", "mean 3SG", "mean 3PL", "neutral_abs_mean"}
    assert {w: (f.feature_class, f.rows) for w, f in report.outputs.items()} == {
        "they": ("3PL", 100), "he": ("3SG", 80), "she": ("3SG", 20),
    }  # fmt: skip
    she = h[::10]
    assert report.outputs["she"].mean == pytest.approx(float(she.mean()))
    assert report.outputs["she"].std == pytest.approx(float(she.std()))
    assert report.outputs["she"].accuracy == pytest.approx(float((she > 0).double().mean()))
    assert report.held_out is not None
    assert report.held_out.rows == {"3SG": 20, "3PL": 0}
    assert report.held_out.class_means["3SG"] == pytest.approx(float(she.mean()))
    again = encoder_report(h, labels, CLASSES, 0.1 * h, words=words, trained_words=["he", "they"], seed=3)
    assert again == report
    everything = encoder_report(h, labels, CLASSES, words=words, trained_words=["he", "they", "she"])
    assert everything.held_out is None


@pytest.fixture(scope="module")
def base(masked_path: Any) -> Any:
    from gradiend_hub.base_model import load_base_model

    return load_base_model(masked_path)


def direction_on(base: Any, *, scale: float = 0.02) -> Direction:
    generator = torch.Generator().manual_seed(1)

    def part(parameter: torch.Tensor) -> ParameterDirection:
        values = torch.randn(3, parameter.numel(), generator=generator) * scale
        return ParameterDirection(tuple(parameter.shape), values[0], values[1], values[2])

    return Direction({n: part(p) for n, p in select_parameters(base, layers="3", scope="*.output.*").items()}, 0.25)


@pytest.mark.parametrize("source", ["alternative", "factual", "diff"])
def test_encodings_are_the_written_formula(base: Any, pronouns: Any, source: str) -> None:
    """h = tanh(⟨w_e, s⟩ + b_e) with s from a backward pass, whatever strength is applied at the moment."""
    direction = direction_on(base)
    config = GradiendConfig(feature_classes=CLASSES, fillers={"3SG": ["it"], "3PL": ["they"]}, source=source)
    rows = pronouns["test"].select(range(6))
    model = GradiendModel.from_direction(base, direction, config, strength=0.01)
    objective = make_objective(base, model.tokenizer)
    expected = []
    with model.strength_at(0.0):
        scope = Scope.dense({n: base.get_parameter(n) for n in direction.parameters})
        encoder = torch.cat([p.encoder for p in direction.parameters.values()])
        with GradientReader(base, scope) as reader:
            for row in rows:
                batch = objective.collate_pairs([objective.example(TextRow.read(row))])
                s, _ = read_pair(reader, objective, batch, source=source)
                expected.append(math.tanh(float(encoder @ s) + 0.25))
    if source == "alternative":  # a reader asks for the word that stands in the text, not for the other one
        expected = [-h for h in expected]
    found = model.encode(rows, batch_size=4)
    assert model.strengths == {"default": 0.01}
    assert torch.equal(model.encode(rows, batch_size=4), found)
    model.unload()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert (
        0.05 < float(found.abs().mean()) < 0.99
    )  # neither silent nor saturated, so that the comparison says something


@pytest.mark.parametrize("source", ["factual", "alternative", "diff"])
def test_the_sign_follows_the_word_in_the_text(base: Any, source: str) -> None:
    """An encoder that gives each row its training label is read as the class of the row's own word, whatever the source."""
    texts = ("The boys ran home because [MASK] felt ill.", "We bought the lamp because [MASK] looked beautiful.")
    rows = [TextRow(texts[0], "they", "it", "3PL", "3SG"), TextRow(texts[1], "it", "they", "3SG", "3PL")]
    objective = make_objective(base, AutoTokenizer.from_pretrained(base.name_or_path))
    scope = Scope.dense(select_parameters(base, layers="1"))
    total = torch.zeros(scope.size)
    with GradientReader(base, scope) as reader:
        for row in rows:
            s, _ = read_pair(reader, objective, objective.collate_pairs([objective.example(row)]), source=source)
            total += row.label(CLASSES, source) * s / s.norm()
    parts = {
        name: ParameterDirection(tuple(scope.parameters[name].shape), values, encoder=10 * values / total.norm())
        for name, values in scope.split(total).items()
    }
    model = GradiendModel.from_direction(base, Direction(parts), GradiendConfig(feature_classes=CLASSES, source=source))
    other = TextRow(texts[0], "they", "it", "a class of its own", "3SG")  # rows of any class are read
    plural, singular, same = model.encode([row.record() for row in (*rows, other)]).tolist()
    model.unload()
    assert plural < -0.05
    assert singular > 0.05
    assert same == pytest.approx(plural)


def test_preactivations_read_the_factual_minus_the_alternative_for_diff(base: Any, pronouns: Any) -> None:
    objective = make_objective(base, AutoTokenizer.from_pretrained(base.name_or_path))
    row = pronouns["test"][0]
    examples = [objective.example(TextRow.read(row))]
    encoder = {n: p.dense(p.encoder) for n, p in direction_on(base).parameters.items()}
    z = {
        s: float(preactivations(base, objective, examples, encoder, 0.0, source=s))
        for s in ("factual", "alternative", "diff")
    }
    assert z["diff"] == pytest.approx(z["factual"] - z["alternative"], rel=1e-4)
    assert z["factual"] != z["alternative"]
    assert [neutral_source(s) for s in ("factual", "alternative", "diff")] == ["factual", "alternative", "factual"]


def test_what_cannot_be_encoded(base: Any, pronouns: Any) -> None:
    direction = direction_on(base)
    bare = Direction(
        {n: ParameterDirection(p.shape, p.decoder, p.decoder_bias) for n, p in direction.parameters.items()}
    )
    rows = pronouns["test"].select(range(2))
    config = GradiendConfig(feature_classes=CLASSES)
    for held, named, chosen, error, message in (
        (bare, config, rows, ArtifactError, "no encoder"),
        (direction, config, [], DataError, "rows has no rows"),
        (direction, config, [{"masked": "x"}], DataError, r"row 0: column .* is missing"),
    ):
        model = GradiendModel.from_direction(base, held, named)
        with pytest.raises(error, match=message):
            model.encode(chosen)
        model.unload()
