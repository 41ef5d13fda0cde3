"""`gradiend-hub evaluate --lm-eval`: the harness's own figures of the edited model, in report and card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gradiend_hub import GradiendModel
from gradiend_hub.cards import write_card
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.benchmarks import HarnessTask, side_effects

from .conftest import Run

pytest.importorskip("lm_eval.evaluator", reason="pip install lm-eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
TEXTS = {
    "The man was tired when": 0,
    "The men were tired when": 1,
    "The boy left because": 0,
    "The girls left because": 1,
}
TASK = """task: number
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["he", "they"]
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS.items()]
    (folder / "number.jsonl").write_text("\n".join(rows))
    (folder / "number.yaml").write_text(TASK.format(file=folder / "number.jsonl"))
    return folder


def by_hand(model: GradiendModel) -> float:
    """Share of texts that go on likelier with the wanted word, as a sum of the logs of its tokens."""
    right = []
    for text, label in TEXTS.items():
        scores = []
        for word in ("he", "they"):
            prompt = model.tokenizer(text)["input_ids"]
            ids = model.tokenizer(f"{text} {word}")["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(logs[place - 1, ids[place]]) for place in range(len(prompt), len(ids))))
        right.append(scores[label] > scores[1 - label])
    return sum(right) / len(right)


def test_before_and_after_in_report_and_card(run: Run, causal_direction: Path, tasks: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(causal_direction, copy)
    data = Path(__file__).parents[2] / "examples" / "data" / "pronouns"
    out = tmp_path / "measured.json"
    options = ("--data", data, "--strengths", "-1,0,1", "--controls", "0", "--out", out)
    done = run("evaluate", copy, *options, "--lm-eval", "number", "--lm-eval-include", tasks, "--json")
    assert done.exit_code == 0, done.stderr
    report = Report.load(out)
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    found = {result.strength: result for result in report.side_effects}
    assert {-1.0, 0.0, 1.0} <= found.keys()
    for strength, result in found.items():
        assert result.name == "lm-eval number" and result.rows == len(TEXTS) and "version" in result.source
        with model.strength_at(strength):
            assert result.scores["acc"] == pytest.approx(by_hand(model))
    assert any(figure["name"].startswith("lm-eval number acc") for figure in json.loads(done.stdout)["figures"])
    again = side_effects(model, model.tokenizer, [HarnessTask("number", str(tasks))], (0.0, 1.0))
    assert [r.scores for r in again] == [found[0.0].scores, found[1.0].scores]
    # a card shows side effects beside what was measured of the direction
    assert "lm-eval number&#58; acc" in write_card(copy, report=report).read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lm-eval", "numbre", "--lm-eval-include", "{tasks}"), "did you mean"),
        (("--lm-eval", "number", "--lm-eval-include", "{tasks}/nowhere"), "expected a folder with task files"),
        (("--lm-eval-include", "{tasks}"), "name a task of it"),
    ],
)
def test_bad_input(
    run: Run, causal_direction: Path, tasks: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "measured.json"
    given = [text.format(tasks=tasks) for text in options]
    refused = run("evaluate", causal_direction, "--data", "nowhere.csv", "--out", out, *given)
    assert refused.exit_code == 1 and said in " ".join(refused.stderr.split()) and not out.exists()


def test_masked_models_are_refused(trained: object, tasks: Path) -> None:
    model = GradiendModel.from_pretrained(trained.folder)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"causal language models.*--bench"):
        HarnessTask("number", str(tasks)).run(model, model.tokenizer)
