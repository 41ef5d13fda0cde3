"""Loading from a Hub that is silent, damaged, moving, or gone: one whole commit or a clear error, and the next try works."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, file_download
from huggingface_hub.utils import _http

from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError
from gradiend_hub.hub import patience, publish_folder, retry
from gradiend_hub.hub.resolve import APPLIED, resolve_folder
from tests.hub.conftest import FILES, KNOWS_REVISIONS, TOLERATE_LFS_UPLOAD, change_config, write_direction
from tests.hub.forks import FULL_DISK, Forks, on_full_disk
from tests.hub_server import HubServer

pytestmark = TOLERATE_LFS_UPLOAD

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(params=["own blobs", "shared blobs"])
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty cache, which keeps what is in Xet for itself or shares it between repositories."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SHARED_BLOBS", request.param == "own blobs", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def published(direction_folder: Path, repo_id: str) -> str:
    """A repository with one direction; its weights are random, so that no storage knows them."""
    write_direction(direction_folder)
    publish_folder(direction_folder, repo_id)
    return repo_id


def assert_whole(folder: Path, source: Path, names: tuple[str, ...] = (CONFIG, WEIGHTS)) -> None:
    for name in names:
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name


def flip(path: Path, place: int) -> None:
    """Flip the bits of one byte of a file, wherever links lead to it."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    real = path.resolve()
    real.chmod(0o644)
    real.write_bytes(data)


def test_applying_downloads_what_it_needs_and_the_rest_can_follow(
    published: str, direction_folder: Path, cache: Path, hub: HubServer
) -> None:
    found = resolve_folder(published, cache_dir=cache, wanted=APPLIED)
    assert {path.name for path in found.folder.iterdir()} == {*APPLIED} & {*FILES}
    hub.clear()
    found.complete()
    assert {path.name for path in found.folder.iterdir()} == {name for name in FILES if not name.endswith(".png")}
    assert not hub.log(path="/main")
    assert_whole(found.folder, direction_folder, ("gradiend_probes.jsonl", "README.md"))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "gradiend_encoder.safetensors"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_damage_in_the_cache_is_noticed_and_mended(
    published: str, direction_folder: Path, cache: Path, transfer: str, name: str, where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = resolve_folder(published, cache_dir=cache).folder
    size = (folder / name).stat().st_size
    flip(folder / name, {"first": 0, "middle": size // 2, "last": size - 1}[where])
    with pytest.raises(
        ArtifactError, match=rf"{name} of {published} .* has other bytes than the Hub lists: this call is offl"
    ):
        resolve_folder(published, cache_dir=cache, local_files_only=True)
    found = resolve_folder(published, cache_dir=cache)
    assert_whole(found.folder, direction_folder, (name, CONFIG, WEIGHTS))
    assert f"{name} of {published} is damaged in the cache" in caplog.text
    assert resolve_folder(published, cache_dir=cache, local_files_only=True) == found


@pytest.mark.parametrize("where", [0, 60_000, 119_999], ids=["first", "middle", "last"])
@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.usefixtures("plain_lfs")
def test_damage_on_the_way_is_noticed(
    published: str, direction_folder: Path, cache: Path, hub: HubServer, where: int, times: int
) -> None:
    digest_of_weights = "^/get"
    hub.fault("corrupt", method="GET", path=digest_of_weights, origin="storage", after_bytes=where, times=times)
    if times == 1:
        found = resolve_folder(published, cache_dir=cache, required=(CONFIG, WEIGHTS))
    else:
        with pytest.raises(ArtifactError, match="so it is after a second download"):
            resolve_folder(published, cache_dir=cache, required=(CONFIG, WEIGHTS))
        hub.clear()
        found = resolve_folder(published, cache_dir=cache, required=(CONFIG, WEIGHTS))
    assert_whole(found.folder, direction_folder)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("times", [1, 99])
def test_damage_in_the_store_of_xet_is_noticed(
    published: str,
    direction_folder: Path,
    tmp_path: Path,
    cache: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    times: int,
) -> None:
    """A flipped byte of data; hf_xet notices some of them itself, and asks again and again."""
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(patience, "SLOWEST_BYTES_PER_SECOND", 1_000_000)
    hub.clear()
    resolve_folder(published, cache_dir=tmp_path / "other", required=(CONFIG, WEIGHTS), wanted=())
    size = max(record["sent"] for record in hub.log(path="/cas/blob/"))
    place = {"first": 8, "middle": size // 2, "last": size - 1}[where]  # a header of 8 bytes comes first
    hub.fault("corrupt", method="GET", path="^/cas/blob/", origin="storage", after_bytes=place, times=times)
    try:
        found = resolve_folder(published, cache_dir=cache, required=(CONFIG, WEIGHTS), wanted=())
    except (ArtifactError, ArtifactNotFoundError):
        hub.clear()
        found = resolve_folder(published, cache_dir=cache, required=(CONFIG, WEIGHTS), wanted=())
    else:
        assert times == 1
        assert [record for record in hub.log() if record["fault"] == "corrupt"]
    assert_whole(found.folder, direction_folder)


def test_a_forced_download_asks_again(published: str, direction_folder: Path, cache: Path, hub: HubServer) -> None:
    resolve_folder(published, cache_dir=cache)
    hub.clear()
    found = resolve_folder(published, cache_dir=cache, force_download=True)
    assert hub.log(method="GET", path="/resolve/") or hub.log(path="/cas/")
    assert_whole(found.folder, direction_folder)


SILENT = {
    "resolve": {"path": "/api/models/[^/]+/[^/]+(/revision/[^/]+)?$", "method": "GET"},
    "listing": {"path": "/tree/", "method": "GET"},
    "head": {"path": "/resolve/", "method": "HEAD"},
    "small file": {"path": "/resolve/.*json", "method": "GET"},
    "blob": {"path": "^/get", "method": "GET", "origin": "storage"},
    "xet token": {"path": "xet-read-token", "method": "GET"},
    "xet plan": {"path": "/reconstructions/", "method": "GET", "origin": "storage"},
    "xet blob": {"path": "^/cas/blob", "method": "GET", "origin": "storage"},
}


@pytest.mark.parametrize("endpoint", SILENT)
def test_a_silent_server_is_not_waited_for(
    published: str,
    direction_folder: Path,
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    endpoint: str,
) -> None:
    if "xet" not in endpoint:
        request.getfixturevalue("plain_lfs")
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(patience, "SLOWEST_BYTES_PER_SECOND", 1_000_000)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    for module in (_http, file_download):  # which wait between attempts of their own
        monkeypatch.setattr(
            module, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}), raising=False
        )
    hub.fault("hang", seconds=600, times=99, **SILENT[endpoint])
    cache = tmp_path / "cache"
    try:
        found = resolve_folder(published, cache_dir=cache)
    except ArtifactNotFoundError as error:
        assert "could not be downloaded" in str(error) or "offline" in str(error)  # and nothing half-visible
        hub.clear()
        found = resolve_folder(published, cache_dir=cache)
    else:
        hub.clear()
    assert_whole(found.folder, direction_folder)


INFO = {"path": "/api/models/[^/]+/[^/]+(/revision/[^/]+)?$", "method": "GET"}
STORED = {"path": "^/get|^/cas/blob", "method": "GET", "origin": "storage"}
FAULTS: dict[str, dict[str, Any]] = {
    "resolve 503": {"action": "status", "status": 503, **INFO},
    "resolve 429": {"action": "status", "status": 429, "headers": {"Retry-After": "0"}, **INFO},
    "resolve is a page": {"action": "status", "status": 200, "body": "<html>busy</html>", **INFO},
    "resolve is cut": {"action": "lost_response", **INFO},
    "listing 500": {"action": "status", "status": 500, "path": "/tree/"},
    "listing is cut": {"action": "drop_response", "after_bytes": 20, "reset": True, "path": "/tree/"},
    "head 504": {"action": "status", "status": 504, "path": "/resolve/", "method": "HEAD"},
    "small file 502": {"action": "status", "status": 502, "path": "/resolve/.*json", "method": "GET"},
    "small file is cut": {"action": "drop_response", "after_bytes": 9, "path": "/resolve/.*json", "method": "GET"},
    "small file is damaged": {"action": "corrupt", "after_bytes": 9, "path": "/resolve/.*json", "method": "GET"},
    "expired address": {"action": "status", "status": 403, "body": "Request has expired", **STORED},
    "storage 503": {"action": "status", "status": 503, **STORED},
    "storage is cut": {"action": "drop_response", "after_bytes": 50_000, "reset": True, **STORED},
    "xet token 403": {"action": "status", "status": 403, "path": "xet-read-token"},
    "xet token 503": {"action": "status", "status": 503, "path": "xet-read-token"},
    "xet token expired": {"action": "status", "status": 401, "path": "/reconstructions/", "origin": "storage"},
    "xet plan 404": {"action": "status", "status": 404, "path": "/reconstructions/", "origin": "storage"},
}
"""What fails while loading, once or for good."""


@pytest.mark.parametrize("times", [1, 99], ids=["once", "always"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_the_whole_direction_or_in_a_word(
    published: str,
    direction_folder: Path,
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    transfer: str,
    fault: str,
    times: int,
) -> None:
    if "xet" in fault and transfer == "lfs":
        pytest.skip("there is no such request")
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(patience, "SLOWEST_BYTES_PER_SECOND", 1_000_000)
    for module in (_http, file_download):  # which wait between attempts of their own
        monkeypatch.setattr(
            module, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}), raising=False
        )
    hub.fault(**FAULTS[fault], times=times)
    needed = (CONFIG, WEIGHTS)
    try:
        found = resolve_folder(published, cache_dir=tmp_path / "cache", required=needed)
    except ArtifactError as error:
        assert published in str(error) and "signature" not in str(error) and "Traceback" not in str(error)
        with pytest.raises(ArtifactError, match="offline"):
            resolve_folder(published, cache_dir=tmp_path / "cache", required=needed, local_files_only=True)
    else:
        assert_whole(found.folder, direction_folder)
    assert [record for record in hub.log() if record["fault"]]
    hub.clear()
    found = resolve_folder(published, cache_dir=tmp_path / "cache", required=needed)
    assert_whole(found.folder, direction_folder)


@KNOWS_REVISIONS
def test_an_old_commit_of_the_cache_is_said_aloud(
    published: str, direction_folder: Path, tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = resolve_folder(published, cache_dir=tmp_path / "cache")
    change_config(direction_folder, 0.5)
    publish_folder(direction_folder, published)
    hub.fault("status", status=503, path=f"/api/models/{published}", times=99)
    caplog.clear()
    assert resolve_folder(published, cache_dir=tmp_path / "cache") == old
    assert f"it is in the cache: commit {(old.commit or '')[:12]}, which main was at on 20" in caplog.text
    hub.clear()
    caplog.clear()
    assert resolve_folder(published, cache_dir=tmp_path / "cache").commit != old.commit
    assert resolve_folder(published, cache_dir=tmp_path / "cache", revision=old.commit) == old
    assert "cannot be reached" not in caplog.text


def test_a_branch_that_moves_never_gives_two_commits(
    api: HfApi, published: str, direction_folder: Path, tmp_path: Path
) -> None:
    contents: dict[str, bytes] = {api.repo_info(published).sha or "": (direction_folder / CONFIG).read_bytes()}
    stop = threading.Event()

    def move() -> None:
        for number in range(40):
            if stop.is_set():
                return
            text = change_config(direction_folder, 0.25 + number)
            (direction_folder / "gradiend_probes.jsonl").write_bytes(text)
            contents[publish_folder(direction_folder, published).oid] = text

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for turn in range(6):
            found = resolve_folder(published, cache_dir=tmp_path / f"cache-{turn}")
            config = (found.folder / CONFIG).read_bytes()
            probes = (found.folder / "gradiend_probes.jsonl").read_bytes()
            assert config == probes or probes == FILES["gradiend_probes.jsonl"]
    finally:
        stop.set()
        mover.join()
    assert {found.commit} <= contents.keys() and contents[found.commit or ""] == config


@pytest.mark.slow
@pytest.mark.parametrize("xet", ["on", "off"])
def test_fifty_kills(published: str, direction_folder: Path, tmp_path: Path, hub: HubServer, xet: str) -> None:
    """A load that is killed at any time leaves nothing that a later one takes for the direction. 25 each way."""
    choose, killed, needed = random.Random(17), 0, ["adapter_config.json", "adapter_model.safetensors"]
    with Forks(HF_HUB_DISABLE_XET="1" if xet == "off" else "0") as forks:
        begin = time.perf_counter()
        assert forks.run("load", published, cache_dir=str(tmp_path / "first"), required=needed)
        seconds = time.perf_counter() - begin
        for turn in range(25):
            cache = tmp_path / f"cache-{turn // 3}"  # a third kill in what the first ones left
            moment = choose.uniform(0, 1.1 * seconds)
            killed += not forks.run("load", published, kill_after=moment, cache_dir=str(cache), required=needed)
            try:
                found = resolve_folder(published, cache_dir=cache, required=needed, local_files_only=True)
            except ArtifactNotFoundError:
                pass
            else:
                assert_whole(found.folder, direction_folder)
            if turn % 3 == 2:
                assert_whole(resolve_folder(published, cache_dir=cache, required=needed).folder, direction_folder)
    assert killed > 5


@pytest.mark.parametrize("xet", ["on", "off"])
@pytest.mark.parametrize("kilobytes", [4, 64])
def test_a_full_disk_is_named(published: str, direction_folder: Path, tmp_path: Path, xet: str, kilobytes: int) -> None:
    off = "1" if xet == "off" else "0"
    said = on_full_disk(tmp_path / "disk", kilobytes, FULL_DISK, "load", published, HF_HUB_DISABLE_XET=off)
    assert "ArtifactNotFoundError" in said and "could not be written to the cache" in said
    assert "No space left on device" in said and "cache_dir= or HF_HOME" in said
    said = on_full_disk(tmp_path / "disk", 4096, FULL_DISK, "load", published, HF_HUB_DISABLE_XET=off)
    assert said == "done\n"
