"""Pushing a merged model: its own files, its card, one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.cards import write_rewritten_card
from gradiend_hub.errors import HubPushError
from gradiend_hub.hub.publish import is_rewritten, publish_rewritten
from gradiend_hub_cli import app
from tests.adapter.support import config_for, random_direction
from tests.hub_server import HubServer
from tests.models import build

from .conftest import TOLERATE_LFS_UPLOAD


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A merged model with its card, beside files that are nobody's business."""
    base = build("bert")
    direction = random_direction(base)
    config = config_for(direction, feature_classes=["a", "b"], objective="masked_lm")
    model = GradiendModel.from_direction(base, direction, config, strength=0.5)
    receipt = model.receipt
    folder = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(folder)
    options: dict[str, Any] = {"direction": "alice/a-b", "strength": 0.5, "receipt": receipt, "dtype": "float32"}
    write_rewritten_card(folder, GradiendConfig(feature_classes=["a", "b"], objective="masked_lm"), **options)
    for litter in ("aws_credentials.json", "training_args.bin", ".env"):
        (folder / litter).write_text("secret")
    return folder


@TOLERATE_LFS_UPLOAD
def test_a_merged_folder_is_pushed_whole_and_nothing_else(
    hub: HubServer, api: HfApi, repo_id: str, merged: Path
) -> None:
    first = publish_rewritten(merged, repo_id)
    assert set(api.list_repo_files(repo_id)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert len(api.list_repo_commits(repo_id)) == 2  # the Hub's own, and ours
    assert publish_rewritten(merged, repo_id).oid == first.oid
    assert ModelCard.load(repo_id).data.library_name == "transformers"
    here, there = (AutoModelForMaskedLM.from_pretrained(place).state_dict() for place in (merged, repo_id))
    assert all(torch.equal(here[name], there[name]) for name in here)


@TOLERATE_LFS_UPLOAD
def test_the_command_pushes_a_merged_folder(hub: HubServer, api: HfApi, repo_id: str, merged: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(merged), repo_id])
    assert result.exit_code == 0, result.output
    assert api.list_repo_commits(repo_id)[0].title == "Upload rewritten model"


@pytest.mark.parametrize("lost", ["README.md", "model.safetensors"])
def test_half_a_model_is_refused_before_the_first_request(
    hub: HubServer, repo_id: str, merged: Path, lost: str
) -> None:
    assert is_rewritten(merged)
    (merged / lost).unlink()
    with pytest.raises(HubPushError, match=r"has no .*\nNothing was sent"):
        publish_rewritten(merged, repo_id)
    assert hub.log() == []


def test_a_key_behind_a_link_is_not_published(hub: HubServer, repo_id: str, merged: Path, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("private")
    (merged / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(HubPushError, match="is a link to"):
        publish_rewritten(merged, repo_id)
    assert hub.log() == []


@TOLERATE_LFS_UPLOAD
def test_a_model_in_memory_is_pushed_with_the_same_card(
    hub: HubServer, api: HfApi, repo_id: str, masked_path: Path, tmp_path: Path
) -> None:
    """What the card says of base and direction gives both to the bit."""
    base = AutoModelForMaskedLM.from_pretrained(masked_path)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    direction = random_direction(base, scale=0.01)
    config = config_for(direction, base, feature_classes=["a", "b"], objective="masked_lm")
    GradiendModel.from_direction(base, direction, config).save_pretrained(tmp_path / "direction")
    base = AutoModelForMaskedLM.from_pretrained(masked_path)
    model = GradiendModel.from_pretrained(tmp_path / "direction", base, strength=0.5)
    receipt, merged = model.receipt, model.merge_and_unload()
    commit = merged.push_to_hub(repo_id, private=True)
    assert api.repo_info(repo_id).sha == commit.oid and api.repo_info(repo_id).private
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {*api.list_repo_files(repo_id)}
    card = ModelCard.load(repo_id)
    assert card.data.tags == ["gradiend-rewritten", "feature:a", "feature:b"]
    assert f"{receipt.entries:,} in {receipt.tensors} tensors" in card.text and "**strength +0.50**" in card.text
    there = AutoModelForMaskedLM.from_pretrained(repo_id).state_dict()
    assert all(torch.equal(there[name], value) for name, value in merged.state_dict().items())
    assert any(not torch.equal(there[name], value) for name, value in before.items())
    (command,) = re.findall(r"^gradiend-hub (merge .*)$", card.text, re.MULTILINE)
    words = command.replace("PATH_OR_ID_OF_THE_BASE", str(masked_path)).replace("OUT", str(tmp_path / "again")).split()
    words[1] = str(tmp_path / "direction")  # it has no id on the Hub
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], value) for name, value in there.items())
    code = re.search(r"How to get the base model back.*?```python\n(.*?)```", card.text, re.DOTALL)
    assert code
    found: dict[str, Any] = {}
    exec(code[1].replace("PATH_OR_ID_OF_THE_BASE", str(masked_path)), found)  # our own card's
    assert all(torch.equal(found["model"].state_dict()[name], value) for name, value in before.items())


def test_what_is_no_merge_of_one_direction_is_pushed_as_transformers_does(masked_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(masked_path)
    direction = random_direction(base, scale=0.01)
    config = config_for(direction, base, feature_classes=["a", "b"], objective="masked_lm")
    model = GradiendModel.from_direction(base, direction, config, strength=0.0)
    assert "push_to_hub" not in vars(model.merge_and_unload())


def test_an_unusable_id_is_refused_before_anything_is_written(masked_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(masked_path)
    direction = random_direction(base, scale=0.01)
    config = config_for(direction, base, feature_classes=["a", "b"], objective="masked_lm")
    merged = GradiendModel.from_direction(base, direction, config, strength=0.5).merge_and_unload()
    with pytest.raises(HubPushError, match="the repository id is not valid"):
        merged.push_to_hub("no/such/id")
