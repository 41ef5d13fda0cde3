"""Directions: arithmetic, sparsity, files that are whole, and files that are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import BASE_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError, ConfigError


def make(seed: int = 0, *, bias: bool = True) -> Direction:
    """A dense and a sparse parameter, and a scalar."""
    generator = torch.Generator().manual_seed(seed)

    def values(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    indices = torch.randperm(12, generator=generator)[:5].sort().values.int()
    return Direction(
        {
            "m.weight": ParameterDirection((3, 4), values(12), values(12) if bias else None, values(12)),
            "m.bias": ParameterDirection((12,), values(5), values(5) if bias else None, values(5), indices),
            "scale": ParameterDirection((), values(1), values(1) if bias else None, values(1)),
        },
        encoder_bias=0.5,
        fingerprint=Fingerprint.of({"m.weight": values(12), "m.bias": values(12), "scale": values(1)}),
    )


def dense(direction: Direction, c_w: float, c_b: float) -> dict[str, torch.Tensor]:
    return {name: part.dense(part.delta(c_w, c_b)) for name, part in direction.parameters.items()}


def config(direction: Direction, **fields: object) -> GradiendConfig:
    return GradiendConfig(
        feature_classes=["a", "b"], parameters=direction.spec(), has_bias=direction.has_bias, **fields
    )


def test_sizes_and_norm() -> None:
    direction = make()
    assert (direction.numel, direction.entries) == (25, 18)
    flat = torch.cat([tensor.flatten() for tensor in dense(direction, 0.5, 2.0).values()])
    assert direction.norm(0.5, 2.0) == pytest.approx(float(flat.double().norm()), rel=1e-6)


def test_scaling_and_adding() -> None:
    one, two = make(1), make(2, bias=False)
    total = 2 * one + two * -0.5
    for name, tensor in dense(total, 1.0, 1.0).items():
        expected = 2 * dense(one, 1.0, 1.0)[name] - 0.5 * dense(two, 1.0, 1.0)[name]
        torch.testing.assert_close(tensor, expected)
    assert total.parameters["m.bias"].indices is not None
    assert total.parameters["m.bias"].entries < 12
    assert not total.has_encoder
    assert (2 * one).has_encoder
    alone = one + Direction({"other": two.parameters["scale"]})
    assert list(alone.parameters) == ["m.weight", "m.bias", "scale", "other"]
    with pytest.raises(ConfigError, match=r"m\.bias"):
        one + Direction({"m.bias": one.parameters["m.weight"]})


@pytest.mark.parametrize("by", ["decoder", "encoder", "decoder_bias", "decoder_sum"])
def test_pruning_keeps_the_largest(by: str) -> None:
    direction = make()
    pruned = direction.to_sparse(entries=6, by=by)  # type: ignore[arg-type]
    assert pruned.entries == 6
    scores = []
    for part in direction.parameters.values():
        values = {"decoder_sum": part.delta(1.0, 1.0)}.get(by)
        scores.append((getattr(part, by) if values is None else values).abs())
    smallest_kept = torch.cat(scores).sort(descending=True).values[5]
    for name, part in pruned.parameters.items():
        assert part.indices is not None
        full = direction.parameters[name]
        score = full.delta(1.0, 1.0) if by == "decoder_sum" else getattr(full, by)
        kept = full.dense(score.abs()).flatten()[part.indices.long()]
        assert bool((kept >= smallest_kept).all())
        assert torch.equal(part.dense(part.encoder)[part.dense(part.encoder) != 0],
                           full.dense(full.encoder)[part.dense(part.encoder) != 0])  # fmt: skip
    pruned.check()
    assert set(pruned.fingerprint.samples) == set(pruned.parameters)  # type: ignore[union-attr]


def test_pruning_arguments() -> None:
    direction = make(bias=False)
    assert direction.to_sparse(0.2).entries == 5
    assert direction.to_sparse(1e-9).entries == 1
    for arguments in ({}, {"density": 0.1, "entries": 3}, {"density": 0.0}, {"density": 1.1}, {"entries": 0}):
        with pytest.raises(ConfigError):
            direction.to_sparse(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="decoder_bias"):
        direction.to_sparse(0.5, by="decoder_bias")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    direction = make()
    direction.save(tmp_path, dtype=dtype)
    read = Direction.load(tmp_path, config(direction, dtype=dtype))
    assert read.encoder_bias == 0.5
    assert list(read.parameters) == list(direction.parameters)
    for name, part in direction.parameters.items():
        again = read.parameters[name]
        for kind in ("decoder", "decoder_bias", "encoder"):
            assert torch.equal(getattr(again, kind), getattr(part, kind).to(getattr(torch, dtype)).float())
        assert (part.indices is None and again.indices is None) or torch.equal(part.indices, again.indices)
        assert again.shape == part.shape
    assert read.fingerprint is not None
    assert read.fingerprint.samples.keys() == direction.fingerprint.samples.keys()  # type: ignore[union-attr]
    decoder_only = Direction.load(tmp_path, config(direction, dtype=dtype), encoder=False)
    assert not decoder_only.has_encoder
    assert decoder_only.fingerprint is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS_FILE, BASE_FILE, ENCODER_FILE]


def test_keys_are_those_of_plain_peft(tmp_path: Path) -> None:
    make().save(tmp_path)
    keys = set(load_file(tmp_path / WEIGHTS_FILE))
    assert "base_model.model.m.rewrite_weight.gradiend_weight" in keys
    assert "base_model.model.m.rewrite_bias.gradiend_indices" in keys
    assert "base_model.model.rewrite_scale.gradiend_bias" in keys
    assert len(keys) == 7


def test_views_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    flat = torch.randn(24)
    part = ParameterDirection((12,), flat[:12], flat[:12])
    direction = Direction({"a": part, "b": ParameterDirection((12,), flat[12:], flat[::2])})
    direction.save(tmp_path)
    read = Direction.load(tmp_path, config(direction))
    assert torch.equal(read.parameters["b"].decoder_bias, flat[::2])  # type: ignore[arg-type]
    assert torch.equal(read.parameters["a"].decoder_bias, flat[:12])  # type: ignore[arg-type]


def test_a_failed_save_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(1).save(tmp_path)
    before = (tmp_path / WEIGHTS_FILE).read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("gradiend_hub.artifact.storage.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        make(2).save(tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_direction_without_encoder_removes_an_old_one(tmp_path: Path) -> None:
    make(1).save(tmp_path)
    total = make(1) + make(2)
    Direction(total.parameters).save(tmp_path)
    assert not (tmp_path / ENCODER_FILE).exists() and not (tmp_path / BASE_FILE).exists()
    assert not Direction.load(tmp_path, config(total)).has_encoder


def test_missing_files(tmp_path: Path) -> None:
    direction = make()
    with pytest.raises(ArtifactNotFoundError):
        Direction.load(tmp_path, config(direction))
    direction.save(tmp_path)
    with pytest.raises(ArtifactError, match="parameters"):
        Direction.load(tmp_path, GradiendConfig(feature_classes=["a", "b"]))


@pytest.mark.parametrize("file", [WEIGHTS_FILE, ENCODER_FILE, BASE_FILE])
@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "text", "extra", "missing", "dtype", "shape"])
def test_damaged_files(tmp_path: Path, file: str, damage: str) -> None:
    if file == BASE_FILE and damage in ("missing", "shape"):
        pytest.skip("samples may be missing, and a parameter may have fewer of them")
    direction = make()
    direction.save(tmp_path)
    path = tmp_path / file
    data = path.read_bytes()
    tensors = load_file(path)
    if damage == "truncated":
        path.write_bytes(data[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        path.write_bytes(struct.pack("<Q", 2**60) + data[8:])
    elif damage == "text":
        path.write_text("<!DOCTYPE html>" * 20)
    else:
        key = next(key for key in tensors if key.endswith(("weight", "m.weight")))
        if damage == "extra":
            tensors["surprise"] = torch.zeros(2)
        elif damage == "missing":
            del tensors[key]
        elif damage == "dtype":
            tensors[key] = tensors[key].double()
        else:
            tensors[key] = tensors[key][:-1].contiguous()
        save_file(tensors, path)
    with pytest.raises(ArtifactError):
        Direction.load(tmp_path, config(direction))


@pytest.mark.parametrize("damage", ["negative", "unsorted", "duplicate", "range", "nan", "inf", "dtype", "size"])
def test_unusable_values(damage: str) -> None:
    part = make().parameters["m.bias"]
    indices, decoder = part.indices, part.decoder
    assert indices is not None
    if damage == "negative":
        indices[0] = -1
    elif damage == "unsorted":
        indices[:2] = indices[:2].flip(0)
    elif damage == "duplicate":
        indices[1] = indices[0]
    elif damage == "range":
        indices[-1] = 12
    elif damage in ("nan", "inf"):
        decoder[2] = float(damage)
    elif damage == "dtype":
        decoder = decoder.double()
    else:
        decoder = decoder[:-1]
    with pytest.raises(ArtifactError, match=r"m\.bias"):
        Direction({"m.bias": ParameterDirection((12,), decoder, None, None, indices)}).check()


# ------------------------------------------------------------------------------------------------------------ comparing


def in_full(direction: Direction, c_w: float, c_b: float) -> dict[str, np.ndarray]:
    """Δ by parameter, as dense numpy arrays."""
    arrays = {}
    for name, part in direction.parameters.items():
        values = np.float32(c_w) * part.decoder.numpy()
        if part.decoder_bias is not None:
            values = values + np.float32(c_b) * part.decoder_bias.numpy()
        flat = np.zeros(part.numel, dtype=np.float64)
        flat[slice(None) if part.indices is None else part.indices.numpy()] = values
        arrays[name] = flat
    return arrays


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (1.0, 0.0), (0.5, -2.0)])
@pytest.mark.parametrize("seed", range(6))
def test_inner_products_are_those_of_full_vectors(seed: int, coefficients: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some(names: str) -> Direction:
        parts = {}
        for name in names:
            size = int(torch.randint(0, 21, (), generator=generator))
            dense = bool(torch.randint(0, 2, (), generator=generator))
            indices = None if dense else torch.randperm(20, generator=generator)[:size].sort().values.int()
            values = torch.randn(2, 20 if dense else size, generator=generator)
            bias = values[1] if name != "b" else None
            parts[name] = ParameterDirection((4, 5), values[0], bias, None, indices)
        return Direction(parts)

    one, two = some("abcd"), some("dcbe")
    full, other = in_full(one, *coefficients), in_full(two, *coefficients)
    expected = sum(float(full[name] @ other[name]) for name in full.keys() & other.keys())
    assert one.inner(two, *coefficients) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert two.inner(one, *coefficients) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    norm = sum(float(values @ values) for values in full.values()) ** 0.5
    assert one.norm(*coefficients) == pytest.approx(norm, rel=1e-12)
    assert one.inner(one, *coefficients) == pytest.approx(norm**2, rel=1e-12)


def test_directions_are_aligned_by_name_and_shape() -> None:
    one, two = make(1), make(2)
    prefixed = two.renamed({name: f"backbone.{name}" for name in reversed(two.parameters)})
    aligned = one.align(prefixed)
    assert list(aligned.parameters) == list(one.parameters)
    assert all(aligned.parameters[name] is two.parameters[name] for name in two.parameters)
    assert aligned.fingerprint.samples.keys() == two.fingerprint.samples.keys()
    assert one.inner(prefixed) == prefixed.inner(one) == one.inner(two)
    more = Direction(prefixed.parameters | {"other.weight": two.parameters["scale"]})
    assert list(one.align(more).parameters) == [*one.parameters, "other.weight"]
    assert one.inner(Direction({"nothing": two.parameters["scale"]})) == 0.0
    turned = Direction({"m.weight": ParameterDirection((4, 3), two.parameters["m.weight"].decoder)})
    for call in (one.inner, one.align):
        with pytest.raises(ConfigError, match=r"m.weight is \[3, 4\] in one, \[4, 3\] in the other"):
            call(turned)
    twice = Direction({"a.m.weight": two.parameters["m.weight"], "b.m.weight": two.parameters["m.weight"]})
    for call in (twice.inner, twice.align):
        with pytest.raises(ConfigError, match=r"may be a\.m\.weight or b\.m\.weight"):
            call(one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_direction_is_read_one_parameter_at_a_time(tmp_path: Path, dtype: str) -> None:
    direction = make()
    direction.save(tmp_path, dtype=dtype)
    whole = Direction.load(tmp_path, config(direction, dtype=dtype))
    streamed = Direction.stream(tmp_path, config(direction, dtype=dtype))
    for name, part in streamed.parameters.items():
        assert part is not streamed.parameters[name]  # nothing is kept
        for kind in ("decoder", "decoder_bias", "encoder", "indices"):
            mine, theirs = getattr(part, kind), getattr(whole.parameters[name], kind)
            assert mine is theirs is None or torch.equal(mine, theirs)
    assert streamed.encoder_bias == whole.encoder_bias
    assert streamed.spec() == whole.spec()
    assert streamed.inner(whole) == whole.inner(streamed) == pytest.approx(whole.norm() ** 2)
    assert not Direction.stream(tmp_path, config(direction, dtype=dtype), encoder=False).has_encoder
    with pytest.raises(KeyError):
        streamed.parameters["nothing"]
    with pytest.raises(ArtifactError, match="F16"):
        Direction.stream(tmp_path, config(direction, dtype="float16"))
    direction.parameters["m.weight"].decoder[3] = float("inf")
    direction.save(tmp_path, dtype=dtype)
    with pytest.raises(ArtifactError, match=r"m\.weight holds NaN or infinite"):
        Direction.stream(tmp_path, config(direction, dtype=dtype)).check()
