"""Bias benchmarks: functions of (model, tokenizer, data) that return rows, scores and intervals.

The data is never part of this package: name a local file in the published layout, or a data set on the Hub. A
`GradiendModel` is measured at its current strength:

```python
with model.strength_at(1.0):
    run = crows_pairs(model, tokenizer, "crows_pairs_anonymized.csv", strength=1.0)
report.side_effects.append(run.result)
```

For other benchmarks hand the edited model to lm-evaluation-harness, which takes any transformers model in memory. Pass the
base model inside, whose weights hold the edit:

```python
import lm_eval
from lm_eval.models.huggingface import HFLM

model.set_strength(1.0)
harness = HFLM(pretrained=model.get_base_model(), tokenizer=tokenizer, batch_size=16)
results = lm_eval.simple_evaluate(harness, tasks=["lambada_openai", "blimp"])
```
"""

from __future__ import annotations

from .association import association_test
from .registry import BENCHMARKS, Benchmark, side_effects
from .scoring import BenchmarkRun, SentenceScorer
from .sentence_pairs import crows_pairs, winobias
from .stereoset import stereoset
from .winogender import winogender

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkRun",
    "SentenceScorer",
    "association_test",
    "crows_pairs",
    "side_effects",
    "stereoset",
    "winobias",
    "winogender",
]
