"""The largest of many scores, which are computed for one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def largest(scores: Mapping[str, Callable[[], Tensor]], count: int) -> dict[str, Tensor]:
    """Find the largest scores of all names: their places in order, int64, by name; without names that have none.

    The scores of one name are held at a time, beside up to five times `count`.

    Args:
        scores: computes the scores of each name, [k].
        count: how many to find over all names.
    """
    pool: list[tuple[Tensor, Tensor]] = []  # scores, and their numbers counted over all names
    starts, waiting = [0], 0
    for score in scores.values():
        values = score()
        places = torch.topk(values, min(count, len(values)), sorted=False).indices
        pool.append((values[places], places + starts[-1]))
        starts.append(starts[-1] + len(values))
        waiting += len(places)
        if waiting > 4 * count:
            pool, waiting = [_most(pool, count)], count
    numbers = _most(pool, count)[1].sort().values
    ends = torch.searchsorted(numbers, torch.tensor(starts)).tolist()
    found = {n: numbers[a:b] - at for n, at, a, b in zip(scores, starts[:-1], ends[:-1], ends[1:], strict=True)}
    return {name: places for name, places in found.items() if len(places)}


def _most(pool: Sequence[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Join pools of scores and numbers, and keep the largest."""
    values, numbers = (torch.cat(of) for of in zip(*pool, strict=True))
    kept = torch.topk(values, min(count, len(values)), sorted=False).indices
    return values[kept], numbers[kept]
