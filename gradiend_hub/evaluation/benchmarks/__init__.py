"""Bias benchmarks: functions of (model, tokenizer, data) that return rows, scores and intervals.

The data is never part of this package: name a local file in the published layout, or a data set on the Hub. A
`GradiendModel` is measured at its current strength:

```python
with model.strength_at(1.0):
    run = crows_pairs(model, tokenizer, "crows_pairs_anonymized.csv", strength=1.0)
report.side_effects.append(run.result)
```

For other benchmarks hand the edited model to lm-evaluation-harness, which takes any transformers model in memory. Pass the
base model inside, whose weights hold the edit; a strength that is set later holds for the same harness object, too:

```python
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

model = GradiendModel.from_pretrained("my-direction", strength=0.0)  # of a causal base model
harness = HFLM(pretrained=model.get_base_model(), tokenizer=model.tokenizer, batch_size=16)
tasks = TaskManager(include_path="tasks", include_defaults=False)  # the folder of a task's YAML file
for strength in (-1.0, 0.0, 1.0):
    with model.strength_at(strength):
        results = lm_eval.simple_evaluate(harness, tasks=["number"], task_manager=tasks)
    print(f"{strength:+g}", results["results"]["number"]["acc,none"])
```

On the bundled causal model, with a 3SG/3PL direction of 60 steps and two sentences of each number, lm-eval 0.4.13 printed,
without network:

    -1 0.5
    +0 1.0
    +1 0.5

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
