"""Merging file by file: the bits of a merge in memory, whole or not at all, and resumed where it stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from gradiend_hub.artifact import low_rank
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, ConfigError, EditError
from gradiend_hub.export import merge_files as module
from gradiend_hub.export.merge_files import merge_files
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, random_direction, same_bits
from tests.conftest import ROOT
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


class Case:
    """A base model in a folder, a direction on it, and what merging in memory gives."""

    def __init__(
        self, folder: Path, architecture: str, dtype: torch.dtype, storage: str = "mixed", **saving: Any
    ) -> None:
        self.base, self.direction_folder = folder / "base", folder / "direction"
        model = build(architecture).to(dtype)
        model.save_pretrained(self.base, **saving)
        self.model_class = type(model)
        self.direction = random_direction(model, storage, scale=0.02)
        self.config = config_for(
            self.direction, model, base_model_name_or_path=str(self.base), strength_unit=0.7, decoder_sign=-1
        )
        self.config.save_pretrained(str(self.direction_folder))
        self.direction.save(self.direction_folder)

    def streamed(self) -> Direction:
        return Direction.stream(self.direction_folder, self.config, encoder=False)

    def in_memory(self, strength: float) -> nn.Module:
        base = self.model_class.from_pretrained(self.base, dtype="auto")
        merged = GradiendModel.from_direction(base, self.direction, self.config, strength=strength).merge_and_unload()
        assert isinstance(merged, nn.Module)
        return merged


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_a_merge_in_memory(
    architecture: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "BLOCK", {"cpu": 50})
    case = Case(tmp_path, architecture, dtype, max_shard_size="12KB")
    assert len(list(case.base.glob("*.safetensors"))) > 1
    out = tmp_path / "out"
    receipt = merge_files(case.streamed(), case.config, out, strength=1.3)
    expected = case.in_memory(1.3)
    found = case.model_class.from_pretrained(out, dtype="auto")
    assert same_bits(bits(found), bits(expected))
    assert {p.dtype for p in found.parameters()} == {dtype}
    base = case.model_class.from_pretrained(case.base, dtype="auto")
    live = GradiendModel.from_direction(base, case.direction, case.config, strength=1.3).receipt
    assert (receipt.entries, receipt.tensors, receipt.swallowed) == (live.entries, live.tensors, live.swallowed)
    assert receipt.relative_norm == pytest.approx(live.relative_norm, rel=1e-6)
    kept = {path.name for path in case.base.iterdir()}
    assert {path.name for path in out.iterdir()} == kept
    for path in case.base.glob("*.safetensors"):  # the same tensors at the same places
        assert path.stat().st_size == (out / path.name).stat().st_size


@pytest.mark.parametrize("storage", ["dense", "sparse", "low rank"])
def test_every_form_into_one_file(storage: str, tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", torch.float16, storage)
    merge_files(case.streamed(), case.config, tmp_path / "deep" / "out", strength=-0.5)
    found = case.model_class.from_pretrained(tmp_path / "deep" / "out", dtype="auto")
    assert same_bits(bits(found), bits(case.in_memory(-0.5)))


def test_tied_weights_that_are_stored_twice(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", torch.float32)
    file = case.base / "model.safetensors"
    tensors = load_file(file)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    merge_files(case.streamed(), case.config, tmp_path / "out", strength=1.0)
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = bits(case.in_memory(1.0))["bert.embeddings.word_embeddings.weight"]
    for name in ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"):
        assert torch.equal(found[name], expected)


def test_a_merge_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, "llama", torch.float32, max_shard_size="12KB")
    shards, out, real = len(list(case.base.glob("*.safetensors"))), tmp_path / "out", module._merge_file
    written: list[str] = []

    def stopping(file: Any, target: Path, job: Any) -> Any:
        if len(written) == 2:
            target.with_name(f"{target.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(target.name)
        return real(file, target, job)

    monkeypatch.setattr(module, "_merge_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        merge_files(case.streamed(), case.config, out, strength=1.0)
    assert not out.exists() and (tmp_path / ".out.merging").is_dir()
    again: list[str] = []

    def counting(file: Any, target: Path, job: Any) -> Any:
        again.append(target.name)
        return real(file, target, job)

    monkeypatch.setattr(module, "_merge_file", counting)
    receipt = merge_files(case.streamed(), case.config, out, strength=1.0)
    assert len(again) == shards - 2 and not set(again) & set(written)
    assert same_bits(bits(case.model_class.from_pretrained(out)), bits(case.in_memory(1.0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "direction", "out"]
    assert not [path.name for path in out.iterdir() if "part" in path.name or path.name.startswith(".")]
    whole = merge_files(case.streamed(), case.config, tmp_path / "again", strength=1.0)
    assert whole == receipt


@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_merge_leaves_nothing_half_and_goes_on(at: int, tmp_path: Path) -> None:
    """SIGKILL in the middle of the file with this number."""
    case = Case(tmp_path, "llama", torch.float32, max_shard_size="12KB")
    out = tmp_path / "out"
    script = f"""
import os, signal
from pathlib import Path
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.export import merge_files as module

real, seen = module._edit, []
begun = module._merge_file

def merge_file(file, target, job):
    seen.append(target.name)
    return begun(file, target, job)

def edit(tensor, part, source, written):
    if len(seen) == {at + 1}:
        written.write(b"half a tensor")
        written.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(tensor, part, source, written)

module._merge_file, module._edit = merge_file, edit
folder = {str(case.direction_folder)!r}
config = GradiendConfig.from_pretrained(folder)
direction = Direction.stream(folder, config, encoder=False)
module.merge_files(direction, config, Path({str(out)!r}), strength=1.3)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not out.exists()
    finished = [path.name for path in (tmp_path / ".out.merging").glob("*.safetensors")]
    assert len(finished) == at
    merge_files(case.streamed(), case.config, out, strength=1.3)
    assert same_bits(bits(case.model_class.from_pretrained(out)), bits(case.in_memory(1.3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "direction", "out"]
    assert not [path.name for path in out.iterdir() if path.name.endswith(".part") or path.name.startswith(".")]


def test_what_was_begun_with_another_strength_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, "llama", torch.float32, max_shard_size="12KB")
    real = module._merge_file

    def once(file: Any, target: Path, job: Any) -> Any:
        real(file, target, job)
        raise KeyboardInterrupt

    for strength in (1.0, 2.0):
        monkeypatch.setattr(module, "_merge_file", once)
        with pytest.raises(KeyboardInterrupt):
            merge_files(case.streamed(), case.config, tmp_path / "out", strength=strength)
    monkeypatch.setattr(module, "_merge_file", real)
    merge_files(case.streamed(), case.config, tmp_path / "out", strength=-1.0)
    assert same_bits(bits(case.model_class.from_pretrained(tmp_path / "out")), bits(case.in_memory(-1.0)))


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", torch.float32)
    out = tmp_path / "out"

    def refused(error: type[Exception], match: str, strength: float = 1.0, **options: Any) -> None:
        with pytest.raises(error, match=match):
            merge_files(case.streamed(), case.config, out, strength=strength, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)

    kept = [path.name for path in tmp_path.iterdir()]
    for strength in (0.0, float("nan"), float("inf")):
        refused(ConfigError, "Strength", strength)
    refused(EditError, "beyond the numbers", 1e45)
    with pytest.raises(EditError, match="changes no weight"):
        merge_files(case.direction * 0.0, case.config, out, strength=1.0)
    stranger = build("bert")
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.normal_()
    stranger.save_pretrained(tmp_path / "stranger")
    kept.append("stranger")
    refused(BaseModelMismatchError, "not the base model", base=tmp_path / "stranger")
    build("llama").save_pretrained(tmp_path / "llama")
    kept.append("llama")
    refused(BaseModelMismatchError, "bert", base=tmp_path / "llama")
    missing = "The base model 'nobody/nothing' is neither a folder .* Name it with --base, or `base`"
    refused(BaseModelError, missing, base="nobody/nothing", local_files_only=True)
    file = case.base / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    refused(BaseModelError, "not a readable safetensors file")
    tensors = load_file_from(whole, tmp_path)
    packed = {n: t.to(torch.int8) if n == "bert.encoder.layer.1.output.dense.weight" else t for n, t in tensors.items()}
    save_file(packed, file)
    refused(BaseModelError, "quantised")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, file)
    refused(BaseModelError, "not there")
    file.unlink()
    refused(BaseModelError, "only safetensors")


@pytest.mark.parametrize("architecture", ["mixtral", "vit"])
def test_names_that_transformers_changes_are_refused(architecture: str, tmp_path: Path) -> None:
    """Experts that are joined when they are loaded, and modules that were called otherwise."""
    case = Case(tmp_path, architecture, torch.float32)
    with pytest.raises(BaseModelError, match="Merge without streaming"):
        merge_files(case.streamed(), case.config, tmp_path / "out", strength=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "direction"]


def load_file_from(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "whole.safetensors"
    path.write_bytes(data)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    return tensors


def test_an_index_that_leaves_the_folder(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama", torch.float32, max_shard_size="12KB")
    index = case.base / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    name = next(iter(fields["weight_map"]))
    for strange in ("../secret.safetensors", "/etc/passwd", "missing.safetensors"):
        index.write_text(json.dumps({**fields, "weight_map": {**fields["weight_map"], name: strange}}))
        with pytest.raises(BaseModelError, match="lacks"):
            merge_files(case.streamed(), case.config, tmp_path / "out", strength=1.0)
    index.write_text("{")
    with pytest.raises(BaseModelError, match="damaged"):
        merge_files(case.streamed(), case.config, tmp_path / "out", strength=1.0)


def test_no_model_and_no_large_tensor_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a low-rank edit, pieces are in memory and no weight; nothing is loaded as a model."""
    case = Case(tmp_path, "llama", torch.float32, "low rank")
    matrices = {n: p for n, p in case.direction.parameters.items() if p.rank is not None}
    low = Direction(matrices, fingerprint=case.direction.fingerprint.only(matrices))
    config = config_for(low, auto_mapping=case.config.auto_mapping, base_model_name_or_path=str(case.base))
    monkeypatch.setattr(low_rank, "BLOCK", {"cpu": 64})
    monkeypatch.setattr(module, "CHUNK", 256)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    sizes: list[int] = []
    real = module.read_values

    def watched(file: Any, count: int, dtype: torch.dtype) -> torch.Tensor:
        sizes.append(count)
        return real(file, count, dtype)

    monkeypatch.setattr(module, "read_values", watched)
    merge_files(low, config, tmp_path / "out", strength=1.0)
    assert max(sizes) <= 64 < max(part.numel for part in matrices.values())


def test_the_fingerprint_is_read_in_the_files_type(tmp_path: Path) -> None:
    """A direction of the fp32 model fits its rounded copy, as in memory."""
    case = Case(tmp_path, "bert", torch.float32)
    build("bert").to(torch.bfloat16).save_pretrained(tmp_path / "rounded")
    assert case.direction.fingerprint is not None and isinstance(case.direction.fingerprint, Fingerprint)
    merge_files(case.streamed(), case.config, tmp_path / "out", strength=1.0, base=tmp_path / "rounded")
    base = case.model_class.from_pretrained(tmp_path / "rounded", dtype="auto")
    expected = GradiendModel.from_direction(base, case.direction, case.config, strength=1.0).merge_and_unload()
    assert same_bits(bits(case.model_class.from_pretrained(tmp_path / "out", dtype="auto")), bits(expected))


def test_a_folder_with_other_files_is_filled(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", torch.float32)
    out = tmp_path / "out"
    shutil.copytree(case.base, out)
    (out / "notes.md").write_text("mine")
    merge_files(case.streamed(), case.config, out, strength=1.0)
    assert (out / "notes.md").read_text() == "mine"
    assert same_bits(bits(case.model_class.from_pretrained(out)), bits(case.in_memory(1.0)))
    assert GradiendConfig.from_pretrained(str(case.direction_folder)).strength == 1.0
