"""Time and memory of reading gradients: predicted before a run, and explained when memory ran out."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from gradiend_hub.errors import TrainingError
from gradiend_hub.objectives import Objective, PairBatch
from gradiend_hub.scope import BLOCK, Scope

from .factor_reader import FactorReader
from .pairs import GradientReader, read_pair

Reader = GradientReader | FactorReader

_TIMED_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of a training and of what follows it.

    Attributes:
        steps: number of gradient pairs.
        step_seconds: time of one, computed and learned from.
        base_bytes: parameters and buffers of the base model.
        activation_bytes: what the forward pass of the largest batch keeps for its backward passes.
        working_bytes: what one block needs beside that while its backward pass runs.
        gradient_bytes: source and target vector, and the largest gradient of one parameter.
        state_bytes: vectors of solver and optimizer.
        reads: how many of the pairs are computed; the others are in a store.
        learn_seconds: time of learning from one, which is all that a stored one costs.
        store_bytes: a gradient store on disk; 0 without one.
        saved_bytes: checkpoints and direction on disk.
        later_seconds: seconds of everything else, by what it is.
        later_bytes: memory of the measurements beside base model and state.
        process_bytes: interpreter, libraries and data, and freed memory that the allocator keeps.
    """

    steps: int
    step_seconds: float
    base_bytes: int
    activation_bytes: int
    working_bytes: int
    gradient_bytes: int
    state_bytes: int
    reads: int
    learn_seconds: float
    store_bytes: int = 0
    saved_bytes: int = 0
    later_seconds: Mapping[str, float] = field(default_factory=dict)
    later_bytes: int = 0
    process_bytes: int = 0

    @property
    def learning_seconds(self) -> float:
        """Time of all steps."""
        return self.reads * self.step_seconds + (self.steps - self.reads) * self.learn_seconds

    @property
    def seconds(self) -> float:
        """Time of the whole job."""
        return self.learning_seconds + sum(self.later_seconds.values())

    @property
    def peak_bytes(self) -> int:
        """Memory, all devices together: while learning, or while measuring what was learned."""
        learning = self.activation_bytes + self.working_bytes + self.gradient_bytes
        return self.process_bytes + self.base_bytes + self.state_bytes + max(learning, self.later_bytes)

    def __str__(self) -> str:
        phases = {"learning": self.learning_seconds, **self.later_seconds}
        lines = {"time": f"{_clock(self.seconds)} (a rough guess of what this machine needs)"}
        lines |= {f"  {name}": _clock(seconds) for name, seconds in phases.items()}
        work = f"{self.steps:,} steps of {self.step_seconds:.3g} s"
        if self.reads < self.steps:
            work += f", {self.steps - self.reads:,} of them from the store, of {self.learn_seconds:.3g} s"
        lines["  learning"] += f" ({work})"
        lines |= {
            "peak memory": format_bytes(self.peak_bytes),
            "  libraries": format_bytes(self.process_bytes),
            "  base model": format_bytes(self.base_bytes),
            "  solver": format_bytes(self.state_bytes),
            "  gradients": format_bytes(self.gradient_bytes + self.activation_bytes + self.working_bytes),
            "  measuring": format_bytes(self.later_bytes),
        }
        if on_disk := self.store_bytes + self.saved_bytes:
            lines["on disk"] = format_bytes(on_disk)
        return "\n".join(f"{name:<16} {value}" for name, value in lines.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@dataclass(frozen=True)
class Workload:
    """The work whose learning is estimated.

    Attributes:
        typical: a typical batch, which is timed.
        largest: the batch with the most tokens, of which activations are counted.
        steps: batches of the whole training.
        reads: batches that are computed; the others come from a store.
        state_vectors: fp32 vectors [n] that solver and optimizer hold per run, times the number of runs.
        source, target: as in `GradiendConfig`.
        observe: what the solver does with a pair; it is called three times.
        learn: what the solver does with the typical batch, reading included, where it learns from no pairs.
    """

    typical: PairBatch
    largest: PairBatch
    steps: int
    reads: int
    state_vectors: float
    source: str = "alternative"
    target: str = "diff"
    observe: Callable[[Tensor, Tensor], object] = lambda _s, _t: None
    learn: Callable[[], object] | None = None


def estimate(reader: Reader, objective: Objective, work: Workload) -> Estimate:
    """Predict the cost of learning from a batch that is read three times, twice against the clock.

    Args:
        reader: an open reader; the batches are on its device.
    """

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        if isinstance(reader, FactorReader):
            assert work.learn is not None
            work.learn()
            return time.perf_counter() - start, 0.0
        pair = read_pair(reader, objective, work.typical, source=work.source, target=work.target)
        read = time.perf_counter()
        work.observe(*pair)
        return time.perf_counter() - start, time.perf_counter() - read

    step()  # kernels are chosen and memory is mapped the first time
    scope, vectors = reader.scope, len({work.source, work.target})
    whole, learning = zip(*(step() for _ in range(_TIMED_STEPS)), strict=True)
    tensors = [*reader.model.parameters(), *reader.model.buffers()]
    gradient = 4 * vectors * scope.size + max(p.nbytes for p in scope.parameters.values())
    if isinstance(reader, FactorReader):  # what is summed aside counts as the solver's
        gradient = max((scope.parameters[name].nbytes for name in reader.own), default=0)
    return Estimate(
        steps=work.steps,
        step_seconds=median(whole),
        base_bytes=sum(t.nbytes for t in tensors),
        activation_bytes=activation_bytes(reader, objective, work.largest),
        working_bytes=_working_bytes(reader, objective, work.largest),
        gradient_bytes=gradient,
        state_bytes=int(4 * work.state_vectors * scope.size),
        reads=work.reads,
        learn_seconds=median(learning),
    )


def activation_bytes(reader: Reader, objective: Objective, batch: PairBatch) -> int:
    """Count the bytes that a batch's forward pass keeps for its backward passes, parameters aside. Shared memory counts
    once.

    With gradient checkpointing, these are the inputs of the layers; one layer at a time adds its own.
    """
    known = {t.untyped_storage().data_ptr() for t in (*reader.model.parameters(), *reader.model.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = objective.losses(reader.model, batch)
    del losses  # the graph lived until here, so no address was counted for two tensors
    return sum(saved.values())


def _working_bytes(reader: Reader, objective: Objective, batch: PairBatch) -> int:
    """About as much as the block at work keeps; twice that where it is recomputed first. One row tells, without either."""
    recomputed = [m for m in reader.model.modules() if isinstance(m, GradientCheckpointingLayer) and m.training]
    blocks = len({m[1] for name in reader.scope.parameters if (m := BLOCK.search(name))})
    for layer in recomputed:
        layer.training = False
    try:
        row = activation_bytes(reader, objective, batch.select([0]))
    finally:
        for layer in recomputed:
            layer.training = True
    return len(batch) * row // max(blocks, 1) * (2 if recomputed else 1)


@contextmanager
def memory_advised(
    reader: Reader, objective: Objective, batch: PairBatch, *, state_vectors: float, density: float = 1.0
) -> Iterator[None]:
    """Inside, running out of memory is a `TrainingError` that says what to lower and what it would save."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, cost = len(batch), max(s.cost for s in batch.factual.samples)
        activations = rows * activation_bytes(reader, objective, batch.select([0]))
        advice = memory_advice(
            reader.scope, rows=rows, activations=activations, state_vectors=state_vectors, density=density
        )
        raise TrainingError(f"Out of memory with {rows} rows of up to {cost} tokens per gradient. {advice}") from error


@contextmanager
def state_advised(scope: Scope, *, state_vectors: float) -> Iterator[None]:
    """As `memory_advised`, for the vectors of solver and optimizer."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrainingError) or not is_out_of_memory(error):
            raise
        advice = memory_advice(scope, rows=1, activations=0, state_vectors=state_vectors, density=scope.density)
        raise TrainingError(
            f"Out of memory with {state_vectors:.3g} vectors of {scope.size:,} coordinates, of solver and optimizer. "
            f'{advice} Or keep fewer vectors: solver="closed_form", with rank=8 none, num_runs=1, or comparable=False.'
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a device or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and re.search(r"not enough memory|out of memory|can't allocate memory", str(error)) is not None
    )


def memory_advice(scope: Scope, *, rows: int, activations: int, state_vectors: float, density: float = 1.0) -> str:
    """Return what to lower, the largest saving first, and what each saves.

    Args:
        scope: the coordinates in use.
        rows: rows per gradient.
        activations: bytes that a forward pass of that many rows keeps.
        state_vectors: fp32 vectors [n] that are held: source, target, and those of solver and optimizer.
        density: share of the scope's coordinates that are kept at present.
    """
    state = int(4 * state_vectors * scope.size)
    advice = {f"density={density / 10:.2g} in place of {density:.2g}": (9 * state // 10, "of vectors")}
    if rows > 1:
        advice[f"per_device_train_batch_size={rows // 2} in place of {rows}"] = (
            activations * (rows - rows // 2) // rows,
            "of activations",
        )
    blocks = {int(m[1]) for name in scope.parameters if (m := BLOCK.search(name))}
    if len(blocks) > 1:
        upper = sorted(blocks)[(len(blocks) + 1) // 2 :]
        lower = [n for n in scope.parameters if (m := BLOCK.search(n)) and int(m[1]) not in upper]
        vectors = int(4 * state_vectors * sum(scope.sizes[n] for n in lower))
        graph = activations * (len(blocks) - len(upper)) // len(blocks)
        layers = f"{upper[0]}-{upper[-1]}" if len(upper) > 1 else str(upper[0])
        advice[f'layers="{layers}" as scope'] = (vectors + graph, "of vectors and activations")
    ranked = sorted(advice.items(), key=lambda item: -item[1][0])
    return (
        "Use one of: " + "; ".join(f"{what} (saves {format_bytes(size)} {kind})" for what, (size, kind) in ranked) + "."
    )


def resident_bytes() -> int:
    """Most memory that this process has held so far; 0 where the system does not say, on Windows."""
    if sys.platform == "win32":
        return 0
    try:  # on Linux, as a process inherits `ru_maxrss` from the one that started it
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def format_bytes(size: float) -> str:
    """A number of bytes for people, e.g. "1.5 GB" for 1.5e9."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
