"""Parts of a solver's vectors by process, and what the processes tell each other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Shard:
    """The coordinates `where` of vectors [n], one of equally long parts (the last one may be shorter).

    Args:
        size: n.
        rank: number of this process, from 0.
        world: number of all processes.
    """

    size: int
    rank: int = 0
    world: int = 1

    @classmethod
    def of_process(cls, size: int) -> Shard:
        """This process's part in a distributed run, everything otherwise."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(size)
        return cls(size, distributed.get_rank(), distributed.get_world_size())

    @property
    def _step(self) -> int:
        return -(-self.size // self.world)

    @property
    def where(self) -> slice:
        """Coordinates of this process."""
        return slice(min(self.rank * self._step, self.size), min((self.rank + 1) * self._step, self.size))

    @property
    def length(self) -> int:
        """Number of them."""
        return len(range(self.size)[self.where])

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over all processes, in one call; each of the shape and type that it came with, summed in fp64."""
        if self.world == 1:
            return parts
        total = torch.cat([part.double().reshape(-1) for part in parts])
        distributed.all_reduce(total)
        sizes = [part.numel() for part in parts]
        return tuple(x.view_as(part).to(part) for x, part in zip(total.split(sizes), parts, strict=True))

    def whole(self, part: Tensor) -> Tensor:
        """All coordinates, in every process: [..., length] → [..., n]. All processes must call it."""
        if self.world == 1:
            return part
        padded = torch.nn.functional.pad(part.detach(), (0, self._step - self.length)).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(parts, padded)
        return torch.cat(parts, dim=-1)[..., : self.size]

    def follow(self, optimizer: torch.optim.Optimizer, vectors: Collection[nn.Parameter]) -> None:
        """Let the optimizer's `state_dict` be that of one process, too: moments of vectors are gathered and sliced again.

        From then on, all processes must call `state_dict` together.
        """
        if self.world == 1:
            return

        def hook(length: int, change: Callable[[Tensor], Tensor]) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
            def changed(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                copied = {i: dict(moments) for i, moments in state["state"].items()}
                for i, moments in copied.items():
                    if any(parameters[i] is vector for vector in vectors):
                        for name, x in moments.items():
                            if isinstance(x, Tensor) and x.dim() == 2 and x.shape[-1] == length:
                                moments[name] = change(x)
                return state | {"state": copied}

            return changed

        optimizer.register_state_dict_post_hook(hook(self.length, self.whole))
        optimizer.register_load_state_dict_pre_hook(hook(self.size, lambda x: x[..., self.where].clone()))
