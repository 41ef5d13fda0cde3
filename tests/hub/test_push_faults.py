"""Pushing to a Hub that is silent, busy, or full of others: one whole commit or a clear error, and the next try works."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

from gradiend_hub.errors import HubPushError
from gradiend_hub.hub import patience, publish_folder
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub.test_publish import titles
from tests.hub_server import HubServer

pytestmark = TOLERATE_LFS_UPLOAD

SILENT = {
    "create": {"path": "/api/repos/create"},
    "info": {"path": "/api/models/[^/]+/[^/]+$", "method": "GET"},
    "branch": {"path": "/branch/"},
    "head": {"path": "/revision/", "method": "GET"},
    "paths": {"path": "/paths-info/"},
    "preupload": {"path": "/preupload/"},
    "card": {"path": "validate-yaml"},
    "commit": {"path": "/commit/"},
}
SILENT_XET = {
    "token": {"path": "xet-write-token"},
    "xorb": {"path": "/cas/v1/xorbs"},
    "shard": {"path": "/shards"},
}
SILENT_LFS = {
    "batch": {"path": "/info/lfs/objects/batch"},
    "put": {"path": "^/put", "method": "PUT"},
    "verify": {"path": "/verify"},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent Hub is given up after a moment, and the client's own loops don't wait between their attempts."""
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}), raising=False)


def push_around_silence(hub: HubServer, folder: Path, repo_id: str, rule: dict[str, str]) -> None:
    """The Hub says nothing at one place for good: an error, nothing visible, and the next push is whole."""
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(100_000))  # unknown to the storage
    hub.fault("hang", seconds=600, times=99, **rule)
    with pytest.raises(HubPushError, match=r"Could not push .*(not answered|not taken)") as raised:
        publish_folder(folder, repo_id, revision="v2")
    assert "gradiend-hub push" in str(raised.value)
    assert [record["fault"] for record in hub.log() if record["fault"]]
    hub.clear()
    api = HfApi()
    if api.repo_exists(repo_id):
        assert titles(api, repo_id) == []
    commit = publish_folder(folder, repo_id, revision="v2")
    assert titles(api, repo_id, "v2") == ["Upload direction"]
    assert api.repo_info(repo_id, revision="v2").sha == commit.oid


@pytest.mark.parametrize("endpoint", SILENT)
@pytest.mark.usefixtures("impatient")
def test_a_silent_hub_is_given_up(direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str) -> None:
    push_around_silence(hub, direction_folder, repo_id, SILENT[endpoint])


@pytest.mark.parametrize("endpoint", SILENT_XET)
@pytest.mark.usefixtures("impatient")
def test_a_silent_storage_is_given_up(direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str) -> None:
    push_around_silence(hub, direction_folder, repo_id, SILENT_XET[endpoint])


@pytest.mark.parametrize("endpoint", SILENT_LFS)
@pytest.mark.usefixtures("impatient", "plain_lfs")
def test_a_silent_plain_storage_is_given_up(
    direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str
) -> None:
    push_around_silence(hub, direction_folder, repo_id, SILENT_LFS[endpoint])


@pytest.mark.parametrize("endpoint", SILENT)
@pytest.mark.usefixtures("impatient")
def test_a_hub_that_is_silent_once_is_asked_again(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str
) -> None:
    hub.fault("hang", seconds=600, **SILENT[endpoint])
    publish_folder(direction_folder, repo_id, revision="v2")
    assert [record["fault"] for record in hub.log() if record["fault"]] == ["hang"]
    assert titles(api, repo_id, "v2") == ["Upload direction"]


@pytest.mark.usefixtures("impatient")
def test_the_list_of_pull_requests_may_be_silent(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    hub.fault("hang", seconds=600, times=99, path="/refs")
    with pytest.raises(HubPushError, match="not answered"):
        publish_folder(direction_folder, repo_id, create_pr=True)
    hub.clear()
    publish_folder(direction_folder, repo_id, create_pr=True)
    assert len([*api.get_repo_discussions(repo_id)]) == 1


@pytest.mark.parametrize("body", ["{}", '{"error": "another conflicting operation is in progress"}'])
def test_a_hub_that_is_always_busy_with_the_repository_is_given_up(
    direction_folder: Path, repo_id: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(patience, "MOST_REPEATS", 5)
    headers = {"X-Error-Message": "another conflicting operation is in progress"} if "error" in body else {}
    hub.fault("status", status=409, body=body, headers=headers, path="/api/repos/create", times=9999)
    with pytest.raises(HubPushError, match=r"(always busy|HTTP 409|without what was asked for)"):
        publish_folder(direction_folder, repo_id)
    hub.clear()
    assert publish_folder(direction_folder, repo_id).oid
