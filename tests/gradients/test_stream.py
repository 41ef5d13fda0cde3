"""Processes that share the rows of a batch read what one process reads; two of them are two threads here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradiend_hub.errors import TrainingError
from gradiend_hub.gradients import GradientReader, PairRows, PairStream, SkippedRows, stream
from tests.gradients.test_faults import poisoned, whole
from tests.gradients.test_pairs import examples
from tests.objectives.support import objective

WORLD = 2


class Threads:
    """What `torch.distributed` does, between threads."""

    def __init__(self) -> None:
        self.here, self.barrier, self.parts = local(), Barrier(WORLD, timeout=60), [None] * WORLD

    def run(self, work: Callable[[nn.Module], Any], bad: tuple[int, ...]) -> list[Any]:
        """The results of the work in each thread, with a model of its own whose loss is not finite on the bad rows."""
        models = [poisoned(examples(), *bad) for _ in range(WORLD)]

        def at(rank: int) -> Any:
            self.here.rank = rank
            return work(models[rank])

        with ThreadPoolExecutor(WORLD) as pool:
            return list(pool.map(at, range(WORLD)))

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self) -> int:
        return int(self.here.rank)

    def get_world_size(self) -> int:
        return WORLD

    def all_gather_object(self, found: list[Any], own: Any) -> None:
        self.barrier.wait()
        self.parts[self.here.rank] = own
        self.barrier.wait()
        found[:] = self.parts

    def all_reduce(self, tensor: Tensor) -> None:
        parts: list[Any] = [None] * WORLD
        self.all_gather_object(parts, tensor.clone())
        tensor.copy_(torch.stack(parts).sum(0))


def streamed(model: nn.Module, share: float, source: str = "alternative") -> Any:
    """The pair of all rows and the rows that were left out."""
    rows, how = examples(), objective("bert")
    skipped = SkippedRows(len(rows), share=share)
    of_rows = PairRows(rows, [1.0] * len(rows), source, "diff")
    with GradientReader(model, whole(model), reuse=True) as reader:
        pairs = PairStream(reader, how, of_rows, skipped=skipped, state_vectors=8)
        return pairs.pair(range(len(rows))), set(skipped.rows)


@pytest.mark.parametrize("bad", [(), (0,), (1,)], ids=["all", "one-of-two", "one-of-one"])
@pytest.mark.parametrize("source", ["alternative", "diff"])
def test_two_processes_read_what_one_reads(bad: tuple[int, ...], source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of usable rows each has: 2 and 1, 1 and 1, or 2 and none."""
    expected, left_out = streamed(poisoned(examples(), *bad), 0.5, source)
    threads = Threads()
    monkeypatch.setattr(stream, "distributed", threads)
    for found, skipped in threads.run(lambda model: streamed(model, 0.5, source), bad):
        assert skipped == left_out and len(skipped) == len(bad)
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-5


def test_rows_of_all_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves out one of three rows, which alone would be allowed."""
    threads = Threads()
    monkeypatch.setattr(stream, "distributed", threads)
    errors: list[str] = []

    def work(model: nn.Module) -> None:
        with pytest.raises(TrainingError) as caught:
            streamed(model, 0.34)
        errors.append(str(caught.value))

    threads.run(work, (0, 1))
    assert len(errors) == WORLD and all(error.startswith("2 of 3 rows have no finite loss") for error in errors)
