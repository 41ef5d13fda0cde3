"""The example of an objective of one's own: its length, and the way from a record to a self-test of what was saved."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradiend_hub.errors import DataError
from gradiend_hub.objectives import OBJECTIVES, make_objective, objective_name

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_objective.py"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example as a module; its objective is not known to other tests."""
    spec = importlib.util.spec_from_file_location("own_objective", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del OBJECTIVES[module.LastWord.name]


def test_it_takes_at_most_sixty_lines() -> None:
    found = re.search(
        r"^# objective\n(.*?)^# end of the objective", EXAMPLE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found is not None and found[1].count("@register_objective") == 1
    assert len(found[1].strip().splitlines()) <= 60


def test_its_losses_are_plain_transformers(example: Any, causal_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(causal_path)
    columns = example.LastWord.columns
    assert objective_name(model, columns=columns) == "last_word"
    assert objective_name(model) == "causal_lm"  # without data, the one that the head stands for
    objective = make_objective(model, tokenizer, name="last_word")
    records = [
        dict(zip(columns, (text, "day", "night", "day", "night"), strict=True)) for text in ("It was", "He left by")
    ]
    rows = [objective.read(record) for record in records]
    assert [objective.record(row) for row in rows] == records
    factual, alternative = objective.losses(model, objective.collate_pairs([objective.example(row) for row in rows]))
    for i, row in enumerate(rows):
        logits = model(**tokenizer(row.input, return_tensors="pt")).logits[0, -1].log_softmax(-1)
        for loss, word in ((factual[i], "day"), (alternative[i], "night")):
            assert loss.item() == pytest.approx(-logits[tokenizer(f" {word}").input_ids[-1]].item(), rel=1e-4)
    with pytest.raises(DataError, match=r"column \['last'\] must be a text"):
        objective.read({**records[0], "last": 3})


def test_it_learns_measures_saves_loads_and_verifies(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    told = capsys.readouterr().out
    assert "objective: last_word" in told and "self-test passed: True" in told
    night = [float(value) for value in re.findall(r"P\(night\) ([\d.]+)", told)]
    assert night[0] > night[1] > night[2]
