"""Pushing to a Hub that is silent, busy, or full of others: one whole commit or a clear error, and the next try works."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

from gradiend_hub.errors import HubPushError
from gradiend_hub.hub import patience, publish_folder, resolve_folder, retry
from gradiend_hub.hub.publish import publish_folders
from gradiend_hub.hub.published import REPO_PLACE, marked
from tests.hub.conftest import TOLERATE_LFS_UPLOAD, change_config, write_direction
from tests.hub.forks import FULL_DISK, Forks, on_full_disk
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


def check_silence_is_given_up(hub: HubServer, folder: Path, repo_id: str, rule: dict[str, str]) -> None:
    """The Hub says nothing at one place for good: an error, nothing visible, and the next push is whole."""
    write_direction(folder)  # unknown to the storage
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
    check_silence_is_given_up(hub, direction_folder, repo_id, SILENT[endpoint])


@pytest.mark.parametrize("endpoint", SILENT_XET)
@pytest.mark.usefixtures("impatient")
def test_a_silent_storage_is_given_up(direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str) -> None:
    check_silence_is_given_up(hub, direction_folder, repo_id, SILENT_XET[endpoint])


@pytest.mark.parametrize("endpoint", SILENT_LFS)
@pytest.mark.usefixtures("impatient", "plain_lfs")
def test_a_silent_plain_storage_is_given_up(
    direction_folder: Path, repo_id: str, hub: HubServer, endpoint: str
) -> None:
    check_silence_is_given_up(hub, direction_folder, repo_id, SILENT_LFS[endpoint])


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


# ------------------------------------------------------------------------------------------- looked at before any request


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def not_finite(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # a NaN


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


NOTHING_MEASURED = '{"schema_version": 1, "splits": {}, "feature_classes": ["a", "b"], "base_model": "base"}'
LORA = '{"peft_type": "LORA", "r": 8, "target_modules": ["query"]}'


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "adapter_model.safetensors"),
        (not_finite, "nan"),
        (without("adapter_model.safetensors"), "no adapter_model.safetensors"),
        (with_text("adapter_config.json", LORA), "LORA"),
        (with_text("adapter_config.json", '{"peft_type": "GRADIEND"}'), "parameters"),
        (with_text("adapter_config.json", '{"strength": NaN}'), "adapter_config.json cannot be read"),
        (with_text("adapter_config.json", "[" * 100_000), "adapter_config.json cannot be read"),
        (without("README.md"), "has no card"),
        (without("gradiend_report.json"), "unmeasured"),
        (with_text("gradiend_report.json", NOTHING_MEASURED), "unmeasured"),
        (with_text("gradiend_report.json", "{"), "gradiend_report.json is missing or not a report of this library"),
        (with_text("gradiend_report.json", "[]"), "gradiend_report.json is missing or not a report of this library"),
        (with_text("gradiend_report.json", '{"schema_version": 1, "splits": {"test": {}}}'), "no such field"),
        (with_text("gradiend_report.json", '{"schema_version": 1, "schema_version": 1}'), "has the key .* twice"),
        (with_text("gradiend_probes.jsonl", '{"a": 1}\n{'), "gradiend_probes.jsonl cannot be read, line 2"),
        (with_text("gradiend_probes.jsonl", " " * (2**20 + 1)), "has more than the 1,048,576 bytes that are read"),
    ],
)
def test_what_nobody_could_use_is_refused_before_any_request(
    direction_folder: Path, repo_id: str, hub: HubServer, damage: Callable[[Path], None], reason: str
) -> None:
    damage(direction_folder)
    with pytest.raises(HubPushError, match=rf"(?i){reason}(.|\n)*Nothing was sent"):
        publish_folder(direction_folder, repo_id)
    assert hub.log() == []


def test_an_unmeasured_direction_goes_up_when_it_is_meant(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    (direction_folder / "gradiend_report.json").unlink()
    (direction_folder / "README.md").unlink()
    publish_folder(direction_folder, repo_id, allow_unmeasured=True)
    assert "adapter_model.safetensors" in api.list_repo_files(repo_id)


# -------------------------------------------------------------------------------------------------- the others' own words


def generated(folder: Path, body: str = "Measured.") -> None:
    """Write a card as `write_card` does."""
    head = "---\nlibrary_name: peft\ntags:\n- gradiend\n---\n<!-- gradiend-hub card  -->\n\n# 3SG and 3PL\n\n"
    (folder / "README.md").write_text(marked(f"{head}{body}\n"), encoding="utf-8")


def card_of(api: HfApi, repo_id: str, name: str = "README.md") -> str:
    return Path(api.hf_hub_download(repo_id, name)).read_text(encoding="utf-8")


def edit(api: HfApi, repo_id: str, change: Callable[[str], str]) -> None:
    api.upload_file(path_or_fileobj=change(card_of(api, repo_id)).encode(), path_in_repo="README.md", repo_id=repo_id)


def test_what_was_written_around_the_card_on_the_hub_survives(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    generated(direction_folder)
    publish_folder(direction_folder, repo_id)
    edit(
        api,
        repo_id,
        lambda card: (
            card.replace("- gradiend\n---\n", "- gradiend\n- fairness\nlicense: mit\n---\nRead this first.\n\n")
            + "\n## Thanks\n\nTo all.\n"
        ),
    )
    generated(direction_folder, "Measured again.")
    publish_folder(direction_folder, repo_id)
    card = card_of(api, repo_id)
    for text in (
        "Read this first.",
        "## Thanks\n\nTo all.",
        "Measured again.",
        "license: mit",
        "- fairness",
        "- gradiend\n",
    ):
        assert card.count(text) == 1, text
    assert "Measured.\n" not in card
    hub.clear()
    publish_folder(direction_folder, repo_id)
    assert not hub.log(path="/commit/")
    generated(direction_folder, "A third time.")
    publish_folder(direction_folder, repo_id)
    assert "To all." in card_of(api, repo_id) and "A third time." in card_of(api, repo_id)


def test_metadata_of_a_new_repository_is_kept(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"---\nlicense: apache-2.0\n---\n", path_in_repo="README.md", repo_id=repo_id)
    generated(direction_folder)
    publish_folder(direction_folder, repo_id)
    assert "license: apache-2.0" in card_of(api, repo_id) and "# 3SG and 3PL" in card_of(api, repo_id)


def test_a_card_that_was_changed_within_is_not_replaced(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    generated(direction_folder)
    publish_folder(direction_folder, repo_id)
    edit(api, repo_id, lambda card: card.replace("Measured.", "Measured by me."))
    generated(direction_folder, "Again.")
    hub.clear()
    with pytest.raises(HubPushError, match=r"changed by hand.*hf download .*--overwrite\)\.\nNothing was committed"):
        publish_folder(direction_folder, repo_id)
    assert not hub.log(path="/commit/")
    assert "Measured by me." in card_of(api, repo_id)
    publish_folder(direction_folder, repo_id, overwrite=True)
    assert "Again." in card_of(api, repo_id)


@pytest.mark.parametrize(
    "theirs", [{"model.safetensors": b"weights", "config.json": b"{}"}, {"adapter_config.json": LORA.encode()}]
)
def test_a_repository_with_something_else_is_left_alone(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, theirs: dict[str, bytes]
) -> None:
    api.create_repo(repo_id)
    for name, content in theirs.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    hub.clear()
    with pytest.raises(HubPushError, match=r"(holds something else|a LORA adapter).*overwrite=True"):
        publish_folder(direction_folder, repo_id)
    assert not hub.log(path="/commit/")
    publish_folder(direction_folder, repo_id, overwrite=True)
    assert b"GRADIEND" in Path(api.hf_hub_download(repo_id, "adapter_config.json")).read_bytes()


def test_an_own_card_is_edited_here_and_pushed_again(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    """What is on the Hub came from this folder, so nobody's words are lost."""
    card = direction_folder / "README.md"
    card.write_text("---\nlicense: mit\n---\n# By hand\n")
    publish_folder(direction_folder, repo_id)
    card.write_text(card.read_text() + "One more line.\n")
    publish_folder(direction_folder, repo_id)
    assert card_of(api, repo_id) == card.read_text()
    generated(direction_folder)  # and back to one that is generated
    publish_folder(direction_folder, repo_id)
    assert "Measured." in card_of(api, repo_id)
    edit(api, repo_id, lambda text: text.replace("Measured.", "Theirs."))
    card.write_text(card.read_text() + "Mine.\n")
    with pytest.raises(HubPushError, match="changed by hand"):
        publish_folder(direction_folder, repo_id)
    assert "Theirs." in card_of(api, repo_id)
    # as the message says: download it into the folder, and edit it there
    api.hf_hub_download(repo_id, "README.md", local_dir=direction_folder)
    card.write_text(card.read_text() + "Mine, too.\n")
    publish_folder(direction_folder, repo_id)
    assert "Theirs." in card_of(api, repo_id) and "Mine, too." in card_of(api, repo_id)
    assert not [name for name in api.list_repo_files(repo_id) if ".cache" in name]


def test_a_folder_that_cannot_be_written_is_pushed_all_the_same(
    api: HfApi, direction_folder: Path, repo_id: str
) -> None:
    (direction_folder / ".cache" / "gradiend_hub").write_text("no folder")
    publish_folder(direction_folder, repo_id)
    assert titles(api, repo_id) == ["Upload direction"]


def test_files_of_the_former_direction_go_in_the_same_commit(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    (direction_folder / "lora").mkdir()
    (direction_folder / "lora" / "adapter_config.json").write_text(LORA)
    (direction_folder / "assets" / "shown.png").write_bytes(b"a picture that somebody's words show")
    generated(direction_folder)
    publish_folder(direction_folder, repo_id)
    others = {"notes.md": b"mine", "reports/theirs.json": b"{}", "LICENSE": b"MIT", "x/adapter_config.json": b"{}"}
    for name, content in others.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    edit(api, repo_id, lambda text: f"{text}\n![a picture](assets/shown.png)\n")
    before = {*api.list_repo_files(repo_id)}
    shutil.rmtree(direction_folder / "lora")
    shutil.rmtree(direction_folder / "assets")
    (direction_folder / "gradiend_encoder.safetensors").unlink()
    hub.clear()
    commit = publish_folder(direction_folder, repo_id)
    gone = {"lora/adapter_config.json", "assets/curve.png", "gradiend_encoder.safetensors"}
    assert before - {*api.list_repo_files(repo_id)} == gone and {*others, "assets/shown.png"} <= before
    assert len(hub.log(path="/commit/")) == 1
    assert publish_folder(direction_folder, repo_id).oid == commit.oid
    chosen = ["README.md", "*.json"]  # who chooses files replaces no direction
    (direction_folder / "gradiend_probes.jsonl").unlink()
    publish_folder(direction_folder, repo_id, allow_patterns=chosen)
    assert "gradiend_probes.jsonl" in api.list_repo_files(repo_id)


def test_the_removal_survives_a_lost_answer(api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer) -> None:
    publish_folder(direction_folder, repo_id)
    (direction_folder / "gradiend_probes.jsonl").unlink()
    hub.clear()
    hub.fault("lost_response", path="/commit/")
    publish_folder(direction_folder, repo_id, commit_message="second")
    assert titles(api, repo_id) == ["Upload direction", "second"]
    assert "gradiend_probes.jsonl" not in api.list_repo_files(repo_id)


# ---------------------------------------------------------------------------------------------- many at the same time


def test_of_eight_publishers_nothing_is_lost(
    api: HfApi, direction_folder: Path, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All eight commits are there, one after the other, each with the files of one of them."""
    monkeypatch.setattr(retry, "LONGEST_TURN_SECONDS", 0.5)
    folders = []
    for number in range(8):
        folder = tmp_path / f"of {number}"
        shutil.copytree(direction_folder, folder)
        write_direction(folder, seed=100 + number)
        change_config(folder, 1.0 + number)
        folders.append(folder)
    with ThreadPoolExecutor(8) as pool:
        commits = [*pool.map(lambda folder: publish_folder(folder, repo_id, commit_message=folder.name).oid, folders)]
    assert sorted(titles(api, repo_id)) == [folder.name for folder in folders]
    assert len({*commits}) == 8
    for folder, commit in zip(folders, commits, strict=True):
        for name in ("adapter_config.json", "adapter_model.safetensors", "gradiend_encoder.safetensors"):
            assert (
                Path(api.hf_hub_download(repo_id, name, revision=commit)).read_bytes() == (folder / name).read_bytes()
            )


# ------------------------------------------------------------------------------------------------ kills and full disks


@pytest.mark.slow
@pytest.mark.parametrize("xet", ["on", "off"])
def test_a_hundred_kills(api: HfApi, direction_folder: Path, repo_id: str, xet: str) -> None:
    """Fifty each way: a push that is killed at any time leaves a whole commit or none, and the next one works."""
    choose, killed, wanted = random.Random(17), 0, {}
    names = ("adapter_config.json", "gradiend_probes.jsonl", "adapter_model.safetensors")

    def assert_whole() -> str:
        """The head is one of the versions, whole; its title."""
        commit = api.list_repo_commits(repo_id)[0]
        for name, content in zip(names, wanted[commit.title], strict=True):
            path = api.hf_hub_download(repo_id, name, revision=commit.commit_id)
            assert Path(path).read_bytes() == content, (commit.title, name)
        return commit.title

    with Forks(HF_HUB_DISABLE_XET="1" if xet == "off" else "0") as forks:
        seconds = 1.0
        for turn in range(51):
            write_direction(direction_folder)
            text = change_config(direction_folder, 2.0 + turn)
            (direction_folder / names[1]).write_bytes(json.dumps(json.loads(text)).encode() + b"\n")
            wanted[str(turn)] = [(direction_folder / name).read_bytes() for name in names]
            options = {"commit_message": str(turn)}
            if turn == 0:
                begin = time.perf_counter()
                assert forks.run("push", str(direction_folder), repo_id, **options)
                seconds = time.perf_counter() - begin
                continue
            moment = choose.uniform(0, 1.1 * seconds)
            killed += not forks.run("push", str(direction_folder), repo_id, kill_after=moment, **options)
            assert int(assert_whole()) <= turn
            if turn % 5 == 0:
                assert forks.run("push", str(direction_folder), repo_id, **options)
                assert assert_whole() == str(turn)
    found = titles(api, repo_id)
    assert len({*found}) == len(found) and found == sorted(found, key=int)
    assert killed > 10


@pytest.mark.slow  # the client of the process waits between its attempts
@pytest.mark.parametrize("xet", ["on", "off"])
@pytest.mark.parametrize("kilobytes", [4, 64])
def test_a_full_disk_stops_a_push_with_a_word_or_not_at_all(
    api: HfApi, direction_folder: Path, repo_id: str, tmp_path: Path, xet: str, kilobytes: int
) -> None:
    write_direction(direction_folder)
    generated(direction_folder)
    for turn in range(2):  # the second has to read the card that is there
        generated(direction_folder, f"Measured {turn} times.")
        disk, off = tmp_path / "disk", "1" if xet == "off" else "0"
        said = on_full_disk(disk, kilobytes, FULL_DISK, "push", str(direction_folder), repo_id, HF_HUB_DISABLE_XET=off)
        if said != "done\n":
            assert "No space left on device" in said and "HubPushError: Could not push" in said
            assert not api.repo_exists(repo_id) or len(titles(api, repo_id)) == turn
        publish_folder(direction_folder, repo_id)
        assert len(titles(api, repo_id)) == turn + 1


# ------------------------------------------------------------------------------------------------- tags and subfolders


def test_a_tag_names_the_commit_and_does_not_move(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    commit = publish_folder(direction_folder, repo_id, tag="v1")
    assert publish_folder(direction_folder, repo_id, tag="v1").oid == commit.oid
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(repo_id).tags] == [("v1", commit.oid)]
    change_config(direction_folder, 0.5)
    with pytest.raises(HubPushError, match=r"Published .* without the tag 'v1': that tag is at commit .* already"):
        publish_folder(direction_folder, repo_id, tag="v1")
    assert len(titles(api, repo_id)) == 2
    with pytest.raises(HubPushError, match="pull request has no commit to tag"):
        publish_folder(direction_folder, repo_id, tag="v2", create_pr=True)


def test_one_repository_holds_several_directions(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, tmp_path: Path
) -> None:
    publish_folder(direction_folder, repo_id, subfolder="layers/11")
    weights = (direction_folder / "adapter_model.safetensors").read_bytes()
    write_direction(direction_folder, seed=7)
    (direction_folder / "README.md").write_text(
        marked(
            f'---\ntags: [gradiend]\n---\n<!-- gradiend-hub card  -->\nfrom_pretrained("{REPO_PLACE}", strength=0.0)\n'
        )
    )
    publish_folder(direction_folder, repo_id, subfolder="layers/12")
    assert len(titles(api, repo_id)) == 2
    assert f'from_pretrained("{repo_id}", subfolder="layers/12", strength=0.0)' in card_of(
        api, repo_id, "layers/12/README.md"
    )
    for number, content in ((11, weights), (12, (direction_folder / "adapter_model.safetensors").read_bytes())):
        found = resolve_folder(repo_id, subfolder=f"layers/{number}", cache_dir=tmp_path / "cache")
        assert (found.folder / "adapter_model.safetensors").read_bytes() == content
    hub.clear()
    for bad in ("../x", "/x", "", "a//b", "."):
        with pytest.raises(HubPushError, match="no name of a folder"):
            publish_folder(direction_folder, repo_id, subfolder=bad)
    assert hub.log() == []


def test_several_directions_go_up_in_one_commit_or_none(
    api: HfApi, direction_folder: Path, repo_id: str, tmp_path: Path, hub: HubServer
) -> None:
    other = tmp_path / "other"
    shutil.copytree(direction_folder, other)
    write_direction(other)
    (other / "README.md").unlink()
    with pytest.raises(HubPushError, match=r"has no card(.|\n)*Nothing was sent"):
        publish_folders({"a": direction_folder, "b": other}, repo_id)
    assert not api.repo_exists(repo_id)
    generated(other)
    hub.clear()
    hub.fault("status", path="/commit/", status=503)
    publish_folders({"a": direction_folder, "b": other}, repo_id, tag="v1")
    assert titles(api, repo_id) == ["Upload directions"]
    for place, folder in (("a", direction_folder), ("b", other)):
        found = resolve_folder(repo_id, subfolder=place, cache_dir=tmp_path / "cache", revision="v1")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (found.folder / name).read_bytes() == (folder / name).read_bytes()
    hub.fault("status", path="/commit/", status=503, times=99)
    change_config(other, 0.25)
    with pytest.raises(HubPushError, match=r"--subfolder a --tag v2 && gradiend-hub push .*other .*--subfolder b"):
        publish_folders({"a": direction_folder, "b": other}, repo_id, tag="v2")


def test_files_of_a_saved_direction_can_be_read_by_the_group(direction_folder: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_direction(direction_folder, seed=3)
    finally:
        os.umask(mask)
    for name in ("adapter_model.safetensors", "gradiend_encoder.safetensors"):
        assert (direction_folder / name).stat().st_mode & 0o777 == 0o640
