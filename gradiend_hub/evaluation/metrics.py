"""The figures of a report as `evaluate` modules: they work offline, and `evaluate.combine` takes several of them.

```python
import evaluate
from .metrics import EncoderCorrelation, ProbabilityShift

EncoderCorrelation().compute(predictions=h, references=labels)
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

__all__ = ["EncoderCorrelation", "LanguageModelingScore", "ProbabilityShift", "StereotypeScore"]

_GRADIEND = """@article{gradiend,
  title  = {GRADIEND: Feature Learning within Neural Networks Exemplified through Biases},
  author = {Drechsel, Jonathan and Herbold, Steffen},
  journal = {arXiv preprint arXiv:2502.01406}, year = {2025}}"""

_PAIRS = """@inproceedings{nangia2020crows,
  title = {CrowS-Pairs: A Challenge Dataset for Measuring Social Biases in Masked Language Models},
  author = {Nangia, Nikita and Vania, Clara and Bhalerao, Rasika and Bowman, Samuel R.},
  booktitle = {EMNLP}, year = {2020}}"""


class _FloatMetric(evaluate.Metric, ABC):  # type: ignore[misc]
    """A metric of two lists of floats."""

    description = ""
    inputs = ""
    citation_text = _GRADIEND

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description=self.description, citation=self.citation_text, inputs_description=self.inputs,
            features=datasets.Features(features),
        )  # fmt: skip

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
    """How well feature values separate two classes: correlation, accuracy and AUC."""

    description = (
        "Separation of two feature classes by the encoder's feature values h in (-1, 1): Pearson's and Spearman's "
        "correlation with the labels, accuracy of the sign, AUC. Rows of label 0 are neutral: they count for "
        "correlation_with_neutral, ternary_accuracy (thresholds ±0.5) and neutral_abs_mean only."
    )
    inputs = "predictions: feature values h. references: labels +1 (first class), -1 (second class), 0 (neutral)."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        h, labels = torch.from_numpy(predictions), torch.from_numpy(references)
        neutral = labels == 0
        report = encoder_report(h[~neutral], labels[~neutral], ("positive", "negative"), h[neutral])
        named = ("correlation", "spearman", "accuracy", "auc", "ternary_accuracy", "correlation_with_neutral",
                 "neutral_abs_mean")  # fmt: skip
        return {name: value for name in named if (value := getattr(report, name)) is not None}


class ProbabilityShift(_FloatMetric):
    """What an edit does to the probability of a class's words."""

    description = "Mean probability of a class's words at the slots, under the edited model and the base model."
    inputs = "predictions: probabilities under the edited model. references: under the base model, for the same rows."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        edited, base = float(predictions.mean()), float(references.mean())
        return {"probability": edited, "base_probability": base, "probability_shift": edited - base}


class LanguageModelingScore(_FloatMetric):
    """How much of the language model an edit leaves."""

    description = (
        "The base model's mean negative log-likelihood per token of neutral text, divided by the edited model's: 1 is "
        "undamaged. For masked models the negative pseudo-log-likelihood."
    )
    inputs = "predictions: nats per token under the edited model. references: under the base model, same tokens."

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        edited, base = float(predictions.mean()), float(references.mean())
        if edited <= 0 or base <= 0:
            raise DataError(
                f"{self.name}: the mean NLLs are {edited:g} (edited) and {base:g} (base), but a score is their ratio: both "
                "have to be above 0. Give nats per token, -log P."
            )
        return {"quality": base / edited, "nll": edited, "base_nll": base}


class StereotypeScore(_FloatMetric):
    """Which of two sentences a model finds likelier."""

    description = (
        "Percentage of pairs in which the stereotyping sentence is the likelier one; 50 is no preference, ties count for "
        "neither (CrowS-Pairs, WinoBias, and SS of StereoSet)."
    )
    inputs = "predictions: log-likelihoods of the stereotyping sentences. references: of the other ones."
    citation_text = _PAIRS

    def figures(self, predictions: Any, references: Any) -> dict[str, float]:
        decided = predictions != references
        if not decided.any():
            raise DataError("stereotype_score: all pairs are equally likely, so none of them says anything.")
        return {"stereotype_score": float(100 * (predictions > references)[decided].mean())}
