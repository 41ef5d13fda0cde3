"""Bias benchmarks: functions of (model, tokenizer, data) that return rows, scores and intervals.

The data is never part of this package: name a local file in the published layout, or a data set on the Hub. A
`GradiendModel` is measured at its current strength:

```python
with model.strength_at(1.0):
    run = crows_pairs(model, tokenizer, "crows_pairs_anonymized.csv", strength=1.0)
report.side_effects.append(run.result)
```

Tasks of lm-evaluation-harness (causal models; extra `[lm-eval]`) are run the same way:

```python
task = HarnessTask("number", include="tasks")  # the folder of a task's YAML file; none for the harness's own tasks
report.side_effects += side_effects(model, model.tokenizer, [task])
```

On the command line: `gradiend-hub evaluate DIRECTION --data DATA --lm-eval number --lm-eval-include tasks`.

`tasks/number.yaml`, beside which `number.jsonl` has lines such as `{"text": "The man was tired when", "label": 0}`:

```yaml
task: number
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/number.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["he", "they"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
```
"""

from __future__ import annotations

from .association import association_test
from .harness import HarnessTask
from .registry import BENCHMARKS, Benchmark, side_effects
from .scoring import BenchmarkRun, SentenceScorer
from .sentence_pairs import crows_pairs, winobias
from .stereoset import stereoset
from .winogender import winogender

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkRun",
    "HarnessTask",
    "SentenceScorer",
    "association_test",
    "crows_pairs",
    "side_effects",
    "stereoset",
    "winobias",
    "winogender",
]
