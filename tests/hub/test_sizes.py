"""Files that are larger than a direction needs: refused by the Hub's listing, before a byte of them is on this disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from peft import PeftModel

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.errors import ArtifactError, GradiendError, HubPushError
from gradiend_hub.hub import propose as proposing
from gradiend_hub.hub import resolve_folder, sizes
from gradiend_hub.hub.propose import ReportProposal
from tests.adapter.support import random_direction, save
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub.test_models import requested, upload
from tests.hub_server import TOKENS, HubServer
from tests.models import build

pytestmark = TOLERATE_LFS_UPLOAD


@pytest.fixture
def published(api: HfApi, repo_id: str, tmp_path: Path) -> str:
    """A direction of the small BERT."""
    return upload(api, save(tmp_path / "direction", random_direction(build("bert"))), repo_id)


def replace_file(api: HfApi, repo_id: str, name: str, size: int) -> None:
    api.create_commit(repo_id, [CommitOperationAdd(name, b" " * size)], commit_message="x")


@pytest.mark.usefixtures("plain_lfs")  # which asks for each file by its name
@pytest.mark.parametrize("name", [WEIGHTS_FILE, ENCODER_FILE, BASE_FILE])
def test_vectors_that_the_configuration_does_not_account_for(
    api: HfApi, published: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sizes, "_AT_LEAST", 2**20)
    config = GradiendConfig.from_pretrained(published)
    replace_file(api, published, name, sizes.most_tensor_bytes(config) + 1)
    hub.clear()
    with pytest.raises(ArtifactError, match=rf"{name} of {published} has .* bytes(.|\n)*was not downloaded"):
        GradiendModel.from_pretrained(published, build("bert"), strength=0.0, cache_dir=tmp_path / "cache")
    assert requested(hub) <= {CONFIG_FILE}
    for load in (GradiendConfig.from_pretrained, lambda repo: PeftModel.from_pretrained(build("bert"), repo)):
        hub.clear()
        with pytest.raises(ArtifactError, match=rf"{name} of {published} has .* bytes(.|\n)*was not downloaded"):
            load(published)
        assert requested(hub) <= {CONFIG_FILE}


def test_every_honest_file_is_small_enough(published: str, tmp_path: Path) -> None:
    for kind in ("dense", "sparse", "low rank"):
        folder = save(tmp_path / kind, random_direction(build("bert"), kind))
        config = GradiendConfig.from_pretrained(str(folder))
        most = sizes.most_tensor_bytes(config) - sizes._AT_LEAST
        assert all((folder / n).stat().st_size < most for n in (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE))


@pytest.mark.usefixtures("plain_lfs")
def test_texts_that_nobody_reads(
    api: HfApi, published: str, hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replace_file(api, published, REPORT_FILE, int(sizes.most_bytes(REPORT_FILE)) + 1)
    hub.clear()
    found = resolve_folder(published, cache_dir=tmp_path / "cache")
    assert not (found.folder / REPORT_FILE).exists() and REPORT_FILE not in requested(hub)
    assert f"{REPORT_FILE} of {published} has 16,777,217 bytes, more than are read" in caplog.text
    replace_file(api, published, CONFIG_FILE, int(sizes.most_bytes(CONFIG_FILE)) + 1)
    hub.clear()
    with pytest.raises(GradiendError, match=f"{CONFIG_FILE} of {published} has 16,777,217 bytes"):
        resolve_folder(published, cache_dir=tmp_path / "cache")
    assert requested(hub) == set()


@pytest.mark.usefixtures("plain_lfs")
def test_figures_and_loras_of_no_measure_are_left_out_or_refused_when_a_direction_is_saved(
    api: HfApi, published: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_MOST_OTHER_BYTES", 1000)
    for name, size in (("assets/small.png", 1000), ("assets/large.png", 1001), ("report.html", 1001)):
        replace_file(api, published, name, size)
    model = GradiendModel.from_pretrained(published, build("bert"), strength=0.0, cache_dir=tmp_path / "cache")
    hub.clear()
    model.save_pretrained(tmp_path / "saved")
    assert {"large.png", "report.html"}.isdisjoint(requested(hub)) and "small.png" in requested(hub)
    assert (tmp_path / "saved" / "assets" / "small.png").is_file()
    monkeypatch.setattr(sizes, "_most_lora_bytes", lambda config: 1000)
    replace_file(api, published, f"lora/{WEIGHTS_FILE}", 1001)
    model = GradiendModel.from_pretrained(published, build("bert"), strength=0.0, cache_dir=tmp_path / "cache")
    with pytest.raises(ArtifactError, match=rf"lora/{WEIGHTS_FILE} of {published} has 1,001 bytes"):
        model.save_pretrained(tmp_path / "again")


def test_a_report_that_nobody_reads_is_not_proposed(
    published: str, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "mine.json"
    report.write_bytes(b" " * 1001)
    monkeypatch.setattr(proposing, "MOST_REPORT_BYTES", 1000)
    hub.clear()
    with pytest.raises(HubPushError, match="it has 1,001 bytes, and nobody reads a report of more than 1,000"):
        ReportProposal(report, published, token=TOKENS.bob).send()
    assert hub.log() == []


@pytest.mark.usefixtures("transfer")
def test_a_large_file_in_a_pull_request(api: HfApi, published: str, hub: HubServer) -> None:
    """Of somebody who may not write to the repository, and made of one block again and again."""
    content = b"x" * 17_000_000
    bob = HfApi(token=TOKENS.bob)
    done = bob.create_commit(
        published, [CommitOperationAdd("reports/x.json", content)], commit_message="x", create_pr=True
    )
    assert hub.errors() == ""
    (row,) = api.get_paths_info(published, ["reports/x.json"], revision=done.pr_revision)
    assert row.size == len(content) and row.lfs is not None
