"""Gradient pairs, compared with plain autograd over single, unpadded rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from gradiend_hub.errors import TrainingError
from gradiend_hub.gradients import GradientReader, Scope, read_pair, select_parameters
from gradiend_hub.objectives import Example, PairBatch, Sample
from tests.models import build
from tests.objectives.support import objective, plain_logits, samples

KINDS = ("factual", "alternative", "diff")
ARCHITECTURES = ("bert", "modernbert", "deberta", "gpt2", "llama_tied", "gemma2", "opt")


def examples(*, shared: bool = True) -> list[Example]:
    factual = samples(slots=(1, 1, 2))
    other = factual if shared else samples(lengths=(5, 4, 9), slots=(1, 1, 2), seed=8)
    alternative = [Sample(s.inputs, s.positions, tuple(label - 1 for label in s.labels), s.cost) for s in other]
    return [Example(f, a) for f, a in zip(factual, alternative, strict=True)]


def pairs(architecture: str, *, shared: bool = True) -> PairBatch:
    return objective(architecture).collate_pairs(examples(shared=shared))


def plain_gradient(model: nn.Module, scope: Scope, rows: Sequence[Sample]) -> torch.Tensor:
    """Mean over the rows of the gradients of each row's own cross entropy, [n]."""
    parameters = list(scope.parameters.values())
    total = torch.zeros(sum(p.numel() for p in parameters))
    for row in rows:
        loss = cross_entropy(plain_logits(model, row), torch.tensor(row.labels), reduction="sum")
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    return total / len(rows)


def whole(model: nn.Module) -> Scope:
    return Scope.dense(select_parameters(model))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shared", [True, False], ids=["one-forward", "two-forwards"])
def test_every_source_and_target(architecture: str, shared: bool) -> None:
    model = build(architecture)
    scope, batch, rows = whole(model), pairs(architecture, shared=shared), examples(shared=shared)
    assert batch.shared == shared
    expected = {
        "factual": plain_gradient(model, scope, [e.factual for e in rows]),
        "alternative": plain_gradient(model, scope, [e.alternative for e in rows]),
    }
    expected["diff"] = expected["factual"] - expected["alternative"]
    with GradientReader(model, scope) as reader:
        for source in KINDS:
            for target in KINDS:
                s, t = read_pair(reader, objective(architecture), batch, source=source, target=target)
                assert s.dtype == t.dtype == torch.float32
                assert_close(s, expected[source])
                assert_close(t, expected[target])


def test_default_is_alternative_to_diff() -> None:
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        default = read_pair(reader, objective("bert"), pairs("bert"))
        named = read_pair(reader, objective("bert"), pairs("bert"), source="alternative", target="diff")
    assert torch.equal(default[0], named[0])
    assert torch.equal(default[1], named[1])
    assert not torch.equal(*default)


def test_kept_coordinates_are_the_same_numbers() -> None:
    model = build("bert")
    dense = whole(model)
    generator = torch.Generator().manual_seed(0)
    chosen = {
        name: torch.randperm(p.numel(), generator=generator)[: 1 + i % 4].sort().values
        for i, (name, p) in enumerate(dense.parameters.items())
        if i % 3
    }
    chosen["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(0, dtype=torch.long)
    sparse = dense.keep(chosen)
    with GradientReader(model, dense) as reader:
        _, full = read_pair(reader, objective("bert"), pairs("bert"))
    with GradientReader(model, sparse) as reader:
        _, some = read_pair(reader, objective("bert"), pairs("bert"))
    picked = dense.split(full)
    expected = torch.cat([picked[n][chosen[n]] for n in dense.parameters if n in chosen and len(chosen[n])])
    assert some.shape == (sparse.size,) == expected.shape
    torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-8)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build("llama")
    model.config.use_cache = False  # a recomputed layer would write to the cache again
    with GradientReader(model, whole(model)) as reader:
        plain = read_pair(reader, objective("llama"), pairs("llama"))
        for layer in model.model.layers:  # transformers' own checkpointing is for training mode only
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        checkpointed = read_pair(reader, objective("llama"), pairs("llama"))
    for a, b in zip(plain, checkpointed, strict=True):
        assert_close(b, a)


def test_a_parameter_that_is_used_twice_gets_both_parts() -> None:
    """A tied embedding is read at the bottom and at the top."""
    model = build("llama_tied")
    scope = Scope.dense(select_parameters(model, scope="model.embed_tokens.weight"))
    rows = [e.factual for e in examples()]
    with GradientReader(model, scope) as reader:
        s, _ = read_pair(reader, objective("llama_tied"), pairs("llama_tied"), source="factual")
    assert_close(s, plain_gradient(model, scope, rows))


def test_the_model_is_as_before() -> None:
    model = build("bert")
    model.train()
    model.bert.encoder.layer[0].eval()
    frozen = model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    held = model.bert.encoder.layer[1].output.dense.bias
    held.grad = torch.ones_like(held)
    modes = {name: module.training for name, module in model.named_modules()}
    scope = Scope.dense(select_parameters(model, scope=["*.layer.1.*", "*word_embeddings*"]))
    with GradientReader(model, scope) as reader:
        assert not any(module.training for module in model.modules())
        assert [n for n, p in model.named_parameters() if p.requires_grad] == list(scope.parameters)
        _, first = read_pair(reader, objective("bert"), pairs("bert"))
        _, second = read_pair(reader, objective("bert"), pairs("bert"))
        assert torch.equal(first, second)
        assert all(p.grad is None for p in model.parameters())
    clean = build("bert")
    with GradientReader(clean, Scope.dense(select_parameters(clean, scope=list(scope.parameters)))) as reader:
        assert torch.equal(read_pair(reader, objective("bert"), pairs("bert"))[1], first)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(p.grad is None for p in model.parameters() if p is not held)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_the_model_is_as_before_an_error_too() -> None:
    model = build("bert").train()
    with pytest.raises(ZeroDivisionError), GradientReader(model, whole(model)):
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_ordinary_training_goes_on_afterwards() -> None:
    model = build("bert")
    with GradientReader(model, whole(model)) as reader:
        read_pair(reader, objective("bert"), pairs("bert"))
    model(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "layer" in n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_gives_fp32_vectors(dtype: torch.dtype) -> None:
    exact, model = build("bert"), build("bert", dtype)
    with GradientReader(exact, whole(exact)) as reader:
        _, expected = read_pair(reader, objective("bert"), pairs("bert"))
    with GradientReader(model, whole(model)) as reader:
        _, t = read_pair(reader, objective("bert"), pairs("bert"))
        kept = Scope.dense(reader.scope.parameters).keep(
            {n: torch.arange(0, p.numel(), 2) for n, p in reader.scope.parameters.items()}
        )
    assert t.dtype == torch.float32
    with GradientReader(model, kept) as reader:
        _, half = read_pair(reader, objective("bert"), pairs("bert"))
    every = torch.cat([x[::2] for x in whole(model).split(t).values()])
    assert half.dtype == torch.float32 and torch.equal(half, every)
    assert float(torch.cosine_similarity(t, expected, dim=0)) > 0.99


def test_zero_gradients_are_refused() -> None:
    model, how = build("bert"), objective("bert")
    same = how.collate_pairs([Example(s, s) for s in samples()])
    unused = Scope.dense(select_parameters(model, scope="*embeddings.token_type_embeddings.weight"))
    with GradientReader(model, whole(model)) as reader:
        with pytest.raises(
            TrainingError, match=r"diff gradient is zero on all coordinates in scope \(32 tensors.*do f"
        ):
            read_pair(reader, how, same)
        read_pair(reader, how, same, source="factual", target="factual")
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.zero_()
    with GradientReader(model, unused) as reader, pytest.raises(TrainingError, match="alternative gradient is zero"):
        read_pair(reader, how, pairs("bert"))


def test_what_is_not_finite_is_refused() -> None:
    model, how = build("bert"), objective("bert")
    rows = examples()
    bad_token = rows[1].factual.inputs["input_ids"][0]
    assert not any(bad_token in rows[i].factual.inputs["input_ids"] for i in (0, 2))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[bad_token] = float("nan")
        model.cls.predictions.decoder.weight = nn.Parameter(build("bert").cls.predictions.decoder.weight.clone())
    with (
        GradientReader(model, whole(model)) as reader,
        pytest.raises(TrainingError, match=r"loss is not finite for rows \[1\] of the batch"),
    ):
        read_pair(reader, how, how.collate_pairs(rows))


def test_a_gradient_that_overflows_is_refused() -> None:
    model, how = build("bert"), objective("bert")
    model.cls.predictions.transform.register_full_backward_hook(lambda _m, grads, _o: (grads[0] * float("inf"),))
    with (
        GradientReader(model, whole(model)) as reader,
        pytest.raises(TrainingError, match="alternative gradient is not finite"),
    ):
        read_pair(reader, how, pairs("bert"))


def test_reused_vectors_hold_the_same_gradients() -> None:
    """Also where the former pair has left values in parameters that the next loss does not see."""
    model = build("bert")
    model.unused = nn.Linear(2, 2)
    scope = Scope.dense(select_parameters(model, scope="*"))
    with GradientReader(model, scope) as reader:
        expected = read_pair(reader, objective("bert"), pairs("bert"))
    with GradientReader(model, scope, reuse=True) as reader:
        first = reader.read(model.unused(torch.ones(2)).sum())
        assert float(first.abs().sum()) == 6.0
        held = [first, reader.read(model.unused(torch.ones(2)).sum())]
        found = read_pair(reader, objective("bert"), pairs("bert"))
    for vector, former, wanted in zip(found, held, expected, strict=True):
        assert vector.data_ptr() == former.data_ptr()
        assert torch.equal(vector, wanted)
