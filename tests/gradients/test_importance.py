"""Pruning, compared with gradients of single rows by plain autograd and with numpy's sort."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.gradients import GradientReader, Scope, prune, select_parameters
from gradiend_hub.gradients.faults import SkippedRows
from gradiend_hub.gradients.importance import importance, top_k
from gradiend_hub.objectives import Example, Sample
from tests.models import build
from tests.objectives.support import objective, plain_logits, samples

LABELS = [1.0, -1.0, 1.0, 0.0, -1.0, 1.0, -1.0]
LENGTHS = (7, 4, 12, 5, 9, 6, 8)


def rows() -> list[Example]:
    """Class +1 goes from token 10 to 11, class −1 back; inputs are random."""
    examples = []
    for sample, label in zip(samples(LENGTHS, (1,) * 7), LABELS, strict=True):
        fillers = (10, 11) if label > 0 else (11, 10)
        examples.append(Example(*(Sample(sample.inputs, sample.positions, (f,), sample.cost) for f in fillers)))
    return examples


def whole(model: nn.Module) -> Scope:
    return Scope.dense(select_parameters(model))


def row_gradients(model: nn.Module, scope: Scope, gradient: str) -> np.ndarray:
    """∇L of every row alone by plain autograd, [N, n]."""
    made = []
    for row in rows():
        losses = [cross_entropy(plain_logits(model, s), torch.tensor(s.labels)) for s in (row.factual, row.alternative)]
        loss = {"factual": losses[0], "alternative": losses[1], "diff": losses[0] - losses[1]}[gradient]
        parts = torch.autograd.grad(loss, list(scope.parameters.values()))
        made.append(torch.cat([p.flatten() for p in parts]).double().numpy())
    return np.stack(made)


def expected(measure: str, gradients: np.ndarray) -> np.ndarray:
    labels = np.array(LABELS)
    plus, minus = gradients[labels > 0], gradients[labels < 0]
    difference = np.abs(plus.mean(0) - minus.mean(0))
    if measure == "mean":
        return difference / 2
    error = np.sqrt(plus.var(0, ddof=1) / len(plus) + minus.var(0, ddof=1) / len(minus))
    return difference / (error + 1e-4 * difference.mean())


@pytest.mark.parametrize("measure", ["mean", "snr"])
@pytest.mark.parametrize("gradient", ["factual", "alternative", "diff"])
def test_equal_to_row_gradients(measure: str, gradient: str) -> None:
    model = build("bert")
    scope = whole(model)
    with GradientReader(model, scope) as reader:
        values = importance(reader, objective("bert"), rows(), LABELS, measure=measure, gradient=gradient, batch_size=4)
    reference = expected(measure, row_gradients(model, scope, gradient))
    # the gradient of key biases is zero but for rounding, which differs
    np.testing.assert_allclose(values.numpy(), reference, rtol=1e-3, atol=5e-3 * np.median(reference))


@pytest.mark.parametrize("measure", ["mean", "snr"])
def test_batch_size_does_not_matter(measure: str) -> None:
    """Importance is linear in the rows; what is kept can differ only where values tie to rounding."""
    model = build("gpt2")
    kept, values = [], []
    with GradientReader(model, whole(model)) as reader:
        for batch_size in (1, 2, 3, 5, 64):
            options = {"measure": measure, "batch_size": batch_size}
            values.append(importance(reader, objective("gpt2"), rows(), LABELS, **options))
            scope = prune(reader, objective("gpt2"), rows(), LABELS, density=0.02, **options)
            kept.append({name: indices.tolist() for name, indices in scope.kept.items()})
    assert all(float((v - values[0]).norm() / values[0].norm()) < 1e-6 for v in values)
    assert all(k == kept[0] for k in kept)
    assert sum(map(len, kept[0].values())) == round(0.02 * len(values[0]))


def test_order_of_the_rows_does_not_matter() -> None:
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        forward = prune(reader, objective("bert"), rows(), LABELS, density=0.05)
        backward = prune(reader, objective("bert"), rows()[::-1], LABELS[::-1], density=0.05)
    assert {n: i.tolist() for n, i in forward.kept.items()} == {n: i.tolist() for n, i in backward.kept.items()}


def test_labels_keep_the_class_signal() -> None:
    """The mean of `diff` without labels, as the reference ranks by, nearly cancels; with labels it does not."""
    model = build("bert")
    scope = whole(model)
    with GradientReader(model, scope) as reader:
        aligned = importance(reader, objective("bert"), rows(), LABELS)
    gradients = row_gradients(model, scope, "diff")[np.array(LABELS) != 0]
    assert float(aligned.norm()) > 3 * np.linalg.norm(gradients.mean(0))


def test_pruned_scope_reads_the_most_important_coordinates() -> None:
    model = build("bert")
    dense = whole(model)
    with GradientReader(model, dense) as reader:
        values = importance(reader, objective("bert"), rows(), LABELS)
        scope = prune(reader, objective("bert"), rows(), LABELS, density=0.1)
        twice = prune(GradientReader(model, dense), objective("bert"), rows(), LABELS, density=1.0)
    assert scope.size == round(0.1 * dense.size)
    assert twice.size == dense.size
    assert all(indices.dtype == torch.int32 for indices in scope.kept.values())
    best = set(np.argsort(-values.numpy(), kind="stable")[: scope.size].tolist())
    starts = {name: where.start for name, where in dense.slices().items()}
    assert {starts[n] + int(i) for n, indices in scope.kept.items() for i in indices} == best
    with GradientReader(model, scope) as reader:
        again = prune(reader, objective("bert"), rows(), LABELS, density=0.1)
    best = set(np.argsort(-values.numpy(), kind="stable")[: again.size].tolist())
    assert {starts[n] + int(i) for n, indices in again.kept.items() for i in indices} == best


def test_samples_are_as_many_of_each_class() -> None:
    model = build("bert")
    labels = [1.0] * 5 + [-1.0, -1.0]
    with GradientReader(model, whole(model)) as reader:
        some = importance(reader, objective("bert"), rows(), labels, samples=4)
        picked = importance(reader, objective("bert"), [rows()[i] for i in (0, 2, 5, 6)], [1, 1, -1, -1])
        uneven = importance(reader, objective("bert"), rows(), labels)
    torch.testing.assert_close(some, picked)
    diff = row_gradients(model, whole(model), "diff")
    reference = np.abs(diff[:5].mean(0) - diff[5:].mean(0)) / 2  # both classes weigh the same
    np.testing.assert_allclose(uneven.numpy(), reference, rtol=1e-3, atol=1e-3 * np.median(reference))


def test_half_precision_base_is_accumulated_in_fp32() -> None:
    exact, model = build("bert"), build("bert", torch.bfloat16)
    with GradientReader(exact, whole(exact)) as reader:
        reference = importance(reader, objective("bert"), rows(), LABELS)
    with GradientReader(model, whole(model)) as reader:
        values = importance(reader, objective("bert"), rows(), LABELS, batch_size=1)
    assert values.dtype == torch.float32
    assert float(torch.cosine_similarity(values, reference, dim=0)) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"density must lie in \(0, 1\], found 0.0"),
        ({"density": 1.5}, r"found 1.5"),
        ({"density": 0.1, "measure": "l2"}, r"measure must be one of \('mean', 'snr'\), found 'l2'"),
        ({"density": 0.1, "samples": 1}, r"samples must be at least 2"),
        ({"density": 0.1, "labels": [1.0] * 7}, r"none of the 7 rows has label -1"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    model = build("bert")
    labels = options.pop("labels", LABELS)
    with GradientReader(model, whole(model)) as reader, pytest.raises(ConfigError, match=message):
        prune(reader, objective("bert"), rows(), labels, **options)  # type: ignore[arg-type]


def test_too_few_coordinates_with_a_gradient() -> None:
    model = build("bert")
    scope = Scope.dense(select_parameters(model, scope="*word_embeddings*"))
    with (
        GradientReader(model, scope) as reader,
        pytest.raises(TrainingError, match=r"density=0.9 keeps 1,397 coordinates, but only \d+ of 1,552"),
    ):
        prune(reader, objective("bert"), rows(), LABELS, density=0.9)


def unreadable(*numbers: int) -> nn.Module:
    """A base model whose loss is NaN for these rows: they alone have some token without an embedding."""
    model = build("bert")
    with torch.no_grad():
        for number in numbers:
            others = {i for n, row in enumerate(rows()) if n != number for i in row.factual.inputs["input_ids"]}
            token = next(i for i in rows()[number].factual.inputs["input_ids"] if i not in others)
            model.bert.embeddings.word_embeddings.weight[token] = float("nan")
        model.cls.predictions.decoder.weight = nn.Parameter(build("bert").cls.predictions.decoder.weight.clone())
    return model


@pytest.mark.parametrize("measure", ["mean", "snr"])
def test_a_row_without_a_finite_loss_is_left_out(measure: str, caplog: pytest.LogCaptureFixture) -> None:
    model, others = unreadable(2), [i for i in range(len(rows())) if i != 2]
    skipped = SkippedRows(len(rows()))
    with GradientReader(model, whole(model)) as reader:
        found = importance(reader, objective("bert"), rows(), LABELS, measure=measure, skipped=skipped)
        without = importance(
            reader, objective("bert"), [rows()[i] for i in others], [LABELS[i] for i in others], measure=measure
        )
    assert torch.equal(found, without) and bool(found.isfinite().all())
    assert len(skipped.rows) == 1 and "Row left out, its loss is not finite" in caplog.text


def test_what_is_not_finite_is_refused() -> None:
    model = unreadable(2, 4)
    with GradientReader(model, whole(model)) as reader, pytest.raises(TrainingError, match="2 of 7 rows"):
        prune(reader, objective("bert"), rows(), LABELS, density=0.1)
    model = build("bert")
    model.cls.predictions.transform.register_full_backward_hook(lambda _m, grads, _o: (grads[0] * float("inf"),))
    with GradientReader(model, whole(model)) as reader, pytest.raises(TrainingError, match=r"importance .* not finite"):
        prune(reader, objective("bert"), rows(), LABELS, density=0.1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), min_size=1, max_size=4), st.data())
def test_top_k_is_a_stable_sort(values: list[list[int]], data: st.DataObject) -> None:
    importance = {f"p{i}": torch.tensor(row, dtype=torch.float32) for i, row in enumerate(values)}
    flat = np.concatenate([np.array(row) for row in values])
    count = data.draw(st.integers(1, len(flat)))
    best = np.sort(np.argsort(-flat, kind="stable")[:count])
    chosen = top_k(importance, count)
    offsets = dict(zip(importance, np.cumsum([0, *map(len, values)]), strict=False))
    assert [int(i) + int(offsets[name]) for name, indices in chosen.items() for i in indices] == best.tolist()


@pytest.mark.parametrize("count", [1, 17, 1 << 20, 1_400_000, 1_500_000])
def test_top_k_of_many_values(count: int) -> None:
    """More values than are counted at a time, subnormal and huge ones and many ties among them."""
    generator = np.random.default_rng(0)
    flat = np.exp(generator.normal(0, 30, 1_500_000).clip(-100, 88)).astype(np.float32)
    flat[::7] = np.float32(1.0)
    importance = {"a": torch.from_numpy(flat[:1_200_000]), "b": torch.from_numpy(flat[1_200_000:])}
    chosen = top_k(importance, count)
    indices = np.concatenate([chosen["a"].numpy(), chosen["b"].numpy() + 1_200_000])
    assert np.array_equal(indices, np.sort(np.argsort(-flat, kind="stable")[:count]))


def test_top_k_of_matrices_is_in_flat_indices() -> None:
    importance = {"a": torch.tensor([[1.0, 9.0], [3.0, 0.0]]), "b": torch.tensor([[5.0]])}
    assert {n: i.tolist() for n, i in top_k(importance, 3).items()} == {"a": [1, 2], "b": [0]}


def allocated(call: Callable[[], object]) -> set[int]:
    """Sizes in bytes of what the operations of a call have allocated, their own temporaries included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    return {event.cpu_memory_usage for event in record.events()}


def test_choosing_makes_no_copy_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in fp64, nor a mask of all of them: chunks are looked at."""
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        sizes = allocated(lambda: prune(reader, objective("bert"), rows(), LABELS, density=0.01))
    assert 4 * reader.scope.size in sizes and 8 * reader.scope.size not in sizes
    monkeypatch.setattr("gradiend_hub.gradients.importance._CHUNK", 1 << 14)
    many = {"a": torch.rand(1_000_000)}
    assert max(allocated(lambda: top_k(many, 100))) < 1_000_000 == many["a"].numel()
