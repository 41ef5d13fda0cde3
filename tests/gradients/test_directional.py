"""Directional derivatives, compared with dot products of gradients of single rows."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.nn.functional import cross_entropy

from gradiend_hub.gradients import directional, directional_derivatives, select_parameters
from gradiend_hub.objectives import Sample
from tests.models import build
from tests.objectives.support import objective, plain_logits, samples
from tests.objectives.test_slots import LANGUAGE_MODELS

LENGTHS, SLOTS = (7, 4, 12, 9, 3), (1, 2, 1, 3, 1)


def tangents_of(model: nn.Module, **scope: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(p.shape, generator=generator) for n, p in select_parameters(model, **scope).items()}


def by_backward(model: nn.Module, rows: list[Sample], tangents: dict[str, torch.Tensor]) -> torch.Tensor:
    values = []
    for row in rows:
        loss = cross_entropy(plain_logits(model, row), torch.tensor(row.labels), reduction="sum")
        gradients = torch.autograd.grad(loss, [model.get_parameter(n) for n in tangents])
        values.append(sum((g * t).sum() for g, t in zip(gradients, tangents.values(), strict=True)))
    return torch.stack(values)


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_equal_to_dot_products_with_gradients(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(architecture)
    if architecture not in ("mixtral", "qwen2_moe"):  # their kernel has no forward-mode formula
        monkeypatch.delattr(directional, "_by_backward")
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model)
    values = directional_derivatives(model, objective(architecture), rows, tangents, batch_size=3)
    expected = by_backward(model, rows, tangents)
    assert values.dtype == torch.float32
    assert not any(p.grad is not None for p in model.parameters())
    assert float((values - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_bfloat16_models(architecture: str) -> None:
    """Within bf16's rounding of the exact derivatives at the same weights, by forward mode and by backward."""
    model, exact = build(architecture, torch.bfloat16), build(architecture, torch.bfloat16).float()
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(exact)
    expected = by_backward(exact, rows, tangents)
    values = directional_derivatives(model, objective(architecture), rows, tangents)
    slots = [objective(architecture).collate([row]) for row in rows]
    apart = torch.stack([directional._by_backward(model, objective(architecture), row, tangents) for row in slots])
    for found in (values, apart):
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="Mixtral's experts are operations with formulas there"
)
def test_a_missing_formula_is_said_once_and_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    model = build("mixtral")
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model)
    calls: list[nn.Module] = []
    model.register_forward_hook(lambda module, *_: calls.append(module))
    with caplog.at_level("INFO", logger="gradiend_hub"):
        first = directional_derivatives(model, objective("mixtral"), rows, tangents, batch_size=2)
        directional_derivatives(model, objective("mixtral"), rows, tangents, batch_size=2)
    (record,) = caplog.records
    assert "MixtralForCausalLM has an operation without a forward-mode formula" in record.getMessage()
    assert len(calls) == 2 * len(rows)  # the attempt ended before the model did
    torch.testing.assert_close(first, by_backward(model, rows, tangents), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", ["*embed_tokens*", "*norm*", "*"])
def test_every_scope(scope: str) -> None:
    """Tied embeddings count at both ends, norms as much as matrices."""
    model = build("llama_tied")
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model, scope=scope)
    values = directional_derivatives(model, objective("llama_tied"), rows, tangents)
    torch.testing.assert_close(values, by_backward(model, rows, tangents), rtol=1e-4, atol=1e-4)


def test_batch_size_and_order_do_not_matter() -> None:
    model = build("bert")
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model)
    together = directional_derivatives(model, objective("bert"), rows, tangents, batch_size=5)
    for batch_size in (1, 2, 4):
        apart = directional_derivatives(model, objective("bert"), rows[::-1], tangents, batch_size=batch_size)
        torch.testing.assert_close(apart.flip(0), together, rtol=1e-5, atol=1e-5)


def test_the_model_is_as_before_and_has_no_dropout() -> None:
    model = build("bert").train()
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    first, second = (directional_derivatives(model, objective("bert"), rows, tangents) for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert model.get_parameter(next(iter(tangents))) is dict(model.named_parameters())[next(iter(tangents))]


def test_a_direction_that_the_loss_does_not_see_has_derivative_zero() -> None:
    model = build("bert")
    model.unused = nn.Linear(2, 2)
    values = directional_derivatives(model, objective("bert"), samples(), {"unused.weight": torch.ones(2, 2)})
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert directional_derivatives(model, objective("bert"), [], tangents_of(model)).shape == (0,)


def test_a_long_direction_does_not_leave_the_numbers_of_fp16() -> None:
    """An encoder's vector may be of any length, and the derivative is linear in it."""
    model = build("bert").half()
    rows, tangents = samples(LENGTHS, SLOTS), tangents_of(model)
    short = directional_derivatives(model, objective("bert"), rows, {n: t / 64 for n, t in tangents.items()})
    long = directional_derivatives(model, objective("bert"), rows, {n: 2.0**14 * t for n, t in tangents.items()})
    assert torch.equal(long, 2.0**20 * short)
