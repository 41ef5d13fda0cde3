"""Kronecker factors of the Fisher information, against sums over tokens that plain hooks see."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradiend_hub.base_model import load_base_model
from gradiend_hub.gradients import (
    Curvature,
    FactorReader,
    KroneckerFactors,
    Scope,
    kronecker_factors,
    select_parameters,
)
from gradiend_hub.objectives import IGNORED, MaskedLMObjective, Objective, Sample

TEXTS = ["The house is old.", "A river runs through the town.", "Rain fell."]
LAYER = "bert.encoder.layer.3.attention.output.dense"
WIDTH = 224


@pytest.fixture(scope="module")
def base(masked_path: Path) -> tuple[nn.Module, Objective]:
    """The bundled masked model, and its objective."""
    return load_base_model(masked_path).float(), MaskedLMObjective(MaskedLMObjective.load_processor(str(masked_path)))


def read(base: tuple[nn.Module, Objective], **options: Any) -> KroneckerFactors:
    model, how = base
    with FactorReader(model, Scope.dense(select_parameters(model, layers="3"))) as reader:
        return kronecker_factors(reader, how, TEXTS, batch_size=1, **options)


def plain(model: nn.Module, how: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """E[x xᵀ], E[δ δᵀ] of a layer and E[g²] of its bias over the same draws, by hooks of torch alone, text by text."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    samples = [sample for text in TEXTS for sample in how.quality_samples(text, rng)]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs.append(args[0])
        output.retain_grad()
        outputs.append(output)

    handle = model.get_submodule(LAYER).register_forward_hook(keep)
    tokens, bias = 0, torch.zeros(WIDTH)
    for sample in sorted(samples, key=lambda s: s.cost):
        batch = how.collate([sample])
        log_probs = how.log_probs(model, batch)[batch.labels != IGNORED]
        labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
        model.zero_grad()
        (-log_probs.gather(1, labels).sum()).backward()
        tokens += len(labels)
        bias += model.get_submodule(LAYER).bias.grad.square()
    handle.remove()
    x, delta = (torch.cat([t.detach().flatten(0, 1) for t in found]) for found in (inputs, [o.grad for o in outputs]))
    return x.T @ x / tokens, delta.T @ delta / tokens, bias / tokens


def test_equal_to_sums_over_tokens(base: tuple[nn.Module, Objective]) -> None:
    expected = plain(*base)
    base[0].zero_grad()
    found = read(base, columns=WIDTH)
    for curvature, matrix in ((found.inputs, expected[0]), (found.outputs, expected[1])):
        one = curvature[f"{LAYER}.weight"]
        again = (one.vectors * one.values) @ one.vectors.T
        assert float((again - matrix.double()).norm() / matrix.norm()) < 1e-4
        torch.testing.assert_close(one.diagonal, matrix.diagonal().double(), rtol=1e-3, atol=1e-9)
        assert one.rest == 0
        assert one.mean == pytest.approx(float(matrix.diagonal().mean()), rel=1e-4)
    torch.testing.assert_close(found.diagonals[f"{LAYER}.bias"], expected[2].double(), rtol=1e-2, atol=1e-9)
    assert not any(p.grad is not None for p in base[0].parameters())


def test_replies_count_beside_texts_by_their_tokens(base: tuple[nn.Module, Objective]) -> None:
    """What the inputs of a layer are does not depend on drawn labels, so factors are means over all tokens."""
    model, how = base
    replies = how.quality_samples("The boat lies in the harbour.", random.Random(5))
    rng = random.Random(0)
    drawn = [sample for text in TEXTS for sample in how.quality_samples(text, rng)]
    name = f"{LAYER}.weight"

    def diagonal(texts: Sequence[str], of: Sequence[Sample]) -> Tensor:
        with FactorReader(model, Scope.dense(select_parameters(model, layers="3"))) as reader:
            return kronecker_factors(reader, how, texts, (), of, batch_size=1).inputs[name].diagonal

    of_texts, of_replies = diagonal(TEXTS, ()), diagonal((), replies)
    counts = [sum(len(sample.labels) for sample in samples) for samples in (drawn, replies)]
    expected = (counts[0] * of_texts + counts[1] * of_replies) / sum(counts)
    torch.testing.assert_close(diagonal(TEXTS, replies), expected, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(of_texts, of_replies, rtol=0.01)


def test_short_sketches_of_long_sides(base: tuple[nn.Module, Objective]) -> None:
    """What is left out is spread evenly, so that the trace stays, and large dampings see no difference."""
    exact, short = read(base, columns=WIDTH), read(base, columns=24)
    assert short.bytes < exact.bytes / 4
    right = torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(0))
    one, other = short.inputs[f"{LAYER}.weight"], exact.inputs[f"{LAYER}.weight"]
    assert len(one.values) <= 24
    trace = float(one.values.sum()) + one.rest * (WIDTH - len(one.values))
    assert trace == pytest.approx(WIDTH * other.mean, rel=1e-3)
    for damping, tolerance in ((10.0, 0.02), (0.1, 0.5)):
        mine, theirs = one.solve(right, damping), other.solve(right, damping)
        assert float((mine - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("damping", [0.01, 1.0, 100.0])
def test_solving(damping: float) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    matrix, right = root @ root.T, torch.randn(8, 3, generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix)
    mean = float(matrix.diagonal().mean())
    curvature = Curvature(values, vectors, 0.0, mean, matrix.diagonal())
    damped = matrix + damping * mean * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(curvature.solve(right, damping), torch.linalg.solve(damped, right))
    plain_solution = right / damped.diagonal()[:, None]
    torch.testing.assert_close(curvature.solve_diagonal(right, damping), plain_solution)
