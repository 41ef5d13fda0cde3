"""Directional derivatives, compared with dot products of gradients of single rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.gradients import Entries, Tangent, directional, directional_derivatives, select_parameters
from gradiend_hub.objectives import Sample
from tests.models import EXPERTS, build
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
    if architecture not in EXPERTS:  # their kernel has no forward-mode formula
        monkeypatch.delattr(directional, "_by_input_gradients")
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
    by_rows = directional._by_input_gradients(model, objective(architecture), rows, tangents)
    for found in (values, by_rows):
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.05


def compact(model: nn.Module, form: str, **scope: str) -> tuple[dict[str, Tangent], dict[str, torch.Tensor]]:
    """A direction of rank 2, or with every fifth entry, and the same in full."""
    generator = torch.Generator().manual_seed(7)
    tangents: dict[str, Tangent] = {}
    for name, parameter in select_parameters(model, **scope).items():
        shape = tuple(parameter.shape)
        if form == "sparse":
            places = torch.arange(0, parameter.numel(), 5)
            tangents[name] = Entries(places, torch.randn(len(places), generator=generator), shape)
        elif len(shape) < 2:
            tangents[name] = torch.randn(shape, generator=generator)
        else:
            columns = parameter.numel() // shape[0]
            b, a = torch.randn(shape[0], 2, generator=generator), torch.randn(2, columns, generator=generator)
            tangents[name] = Factors(b, a)
    full = {
        n: t if isinstance(t, torch.Tensor) else t.dense().view(model.get_parameter(n).shape)
        for n, t in tangents.items()
    }
    return tangents, full


@pytest.mark.parametrize("form", ["rank", "sparse"])
@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_low_rank_and_sparse_directions(architecture: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one pass of input gradients, with attention as the model runs it."""
    monkeypatch.delattr(directional, "_derivatives")
    monkeypatch.setattr(directional, "_COMPACT", 2.0)  # these models are so small that rank 2 is no saving
    model = build(architecture)
    rows, (tangents, full) = samples(LENGTHS, SLOTS), compact(model, form)
    values = directional_derivatives(model, objective(architecture), rows, tangents, batch_size=3)
    expected = by_backward(model, rows, full)
    assert float((values - expected).norm() / expected.norm()) < 1e-5
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("form", ["rank", "sparse"])
@pytest.mark.parametrize("scope", ["*embed_tokens*", "*norm*", "*"])
def test_every_compact_scope(scope: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directional, "_COMPACT", 2.0)
    model = build("llama_tied")
    rows, (tangents, full) = samples(LENGTHS, SLOTS), compact(model, form, scope=scope)
    values = directional_derivatives(model, objective("llama_tied"), rows, tangents)
    torch.testing.assert_close(values, by_backward(model, rows, full), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
def test_heads_that_share_a_bias_with_a_layer_inside_them(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts once."""
    monkeypatch.setattr(directional, "_COMPACT", 2.0)
    monkeypatch.delattr(directional, "_derivatives")
    model = build(architecture)
    rows, (tangents, full) = samples(LENGTHS, SLOTS), compact(model, "rank", scope="*bias")
    values = directional_derivatives(model, objective(architecture), rows, tangents)
    torch.testing.assert_close(values, by_backward(model, rows, full), rtol=1e-4, atol=1e-4)


def test_rows_that_a_model_mixes_are_read_one_at_a_time_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directional, "_COMPACT", 2.0)
    model = build("mixtral")
    model.set_experts_implementation("batched_mm")
    rows, (tangents, full) = samples(LENGTHS, SLOTS), compact(model, "rank")
    with caplog.at_level("INFO", logger="gradiend_hub"):
        first = directional_derivatives(model, objective("mixtral"), rows, tangents, batch_size=2)
        directional_derivatives(model, objective("mixtral"), rows, tangents, batch_size=2)
    (said,) = [r.getMessage() for r in caplog.records if "one at a time" in r.getMessage()]
    assert "MixtralForCausalLM" in said
    torch.testing.assert_close(first, by_backward(model, rows, full), rtol=1e-4, atol=1e-4)


class TokensFirst(nn.Module):
    """A layer between two transpositions: its first axis is that of the tokens."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, …] → the same."""
        out: torch.Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return out


@pytest.mark.parametrize("length", [6, 7], ids=["a multiple of the rows", "other"])
def test_layers_whose_first_axis_is_not_the_rows(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directional, "_COMPACT", 2.0)
    model = build("bert")
    feed_forward = model.bert.encoder.layer[0].intermediate
    feed_forward.dense = TokensFirst(feed_forward.dense)
    rows, (tangents, full) = samples((length,) * 3), compact(model, "rank")
    values = directional_derivatives(model, objective("bert"), rows, tangents)
    torch.testing.assert_close(values, by_backward(model, rows, full), rtol=1e-4, atol=1e-4)


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
