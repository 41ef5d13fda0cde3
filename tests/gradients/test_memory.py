"""Predicted time and memory, and what is said when memory ran out."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradiend_hub.errors import TrainingError
from gradiend_hub.gradients import (
    Estimate,
    GradientReader,
    Scope,
    Workload,
    estimate,
    memory_advised,
    select_parameters,
)
from gradiend_hub.gradients.memory import (
    activation_bytes,
    format_bytes,
    is_out_of_memory,
    memory_advice,
    resident_bytes,
)
from gradiend_hub.objectives import Objective, PairBatch
from tests.gradients.test_checkpointing import enable
from tests.gradients.test_pairs import examples
from tests.models import build
from tests.objectives.support import objective


def whole(model: nn.Module, **options: Any) -> Scope:
    return Scope.dense(select_parameters(model, **options))


def batch(rows: int = 1) -> PairBatch:
    return objective("bert").collate_pairs([*examples()] * rows)


def test_activations_of_a_network_that_can_be_counted_by_hand() -> None:
    """Two matrices with a tanh between them keep their two inputs, [5, 8] and [5, 16]; the second is tanh's output, too."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    inputs = torch.ones(5, 8)

    def losses(network: nn.Module, _batch: object) -> tuple[Tensor, Tensor]:
        out = network(inputs).sum(1)
        return out, out

    how: Any = SimpleNamespace(losses=losses)
    nothing: Any = None
    with GradientReader(model, whole(model)) as reader:
        assert activation_bytes(reader, how, nothing) == 4 * 5 * (8 + 16)
    with GradientReader(model, whole(model, scope="2.*")) as reader:
        assert activation_bytes(reader, how, nothing) == 4 * 5 * 16


def test_activations_grow_with_the_rows_and_shrink_with_the_scope() -> None:
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        one, three = (activation_bytes(reader, objective("bert"), batch(n)) for n in (1, 3))
    with GradientReader(model, whole(model, layers="1")) as reader:
        upper = activation_bytes(reader, objective("bert"), batch())
    assert three == pytest.approx(3 * one, rel=0.01)
    assert upper < 0.7 * one


def test_estimate() -> None:
    model, seen = build("bert"), []
    scope = whole(model)

    def observe(source: Tensor, target: Tensor) -> None:
        seen.append((source.shape, target.shape))
        time.sleep(0.01)

    with GradientReader(model, scope) as reader:
        work = Workload(batch(), batch(4), steps=500, reads=500, state_vectors=12, observe=observe)
        found = estimate(reader, objective("bert"), work)
        expected = activation_bytes(reader, objective("bert"), batch(4))
    assert seen == [((scope.size,), (scope.size,))] * 3
    assert found.seconds == 500 * found.step_seconds > 5
    assert found.base_bytes == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert found.activation_bytes == expected
    assert found.gradient_bytes == 2 * 4 * scope.size + max(p.nbytes for p in scope.parameters.values())
    assert found.state_bytes == 12 * 4 * scope.size
    assert found.working_bytes == pytest.approx(expected / 2, rel=0.1)  # one of two blocks
    parts = (found.base_bytes, expected, found.working_bytes, found.gradient_bytes, found.state_bytes)
    assert found.peak_bytes == sum(parts)


def test_estimate_with_checkpointing() -> None:
    """Less is kept, and the block at work needs itself twice: once recomputed, once for its backward pass."""
    model, found = build("bert"), []
    for recompute in (False, True):
        if recompute:
            enable(model)
        with GradientReader(model, whole(model)) as reader:
            work = Workload(batch(), batch(), steps=1, reads=1, state_vectors=0)
            found.append(estimate(reader, objective("bert"), work))
            assert any(module.training for module in model.modules()) == recompute
    plain, recomputed = found
    assert recomputed.activation_bytes < 0.6 * plain.activation_bytes
    assert recomputed.working_bytes == pytest.approx(2 * plain.working_bytes, rel=0.1)


def test_estimate_as_a_table() -> None:
    figures = Estimate(
        steps=1000, step_seconds=3.7, base_bytes=440_000_000, activation_bytes=1_200_000_000, working_bytes=50_000_000,
        gradient_bytes=86_000_000, state_bytes=4_000_000_000, reads=900, learn_seconds=0.1, store_bytes=120_000,
        saved_bytes=30_000, later_seconds={"evaluating": 300.0, "saving": 20.0}, later_bytes=2_000_000_000,
        process_bytes=500_000_000,
    )  # fmt: skip
    assert figures.learning_seconds == pytest.approx(900 * 3.7 + 100 * 0.1)
    assert figures.seconds == pytest.approx(figures.learning_seconds + 320)
    assert figures.peak_bytes == 6_940_000_000  # measuring takes more than learning does
    assert str(figures).splitlines() == [
        "time             1:01:00 (a rough guess of what this machine needs)",
        "  learning       0:55:40 (1,000 steps of 3.7 s, 100 of them from the store, of 0.1 s)",
        "  evaluating     0:05:00",
        "  saving         0:00:20",
        "peak memory      6.94 GB",
        "  libraries      500 MB",
        "  base model     440 MB",
        "  solver         4 GB",
        "  gradients      1.34 GB",
        "  measuring      2 GB",
        "on disk          150 kB",
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    model = build("bert")
    scope = whole(model)
    assert is_out_of_memory(error)
    with GradientReader(model, scope) as reader:
        with (
            pytest.raises(
                TrainingError, match=r"Out of memory with 6 rows of up to 12 tokens per gradient. Use one of: "
            ) as caught,
            memory_advised(reader, objective("bert"), batch(2), state_vectors=14),
        ):
            raise error
        activations = activation_bytes(reader, objective("bert"), batch(2))
    assert caught.value.__cause__ is error
    message = str(caught.value)
    assert f"density=0.1 in place of 1 (saves {format_bytes(0.9 * 14 * 4 * scope.size)} of vectors)" in message
    halved = re.search(r"per_device_train_batch_size=3 in place of 6 \(saves ([\d.]+) kB of activations\)", message)
    assert halved is not None
    assert float(halved[1]) * 1000 == pytest.approx(activations / 2, rel=0.2)
    lower = sum(p.numel() for n, p in scope.parameters.items() if ".layer.0." in n)
    assert f'layers="1" as scope (saves {format_bytes(14 * 4 * lower + float(halved[1]) * 1000)}' in message


def test_a_real_allocation_that_fails() -> None:
    model = build("bert")
    with (
        GradientReader(model, whole(model)) as reader,
        pytest.raises(TrainingError, match="Out of memory with 3 rows"),
        memory_advised(reader, objective("bert"), batch(), state_vectors=14),
    ):
        torch.empty(1 << 55)


def test_other_errors_are_left_alone() -> None:
    model = build("bert")
    how: Objective = objective("bert")
    with GradientReader(model, whole(model)) as reader:
        for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x")):
            with pytest.raises(type(error), match=r"x|mat1"), memory_advised(reader, how, batch(), state_vectors=1):
                raise error


def test_advice_is_ranked_and_leaves_out_what_cannot_be_lowered() -> None:
    model = build("bert")
    scope = whole(model)
    many = memory_advice(scope, rows=16, activations=10**9, state_vectors=1)
    few = memory_advice(scope, rows=16, activations=1, state_vectors=1, density=0.5)
    assert many.index("layers=") < many.index("batch_size=8") < many.index("density=0.1")
    assert few.index("density=0.05 in place of 0.5") < few.index("layers=") < few.index("batch_size")
    assert "saves 500 MB of activations" in many
    last = memory_advice(whole(model, layers="1"), rows=1, activations=10**9, state_vectors=1)
    assert "batch_size" not in last
    assert "layers" not in last
    deep = Scope.dense({f"h.{i}.weight": nn.Parameter(torch.zeros(2)) for i in range(12)})
    assert 'layers="6-11" as scope (saves 500 MB' in memory_advice(deep, rows=4, activations=10**9, state_vectors=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the system's own figure is taken")
def test_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    """Whose peak Linux hands on as `ru_maxrss`."""
    held = torch.ones(40_000_000)  # 160 MB, which are at work
    imports = "from __future__ import annotations\nimport sys\nfrom pathlib import Path\n"
    code = f"{imports}{inspect.getsource(resident_bytes)}\nprint(resident_bytes())"
    own = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 2_000_000 < own < held.nbytes < resident_bytes()
