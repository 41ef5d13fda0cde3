"""`resolve_folder`: which files reach the disk, from which commit, and what is said when none do."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download

from gradiend_hub.errors import ArtifactNotFoundError
from gradiend_hub.hub import ResolvedRepo, publish_folder, resolve_folder, retry
from tests.hub.conftest import FILES, KNOWS_REVISIONS, TOLERATE_LFS_UPLOAD, change_config, write_direction
from tests.hub_server import TOKENS, HubServer

pytestmark = TOLERATE_LFS_UPLOAD
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that shares nothing with that of other tests."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SHARED_BLOBS", True, raising=False)  # none in huggingface_hub 1
    return tmp_path / "cache"


@pytest.fixture
def published(api: HfApi, direction_folder: Path, repo_id: str) -> str:
    """A repository with one direction; its weights are random, so that no storage knows them."""
    write_direction(direction_folder)
    publish_folder(direction_folder, repo_id)
    return repo_id


def names(folder: Path) -> set[str]:
    """Files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_used_as_it_is(direction_folder: Path, hub: HubServer) -> None:
    assert resolve_folder(direction_folder) == ResolvedRepo(direction_folder, None, None)
    assert resolve_folder(str(direction_folder.parent), subfolder=direction_folder.name).folder == direction_folder
    assert hub.log() == []


def test_a_folder_without_a_direction_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ArtifactNotFoundError, match=r"adapter_config\.json is missing \(found: pytorch_model\.bin\)"):
        resolve_folder(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ArtifactNotFoundError, match=r"adapter_model\.safetensors is missing"):
        resolve_folder(tmp_path, required=["adapter_config.json", WEIGHTS])


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "a/b/c", "no such thing"])
def test_what_cannot_be_a_repository_is_not_looked_up(name: str, hub: HubServer) -> None:
    with pytest.raises(ArtifactNotFoundError, match=f"There is no folder {name}, and this is not a repository id"):
        resolve_folder(name)
    assert hub.log() == []


def test_only_the_files_of_a_direction_are_downloaded(
    api: HfApi, published: str, direction_folder: Path, cache: Path, hub: HubServer
) -> None:
    for name in ("modeling_evil.py", "pytorch_model.bin", "nested/adapter_config.json"):
        api.upload_file(path_or_fileobj=b"not for us", path_in_repo=name, repo_id=published)
    head = api.repo_info(published).sha
    hub.clear()
    found = resolve_folder(published, cache_dir=cache)
    assert (found.commit, found.repo_id) == (head, published)
    assert names(found.folder) == {name for name in FILES if not name.endswith(".png")}
    for name in names(found.folder):
        assert (found.folder / name).read_bytes() == (direction_folder / name).read_bytes()
    # the branch is looked at once, everything else is asked of its commit
    assert len([record for record in hub.log() if "/main" in record["path"]]) <= 1
    assert not hub.log(path="/resolve/main/")


@KNOWS_REVISIONS
def test_a_second_call_downloads_nothing(published: str, cache: Path, hub: HubServer) -> None:
    first = resolve_folder(published, cache_dir=cache)
    hub.clear()
    assert resolve_folder(published, cache_dir=cache) == first
    assert len(hub.log()) == 1
    hub.clear()
    assert resolve_folder(published, revision=first.commit, cache_dir=cache) == first
    assert hub.log() == []


def test_a_subfolder_holds_a_direction_of_its_own(
    api: HfApi, repo_id: str, direction_folder: Path, cache: Path
) -> None:
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=direction_folder, path_in_repo="layers/11", allow_patterns=[*FILES])
    found = resolve_folder(repo_id, subfolder="layers/11", cache_dir=cache)
    assert found.folder.parts[-2:] == ("layers", "11")
    assert names(found.folder) == {name for name in FILES if not name.endswith(".png")}
    with pytest.raises(ArtifactNotFoundError, match=rf"no direction in commit \w+ of {repo_id}: adapter_config"):
        resolve_folder(repo_id, cache_dir=cache)


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    api: HfApi, published: str, direction_folder: Path, cache: Path
) -> None:
    first = api.repo_info(published).sha
    api.create_tag(published, tag="v1")
    change_config(direction_folder, 0.5)
    second = publish_folder(direction_folder, published, revision="dev").oid
    for revision, commit in ((None, first), ("v1", first), (first, first), ("dev", second), ("refs/heads/dev", second)):
        assert resolve_folder(published, revision=revision, cache_dir=cache).commit == commit
    with pytest.raises(ArtifactNotFoundError, match="has no branch, tag or commit 'v2'"):
        resolve_folder(published, revision="v2", cache_dir=cache)
    with pytest.raises(ArtifactNotFoundError, match="has no branch, tag or commit"):
        resolve_folder(published, revision="0" * 40, cache_dir=cache)


def test_another_kind_of_repository_is_not_downloaded(api: HfApi, repo_id: str, cache: Path, hub: HubServer) -> None:
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=os.urandom(50_000), path_in_repo="model.safetensors", repo_id=repo_id)
    hub.clear()
    with pytest.raises(ArtifactNotFoundError, match=rf"no direction in commit \w+ of {repo_id}: adapter_config"):
        resolve_folder(repo_id, cache_dir=cache)
    assert not hub.log(path="/resolve/")
    assert not hub.log(path="/cas/")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "to this token: it does not exist, or it is private and the token has no access to it"),
        (False, "without a token: it does not exist, or it is private; if it is, log in with `hf auth login`"),
        ("hf_unknown", "The Hub does not accept this token"),
    ],
)
def test_a_missing_repository(repo_id: str, cache: Path, token: str | bool | None, message: str) -> None:
    with pytest.raises(ArtifactNotFoundError, match=message):
        resolve_folder(repo_id, token=token, cache_dir=cache)


def test_a_private_repository(api: HfApi, published: str, cache: Path) -> None:
    api.update_repo_settings(published, private=True)
    for token, message in ((TOKENS.bob, "private and the token has no access"), (False, "log in with `hf auth login`")):
        with pytest.raises(ArtifactNotFoundError, match=message):
            resolve_folder(published, token=token, cache_dir=cache)
    assert resolve_folder(published, token=TOKENS.alice_read, cache_dir=cache).repo_id == published


def test_a_gated_repository(api: HfApi, published: str, cache: Path) -> None:
    api.update_repo_settings(published, gated="manual")
    for token, message in ((TOKENS.bob, "the account of the token"), (False, "log in with `hf auth login`")):
        with pytest.raises(ArtifactNotFoundError, match=f"is gated: ask for access at .*{published}, .*{message}"):
            resolve_folder(published, token=token, cache_dir=cache)
    api.grant_access(published, "bob")
    assert resolve_folder(published, token=TOKENS.bob, cache_dir=cache).repo_id == published


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_offline_the_cache_is_enough(
    published: str, cache: Path, hub: HubServer, request: pytest.FixtureRequest, how: str
) -> None:
    online = resolve_folder(published, cache_dir=cache)
    if how == "environment":
        request.getfixturevalue("offline")
    hub.clear()
    for revision in (None, "main", online.commit):
        found = resolve_folder(published, revision=revision, cache_dir=cache, local_files_only=how == "argument")
        assert found == online
    with pytest.raises(ArtifactNotFoundError, match=r"nor complete in the cache for revision v9.*offline"):
        resolve_folder(published, revision="v9", cache_dir=cache, local_files_only=how == "argument")
    assert hub.log() == []


def test_offline_a_part_of_a_direction_is_not_enough(
    published: str, cache: Path, request: pytest.FixtureRequest
) -> None:
    hf_hub_download(published, "adapter_config.json", cache_dir=cache)
    request.getfixturevalue("offline")
    with pytest.raises(ArtifactNotFoundError, match=r"adapter_model\.safetensors is missing"):
        resolve_folder(published, cache_dir=cache, required=["adapter_config.json", WEIGHTS])


@pytest.mark.parametrize(
    "fault",
    [{"action": "drop_response", "after_bytes": 60_000, "reset": True}, {"action": "status", "status": 503}],
    ids=["cut", "503"],
)
def test_an_interrupted_download_goes_on(
    published: str,
    direction_folder: Path,
    cache: Path,
    hub: HubServer,
    transfer: str,
    fault: dict[str, object],
) -> None:
    path = "^/get" if transfer == "lfs" else "^/cas/blob/"
    hub.fault(**fault, method="GET", path=path, origin="storage")
    found = resolve_folder(published, cache_dir=cache)
    assert [record["fault"] for record in hub.log() if record["fault"]]
    assert (found.folder / WEIGHTS).read_bytes() == (direction_folder / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("plain_lfs")
def test_a_download_that_keeps_failing_can_be_repeated(
    published: str, direction_folder: Path, cache: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    hub.fault("status", status=503, path="^/get", origin="storage", times=99)
    with pytest.raises(ArtifactNotFoundError, match=r"could not be downloaded.*503.*Try again") as raised:
        resolve_folder(published, cache_dir=cache)
    assert "signature" not in str(raised.value)
    hub.clear()
    found = resolve_folder(published, cache_dir=cache)
    assert (found.folder / WEIGHTS).read_bytes() == (direction_folder / WEIGHTS).read_bytes()
    assert not hub.log(path="adapter_config.json")  # it was there already


@KNOWS_REVISIONS
def test_while_the_hub_is_down_the_cache_serves_with_a_warning(
    published: str, cache: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    online = resolve_folder(published, cache_dir=cache)
    hub.fault("status", status=503, path=f"/api/models/{published}", times=99)
    logging.getLogger("huggingface_hub").propagate = True
    with caplog.at_level("WARNING"):
        assert resolve_folder(published, cache_dir=cache) == online
    assert "Could not reach the Hub" in caplog.text


def test_while_the_hub_is_down_and_nothing_is_cached(
    published: str, cache: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 3)
    hub.clear()
    hub.fault("status", status=503, path=f"/api/models/{published}", times=99)
    with pytest.raises(ArtifactNotFoundError, match="could not be downloaded"):
        resolve_folder(published, cache_dir=cache)
    assert len(hub.log()) == 3


@pytest.mark.parametrize("place", ["a file", "no folder can be made"])
def test_a_cache_that_cannot_be_written_is_named(published: str, place: str, tmp_path: Path) -> None:
    where = tmp_path / "cache"
    where.write_text("a file")
    cache_dir = where if place == "a file" else where / "below"
    with pytest.raises(
        ArtifactNotFoundError, match=r"could not be written to the cache .*cache_dir= or HF_HOME"
    ) as raised:
        resolve_folder(published, cache_dir=cache_dir)
    assert str(cache_dir) in str(raised.value) and "Not a directory" in str(raised.value)


def test_a_full_disk_is_said_at_once(
    published: str, cache: Path, transfer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing more than the limit of this process fails as on a full disk; the server is another process."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(ArtifactNotFoundError, match=r"could not be written to the cache .*\(File too large"):
            resolve_folder(published, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "trying again" not in caplog.text
    assert names(resolve_folder(published, cache_dir=cache).folder) >= {WEIGHTS}
