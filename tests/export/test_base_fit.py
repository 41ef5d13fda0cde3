"""Would a direction fit a model? Against models that are the same, rounded, tuned, strangers, and out of reach."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn

from gradiend_hub.artifact.files import BASE_FILE
from gradiend_hub.errors import BaseModelError
from gradiend_hub.export.base_fit import base_fit
from tests.adapter.support import config_for, random_direction
from tests.hub_server import HubServer
from tests.models import build


def saved(folder: Path, model: nn.Module) -> Path:
    """A direction of a model in a folder."""
    direction = random_direction(model)
    config_for(direction, model).save_pretrained(str(folder))
    direction.save(folder)
    return folder


def model_in(
    folder: Path, change: Callable[[nn.Module], None] = lambda model: None, name: str = "bert", **saving: str
) -> str:
    model = build(name)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder, **saving)
    return str(folder)


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    return saved(tmp_path / "direction", build("bert"))


def tuned(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter += 0.01 * parameter.std() * torch.randn_like(parameter)


def strange(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.normal_()


def half(model: nn.Module) -> None:
    model.half()


@pytest.mark.parametrize(
    ("change", "relation"),
    [(lambda model: None, "same"), (half, "same up to rounding"), (tuned, "related"), (strange, "different")],
)
@pytest.mark.parametrize("shard", ["10KB", "1GB"])
def test_a_folder(
    direction: Path, tmp_path: Path, change: Callable[[nn.Module], None], relation: str, shard: str
) -> None:
    base = model_in(tmp_path / "base", change, max_shard_size=shard)
    found = base_fit(direction, base)
    assert (found.relation, found.fits, found.base) == (relation, relation.startswith("same"), base)
    tensors = len(list(build("bert").parameters()))
    assert f"of {tensors} of {tensors} tensors were compared" in found.why
    assert ("--allow-related" in found.why) is (relation == "related")


def test_another_architecture_size_and_nothing_to_compare(direction: Path, tmp_path: Path) -> None:
    other = base_fit(direction, model_in(tmp_path / "llama", name="llama"))
    assert (other.relation, other.fits) == ("different", False) and "llama" in other.why
    base = model_in(tmp_path / "base")
    (direction / BASE_FILE).unlink()
    blind = base_fit(direction, base)
    assert (blind.relation, blind.fits) == ("unknown", False) and "no sampled weights" in blind.why
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**fields, "vocab_size": fields["vocab_size"] + 8}))
    larger = base_fit(direction, base)
    assert (larger.relation, larger.fits) == ("different", False) and "another shape" in larger.why


def test_files_that_cannot_tell(direction: Path, tmp_path: Path) -> None:
    base = Path(model_in(tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    save_file({f"elsewhere.{name}": tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    found = base_fit(direction, str(base))
    assert (found.relation, found.fits) == ("unknown", False)
    (base / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BaseModelError, match="not a readable safetensors file"):
        base_fit(direction, str(base))
    with pytest.raises(BaseModelError):
        base_fit(direction, "nobody/nothing")


@pytest.mark.parametrize("change", [lambda model: None, tuned, strange], ids=["same", "tuned", "strange"])
@pytest.mark.parametrize("shard", ["10KB", "1GB"])
def test_a_model_on_the_hub_is_not_downloaded(
    direction: Path, tmp_path: Path, hub: HubServer, repo_id: str, change: Callable[[nn.Module], None], shard: str
) -> None:
    hub.configure(lfs_threshold=100)
    base = model_in(tmp_path / "base", change, max_shard_size=shard)
    expected = base_fit(direction, base)
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=base)
    hub.clear()
    found = base_fit(direction, repo_id)
    assert (found.relation, found.fits) == (expected.relation, expected.fits)
    asked = [
        record for record in hub.log(method="GET") if ".safetensors" in record["path"] and "/resolve/" in record["path"]
    ]
    assert asked and all("index.json" in record["path"] or record["status"] in (206, 302) for record in asked)
    compared = re.search(r"sampled values of (\d+) of 42 tensors", found.why)
    assert compared and 8 <= int(compared[1]) <= 16
    HfApi().snapshot_download(repo_id)
    hub.clear()
    cached = base_fit(direction, repo_id)
    assert cached.relation == expected.relation and "of 42 of 42 tensors" in cached.why
    assert not [r for r in hub.log(method="GET") if r["path"].endswith(".safetensors")]


def test_a_private_model_without_access(direction: Path, tmp_path: Path, hub: HubServer, repo_id: str) -> None:
    base = model_in(tmp_path / "base")
    HfApi().create_repo(repo_id, private=True)
    HfApi().upload_folder(repo_id=repo_id, folder_path=base)
    with pytest.raises(BaseModelError):
        base_fit(direction, repo_id, token=hub.tokens.bob)
    shutil.rmtree(base)
    assert base_fit(direction, repo_id, token=hub.tokens.alice).fits
