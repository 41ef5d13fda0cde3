"""The order of batches: one transition each, in turn, cycled, and the same ones for the same seed and epoch."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gradiend_hub.data import TextRow
from gradiend_hub.objectives import Example
from gradiend_hub.training.batches import TransitionBatchSampler, TransitionDataset
from tests.objectives.support import sample_of

CLASSES = ["a", "b"]


def dataset(first: int, second: int, source: str = "alternative") -> TransitionDataset:
    """Rows of two transitions, mixed, of lengths 1…20."""
    kinds = sorted(["a"] * first + ["b"] * second, key=lambda _: 0)
    kinds = kinds[::2] + kinds[1::2]
    rows = [TextRow("x [MASK]", "f", "g", kind, "b" if kind == "a" else "a") for kind in kinds]
    slots = [sample_of((1,) * (1 + 7 * i % 20), (0,), (1,)) for i in range(len(rows))]
    return TransitionDataset(rows, [Example(s, s) for s in slots], CLASSES, source)


def test_labels_and_transitions() -> None:
    data = dataset(2, 1, "factual")
    assert len(data) == 3
    assert sorted(data.transitions) == [0, 0, 1]
    assert [label == 1.0 for label in data.labels] == [t == 0 for t in data.transitions]
    assert [label == -1.0 for label in dataset(2, 1).labels] == [t == 0 for t in data.transitions]
    assert [data[i] for i in range(3)] == [0, 1, 2]  # rows are read when their gradient is needed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_batches(first: int, second: int, batch_size: int, epoch: int) -> None:
    data = dataset(first, second)
    sampler = TransitionBatchSampler(data, batch_size, seed=5)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 2 * -(-max(first, second) // batch_size)
    for number, batch in enumerate(batches):
        assert {data.transitions[i] for i in batch} == {number % 2}  # they take turns
        assert len(set(batch)) == len(batch)
        assert len(batch) == min(batch_size, first if number % 2 == 0 else second)
    for transition, size in enumerate((first, second)):
        counts = Counter(i for batch in batches[transition::2] for i in batch)
        drawn = sum(counts.values())
        assert set(counts.values()) <= {drawn // size, -(-drawn // size)}  # cycled evenly


def test_no_row_twice_in_a_batch_where_a_cycle_ends() -> None:
    """With 5 rows in batches of 4, the second batch spans two cycles; it must not hold a row twice."""
    sampler = TransitionBatchSampler(dataset(5, 40), 4, seed=0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        assert all(len(set(batch)) == 4 for batch in sampler)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TransitionBatchSampler(dataset(30, 20), 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = {(s, e): order(s, e) for s in range(3) for e in range(3)}
    assert all(order(s, e) == batches for (s, e), batches in orders.items())
    assert len({str(batches) for batches in orders.values()}) == 9
    sampler = TransitionBatchSampler(dataset(30, 20), 4, seed=1)
    list(sampler)
    assert list(sampler) == orders[1, 0]  # reading does not change it


def test_rows_of_a_batch_have_similar_lengths() -> None:
    data = dataset(320, 320)
    batches = list(TransitionBatchSampler(data, 8, seed=0))
    spread = [max(data.examples[i].cost for i in b) - min(data.examples[i].cost for i in b) for b in batches]
    assert sum(spread) / len(spread) < 6  # of lengths 1…20; random batches have about 16
    means = [sum(data.examples[i].cost for i in b) / 8 for b in batches]
    assert sorted(means) != means


def test_works_in_a_loader() -> None:
    data = dataset(5, 3)
    loader = DataLoader(data, batch_sampler=TransitionBatchSampler(data, 2), collate_fn=len)
    assert list(loader) == [2] * 6
    assert len(loader) == 6


@pytest.mark.parametrize("count", [2, 10, 100])
@pytest.mark.parametrize("sizes", [(37, 11), (300, 1), (50, 50)])
def test_sample_has_both_classes(count: int, sizes: tuple[int, int]) -> None:
    data = dataset(*sizes)
    chosen = data.sample(count)
    assert len(set(chosen)) == len(chosen) <= count
    found = Counter(data.transitions[i] for i in chosen)
    for transition, size in enumerate(sizes):
        assert min(size, count // 2) / 2 <= found[transition] <= count // 2
    assert max(chosen) - min(chosen) > len(data) / 3 or count == 2


def test_fixed_batches_come_in_another_order_each_epoch() -> None:
    sampler = TransitionBatchSampler(dataset(40, 30), 8, seed=3, fixed=True)
    first = list(sampler)
    assert first == list(TransitionBatchSampler(sampler.dataset, 8, seed=3))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(map(tuple, second)) == sorted(map(tuple, first))
    kinds = [{sampler.dataset.transitions[i] for i in batch} for batch in second]
    assert kinds == [{0}, {1}] * (len(second) // 2)


def test_identity_rows_are_a_third_kind() -> None:
    rows = dataset(4, 4)
    data = TransitionDataset(
        [TextRow("[MASK]", "a", "b", *pair) for pair in (("A", "B"), ("B", "A"))], rows.examples[:2], ("A", "B"), "diff",
        rows.examples[2:5],
    )  # fmt: skip
    assert data.labels == [1.0, -1.0, 0.0, 0.0, 0.0]
    assert data.sample(10) == [0, 1]
    batches = list(TransitionBatchSampler(data, 2))
    assert [{data.labels[i] for i in batch} for batch in batches] == [{1.0}, {-1.0}, {0.0}] * 2
