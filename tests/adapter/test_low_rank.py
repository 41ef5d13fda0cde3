"""Low-rank directions on a model: merged, unmerged, undone, saved, trained."""

from __future__ import annotations

import math
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from gradiend_hub.adapter import arithmetic
from gradiend_hub.artifact import low_rank
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import WEIGHTS_FILE
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits, save
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def learned(model: nn.Module, rank: int = 3, *, bias: bool = False) -> Direction:
    """Matrices by factors of any numbers, vectors dense."""
    generator = torch.Generator().manual_seed(1)
    parts = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if parameter.ndim != 2:
            values = 0.01 * torch.randn(parameter.numel(), generator=generator)
            parts[name] = ParameterDirection(shape, values, values if bias else None, values)
            continue
        sizes = (shape[0], min(rank, *shape)), (min(rank, *shape), shape[1])
        one, other = (Factors(*(0.1 * torch.randn(s, generator=generator) for s in sizes)) for _ in range(2))
        parts[name] = ParameterDirection(shape, one, other if bias else None, one)
    return Direction(parts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_edit_is_the_product_rounded_once(dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged and unmerged, in pieces and whole: W + σΔ, to the last bits of a product of matrices; undone to the bit."""
    monkeypatch.setattr(low_rank, "BLOCK", {"cpu": 40})
    monkeypatch.setattr(arithmetic, "BLOCK", 40)
    base = build("bert").to(dtype)
    ids, before, direction = torch.arange(5, 17).view(2, 6), bits(base), learned(base, bias=bias)
    config = config_for(direction, decoder_sign=-1, strength_unit=0.7)
    model = GradiendModel.from_direction(base, direction, config, strength=1.3)
    c_w, c_b = config.coefficients(1.3)
    spacing = torch.finfo(dtype).eps
    for name, part in direction.parameters.items():
        if isinstance(part.decoder, Factors):
            delta = c_w * (part.decoder.b.double() @ part.decoder.a.double())
            if bias:
                delta += c_b * (part.decoder_bias.b.double() @ part.decoder_bias.a.double())
            exact = before[name].double() + delta
            found = base.get_parameter(name).double()
            # half a spacing for the one rounding, and what fp32 sums of the product may lose
            assert bool(((found - exact).abs() <= 0.51 * spacing * exact.abs() + 1e-6).all()), name
            assert float((found - before[name].double()).abs().max()) > 0.01
    merged_bits = bits(model)
    with torch.no_grad():
        merged = model(ids).logits
        model.unmerge_adapter()
        assert same_bits(bits(model), before)
        assert torch.equal(model(ids).logits, merged) and torch.equal(model(ids).logits, merged)
    model.merge_adapter()
    assert same_bits(bits(model), merged_bits)
    for strength in (-2.0, 0.3, 1.3):
        model.set_strength(strength)
    assert same_bits(bits(model), merged_bits)
    model.set_strength(0.0)
    assert same_bits(bits(model), before)
    model.set_strength(-1.0)
    assert same_bits(bits(model.unload()), before)


def test_several_forms_on_one_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, sparse, low-rank, a stack and a matrix: the sums are those of the dense matrices."""
    monkeypatch.setattr(low_rank, "BLOCK", {"cpu": 30})

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(3, 6, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("eoi,bi->beo", self.weight, x)

    base = Experts()
    shape, generator = (3, 6, 8), torch.Generator().manual_seed(0)
    stack = Factors(torch.randn(3, 6, 2, generator=generator), torch.randn(3, 2, 8, generator=generator))
    matrix = Factors(torch.randn(3, 1, generator=generator), torch.randn(1, 48, generator=generator))
    kinds = {
        "stack": ParameterDirection(shape, stack),
        "dense": ParameterDirection(shape, torch.randn(144, generator=generator)),
        "matrix": ParameterDirection(shape, matrix),
        "sparse": ParameterDirection(shape, torch.randn(4), indices=torch.tensor([1, 5, 50, 143], dtype=torch.int32)),
    }
    before = bits(base)
    first = Direction({"weight": kinds["stack"]})
    model = GradiendModel.from_direction(base, first, config_for(first), adapter_name="stack", strength=1.0)
    for name in ("dense", "matrix", "sparse"):
        other = Direction({"weight": kinds[name]})
        model.add_direction(name, other, config_for(other))
    x = torch.randn(2, 8)
    for names in (["stack", "dense"], ["matrix", "stack"], list(kinds), ["sparse", "matrix"]):
        model.set_adapter(names)
        total = before["weight"].double() + sum(kinds[name].dense(kinds[name].decoder).double() for name in names)
        torch.testing.assert_close(base.weight.detach().double(), total, atol=1e-5, rtol=1e-5)
        merged = model(x)
        model.unmerge_adapter()
        assert torch.equal(model(x), merged) and same_bits(bits(model), before)
        model.merge_adapter()
    model.add_weighted_adapter(["matrix", "matrix"], [0.5, 0.25], "sum")
    part = model._direction("sum").parameters["weight"]
    assert part.rank == 2
    torch.testing.assert_close(part.dense(part.decoder), 0.75 * kinds["matrix"].dense(matrix), atol=1e-5, rtol=1e-5)
    model.add_weighted_adapter(list(kinds), [1.0, 1.0, -1.0, 2.0], "all")
    part = model._direction("all").parameters["weight"]
    weights = {"stack": 1.0, "dense": 1.0, "matrix": -1.0, "sparse": 2.0}
    expected = sum(weights[name] * one.dense(one.decoder) for name, one in kinds.items())
    torch.testing.assert_close(part.dense(part.decoder), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_peft_reads_and_writes_it(tmp_path: Path, dtype: str) -> None:
    base = build("llama")
    direction = random_direction(base, "low rank")
    folder = save(tmp_path / "a", direction, base, dtype=dtype)
    stored = Direction.load(folder, GradiendConfig.from_pretrained(str(folder)))
    ids = torch.arange(5, 17).view(2, 6)
    expected = edited(base, [(stored, *config_for(direction).coefficients(1.0))])
    plain = PeftModel.from_pretrained(base, folder)
    assert torch.equal(plain(ids).logits, expected(ids).logits)
    plain.save_pretrained(tmp_path / "b")
    one, other = (load_file(path / WEIGHTS_FILE) for path in (folder, tmp_path / "b"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    read = GradiendConfig.from_pretrained(str(tmp_path / "b"))
    assert read.parameters == direction.spec() and Direction.load(tmp_path / "b", read).has_encoder
    merged = plain.merge_and_unload()
    assert same_bits(bits(merged), bits(expected))


def test_a_fresh_adapter_learns() -> None:
    """Factors that start as a LoRA's do: no edit at first, and a gradient for b."""
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    spec = {"0.weight": {"shape": [5, 6], "entries": None, "rank": 2}, "1.bias": {"shape": [4], "entries": None}}
    model = peft.get_peft_model(base, GradiendConfig(parameters=spec))
    x, y = torch.randn(16, 6), torch.randn(16, 4)
    before = base(x).detach()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    learned = model.base_model.direction_of("default").parameters["0.weight"]
    assert learned.rank == 2 and float(learned.dense(learned.decoder).norm()) > 0.1


def test_an_edit_beyond_the_numbers_is_refused() -> None:
    base = build("bert").half()
    direction = learned(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    before = bits(model)
    with pytest.raises(EditError, match="beyond"):
        model.set_strength(1e6)
    assert same_bits(bits(model), before)


def test_an_infinite_product_of_finite_factors_is_refused(tmp_path: Path) -> None:
    huge = Factors(torch.full((6, 1), 1e30), torch.full((1, 6), 1e30))
    direction = Direction({"weight": ParameterDirection((6, 6), huge)})
    folder = save(tmp_path, direction)
    with pytest.raises(Exception, match="NaN or infinite"):
        GradiendModel.from_pretrained(folder, nn.Linear(6, 6, bias=False))
    with pytest.raises(Exception, match="NaN or infinite"):
        PeftModel.from_pretrained(nn.Linear(6, 6, bias=False), folder)


def test_the_receipt_measures_the_product() -> None:
    base = build("bert")
    direction = learned(base)
    weights = {name: parameter.detach().double().clone() for name, parameter in base.named_parameters()}
    model = GradiendModel.from_direction(base, direction, config_for(direction, decoder_sign=1), strength=0.5)
    deltas = {n: 0.5 * part.dense(part.decoder).double() for n, part in direction.parameters.items()}
    delta, weight = (math.sqrt(sum(float(t.square().sum()) for t in tensors.values())) for tensors in (deltas, weights))
    receipt = model.receipt
    assert receipt.entries == sum(int(delta.count_nonzero()) for delta in deltas.values())
    assert receipt.relative_norm == pytest.approx(delta / weight, rel=1e-5)
