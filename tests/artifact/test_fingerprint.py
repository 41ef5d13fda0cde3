"""Recognising the base model from a few values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradiend_hub.artifact.fingerprint import BaseModelRelation, Fingerprint, sample_positions
from tests.models import build


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("bert")


@pytest.mark.parametrize("numel", [0, 1, 5, 64, 65, 1000, 2**33])
def test_positions(numel: int) -> None:
    positions = sample_positions(numel)
    assert len(positions) <= 64
    assert len(positions) >= min(numel, 50)
    assert bool((positions[1:] > positions[:-1]).all())
    assert numel == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < numel)


def test_same(model: nn.Module) -> None:
    match = Fingerprint.of(tensors(model)).compare(tensors(copy.deepcopy(model)))
    assert (match.relation, match.distance) == (BaseModelRelation.SAME, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_in_either_direction(model: nn.Module, dtype: torch.dtype) -> None:
    rounded = copy.deepcopy(model).to(dtype)
    for one, other in ((model, rounded), (rounded, model)):
        match = Fingerprint.of(tensors(one)).compare(tensors(other))
        assert match.relation is BaseModelRelation.ROUNDED
        assert 0 < match.distance < 0.01


def test_a_single_changed_tensor_is_noticed(model: nn.Module) -> None:
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.bert.encoder.layer[0].output.dense.weight.mul_(1.01)
    match = Fingerprint.of(tensors(model)).compare(tensors(tuned))
    assert match.relation is BaseModelRelation.RELATED
    assert match.worst[0] == "bert.encoder.layer.0.output.dense.weight"
    assert "bert.encoder.layer.0.output.dense.weight" in match.evidence()


@pytest.mark.parametrize("amount", [0.001, 0.01, 0.1])
def test_fine_tuned(model: nn.Module, amount: float) -> None:
    torch.manual_seed(0)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter.add_(amount * spread * torch.randn(parameter.shape))
    match = Fingerprint.of(tensors(model)).compare(tensors(tuned))
    assert match.relation is BaseModelRelation.RELATED
    assert match.distance == pytest.approx(amount, rel=0.5)


def test_another_model_of_the_same_shape(model: nn.Module) -> None:
    match = Fingerprint.of(tensors(model)).compare(tensors(build("bert", seed=1)))
    assert match.relation is BaseModelRelation.DIFFERENT
    assert match.distance > 1.0


def test_constant_tensors_prove_nothing() -> None:
    """Freshly initialised norms are equal in all models; the weights decide."""
    one, other = nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9)), nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9))
    assert Fingerprint.of(tensors(one)).compare(tensors(other)).relation is BaseModelRelation.DIFFERENT


def test_missing_or_resized_tensors(model: nn.Module) -> None:
    fingerprint = Fingerprint.of(tensors(model))
    found = tensors(model)
    del found["bert.embeddings.LayerNorm.bias"]
    assert fingerprint.compare(found).relation is BaseModelRelation.DIFFERENT
    found["bert.embeddings.LayerNorm.bias"] = torch.zeros(5)
    assert fingerprint.compare(found).relation is BaseModelRelation.DIFFERENT


def test_not_contiguous_and_damaged_tensors() -> None:
    values = torch.randn(30, 40)
    assert Fingerprint.of({"a": values}).compare({"a": values.T.contiguous().T}).relation is BaseModelRelation.SAME
    values_nan = values.clone()
    values_nan[:] = float("nan")
    assert Fingerprint.of({"a": values}).compare({"a": values_nan}).relation is BaseModelRelation.DIFFERENT


def test_samples_only_of_some_parameters(model: nn.Module) -> None:
    fingerprint = Fingerprint.of(tensors(model)).only(["cls.predictions.bias"]).renamed({"cls.predictions.bias": "b"})
    assert list(fingerprint.samples) == ["b"]
    assert fingerprint.compare({"b": model.get_parameter("cls.predictions.bias")}).tensors == 1
