"""The code of a card runs as it stands there, for every objective, from a folder and from the Hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download
from typer.testing import CliRunner

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE
from gradiend_hub.cards import write_card
from gradiend_hub.hub import publish_folder
from gradiend_hub.hub.published import BASE_PLACE, REPO_PLACE, is_generated
from gradiend_hub_cli import app
from tests.conftest import BASE_MODELS, ROOT
from tests.hub_server import HubServer

STORED = ROOT / "tests" / "artifact" / "schema_1"


def blocks(card: str, language: str) -> list[str]:
    """The code blocks of a card in this language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)\n```$", card)


def run_card(card: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Run the card's Python and shell lines; what the Python printed by name, and the shell's output as "shell".

    A card of a direction that a LoRA holds has lines for PEFT alone before them, which are not run here.
    """
    (*_, code), (install, command) = blocks(card, "python"), blocks(card, "bash")
    assert install == "pip install gradiend_hub"
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    program, *arguments = shlex.split(command)
    assert program == "gradiend-hub"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {**printed, "shell": result.output}


@pytest.fixture
def stored(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a stored direction with a card; its base model is a folder."""
    return stored_copy(tmp_path / request.param, request.param)


def stored_copy(folder: Path, kind: str, **changes: Any) -> Path:
    shutil.copytree(STORED / kind, folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    base = str(BASE_MODELS / kind.partition("_")[0])
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "base_model_name_or_path": base, **changes}))
    write_card(folder)
    return folder


@pytest.mark.parametrize("stored", ["masked_sparse", "masked_factual", "causal_fisher"], indirect=True)
def test_the_code_runs_on_a_folder_with_a_local_base(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = json.loads((stored / CONFIG_FILE).read_text())["base_model_name_or_path"]
    card = (stored / CARD_FILE).read_text().replace(REPO_PLACE, str(stored)).replace(BASE_PLACE, base)
    printed = run_card(card, capsys)
    assert printed["undone to the bit"] == printed["the recommended dose to the bit"] == "True"
    h = float(printed["feature value"])
    assert 0 < abs(h) <= 1
    if "factual" not in str(stored):  # the encoder of a factual gradient reads little
        row = json.loads(re.findall(r"(?m)^row = (.*)$", card)[0])
        classes = json.loads((stored / CONFIG_FILE).read_text())["feature_classes"]
        assert (h > 0) == (row["factual_class"] == classes[0])
    assert "strength" in printed["shell"]


@pytest.mark.parametrize("stored", ["masked_sparse"], indirect=True)
def test_the_code_of_a_published_card_runs_as_it_is(
    stored: Path, hub: HubServer, repo_id: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    api, base_id = HfApi(), f"{repo_id}-base"
    api.create_repo(base_id)
    commit = api.upload_folder(repo_id=base_id, folder_path=BASE_MODELS / "masked", ignore_patterns="*.md").oid
    before = {path: path.read_bytes() for path in stored.iterdir() if path.is_file()}
    publish_folder(stored, repo_id, base_id=base_id)
    assert {path: path.read_bytes() for path in stored.iterdir() if path.is_file()} == before
    assert not caplog.records
    card = Path(hf_hub_download(repo_id, CARD_FILE)).read_text()
    config = json.loads(Path(hf_hub_download(repo_id, CONFIG_FILE)).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (base_id, commit)
    assert REPO_PLACE not in card and BASE_PLACE not in card and str(ROOT) not in card
    assert is_generated(card)
    assert f"base_model: {base_id}\n" in card and f"| base model | {base_id} at `{commit}` |" in card
    printed = run_card(card, capsys)
    assert printed["undone to the bit"] == printed["the recommended dose to the bit"] == "True"
    # nobody has to name the base, and the self-test holds for the published files
    assert GradiendModel.from_pretrained(repo_id).verify().passed
    assert publish_folder(stored, repo_id, base_id=base_id).oid == api.repo_info(repo_id).sha  # nothing to do


@pytest.mark.parametrize("stored", ["masked_sparse"], indirect=True)
def test_a_local_path_is_never_published(
    stored: Path, hub: HubServer, repo_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_folder(stored, repo_id)
    assert "--base-id" in caplog.text
    config = json.loads(Path(hf_hub_download(repo_id, CONFIG_FILE)).read_text())
    assert config["base_model_name_or_path"] is None
    for name in HfApi().list_repo_files(repo_id):
        assert str(BASE_MODELS).encode() not in Path(hf_hub_download(repo_id, name)).read_bytes(), name
    assert (
        f'from_pretrained("{repo_id}", base_model="{BASE_PLACE}", '
        in Path(hf_hub_download(repo_id, CARD_FILE)).read_text()
    )
    assert GradiendModel.from_pretrained(repo_id, BASE_MODELS / "masked").verify().passed


@pytest.mark.parametrize("stored", ["masked_sparse"], indirect=True)
def test_an_edited_card_is_published_as_it_is_and_a_copy_gets_its_own_id(
    stored: Path, hub: HubServer, repo_id: str, tmp_path: Path
) -> None:
    publish_folder(stored, repo_id, base_id="alice/not-there")
    card = Path(hf_hub_download(repo_id, CARD_FILE)).read_text()
    (stored / CARD_FILE).write_text(card)
    publish_folder(stored, f"{repo_id}-copy", base_id="alice/not-there")
    copy = Path(hf_hub_download(f"{repo_id}-copy", CARD_FILE)).read_text()
    assert f'"{repo_id}-copy"' in copy and f'"{repo_id}"' not in copy and f"apply {repo_id}-copy " in copy
    edited = f"{card}\nMy own words on {REPO_PLACE}.\n"
    (stored / CARD_FILE).write_text(edited)
    publish_folder(stored, f"{repo_id}-edited", base_id="alice/not-there")
    assert Path(hf_hub_download(f"{repo_id}-edited", CARD_FILE)).read_text() == edited
