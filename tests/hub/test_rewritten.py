"""Pushing a merged model: its own files, its card, one commit."""

from __future__ import annotations

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
from gradiend_hub.hub.rewritten import is_rewritten, publish_rewritten
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
