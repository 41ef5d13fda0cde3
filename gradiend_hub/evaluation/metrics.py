"""The figures of a report as `evaluate` modules, by the formulas that the evaluation itself uses.

They work offline, and `evaluate.combine` takes several of them:

```python
import evaluate
from gradiend_hub.evaluation.metrics import LanguageModelingScore, ProbabilityShift

both = evaluate.combine([ProbabilityShift(), LanguageModelingScore()])
both.compute(predictions=edited, references=base)
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from gradiend_hub.errors import DataError

from .encoder import encoder_report
from .scores import CROWS_PAIRS, preferred, relative_quality

__all__ = ["EncoderCorrelation", "LanguageModelingScore", "ProbabilityShift", "StereotypeScore"]

_GRADIEND = """@article{gradiend,
  title  = {GRADIEND: Feature Learning within Neural Networks Exemplified through Biases},
  author = {Drechsel, Jonathan and Herbold, Steffen},
  journal = {arXiv preprint arXiv:2502.01406}, year = {2025}}"""


class _FloatMetric(evaluate.Metric, ABC):  # type: ignore[misc]
    """A metric of two lists of floats."""

    description = ""
    inputs = ""
    citation_text = _GRADIEND

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation_text,
            inputs_description=self.inputs,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        values = [np.asarray(items, dtype=np.float64) for items in (predictions, references)]
        for name, items in zip(("predictions", "references"), values, strict=True):
            if bad := np.flatnonzero(~np.isfinite(items)).tolist():
                raise DataError(f"{self.name}: {name} are not finite at {bad[:5]} ({len(bad)} of {len(items)}).")
            if not len(items):
                raise DataError(f"{self.name}: there are no {name}. Give at least one value of each.")
        return self.figures(*values)

    @abstractmethod
    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        """The metric's values by name, of two arrays of finite fp64 values [N]."""


class EncoderCorrelation(_FloatMetric):
    """Separation of two classes by feature values: correlation, accuracy and AUC."""

    description = (
        "Separation of two feature classes by the encoder's feature values h in (-1, 1): Pearson's and Spearman's "
        "correlation with the labels, accuracy of the sign, AUC. Rows of label 0 are neutral: they count for "
        "correlation_with_neutral, ternary_accuracy (thresholds ±0.5) and neutral_abs_mean only."
    )
    names = (
        "correlation",
        "spearman",
        "accuracy",
        "auc",
        "ternary_accuracy",
        "correlation_with_neutral",
        "neutral_abs_mean",
    )
    inputs = "predictions: feature values h. references: labels +1 (first class), -1 (second class), 0 (neutral)."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        h, labels = torch.from_numpy(predictions), torch.from_numpy(references)
        neutral = labels == 0
        report = encoder_report(h[~neutral], labels[~neutral], ("positive", "negative"), h[neutral])
        return {name: value for name in self.names if (value := getattr(report, name)) is not None}


class ProbabilityShift(_FloatMetric):
    """Change that an edit makes to the probability of a class's words."""

    description = "Mean probability of a class's words at the slots, under the edited model and the base model."
    inputs = "predictions: probabilities under the edited model. references: under the base model, for the same rows."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        edited, base = float(predictions.mean()), float(references.mean())
        return {"probability": edited, "base_probability": base, "probability_shift": edited - base}


class LanguageModelingScore(_FloatMetric):
    """Quality of the language model that an edit leaves."""

    description = (
        "The base model's mean negative log-likelihood per token of neutral text, divided by the edited model's: 1 is "
        "undamaged. Where the base model's is below 1 nat, the same rise from 1. For masked models the negative "
        "pseudo-log-likelihood."
    )
    inputs = "predictions: nats per token under the edited model. references: under the base model, same tokens."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        edited, base = float(predictions.mean()), float(references.mean())
        if edited <= 0 or base <= 0:
            raise DataError(
                f"{self.name}: the mean NLLs are {edited:g} (edited) and {base:g} (base), but a score is their ratio: both "
                "have to be above 0. Give nats per token, -log P."
            )
        return {"quality": relative_quality(edited, base), "nll": edited, "base_nll": base}


class StereotypeScore(_FloatMetric):
    """Share of pairs of sentences whose first one a model finds likelier."""

    description = (
        "Percentage of pairs in which the stereotyping sentence is the likelier one; 50 is no preference, ties count for "
        "neither (CrowS-Pairs, WinoBias, and SS of StereoSet)."
    )
    inputs = "predictions: log-likelihoods of the stereotyping sentences. references: of the other ones."
    citation_text = CROWS_PAIRS

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        hits, decided = preferred(predictions, references)
        if not decided:
            raise DataError("stereotype_score: all pairs are equally likely, so none of them says anything.")
        return {"stereotype_score": 100 * hits / decided}
