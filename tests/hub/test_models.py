"""A direction and its base model from the Hub: what is requested, with whose token, and into which cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import BaseModelError
from tests.adapter.support import random_direction, save
from tests.cli.conftest import invoke
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import TOKENS, HubServer
from tests.models import build

pytestmark = TOLERATE_LFS_UPLOAD


def requested(hub: HubServer) -> set[str]:
    """Names of the files that were asked for."""
    return {record["path"].rsplit("/", 1)[-1] for record in hub.log(path="/resolve/")}


def upload(api: HfApi, folder: Path, repo_id: str, *, private: bool = False) -> str:
    api.create_repo(repo_id, private=private)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


def of_version_0_1(folder: Path) -> None:
    """Move the samples to where the first version had them."""
    samples = load_file(folder / BASE_FILE)
    save_file(samples | load_file(folder / ENCODER_FILE), folder / ENCODER_FILE, {"base_dtype": "float32"})
    (folder / BASE_FILE).unlink()


@pytest.mark.parametrize("old", [False, True], ids=["new", "of version 0.1"])
@pytest.mark.usefixtures("plain_lfs")  # which asks for each file by its name
def test_applying_requests_neither_encoder_nor_report(
    api: HfApi, repo_id: str, tmp_path: Path, hub: HubServer, old: bool
) -> None:
    base = build("bert")
    folder = save(tmp_path / "a", random_direction(base))
    if old:
        of_version_0_1(folder)
    others = (
        "gradiend_report.json",
        "README.md",
        "report.html",
        "wandb.json",
        "x.safetensors",
    )
    for name in others:
        (folder / name).write_text("{}" if name != "README.md" else "---\nlicense: mit\n---\n")
    upload(api, folder, repo_id)
    hub.clear()
    model = GradiendModel.from_pretrained(repo_id, base, strength=0.5, cache_dir=tmp_path / "cache")
    needed = {CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE if old else BASE_FILE}
    assert requested(hub) == needed
    hub.clear()
    assert model.direction.has_encoder
    assert requested(hub) == ({ENCODER_FILE} - needed)
    hub.clear()
    model.save_pretrained(tmp_path / "saved")
    assert "wandb.json" not in requested(hub) and "x.safetensors" not in requested(hub)
    assert (tmp_path / "saved" / "gradiend_report.json").is_file() and (tmp_path / "saved" / ENCODER_FILE).is_file()
    plain = PeftModel.from_pretrained(build("bert"), repo_id)
    assert isinstance(plain, PeftModel)


def test_token_and_cache_reach_the_base_model_and_its_tokenizer(
    api: HfApi, repo_id: str, masked_path: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_id = upload(api, masked_path, f"{repo_id}-base", private=True)
    base = load_base_model(masked_path)
    direction = random_direction(base, "sparse", share=0.01)
    upload(api, save(tmp_path / "a", direction, base, base_model_name_or_path=base_id), repo_id, private=True)
    monkeypatch.delenv("HF_TOKEN")
    for token, named in ((None, repo_id), (False, repo_id)):
        with pytest.raises(Exception, match=f"{named} is neither .* log in with `hf auth login`"):
            GradiendModel.from_pretrained(repo_id, token=token, cache_dir=tmp_path / "cache")
    own, row = {"cache_dir": tmp_path / "cache", "strength": 0.0}, {"masked": "[MASK] said so.", "factual": "he"}
    rows = [row | {"alternative": "they", "factual_class": "a", "alternative_class": "b"}]
    model = GradiendModel.from_pretrained(repo_id, token=TOKENS.alice_read, **own)
    encoded = model.encode(rows)
    home = Path(constants.HF_HUB_CACHE)
    assert not list(home.glob(f"models--{repo_id.replace('/', '--')}*"))
    assert len(list((tmp_path / "cache").glob(f"models--{repo_id.replace('/', '--')}*"))) == 2
    hub.clear()
    again = GradiendModel.from_pretrained(repo_id, local_files_only=True, **own)
    assert torch.equal(again.encode(rows), encoded)
    assert hub.log() == []


@pytest.mark.parametrize("state", ["private", "gone"])
def test_a_base_that_cannot_be_had_names_option_and_argument(
    api: HfApi, repo_id: str, masked_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    base_id = upload(api, masked_path, f"{repo_id}-base", private=state == "private")
    base = load_base_model(masked_path)
    direction = random_direction(base, "sparse", share=0.01)
    upload(api, save(tmp_path / "a", direction, base, base_model_name_or_path=base_id), repo_id)
    if state == "gone":
        api.update_repo_settings(base_id, private=True)  # to others it is as if it were not there
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BaseModelError, match=rf"{base_id} could not be loaded(.|\n)*`base_model=`.*--base.*token="):
        GradiendModel.from_pretrained(repo_id, strength=0.0, token=False)
    if state == "gone":
        result = invoke("apply", repo_id, "The team said [MASK] would win.", "--strengths", "0")
        assert result.exit_code == 1 and "--base" in result.stderr and "Traceback" not in result.stderr
