"""Stacks of experts, and other matrices that are read by code of their layer: factors, rows, sketches, curvature."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.functional import cross_entropy

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import BaseModelError
from gradiend_hub.gradients import (
    FactorReader,
    Outer,
    Scope,
    Tangent,
    directional_derivatives,
    kronecker_factors,
    select_parameters,
    stacks,
)
from gradiend_hub.gradients import directional as encodings
from gradiend_hub.gradients.products import Reads, catching_products
from gradiend_hub.gradients.rowwise import NotByRowError, RowReader
from gradiend_hub.solvers.sketches import Sketching
from tests.gradients.test_checkpointing import enable
from tests.gradients.test_directional import LENGTHS, SLOTS, by_backward, compact
from tests.gradients.test_factors import autograd, loss_of, summed
from tests.models import EXPERTS, build
from tests.objectives.support import objective, plain_logits, samples

HAS_GROUPED_MM = Version(torch.__version__) >= Version("2.9")
GROUPED_MM = pytest.param(
    "grouped_mm", marks=pytest.mark.skipif(not HAS_GROUPED_MM, reason="transformers wants torch 2.9 for it")
)


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("implementation", ["eager", GROUPED_MM, "batched_mm"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_every_way_of_computing(architecture: str, implementation: str) -> None:
    """One expert after the other, or all in one call; of a copy of the matrices for each token no factors are known."""
    model: Any = build(architecture)
    model.set_experts_implementation(implementation)
    scope = Scope.dense(select_parameters(model, scope="*"))
    expected = autograd(scope, loss_of(model, architecture)())
    reader, found = summed(model, scope, loss_of(model, architecture))
    close(found, expected)
    own = {name.rpartition(".")[2] for name in reader.matrices_of_their_own}
    assert own == ({"gate_up_proj", "down_proj"} if implementation == "batched_mm" else set())


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("implementation", ["eager", GROUPED_MM])
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_layers_are_recomputed(architecture: str, implementation: str, reentrant: bool) -> None:
    plain = build(architecture)
    expected = autograd(Scope.dense(select_parameters(plain)), loss_of(plain, architecture)())
    model: Any = build(architecture).train()
    model.set_experts_implementation(implementation)
    enable(model, {"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    reader, found = summed(model, Scope.dense(select_parameters(model)), loss_of(model, architecture), reads=2)
    assert not reader.matrices_of_their_own
    close({name: gradient / 2 for name, gradient in found.items()}, expected)


@pytest.mark.parametrize("implementation", ["eager", GROUPED_MM])
def test_an_expert_that_no_token_reaches(implementation: str) -> None:
    model: Any = build("mixtral")
    model.set_experts_implementation(implementation)
    with torch.no_grad():  # the router prefers two experts by far, whatever a token is
        for layer in model.model.layers:
            layer.mlp.gate.weight[2:] = 0
            layer.post_attention_layernorm.weight.fill_(1)
            layer.mlp.gate.register_forward_hook(lambda _m, _a, out: (out[0], out[1], out[2] % 2))
    scope = Scope.dense(select_parameters(model))
    _, found = summed(model, scope, loss_of(model, "mixtral"))
    close(found, autograd(scope, loss_of(model, "mixtral")()))
    for name in stacks(model, scope):
        assert found[name][:2].any() and not found[name][2:].any()


@pytest.mark.parametrize("of", ["module", "parameters"])
def test_blocks_that_share_their_experts(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both uses add up, in gradients and in encodings."""
    monkeypatch.setattr(encodings, "_COMPACT", 2.0)
    model: Any = build("mixtral")
    one, other = (layer.mlp for layer in model.model.layers)
    if of == "module":
        other.experts = one.experts
    else:
        other.experts.gate_up_proj, other.experts.down_proj = one.experts.gate_up_proj, one.experts.down_proj
    scope = Scope.dense(select_parameters(model))
    reader, found = summed(model, scope, loss_of(model, "mixtral"))
    assert not reader.matrices_of_their_own and len(stacks(model, scope)) == 2
    close(found, autograd(scope, loss_of(model, "mixtral")()))
    rows, (tangents, full) = samples(LENGTHS, SLOTS), whole_stacks(model, "stacked")
    values = directional_derivatives(model, objective("mixtral"), rows, tangents, batch_size=3)
    torch.testing.assert_close(values, by_backward(model, rows, full), rtol=1e-4, atol=1e-4)


def whole_stacks(model: nn.Module, form: str) -> tuple[dict[str, Tangent], dict[str, Tensor]]:
    """As `compact`, with factors of each expert."""
    tangents, full = compact(model, "sparse" if form == "sparse" else "rank")
    generator = torch.Generator().manual_seed(3)
    for name, values in full.items():
        if form == "dense":
            tangents[name] = values
        elif values.ndim == 3 and form == "stacked":
            e, o, i = values.shape
            parts = Factors(torch.randn(e, o, 2, generator=generator), torch.randn(e, 2, i, generator=generator))
            tangents[name], full[name] = parts, parts.dense()
    return tangents, full


@pytest.mark.parametrize("form", ["stacked", "joined", "sparse", "dense"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_every_token_counts_for_its_own_row(
    architecture: str, form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever expert it goes to: rows are read together, and are those of a backward pass each."""
    if architecture == "gpt_oss" and not HAS_GROUPED_MM:
        pytest.skip("its experts run in the loop of the test below")
    monkeypatch.delattr(encodings, "_derivatives")
    monkeypatch.setattr(encodings, "_COMPACT", 2.0)
    model = build(architecture)
    rows, (tangents, full) = samples(LENGTHS, SLOTS), whole_stacks(model, form)
    with caplog.at_level(logging.INFO, logger="gradiend_hub"):
        values = directional_derivatives(model, objective(architecture), rows, tangents, batch_size=3)
    expected = by_backward(model, rows, full)
    assert float((values - expected).norm() / expected.norm()) < 1e-5
    assert "one at a time" not in caplog.text


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_rows_of_the_loop_over_experts(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of GPT-OSS adds one bias to all tokens of an expert, so its rows are read one at a time."""
    monkeypatch.setattr(encodings, "_COMPACT", 2.0)
    model: Any = build(architecture)
    model.set_experts_implementation("eager")
    rows, (tangents, full) = samples(LENGTHS, SLOTS), whole_stacks(model, "stacked")
    values = directional_derivatives(model, objective(architecture), rows, tangents, batch_size=3)
    expected = by_backward(model, rows, full)
    assert float((values - expected).norm() / expected.norm()) < 1e-5
    assert (model in encodings._mixing) == (architecture == "gpt_oss")


def test_sketches_of_stacks() -> None:
    """Each matrix has sketches of its own; what they give back is near the gradient itself, or is it where it is small."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (3, 60, 50), "small": (3, 4, 3), "pays": (2, 20, 16), "vector": (5,)}
    sketching = Sketching(shapes, 2, stacked=("large", "small", "pays"))
    sums, whole = torch.zeros(2, sketching.size), {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        for number in range(shape[0] - 1 if len(shape) == 3 else 0):  # the last expert has no tokens
            part = Outer(torch.randn(1, 2, shape[1], generator=generator),
                         torch.randn(1, 2, shape[2], generator=generator), shape[1], number)  # fmt: skip
            whole[name][number] += part.dense()
            sketching.add(sums[0], name, part)
        sketching.add(sums[1], name, whole[name])
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-3)
    assert sketching.places["large"].whole is None
    found = sketching.read(sums[0]).parts
    for name in ("large", "pays"):
        part = found[name]
        assert isinstance(part, Factors) and part.b.ndim == 3
        torch.testing.assert_close(part.dense(), whole[name], rtol=1e-3, atol=1e-3)
        assert not part.dense()[-1].any()
    assert torch.equal(found["small"], whole["small"].flatten())


def test_curvature_of_a_stack() -> None:
    """S is summed over all tokens of all experts, A averaged over them and divided by the number of experts."""
    model, how = build("mixtral"), objective("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    scope = Scope.dense({name: model.get_parameter(name)})
    rows = samples(LENGTHS, SLOTS)
    with FactorReader(model, scope) as reader:
        found = kronecker_factors(reader, how, (), (), rows, batch_size=1)
    parts: list[Outer] = []
    generator, scored = torch.Generator().manual_seed(0), 0
    with FactorReader(model, scope) as reader:
        for row in sorted(rows, key=lambda row: row.cost):
            logits = reader.forward(lambda row=row: plain_logits(model, row))
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
            scored += len(labels)
            reader.read(cross_entropy(logits, labels, reduction="sum"), lambda _, part: parts.append(part))
    x = torch.cat([part.right.flatten(0, 1) for part in parts])
    assert len(x) > scored
    expected = x.T @ x / len(x) / 4
    one = found.inputs[name]
    torch.testing.assert_close(one.diagonal, expected.diagonal().double(), rtol=1e-4, atol=1e-9)
    b, a = torch.randn(4, 16, 2), torch.randn(4, 2, 32)
    again = [found.damage({name: Factors(b[e][None], a[e][None])}) for e in range(4)]
    assert found.damage({name: Factors(b, a)}) == pytest.approx(sum(again), rel=1e-6)
    solved = found.outputs[name].solve(b, 0.1)
    for number in range(4):
        torch.testing.assert_close(solved[number], found.outputs[name].solve(b[number], 0.1))


class Reading(nn.Module):
    """A layer with a matrix, and a way to read it."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.read, self.matrix = read, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """[2, 3, 4] → […]."""
        return self.read(x, self.matrix)


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
KNOWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (lambda x, w: nn.functional.linear(x, w), (5, 4)),
    "cast": (lambda x, w: nn.functional.linear(x.double(), w.double()), (5, 4)),
    "transposed": (lambda x, w: x @ w.T, (5, 4)),
    "matmul": (lambda x, w: torch.matmul(x, w), (4, 5)),
    "mm": (lambda x, w: x[0].mm(w.t()), (5, 4)),
    "turned linear": (lambda x, w: nn.functional.linear(x, w.transpose(0, 1)), (4, 5)),
    "stack": (lambda x, w: x.bmm(w), (2, 4, 5)),
    "turned stack": (lambda x, w: x @ w.mT, (2, 5, 4)),
    "one of a stack": (lambda x, w: x @ w[-1] + x @ w[torch.tensor(0)], (3, 4, 5)),
    "one of a turned stack": (lambda x, w: x @ w.transpose(1, 2)[1], (3, 5, 4)),
    "by keywords": (lambda x, w: nn.functional.linear(input=x, weight=w) + torch.matmul(input=x, other=w.T), (5, 4)),
    "turned by keywords": (lambda x, w: x @ w.transpose(dim0=0, dim1=1), (5, 4)),
    "rows": (lambda x, w: x + w[torch.tensor([0, 2, 0])] + w[1], (5, 4)),
    "embedding": (lambda x, w: nn.functional.embedding(torch.tensor([[0, 1, 1]]), w, padding_idx=-1), (2, 4)),
}
OTHER: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "sum": (lambda x, w: x + w, (3, 4)),
    "scaled": (lambda x, w: x @ (2 * w), (4, 5)),
    "left": (lambda x, w: w @ x, (3, 3)),
    "both": (lambda x, w: x @ w @ w + w.sum(), (4, 4)),
    "squared": (lambda x, w: nn.functional.linear(w, w) + x.sum(), (4, 4)),
    "a stack for one input": (lambda x, w: x[:1] @ w, (3, 4, 5)),
    "all axes turned": (lambda x, w: x[:, :2, :2] @ w.T, (2, 2, 2)),
    "some of a stack": (lambda x, w: x @ w[:2], (3, 4, 5)),
    "masked rows": (lambda x, w: x.sum() + w[torch.tensor([True, False])], (2, 4)),
    "an output that is given": (lambda x, w: torch.nn.functional.bilinear(x, x, w), (3, 4, 4)),
    "scale by frequency": (
        lambda x, w: nn.functional.embedding(torch.tensor([0, 1, 1]), w, scale_grad_by_freq=True), (2, 4)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors of dimension other than 2")
@pytest.mark.parametrize("read", [*KNOWN, *OTHER])
def test_ways_of_reading(read: str) -> None:
    torch.manual_seed(0)
    how, shape = (KNOWN | OTHER)[read]
    model = Reading(how, *shape)
    scope = Scope.dense(dict(model.named_parameters()))

    def loss() -> Tensor:
        return model(X).float().square().sum()

    reader, found = summed(model, scope, loss)
    assert bool(reader.own) == (read in OTHER)
    torch.testing.assert_close(found["matrix"], autograd(scope, loss())["matrix"], rtol=1e-5, atol=1e-4)


def test_a_parameter_that_is_read_in_another_way_later() -> None:
    ways = iter([lambda x, w: x @ w, lambda x, w: x * w.sum()])
    model = Reading(lambda x, w: next(ways)(x, w), 4, 4)
    with FactorReader(model, Scope.dense(dict(model.named_parameters()))) as reader:
        reader.forward(lambda: model(X))
        with pytest.raises(BaseModelError, match="matrix of Reading: read in another way than in the first batch"):
            reader.forward(lambda: model(X))


@pytest.mark.parametrize("shape", [(1, -1, 1, 1), (-1, 1, 1)])
def test_a_vector_that_is_repeated_for_each_row(shape: tuple[int, ...]) -> None:
    """However many axes are added on its left."""
    model = Reading(lambda x, w: x.sum() + w.view(shape).expand(3, -1, 5, 1), 3)
    weights, parts = torch.randn(3, 3, 5, 1, generator=torch.Generator().manual_seed(0)), []
    (model(X) * weights).sum().backward()
    expected = model.matrix.grad
    model.matrix.requires_grad_(False)
    x, reads = X.clone().requires_grad_(), Reads()
    with catching_products({model: {"matrix": model.matrix}}, lambda _, part, __: parts.append(part), reads):
        (model(x) * weights).sum().backward()
    assert reads.known == {"matrix"} and len(parts) == 1
    torch.testing.assert_close(parts[0].flatten(0, -2).sum(0), expected)


class Routed(nn.Module):
    """Two experts, and a way to pick the tokens [N·T, 4] of each."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pick, self.route = pick, torch.zeros(0)
        self.experts = nn.Parameter(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 4] → sums of what the experts make of each row's tokens, [N]."""
        flat, found = x.flatten(0, 1), torch.zeros(len(x), len(self.route) // len(x))
        for number in range(2):
            mask = self.route == number
            made = (self.pick(flat, mask) @ self.experts[number]).square().sum(-1)
            found = found.flatten().index_add(0, mask.nonzero().view(-1), made).view(found.shape)
        return found.sum(1)


class OfRows:
    """The objective and the batch of `Routed`."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def row_losses(self, model: nn.Module, batch: OfRows) -> Tensor:
        return model(batch.x)


PICKING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "numbers": lambda x, mask: x[mask.nonzero().view(-1)],
    "mask": lambda x, mask: x[mask],
    "index_select": lambda x, mask: x.index_select(0, mask.nonzero().view(-1)),
    "index_select by keywords": lambda x, mask: torch.index_select(input=x, dim=0, index=mask.nonzero().view(-1)),
    "slice of what is sorted": lambda x, mask: x[mask.logical_not().int().argsort(stable=True)][: int(mask.sum())],
    "then computed": lambda x, mask: x[mask] * 1.5 + 1.0,
    "computed, then picked": lambda x, mask: (x * 1.5)[mask],
    "rows of a matrix of tokens": lambda x, mask: x.view(2, 4, 4)[mask.view(2, 4)],
    "gather": lambda x, mask: x.gather(0, mask.nonzero().expand(-1, 4)),
}
SEEN = set(PICKING) - {"gather", "index_select by keywords"}
"""Those of which the tokens are known, so that rows are read together."""


@pytest.mark.parametrize("way", PICKING)
def test_rows_of_picked_tokens(way: str) -> None:
    """Each expert's tokens count for their own rows, or rows are refused together, however many tokens each expert gets."""
    model = Routed(PICKING[way])
    w = {"experts": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))}
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2))
    for route in ([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]):
        model.route, expected = torch.tensor(route), []
        for loss in model(x):
            (grad,) = torch.autograd.grad(loss, [model.experts], retain_graph=True)
            expected.append(float((grad * w["experts"]).sum()))
        with RowReader(model, w) as reader:
            if way in SEEN:
                found = reader.read(OfRows(x), OfRows(x))  # type: ignore[arg-type]
                torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
            else:
                with pytest.raises(NotByRowError):
                    reader.read(OfRows(x), OfRows(x))  # type: ignore[arg-type]


def test_an_interrupt_ends_the_watch() -> None:
    def interrupted(*_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model, before = Reading(interrupted, 4, 4), _len_torch_function_stack()
    with pytest.raises(KeyboardInterrupt), catching_products({model: {"matrix": model.matrix}}, print, Reads()):
        model(X)
    assert _len_torch_function_stack() == before


@pytest.mark.skipif(not hasattr(nn.functional, "grouped_mm"), reason="this torch has no such function")
def test_tokens_that_are_picked_and_put_in_order_in_two_steps() -> None:
    """Each product is of the tokens that it was computed from; of tokens in an order that is not known, none are named."""
    picked, order = torch.arange(4).repeat_interleave(2), torch.tensor([3, 1, 0, 2, 5, 4, 7, 6])
    offsets = torch.tensor([4, 8], dtype=torch.int32)
    ways: list[tuple[Callable[[Tensor], Tensor], list[int]]] = [
        (lambda x: x[picked][order], picked[order].tolist()),
        (lambda x: (x[picked] * 1.0)[order], []),
    ]
    for gather, expected in ways:
        model = Reading(lambda x, w, gather=gather: nn.functional.grouped_mm(gather(x), w, offs=offsets), 2, 4, 4)
        model.matrix.requires_grad_(False)
        x, found = torch.randn(4, 4, requires_grad=True), list[int]()

        def deliver(_name: str, _part: Any, picked: Any, found: list[int] = found) -> None:
            found += picked.tokens.tolist()

        with catching_products({model: {"matrix": model.matrix}}, deliver, Reads()):
            model(x).square().sum().backward()
        assert found == expected
