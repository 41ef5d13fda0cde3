"""Low-rank directions: algebra against dense matrices in fp64, files that are whole, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fields import StoredFields, stored_size
from gradiend_hub.artifact.files import CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import ArtifactError, ConfigError

SHAPES = {"w": (9, 7), "wide.weight": (5, 40), "conv.weight": (6, 4, 3, 3), "experts": (3, 6, 8), "norm.bias": (11,)}
LOW = [name for name in SHAPES if name != "norm.bias"]


def factors(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> Factors:
    stack, (rows, *rest) = (shape[:1], shape[1:]) if len(shape) == 3 else ((), shape)
    columns = int(torch.tensor(rest).prod())
    return Factors(
        torch.randn(*stack, rows, rank, generator=generator), torch.randn(*stack, rank, columns, generator=generator)
    )


def make(seed: int = 0, *, bias: bool = True, ranks: tuple[int, int, int] = (2, 1, 3)) -> Direction:
    """Every kind of matrix by its factors, decoder, bias and encoder of different ranks, and a dense vector."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name in LOW:
        decoder, b_d, encoder = (factors(SHAPES[name], rank, generator) for rank in ranks)
        parts[name] = ParameterDirection(SHAPES[name], decoder, b_d if bias else None, encoder)
    vectors = [torch.randn(11, generator=generator) for _ in range(3)]
    parts["norm.bias"] = ParameterDirection((11,), vectors[0], vectors[1] if bias else None, vectors[2])
    samples = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return Direction(parts, 0.5, Fingerprint.of(samples))


def flat(part: ParameterDirection, kind: str) -> torch.Tensor:
    """A vector of a part in fp64, flat: the product of its factors as torch forms it."""
    values = getattr(part, kind)
    if isinstance(values, Factors):
        return (values.b.double() @ values.a.double()).flatten()
    if part.indices is None:
        return values.double()
    return torch.zeros(part.numel, dtype=torch.float64).index_put((part.indices.long(),), values.double())


def edit(part: ParameterDirection, c_w: float, c_b: float) -> torch.Tensor:
    bias = 0.0 if part.decoder_bias is None else c_b * flat(part, "decoder_bias")
    return c_w * flat(part, "decoder") + bias


def as_form(direction: Direction, form: str) -> Direction:
    """The same direction dense, or its largest entries."""
    if form == "low rank":
        return direction
    parts = {}
    for name, part in direction.parameters.items():
        vectors = {kind: flat(part, kind).float() for kind in ("decoder", "decoder_bias", "encoder")}
        parts[name] = ParameterDirection(part.shape, **vectors)
    dense = replace(direction, parameters=parts)
    return dense if form == "dense" else dense.to_sparse(0.4)


def config(direction: Direction, **fields: Any) -> GradiendConfig:
    return GradiendConfig(
        feature_classes=["a", "b"], parameters=direction.spec(), has_bias=direction.has_bias, **fields
    )


def test_a_spec_says_rank_and_stack() -> None:
    direction = make()
    assert direction.spec()["w"] == {"shape": [9, 7], "entries": None, "rank": 3}
    assert direction.spec()["experts"] == {"shape": [3, 6, 8], "entries": None, "rank": 3, "stacked": True}
    assert direction.spec()["norm.bias"] == {"shape": [11], "entries": None}
    assert stored_size(direction.spec()["experts"]) == 3 * 3 * (6 + 8)
    assert direction.entries == 2 * (9 + 7) + 2 * (5 + 40) + 2 * (6 + 36) + 3 * 2 * (6 + 8) + 11


@pytest.mark.parametrize("form", ["low rank", "dense", "sparse"])
@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.5, -2.0), (1.0, 0.0)])
def test_inner_products_and_norms(form: str, coefficients: tuple[float, float]) -> None:
    one, other = make(0), as_form(make(1), form)
    expected = sum(
        float(edit(one.parameters[n], *coefficients) @ edit(part, *coefficients))
        for n, part in other.parameters.items()
    )
    assert one.inner(other, *coefficients) == pytest.approx(expected, rel=1e-6)
    assert other.inner(one, *coefficients) == pytest.approx(expected, rel=1e-6)
    square = sum(float(edit(part, *coefficients).square().sum()) for part in one.parameters.values())
    assert one.norm(*coefficients) == pytest.approx(square**0.5, rel=1e-6)


@pytest.mark.parametrize("form", ["low rank", "dense", "sparse"])
def test_sums_and_multiples(form: str) -> None:
    one, other = make(0), as_form(make(1, bias=form != "low rank"), form)
    total = 2 * one + other * -0.5
    for name, part in total.parameters.items():
        mine, theirs = one.parameters[name], other.parameters[name]
        for c_w, c_b in ((1.0, 0.0), (0.3, 1.0)):
            expected = 2 * edit(mine, c_w, c_b) - 0.5 * edit(theirs, c_w, c_b)
            torch.testing.assert_close(edit(part, c_w, c_b), expected, atol=1e-5, rtol=1e-5)
    assert not total.has_encoder and (2 * one).has_encoder
    assert torch.equal((2 * one).parameters["w"].encoder.b, one.parameters["w"].encoder.b)
    if form == "low rank":
        assert total.parameters["wide.weight"].rank == 4  # stays by factors
        assert total.parameters["w"].rank is None  # 4 · (9 + 7) numbers are more than 9 · 7
    total.check()


def test_alignment_and_names() -> None:
    direction = make()
    renamed = direction.renamed({name: f"bert.{name}" for name in SHAPES})
    assert direction.align(renamed).parameters.keys() == direction.parameters.keys()
    assert direction.inner(renamed) == pytest.approx(direction.norm() ** 2)


@pytest.mark.parametrize("by", ["decoder", "encoder", "decoder_bias", "decoder_sum"])
def test_pruning_needs_the_values(by: str) -> None:
    direction = make()
    sparse = direction.to_sparse(entries=40, by=by).check()  # type: ignore[arg-type]
    whole = as_form(direction, "dense").to_sparse(entries=40, by=by)  # type: ignore[arg-type]
    assert sparse.entries == 40 and sparse.parameters.keys() == whole.parameters.keys()
    for name, part in sparse.parameters.items():
        assert torch.equal(part.indices, whole.parameters[name].indices)
        torch.testing.assert_close(part.encoder, whole.parameters[name].encoder)
        torch.testing.assert_close(part.decoder, whole.parameters[name].decoder)


@pytest.mark.parametrize("form", ["dense", "low rank", "sparse"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_nearest_of_a_rank(form: str, rank: int) -> None:
    direction = as_form(make(3, ranks=(3, 3, 3)), form)
    cut = direction.to_rank(rank).check()
    kept = direction.energy_kept(cut, 1.0, 0.0)
    for name, part in cut.parameters.items():
        whole = direction.parameters[name]
        assert part.shape == whole.shape
        if name == "norm.bias":
            assert part is whole and kept.by_parameter[name] == 1.0
            continue
        assert part.rank == rank
        # experts are a stack, and every one is cut by itself; a convolution is a row per output channel
        matrices = (len(flat(whole, "decoder")) // (6 * 8), 6, 8) if name == "experts" else (SHAPES[name][0], -1)
        for kind in ("decoder", "decoder_bias", "encoder"):
            u, s, v = torch.linalg.svd(flat(whole, kind).view(matrices), full_matrices=False)
            nearest = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
            torch.testing.assert_close(flat(part, kind), nearest.flatten(), atol=1e-5, rtol=1e-5)
        square = torch.linalg.svdvals(flat(whole, "decoder").view(matrices)).square()
        assert kept.by_parameter[name] == pytest.approx(float(square[..., :rank].sum() / square.sum()), abs=1e-6)
    total = sum(float(flat(part, "decoder").square().sum()) for part in direction.parameters.values())
    rest = sum(float(flat(part, "decoder").square().sum()) for part in cut.parameters.values())
    assert kept.total == pytest.approx(rest / total, abs=1e-6)


def test_a_rank_that_it_has_already_loses_nothing() -> None:
    direction = make()
    assert direction.to_rank(3).parameters["w"].decoder is direction.parameters["w"].decoder
    again = as_form(direction, "dense").to_rank(3)
    assert again.parameters["w"].rank == 3
    for name, part in again.parameters.items():
        torch.testing.assert_close(
            flat(part, "encoder"), flat(direction.parameters[name], "encoder"), atol=1e-5, rtol=0
        )
    assert direction.energy_kept(direction.to_rank(3)).total == pytest.approx(1.0)
    zero = (as_form(direction, "dense") * 0.0).to_rank(2).check()
    assert not flat(zero.parameters["w"], "decoder").any()


def test_matrices_that_would_be_no_shorter_stay_dense() -> None:
    small = ParameterDirection((4, 4), torch.randn(16))
    cut = Direction({"small": small, "large": ParameterDirection((40, 30), torch.randn(1200))}).to_rank(2)
    assert cut.parameters["small"] is small and cut.parameters["large"].rank == 2


@pytest.mark.parametrize("rank", [0, -1, 31, 2.5, True, "2", float("nan")])
def test_impossible_ranks(rank: Any) -> None:
    direction = Direction({"a": ParameterDirection((30, 40), torch.randn(1200))})
    with pytest.raises(ConfigError, match="1…30"):
        direction.to_rank(rank)
    with pytest.raises(ConfigError, match="matrix"):
        Direction({"bias": ParameterDirection((30,), torch.randn(30))}).to_rank(1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(tmp_path: Path, dtype: str, bias: bool) -> None:
    direction = make(bias=bias)
    direction.save(tmp_path, dtype=dtype)
    found = config(direction, dtype=dtype)
    found.save_pretrained(str(tmp_path))
    assert StoredFields.read(tmp_path).parameters == direction.spec()
    for read in (Direction.load(tmp_path, found), Direction.stream(tmp_path, found)):
        assert read.spec() == direction.spec()
        for name in LOW:
            again, part = read.parameters[name], direction.parameters[name]
            for kind in ("decoder", "decoder_bias", "encoder"):
                if getattr(part, kind) is None:
                    assert getattr(again, kind) is None
                    continue
                rank, stored = getattr(part, kind).rank, getattr(again, kind)
                assert stored.rank == 3  # that of the largest, with zeros beyond
                wide = getattr(part, kind).to(getattr(torch, dtype)).to(torch.float32)
                assert torch.equal(stored.b[..., :rank], wide.b) and not stored.b[..., rank:].any()
                assert torch.equal(stored.a[..., :rank, :], wide.a) and not stored.a[..., rank:, :].any()
        read.check()


def damaged(spec: dict[str, Any], name: str) -> None:
    {
        "rank 0": lambda: spec["w"].update(rank=0),
        "no number": lambda: spec["w"].update(rank="2"),
        "true": lambda: spec["w"].update(rank=True),
        "beyond the smaller side": lambda: spec["w"].update(rank=8),
        "of a vector": lambda: spec["norm.bias"].update(rank=1),
        "stack of a matrix": lambda: spec["w"].update(stacked=True),
        "stack of none": lambda: spec["norm.bias"].update(stacked=True),
        "with entries": lambda: spec["w"].update(entries=5),
        "stranger's key": lambda: spec["w"].update(ranks=3),
    }[name]()


@pytest.mark.parametrize(
    "name",
    ["rank 0", "no number", "true", "beyond the smaller side", "of a vector", "stack of a matrix", "stack of none",
     "with entries", "stranger's key"],
)  # fmt: skip
def test_impossible_forms(tmp_path: Path, name: str) -> None:
    direction = make()
    spec = direction.spec()
    damaged(spec, name)
    with pytest.raises(ConfigError, match=r"GradiendConfig\.parameters"):
        GradiendConfig(feature_classes=["a", "b"], parameters=spec, has_bias=True)
    config(direction).save_pretrained(str(tmp_path))
    raw = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**raw, "parameters": spec}))
    for read in (lambda: GradiendConfig.from_pretrained(str(tmp_path)), lambda: StoredFields.read(tmp_path)):
        with pytest.raises(ArtifactError):
            read()


def test_files_that_are_not_what_the_configuration_says(tmp_path: Path) -> None:
    direction = make()
    direction.save(tmp_path)
    spec = direction.spec()
    spec["w"]["rank"] = 2
    for wrong in (spec, {**spec, "w": {"shape": [9, 7], "entries": None}}):
        with pytest.raises(ArtifactError, match="rewrite_w"):
            Direction.stream(tmp_path, GradiendConfig(feature_classes=["a", "b"], parameters=wrong, has_bias=True))
    for file in (WEIGHTS_FILE, ENCODER_FILE):
        direction.save(tmp_path)
        tensors = load_file(tmp_path / file)
        key = max((key for key in tensors if "experts" in key and "fingerprint" not in key), key=len)
        tensors[key][5] = float("nan")
        save_file(tensors, tmp_path / file)
        with pytest.raises(ArtifactError, match="experts holds NaN"):
            Direction.load(tmp_path, config(direction))


def test_parts_that_do_not_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    good = factors((9, 7), 2, generator)
    wrong = [
        ParameterDirection((9, 8), good),
        ParameterDirection((63,), good),
        ParameterDirection((9, 7), factors((9, 7), 8, generator)),
        ParameterDirection((9, 7), factors((9, 7), 0, generator)),
        ParameterDirection((9, 7), good.to(torch.float64)),
        ParameterDirection((9, 7), good, torch.randn(63)),
        ParameterDirection((9, 7), torch.randn(63), good),
        ParameterDirection((9, 7), Factors(good.b, good.a[:1])),
        ParameterDirection((9, 7), good, indices=torch.arange(32, dtype=torch.int32)),
    ]
    for part in wrong:
        with pytest.raises(ArtifactError, match="of w"):
            Direction({"w": part}).check()


def test_products_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pieces are, they are the whole product, and its bound holds."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr("gradiend_hub.artifact.low_rank.BLOCK", {"cpu": 17})
    for shape in ((9, 7), (3, 6, 8)):
        one, other = (factors(shape, 3, generator) for _ in range(2))
        whole = one.b.double() @ one.a.double()
        torch.testing.assert_close(one.dense().double(), whole, atol=1e-5, rtol=1e-5)
        assert float(whole.abs().max()) <= one.bound() * (1 + 1e-6)
        expected = float((whole * (other.b.double() @ other.a.double())).sum())
        assert one.inner(other.dense()) == pytest.approx(expected, rel=1e-5)
        positions = torch.randperm(whole.numel(), generator=generator)[:9]
        torch.testing.assert_close(one.at(positions).double(), whole.flatten()[positions], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "ranks", "message"),
    [
        ((20,), (2, 2), r"decoder of w: expected the values of a vector \[20\], found factors \[5, 2\] and \[2, 4\]"),
        ((5, 4), (0, 0), r"a matrix \[5, 4\], of a rank from 1 to its smaller side; found \[5, 0\] and \[0, 4\]"),
        ((5, 4), (9, 9), r"a rank from 1 to its smaller side; found \[5, 9\] and \[9, 4\]"),
        ((5, 4), (2, 3), r"a rank from 1 to its smaller side; found \[5, 2\] and \[3, 4\]"),
    ],
    ids=["vector", "rank 0", "above the smaller side", "two ranks"],
)
def test_factors_that_do_not_fit_are_explained(shape: tuple[int, ...], ranks: tuple[int, int], message: str) -> None:
    part = ParameterDirection(shape, Factors(torch.randn(5, ranks[0]), torch.randn(ranks[1], 4)))
    with pytest.raises(ArtifactError, match=message):
        part.peaks("w")
