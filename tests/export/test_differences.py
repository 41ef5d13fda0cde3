"""Differences of checkpoints as directions, and directions as task vectors: W' − W and W + Δ by hand, and plain PEFT."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, ConfigError, EditError
from gradiend_hub.export import to_task_vector
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

AS_TUNED = {"target": "diff", "decoder_sign": 1, "strength_unit": 1.0}


def tuned_by(base: nn.Module, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> nn.Module:
    """A copy with other values; the change gets a parameter's name and value, and may leave it alone (`None`)."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            new = change(name, parameter)
            if new is not None:
                parameter.copy_(new)
    return model


def noisy(scale: float = 0.05) -> Callable[[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return lambda name, value: value + scale * torch.randn(value.shape, generator=generator).to(value.dtype)


def saved(folder: Path, base: nn.Module, tuned: nn.Module) -> tuple[Path, Path]:
    """Both as checkpoints, cut into files at different places."""
    base.save_pretrained(folder / "base", max_shard_size="12KB")
    tuned.save_pretrained(folder / "tuned", max_shard_size="30KB")
    assert len(list((folder / "base").glob("*.safetensors"))) > 1
    return folder / "base", folder / "tuned"


def by_hand(base: nn.Module, tuned: nn.Module) -> dict[str, torch.Tensor]:
    theirs = dict(tuned.named_parameters())
    return {name: (theirs[name] - p).detach().float() for name, p in base.named_parameters()}


def at(base: nn.Module, direction: Direction, strength: float) -> dict[str, torch.Tensor]:
    model = GradiendModel.from_direction(base, direction, config_for(direction, **AS_TUNED), strength=strength)
    merged = model.merge_and_unload()
    assert isinstance(merged, nn.Module)
    return bits(merged)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_strength_one_is_the_tuned_model(architecture: str, tmp_path: Path) -> None:
    base = build(architecture)
    tuned = tuned_by(base, noisy())
    direction = Direction.from_checkpoints(*saved(tmp_path, base, tuned))
    expected = by_hand(base, tuned)
    assert direction.parameters.keys() == expected.keys() and not direction.has_encoder
    assert all(
        torch.equal(direction.parameters[name].dense(direction.delta()[name]), expected[name]) for name in expected
    )
    before = bits(base)
    for strength in (1.0, 0.5, -1.0):
        found = at(copy.deepcopy(base), direction, strength)
        for name, delta in expected.items():
            torch.testing.assert_close(found[name], before[name] + strength * delta, atol=1e-6, rtol=0)
    with pytest.raises(BaseModelMismatchError):  # the fingerprint is that of the base
        stranger = tuned_by(base, lambda _, value: torch.randn_like(value))
        GradiendModel.from_direction(stranger, direction, config_for(direction, **AS_TUNED))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_come_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = build("llama").to(dtype)
    tuned = tuned_by(base, noisy(0.01))
    direction = Direction.from_checkpoints(*saved(tmp_path, base, tuned))
    assert direction.fingerprint is not None and direction.fingerprint.dtype == str(dtype).removeprefix("torch.")
    wanted = bits(tuned)
    assert same_bits(at(base, direction, 1.0), wanted)


def test_few_entries_are_kept_by_place(tmp_path: Path) -> None:
    """What an edit of few entries has changed is found again, exactly, and nothing else."""
    base = build("bert")
    sparse = random_direction(base, "sparse", bias=False, share=0.05)
    tuned = edited(base, [(sparse, 1.0, 0.0)])
    found = Direction.from_checkpoints(*saved(tmp_path, base, tuned))
    assert all(part.indices is not None for part in found.parameters.values())
    assert found.entries == sum(int(delta.count_nonzero()) for delta in by_hand(base, tuned).values())
    untouched = tuned_by(base, lambda name, value: value + 1 if name.endswith("0.output.dense.bias") else None)
    untouched.save_pretrained(tmp_path / "one")
    one = Direction.from_checkpoints(tmp_path / "base", tmp_path / "one")
    assert list(one.parameters) == ["bert.encoder.layer.0.output.dense.bias"]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.9])
def test_density_keeps_the_largest_entries_of_all(density: float, tmp_path: Path) -> None:
    base = build("llama")
    tuned = tuned_by(base, noisy())
    folders = saved(tmp_path, base, tuned)
    found = Direction.from_checkpoints(*folders, density=density)
    deltas = by_hand(base, tuned)
    flat = torch.cat([delta.flatten() for delta in deltas.values()])
    smallest = flat.abs().sort(descending=True).values[round(density * len(flat)) - 1]
    assert found.entries == round(density * len(flat))
    for name, delta in deltas.items():
        expected = torch.where(delta.abs() >= smallest, delta, 0)
        part = found.parameters.get(name)
        assert torch.equal(torch.zeros_like(delta) if part is None else part.dense(part.decoder), expected)


def test_rank_finds_a_merged_lora(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT's own merge of a LoRA of rank 2: at rank 2, nothing of it is lost."""
    base = build("llama")
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(base), peft_config).merge_and_unload()
    with caplog.at_level(logging.INFO, "gradiend_hub"):
        found = Direction.from_checkpoints(*saved(tmp_path, base, tuned), rank=2)
    assert "holds 100.0% of" in caplog.text
    assert found.parameters and all(part.rank == 2 for part in found.parameters.values())
    for name, delta in by_hand(base, tuned).items():
        part = found.parameters.get(name)
        assert (part is not None) == name.endswith(("q_proj.weight", "down_proj.weight"))
        if part is not None:
            torch.testing.assert_close(part.dense(part.decoder), delta, atol=1e-5, rtol=1e-4)


def test_names_without_the_prefix_and_tied_copies(tmp_path: Path) -> None:
    base = build("bert")
    tuned = tuned_by(base, noisy())
    one, other = saved(tmp_path, base, tuned)
    wanted = Direction.from_checkpoints(one, other)
    tensors = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}  # with the tied head's copies
    renamed = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    renamed["embeddings.position_ids"] = torch.arange(5)
    (tmp_path / "renamed").mkdir()
    save_file({name: tensor.clone() for name, tensor in renamed.items()}, tmp_path / "renamed" / "model.safetensors")
    found = Direction.from_checkpoints(one, tmp_path / "renamed")
    assert found.spec() == wanted.spec()
    assert all(torch.equal(found.delta()[name], values) for name, values in wanted.delta().items())  # type: ignore[arg-type]


def test_what_cannot_be_a_difference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = build("bert")
    one, other = saved(tmp_path, base, tuned_by(base, noisy()))

    def refused(error: type[Exception], match: str, tuned: Any = other, **options: Any) -> None:
        with pytest.raises(error, match=match):
            Direction.from_checkpoints(one, tuned, **options)

    refused(ConfigError, "not both", density=0.1, rank=2)
    for density in (0, -1, 1.5, float("nan"), True):
        refused(ConfigError, "density", density=density)
    for rank in (0, -1, 10**6, True):
        refused(ConfigError, "rank", rank=rank)
    refused(ConfigError, "Nothing differs", one)
    refused(BaseModelError, "only safetensors", tmp_path)
    refused(
        BaseModelError,
        "The tuned checkpoint .* is neither .* Name it as `tuned`",
        "nobody/nothing",
        local_files_only=True,
    )
    build("llama").save_pretrained(tmp_path / "llama")
    refused(BaseModelMismatchError, "lacks", tmp_path / "llama")

    tensors = {k: v for file in other.glob("*.safetensors") for k, v in load_file(file).items()}
    strange, name = tmp_path / "strange", "bert.encoder.layer.0.output.dense.weight"
    strange.mkdir()

    def stored(**changed: torch.Tensor) -> Path:
        save_file({**tensors, **changed}, strange / "model.safetensors")
        return strange

    refused(BaseModelMismatchError, "changes values, not shapes", stored(**{name: tensors[name][:-1].clone()}))
    refused(BaseModelError, "quantised", stored(**{name: tensors[name].to(torch.int8)}))
    refused(BaseModelError, "NaN", stored(**{name: tensors[name] * float("nan")}))
    refused(
        BaseModelMismatchError,
        "base checkpoint lacks classifier.weight",
        stored(**{"classifier.weight": torch.ones(3)}),
    )
    found = Direction.from_checkpoints(one, strange, exclude=["classifier.*", "bert.embeddings.*"])
    assert found.parameters and not [name for name in found.parameters if "embeddings" in name]
    assert "rounding" not in caplog.text
    Direction.from_checkpoints(one, stored(**{name: tensors[name].bfloat16()}))
    assert "rounding" in caplog.text
    (strange / "model.safetensors").write_bytes(b"half")
    refused(BaseModelError, "not a readable safetensors file", strange)


# ---------------------------------------------------------------------------------------------------------- task vectors


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "mixtral"])
@pytest.mark.parametrize("storage", ["mixed", "low rank"])
def test_base_and_task_vector_are_the_merge(architecture: str, storage: str, tmp_path: Path) -> None:
    base = build(architecture)
    direction = random_direction(base, storage)
    config = config_for(direction, base, strength_unit=0.7, decoder_sign=-1, base_model_name_or_path="us/base")
    for strength in (1.0, -2.0):
        made = to_task_vector(direction, config, base, tmp_path / "deep" / "tv", strength=strength)
        written = load_file(made.file)
        assert list(made.file.parent.iterdir()) == [made.file] and not made.odd and made.tensors == len(written)
        wanted = bits(edited(base, [(direction, *config.coefficients(strength))]))
        for name, value in base.named_parameters():
            torch.testing.assert_close(value.detach() + written[name], wanted[name], atol=1e-6, rtol=1e-5)
    with made.file.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt", "strength": "-2.0", "base_model": "us/base"}
    back = Direction.from_task_vector(made.file)
    assert all(torch.equal(part.dense(part.decoder), written[name]) for name, part in back.parameters.items())
    assert Direction.from_task_vector(made.file, density=0.01).entries == round(0.01 * back.numel)


def test_a_task_vector_there_and_back(tmp_path: Path) -> None:
    """A fine-tune's difference, written and read: the same direction."""
    base = build("llama")
    direction = Direction.from_checkpoints(*saved(tmp_path, base, tuned_by(base, noisy())), rank=2)
    made = to_task_vector(direction, config_for(direction, **AS_TUNED), base, tmp_path)
    assert made.odd and made.norm == pytest.approx(direction.norm(), rel=1e-5)
    back = Direction.from_task_vector(made.file, rank=2)
    assert back.spec() == direction.spec()
    for name, part in direction.parameters.items():
        other = back.parameters[name]
        torch.testing.assert_close(other.dense(other.decoder), part.dense(part.decoder), atol=1e-5, rtol=1e-4)


def test_what_is_no_task_vector(tmp_path: Path) -> None:
    base = build("bert")
    direction = random_direction(base)
    config = config_for(direction, base)
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="other than 0"):
            to_task_vector(direction, config, base, tmp_path / "tv", strength=strength)
    with pytest.raises(BaseModelMismatchError):
        to_task_vector(direction, config, build("llama"), tmp_path / "tv")
    with pytest.raises(EditError, match="beyond the numbers"):
        to_task_vector(direction, config, base, tmp_path / "tv", strength=1e300)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.part"))
    with pytest.raises(ConfigError, match="no file"):
        Direction.from_task_vector(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "zero.safetensors")
    with pytest.raises(ConfigError, match="Nothing differs"):
        Direction.from_task_vector(tmp_path / "zero.safetensors")
    save_file({"a": torch.tensor([1.0, float("inf")])}, tmp_path / "inf.safetensors")
    with pytest.raises(BaseModelError, match="infinite"):
        Direction.from_task_vector(tmp_path / "inf.safetensors")
