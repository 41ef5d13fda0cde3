"""Rows without a finite loss or gradient are named and left out; many of them are an error."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from gradiend_hub.errors import TrainingError
from gradiend_hub.gradients import GradientReader, Scope, SkippedRows, prune, read_pair, select_parameters
from gradiend_hub.objectives import Example
from tests.gradients.test_pairs import ARCHITECTURES, examples
from tests.models import build
from tests.objectives.support import ids_of, objective, samples


def whole(model: nn.Module) -> Scope:
    return Scope.dense(select_parameters(model))


def poisoned(rows: list[Example], *bad: int) -> nn.Module:
    """A model whose loss is NaN for some rows."""
    model = build("bert")
    with torch.no_grad():
        model.cls.predictions.decoder.weight = nn.Parameter(build("bert").cls.predictions.decoder.weight.clone())
        for i in bad:
            others = {t for n, row in enumerate(rows) if n not in bad for t in ids_of(row.factual)}
            token = next(t for t in ids_of(rows[i].factual) if t not in others)
            model.bert.embeddings.word_embeddings.weight[token] = float("nan")
    return model


def test_a_row_with_a_loss_that_is_not_finite_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows, how = examples(), objective("bert")
    model = poisoned(rows, 1)
    with GradientReader(model, whole(model)) as reader, caplog.at_level(logging.WARNING):
        expected = read_pair(reader, how, how.collate_pairs([rows[0], rows[2]]))
        skipped = SkippedRows(3)
        for _ in range(2):
            pair = skipped.read_pair(reader, how, how.collate_pairs(rows))
            assert pair is not None
            for found, wanted in zip(pair, expected, strict=True):
                assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    slot = rows[1].factual.positions[0]
    ids = " ".join("[MASK]" if i == slot else str(t) for i, t in enumerate(ids_of(rows[1].factual)))
    assert [r.getMessage() for r in caplog.records] == [
        f"Row left out, its loss is not finite: '{ids}' with '{rows[1].factual.labels[0]}' or "
        f"'{rows[1].alternative.labels[0]}'"
    ]
    assert len(skipped.rows) == 1


@pytest.mark.parametrize("shared", [True, False], ids=["one-forward", "two-forwards"])
def test_a_row_whose_gradient_overflows_is_left_out(shared: bool) -> None:
    rows, how = examples(shared=shared), objective("bert")
    model = build("bert")
    unlucky = model.bert.embeddings.word_embeddings.weight[ids_of(rows[2].factual)[0]].detach().clone()

    def overflow(_module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        hit = (inputs[0] == ids_of(rows[2].factual)[0]).any(1)
        if output.requires_grad:
            output.register_hook(lambda grad: torch.where(hit[:, None, None], grad * float("inf"), grad))

    model.bert.embeddings.word_embeddings.register_forward_hook(overflow)
    scope = Scope.dense(select_parameters(model, scope="*word_embeddings*"))
    assert not any(ids_of(rows[2].factual)[0] in ids_of(r.factual) + ids_of(r.alternative) for r in rows[:2])
    with GradientReader(model, scope) as reader:
        with pytest.raises(TrainingError, match="gradient is not finite"):
            read_pair(reader, how, how.collate_pairs(rows))
        skipped = SkippedRows(3)
        pair = skipped.read_pair(reader, how, how.collate_pairs(rows))
        expected = read_pair(reader, how, how.collate_pairs(rows[:2]))
    assert pair is not None
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(pair, expected, strict=True))
    assert list(skipped.rows.values()) == ["its gradient is not finite"]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[ids_of(rows[2].factual)[0]], unlucky)


def test_a_batch_without_a_usable_row_is_none() -> None:
    rows, how = examples(), objective("bert")
    model = poisoned(rows, 1)
    with GradientReader(model, whole(model)) as reader:
        assert SkippedRows(100).read_pair(reader, how, how.collate_pairs([rows[1]])) is None


def test_more_than_one_percent_is_an_error() -> None:
    rows, how = examples(), objective("bert")
    model = poisoned(rows, 0, 1, 2)
    with GradientReader(model, whole(model)) as reader:
        batch = how.collate_pairs(rows)
        assert SkippedRows(300).read_pair(reader, how, batch) is None
        with pytest.raises(
            TrainingError, match=r"3 of 299 rows have no finite loss.*more than the 2 that .*its loss is not"
        ):
            SkippedRows(299).read_pair(reader, how, batch)
        one = SkippedRows(1)
        with pytest.raises(TrainingError, match=r"2 of 1 rows"):
            one.read_pair(reader, how, batch)


def test_an_overflow_of_the_sum_alone_is_an_error() -> None:
    """No row is to blame, so none is left out."""
    rows, how = examples(), objective("bert")
    model = build("bert")

    def overflow(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad and len(output) > 1:
            output.register_hook(lambda grad: grad * float("inf"))

    model.bert.encoder.layer[1].output.dense.register_forward_hook(overflow)
    skipped = SkippedRows(100)
    with GradientReader(model, whole(model)) as reader, pytest.raises(TrainingError, match="float32 or bfloat16"):
        skipped.read_pair(reader, how, how.collate_pairs(rows))
    assert skipped.rows == {}


def test_parameters_that_never_get_a_gradient_are_named() -> None:
    model, how = build("bert"), objective("bert")
    model.spare = nn.Linear(2, 2)
    scope = Scope.dense(select_parameters(model, scope=["spare.*", "*layer.1.output.dense.*"]))
    with GradientReader(model, scope) as reader:
        assert list(reader.silent) == list(scope.parameters)
        read_pair(reader, how, how.collate_pairs(examples()))
        assert list(reader.silent) == ["spare.weight", "spare.bias"]
    with (
        GradientReader(model, Scope.dense(select_parameters(model, scope="spare.*"))) as reader,
        pytest.raises(TrainingError, match=r"2 of 2 parameters in scope never .* zero: spare.weight, spare.bias"),
    ):
        read_pair(reader, how, how.collate_pairs(examples()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_of_the_default_scope_gets_a_gradient(architecture: str) -> None:
    model, how = build(architecture), objective(architecture)
    with GradientReader(model, whole(model)) as reader:
        read_pair(reader, how, how.collate_pairs(examples()))
        assert list(reader.silent) == []


def test_rows_with_equal_fillers_are_no_fault() -> None:
    """Identity rows have a `diff` of zero, one by one; together with others they are fine."""
    rows, how = [Example(s, s) for s in samples()], objective("bert")
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        skipped = SkippedRows(6)
        assert skipped.read_pair(reader, how, how.collate_pairs([*rows, *examples()[:1]])) is not None
        with pytest.raises(TrainingError, match="diff gradient is zero"):
            skipped.read_pair(reader, how, how.collate_pairs(rows))
    assert skipped.rows == {}


@pytest.mark.parametrize("measure", ["mean", "snr"])
def test_a_row_that_cannot_be_read_does_not_choose_coordinates(measure: str, caplog: pytest.LogCaptureFixture) -> None:
    rows, how = examples(), objective("bert")
    labels = [1.0, 1.0, -1.0]
    model = poisoned(rows, 1)
    with GradientReader(model, whole(model)) as reader, caplog.at_level(logging.WARNING):
        found = prune(reader, how, rows, labels, density=0.01, measure=measure)
        expected = prune(reader, how, [rows[0], rows[2]], [1.0, -1.0], density=0.01, measure=measure)
    assert "Row left out, its loss is not finite" in caplog.text
    assert all(torch.equal(found.kept[name], kept) for name, kept in expected.kept.items())
