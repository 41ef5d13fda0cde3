"""Whether a direction was learned is judged by rows that were not learned from, however few they are."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from gradiend_hub import GradiendTrainer
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.data import TextRow
from gradiend_hub.data.preference import PreferenceRow
from gradiend_hub.data.row import CounterfactualRow
from gradiend_hub.evaluation import Report
from gradiend_hub.solvers import convergence
from gradiend_hub.training.judging import FEW_GROUPS, units_of
from tests.training.support import arguments, trainer_of
from tests.training.test_promises import by_coin

FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}


def trained(base: Path, folder: Path, rows: Any, held_out: Any, **options: Any) -> GradiendTrainer:
    """A direction of 200 rows in closed form, on the last two layers."""
    args = arguments(folder, max_steps=-1, solver="closed_form", per_device_train_batch_size=16, controls=0)
    trainer = trainer_of(
        base, folder, rows, args=args, train_dataset=rows["train"].select(range(200)), eval_dataset=held_out, layers="2-3",
        fillers=FILLERS, **options,
    )  # fmt: skip
    trainer.train()
    return trainer


def distinct(rows: Any, count: int) -> Dataset:
    """Rows of both classes, as many of each, of as many templates or verses."""
    found: dict[str, list[dict[str, Any]]] = {"3SG": [], "3PL": []}
    for row in rows:
        of = found[row["factual_class"]]
        if row["source"] == "kjv" and len(of) < count // 2:
            of.append(row)
    return Dataset.from_list([row for of in found.values() for row in of])


def dealt(rows: Any) -> Any:
    """All rows with their classes by coin."""
    return {name: by_coin(part) for name, part in rows.items() if name in ("train", "validation")}


def test_eight_validation_rows_tell_real_classes_from_coins(masked_path: Path, tmp_path: Path, pronouns: Any) -> None:
    eight = distinct(pronouns["validation"], 8)
    assert len(eight) == 8
    real = trained(masked_path, tmp_path / "real", pronouns, eight).report
    assert (real.converged, real.verdict) == (True, "")
    coins = trained(masked_path, tmp_path / "coins", dealt(pronouns), by_coin(eight)).report
    assert coins.converged is False and coins.verdict.startswith("validation rows: correlation")


def test_without_rows_to_judge_by_that_is_said_everywhere(
    masked_path: Path, tmp_path: Path, pronouns: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(masked_path, tmp_path, pronouns, None, test_dataset=pronouns["test"].select(range(40)))
    trainer.save_model()
    reason = "not judged: no rows that were not learned from"
    report = Report.load(tmp_path)
    assert report.converged is None and report.verdict == reason
    assert "Whether this was learned is not known: no rows that were not learned from." in caplog.text
    card = unescape((tmp_path / CARD_FILE).read_text(encoding="utf-8"))
    assert f"**Whether this was learned is not known:** {reason}." in card and "Not learned" not in card
    assert reason in report._repr_html_()
    trainer.evaluate_test()
    assert (trainer.report.converged, trainer.report.verdict) == (True, "")
    found = trainer.report.splits["test"].encoder
    assert found is not None and found.correlation is not None and found.correlation > 0.9


def test_few_rows_are_not_judged(masked_path: Path, tmp_path: Path, pronouns: Any) -> None:
    report = trained(masked_path, tmp_path, pronouns, distinct(pronouns["validation"], 6)).report
    assert report.converged is None
    assert report.verdict == (
        "not judged: 6 validation rows, where fewer than 7 independent ones can be told apart by chance"
    )


@pytest.mark.parametrize("right", [True, False])
def test_many_rows_of_few_prompts_say_that_it_was_not_learned(
    masked_path: Path, tmp_path: Path, pronouns: Any, right: bool
) -> None:
    """They cannot say that it was; nor does a later set of them take back what was found."""
    trainer = trainer_of(masked_path, tmp_path, pronouns, layers="3")
    labels = 1.0 - 2.0 * (torch.arange(120) % 2)
    h = 0.9 * labels if right else torch.full((120,), 0.9)
    trainer._judge(convergence(h, labels, torch.arange(120) % 6, of="test rows"))
    assert trainer.report.converged is (None if right else False)
    assert trainer.report.verdict.startswith(
        "not judged: 120 test rows of 6" if right else "test rows: correlation +0.00"
    )
    trainer._judge(convergence(0.9 * labels, labels))
    assert trainer.report.converged is right


def pair(prompt: str, first: str, second: str) -> PreferenceRow:
    return PreferenceRow(prompt, first, second, "a", "b")


def test_units_are_pairs_templates_or_texts() -> None:
    def of(rows: list[Any]) -> list[int]:
        classes = ["a", "b"] if isinstance(rows[0], PreferenceRow) else ["3SG", "3PL"]
        found = units_of(rows, torch.tensor([row.label(classes, "factual") for row in rows]))
        return torch.unique(found, return_inverse=True)[1].tolist()

    pairs = [pair("p", " x", " y"), pair("p", " z", " y"), pair("q", " x", " y")]
    both = [*pairs, *(row.swapped for row in pairs)]
    assert of(both) == [0, 1, 2, 0, 1, 2]  # few prompts, each with both classes: its pairs
    many = [pair(f"p{i // 2}", f" x{i}", " y") for i in range(2 * FEW_GROUPS)]
    assert of([*many, *(row.swapped for row in many)])[:4] == [0, 0, 1, 1]  # many: the prompts
    assert of(pairs) == [0, 0, 1]  # each prompt with one class, which it may be told by

    frame = "The {} said yesterday evening in the small old town that [MASK] would not come back again."
    nouns = ("king", "queen", "bakers", "smiths")
    rows = [
        TextRow(frame.format(noun), *(("they", "he") if noun[-1] == "s" else ("he", "they")), *classes)
        for noun, classes in zip(nouns, [("3SG", "3PL")] * 2 + [("3PL", "3SG")] * 2, strict=True)
    ]
    assert of(rows) == [0, 1, 2, 3]  # of one template with both classes
    assert of(rows[:2]) == [0, 0]
    odd = TextRow("Yes, [MASK] did.", "he", "they", "3SG", "3PL")
    assert of([*rows, odd]) == [0, 1, 2, 3, 4]  # which makes no unit of the others

    inputs = [("one", "two"), ("three", "four"), (np.zeros((2, 2)), np.ones((2, 2)))]
    concepts = [CounterfactualRow(a, "3SG", "3PL", "3SG", "3PL", b, "label") for a, b in inputs]
    concepts += [CounterfactualRow(b, "3PL", "3SG", "3PL", "3SG", a, "label") for a, b in inputs]
    assert of(concepts) == [0, 1, 2, 0, 1, 2]
