"""A direction and its base model from the Hub: what is requested, with whose token, and into which cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.errors import BaseModelError, HubPushError
from gradiend_hub.hub import publish_folder
from gradiend_hub.hub.published import is_generated
from tests.adapter.support import config_for, random_direction, save
from tests.cli.conftest import invoke
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub.forks import on_full_disk
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


# ------------------------------------------------------------------------------------------------- pushed from memory


def test_a_direction_in_memory_is_pushed_with_a_card(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    base = build("bert")
    direction = random_direction(base)
    with pytest.raises(HubPushError, match=r"unmeasured(.|\n)*The files are kept in \S+gradiend-"):
        direction.push_to_hub(repo_id, config_for(direction))
    assert not api.repo_exists(repo_id)
    direction.push_to_hub(repo_id, config_for(direction), allow_unmeasured=True, tag="v1")
    found = GradiendModel.from_pretrained(repo_id, base, strength=0.5, revision="v1")
    assert found.direction.inner(direction) == pytest.approx(direction.norm() ** 2, rel=1e-6)
    card = Path(api.hf_hub_download(repo_id, "README.md")).read_text()
    assert f'from_pretrained("{repo_id}"' in card and "**Unmeasured.**" in card
    direction.push_to_hub(repo_id, config_for(direction), allow_unmeasured=True, subfolder="more/two")
    assert "more/two/adapter_config.json" in api.list_repo_files(repo_id)


def test_a_pair_of_active_directions_goes_to_a_folder_each(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    base = build("bert")
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    model = GradiendModel.from_direction(base, first, config_for(first), strength=0.5, adapter_name="one")
    model.add_direction("two", second, config_for(second))
    model.set_strength({"one": 0.5, "two": -0.25})
    both = {name: value.clone() for name, value in model.get_base_model().state_dict().items()}
    model.push_to_hub(repo_id, allow_unmeasured=True, tag="v1")
    assert len(api.list_repo_commits(repo_id)) == 2  # the Hub's own, and one
    assert {name.split("/")[0] for name in api.list_repo_files(repo_id)} == {".gitattributes", "one", "two"}
    again = GradiendModel.from_pretrained(repo_id, build("bert"), strength=0.5, subfolder="one", adapter_name="one")
    again.load_adapter(repo_id, "two", subfolder="two")
    again.set_strength({"one": 0.5, "two": -0.25})
    for name, value in again.get_base_model().state_dict().items():
        assert torch.equal(value, both[name]), name


def test_what_came_from_the_hub_is_published_again_whole_and_names_its_origin(
    api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    base = build("bert")
    folder = save(tmp_path / "a", random_direction(base))
    (folder / "assets").mkdir()
    (folder / "assets" / "layers.png").write_bytes(b"a picture")
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "report.html").write_text("<html>")
    write_card(folder)
    first = publish_folder(folder, repo_id, allow_unmeasured=True)
    model = GradiendModel.from_pretrained(repo_id, base, strength=0.5, cache_dir=tmp_path / "cache")
    model.push_to_hub(f"{repo_id}-again", allow_unmeasured=True)
    assert api.list_repo_files(f"{repo_id}-again") == api.list_repo_files(repo_id)
    card = Path(api.hf_hub_download(f"{repo_id}-again", "README.md")).read_text()
    link = f"[{repo_id}](https://huggingface.co/{repo_id})"
    assert f"First published as {link} at commit `{first.oid[:12]}`" in card and is_generated(card)
    assert f'from_pretrained("{repo_id}-again"' in card and f'from_pretrained("{repo_id}"' not in card
    third = GradiendModel.from_pretrained(f"{repo_id}-again", build("bert"), strength=0.5, cache_dir=tmp_path / "cache")
    third.push_to_hub(f"{repo_id}-third", allow_unmeasured=True)
    card = Path(api.hf_hub_download(f"{repo_id}-third", "README.md")).read_text()
    assert card.count("First published as") == 1 and link in card and f'from_pretrained("{repo_id}-third"' in card
    model.push_to_hub(repo_id, allow_unmeasured=True)  # to where it came from
    assert "First published as" not in Path(api.hf_hub_download(repo_id, "README.md")).read_text()


def test_progress_is_one_line(repo_id: str, tmp_path: Path, hub: HubServer) -> None:
    """Where the client draws bars, it draws a few for each file; here a slow push and load draw a line each."""
    folder = save(tmp_path / "a", random_direction(build("bert")))
    program = """
import sys
from gradiend_hub.hub import publish_folder, resolve_folder
publish_folder(sys.argv[1], sys.argv[2], allow_unmeasured=True)
print("|", file=sys.stderr)
resolve_folder(sys.argv[2], cache_dir=sys.argv[3])
"""
    hub.fault("delay", seconds=2.0, path="/commit/")
    hub.fault("delay", seconds=2.0, path="/tree/")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(folder), repo_id, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    drawn = [part.strip() for part in found.stderr.replace("\r", "\n").splitlines() if part.strip(" |")]
    assert {part.split(" (")[0] for part in drawn} == {
        f"Uploading 4 files to {repo_id}",
        f"Downloading {repo_id}",
    }, found.stderr


@pytest.mark.slow
def test_a_disk_that_is_full_before_the_push(repo_id: str, tmp_path: Path, masked_path: Path) -> None:
    program = """
import sys, torch
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.errors import GradiendError
direction = Direction({"w": ParameterDirection((370, 100), torch.randn(37_000))})
config = GradiendConfig(feature_classes=["a", "b"], parameters=direction.spec())
try:
    direction.push_to_hub(sys.argv[1], config, allow_unmeasured=True)
except GradiendError as error:
    print(type(error).__name__, error)
"""
    said = on_full_disk(tmp_path / "disk", 64, program, repo_id)
    assert said.startswith("HubPushError Could not push") and "cannot be written to" in said and "TMPDIR" in said
    assert "No space left" in said or "os error 28" in said.lower()
