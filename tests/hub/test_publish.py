"""`publish_folder` against a Hub that fails in every way that the real one is known to fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download

from gradiend_hub.errors import HubPushError
from gradiend_hub.hub import publish_folder, retry
from gradiend_hub.hub.local_files import UPLOADED
from gradiend_hub.hub.part import Part
from gradiend_hub.hub.push import Push
from tests.hub.conftest import FILES, KNOWS_REVISIONS, TOLERATE_LFS_UPLOAD, change_config, write_direction
from tests.hub_server import TOKENS, HubServer

pytestmark = TOLERATE_LFS_UPLOAD


def titles(api: HfApi, repo_id: str, revision: str = "main") -> list[str]:
    """Commit messages, oldest first, without the Hub's own."""
    return [commit.title for commit in reversed(api.list_repo_commits(repo_id, revision=revision))][1:]


def assert_published(api: HfApi, repo_id: str, revision: str = "main") -> None:
    """The revision holds exactly our files, bit for bit."""
    assert {*api.list_repo_files(repo_id, revision=revision)} == {*FILES, ".gitattributes"}
    for name, content in FILES.items():
        assert Path(hf_hub_download(repo_id, name, revision=revision)).read_bytes() == content


def commits_sent(hub: HubServer) -> int:
    return len(hub.log(method="POST", path="/commit/"))


def test_a_push_is_one_commit_with_the_files_of_a_direction(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    commit = publish_folder(direction_folder, repo_id, commit_message="Plural, first try")
    assert titles(api, repo_id) == ["Plural, first try"]
    assert api.repo_info(repo_id).sha == commit.oid
    assert commit.commit_url == f"{constants.ENDPOINT}/{repo_id}/commit/{commit.oid}"
    assert_published(api, repo_id)


def test_without_a_namespace_the_user_owns_the_repository(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    commit = publish_folder(direction_folder, repo_id.split("/")[1])
    assert commit.repo_url.repo_id == repo_id


def test_nothing_changed_is_no_commit(api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer) -> None:
    first = publish_folder(direction_folder, repo_id)
    api.upload_file(path_or_fileobj=b"of somebody else", path_in_repo="notes.txt", repo_id=repo_id)
    hub.clear()
    again = publish_folder(direction_folder, repo_id)
    assert commits_sent(hub) == 0
    assert not hub.log(method="POST", path="/cas/v1/xorbs")
    assert again.oid == api.repo_info(repo_id).sha != first.oid


@pytest.mark.parametrize("name", ["gradiend_probes.jsonl", "adapter_model.safetensors"])
def test_a_changed_file_of_the_same_size_is_pushed(api: HfApi, direction_folder: Path, repo_id: str, name: str) -> None:
    publish_folder(direction_folder, repo_id)
    before = (direction_folder / name).read_bytes()
    if name.endswith(".jsonl"):
        (direction_folder / name).write_bytes(before.replace(b"they", b"them"))
    else:
        write_direction(direction_folder, seed=2)
    content = (direction_folder / name).read_bytes()
    assert content != before and len(content) == len(before)
    publish_folder(direction_folder, repo_id, commit_message="second")
    assert len(titles(api, repo_id)) == 2
    assert Path(hf_hub_download(repo_id, name)).read_bytes() == content


def test_allow_patterns_choose_the_files(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    publish_folder(direction_folder, repo_id, allow_patterns=["README.md", "*.png"])
    assert {*api.list_repo_files(repo_id)} == {".gitattributes", "README.md", "assets/curve.png"}


def test_a_private_push_makes_a_private_repository(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    publish_folder(direction_folder, repo_id, private=True)
    assert api.repo_info(repo_id).private
    publish_folder(direction_folder, repo_id, private=True)
    assert titles(api, repo_id) == ["Upload direction"]


def test_a_private_push_into_a_public_repository_is_refused(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    api.create_repo(repo_id)
    with pytest.raises(HubPushError, match=r"exists and is public.*(\n.*)*--private"):
        publish_folder(direction_folder, repo_id, private=True, revision="v2")
    assert commits_sent(hub) == 0
    assert [branch.name for branch in api.list_repo_refs(repo_id).branches] == ["main"]


def test_a_branch_is_created_and_main_stays(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    api.create_repo(repo_id)
    publish_folder(direction_folder, repo_id, revision="layer/11")
    assert titles(api, repo_id) == []
    assert_published(api, repo_id, "layer/11")


@KNOWS_REVISIONS  # an older client asks for an upload by LFS first, which the server refuses
def test_a_pull_request_from_a_user_without_write_permission(api: HfApi, direction_folder: Path, repo_id: str) -> None:
    api.create_repo(repo_id)
    commit = publish_folder(direction_folder, repo_id, token=TOKENS.bob, create_pr=True)
    assert commit.pr_num == 1
    assert titles(api, repo_id) == []
    assert_published(api, repo_id, "refs/pr/1")


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "status", "status": 500, "path": "/commit/"},
        {"action": "status", "status": 503, "path": "/commit/", "times": 3},
        {"action": "status", "status": 429, "path": "/commit/", "headers": {"Retry-After": "0"}},
        {"action": "status", "status": 409, "path": "/commit/"},
        {"action": "status", "status": 412, "path": "/commit/"},
        {"action": "drop_request", "path": "/commit/", "after_bytes": 10, "reset": True},
        {"action": "status", "status": 503, "path": "/api/repos/create"},
        {"action": "lost_response", "path": "/api/repos/create"},
        {"action": "status", "status": 503, "path": "validate-yaml", "body": "<html>busy</html>"},
        {"action": "status", "status": 504, "path": "/revision/main"},
        {"action": "status", "status": 502, "path": "/paths-info/"},
        {"action": "status", "status": 503, "path": "xet-write-token"},
    ],
    ids=lambda fault: "-".join(str(fault[key]) for key in ("path", "action", "status") if key in fault),
)
def test_a_failure_that_passes_ends_in_one_commit(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, fault: dict[str, object]
) -> None:
    hub.fault(**fault)
    commit = publish_folder(direction_folder, repo_id)
    assert [record["fault"] for record in hub.log() if record["fault"]]
    assert titles(api, repo_id) == ["Upload direction"]
    assert api.repo_info(repo_id).sha == commit.oid
    assert_published(api, repo_id)


def test_an_upload_that_breaks_off_is_repeated(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    write_direction(direction_folder)  # unknown to the storage and to the client's cache of what it sent
    content = (direction_folder / "adapter_model.safetensors").read_bytes()
    hub.fault("drop_request", path="/cas/v1/xorbs", after_bytes=1000, origin="storage", reset=True)
    publish_folder(direction_folder, repo_id)
    assert [record["fault"] for record in hub.log(path="/cas/v1/xorbs")] == ["drop_request", None]
    assert titles(api, repo_id) == ["Upload direction"]
    assert Path(hf_hub_download(repo_id, "adapter_model.safetensors")).read_bytes() == content


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    hub.fault("lost_response", path="/commit/")
    commit = publish_folder(direction_folder, repo_id)
    assert commits_sent(hub) == 1
    assert titles(api, repo_id) == ["Upload direction"]
    assert api.repo_info(repo_id).sha == commit.oid


def test_the_last_attempt_may_lose_its_answer(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    hub.fault("status", path="/commit/")
    hub.fault("lost_response", path="/commit/", skip=1)
    publish_folder(direction_folder, repo_id)
    assert commits_sent(hub) == 2
    assert titles(api, repo_id) == ["Upload direction"]


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    api.create_repo(repo_id)
    api.create_pull_request(repo_id, title="an older one")
    hub.clear()
    hub.fault("lost_response", path="/commit/")
    commit = publish_folder(direction_folder, repo_id, create_pr=True)
    assert commits_sent(hub) == 1
    assert commit.pr_num == 2
    assert len([*api.get_repo_discussions(repo_id)]) == 2
    assert_published(api, repo_id, "refs/pr/2")


def test_a_commit_of_somebody_else_in_between_is_seen(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    publish_folder(direction_folder, repo_id)
    change_config(direction_folder, 0.5)
    hub.clear()
    # while our commit waits in the network, theirs replaces a file that we did not change
    hub.fault("delay", path="/commit/", seconds=0.5)
    push = threading.Thread(target=publish_folder, args=(direction_folder, repo_id))
    push.start()
    hub.wait_for("/commit/")
    HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="gradiend_probes.jsonl", repo_id=repo_id)
    push.join()
    assert [record["status"] for record in hub.log(path="/commit/")] == [412, 200, 200]
    for name in ("adapter_config.json", "gradiend_probes.jsonl"):
        assert Path(hf_hub_download(repo_id, name)).read_bytes() == (direction_folder / name).read_bytes()
    assert len(titles(api, repo_id)) == 3


def test_a_killed_push_leaves_nothing_and_can_be_repeated(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    hub.fault("hang", path="/commit/", seconds=60)
    code = "import sys; from gradiend_hub.hub import publish_folder; publish_folder(*sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, str(direction_folder), repo_id]) as process:
        hub.wait_for("/commit/")
        process.send_signal(signal.SIGKILL)
    assert titles(api, repo_id) == []
    publish_folder(direction_folder, repo_id)
    assert titles(api, repo_id) == ["Upload direction"]
    assert_published(api, repo_id)


def test_a_failure_that_stays_is_reported_with_the_way_out(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    hub.fault("status", path="/commit/", status=503, times=99)
    with pytest.raises(HubPushError) as raised:
        publish_folder(direction_folder, repo_id)
    assert commits_sent(hub) == retry.ATTEMPTS
    assert titles(api, repo_id) == []
    head = api.repo_info(repo_id).sha
    message = str(raised.value)
    assert "HTTP 503, Service Unavailable" in message
    assert f"Nothing was committed: main of the repository is at {head[:8]}" in message
    assert f"gradiend-hub push '{direction_folder}' {repo_id}" in message
    assert (direction_folder / "adapter_model.safetensors").read_bytes() == FILES["adapter_model.safetensors"]


def test_an_unreachable_hub_leaves_the_state_unknown(
    direction_folder: Path, repo_id: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    publish_folder(direction_folder, repo_id)
    hub.fault("status", path=repo_id, status=503, times=99)
    with pytest.raises(HubPushError, match="state of the repository is unknown"):
        publish_folder(direction_folder, repo_id)


@pytest.mark.parametrize(
    ("token", "exists", "reason"),
    [
        (TOKENS.alice_read, True, r"the token may not write there \(HTTP 403"),
        (TOKENS.alice_read, False, r"the token may not write there \(HTTP 403"),
        (TOKENS.bob, True, r"the token may not write there \(HTTP 403"),
        (TOKENS.bob, False, r"the token may not write there \(HTTP 403"),
        ("hf_unknown", True, r"valid token, log in with `hf auth login` \(HTTP 401"),
        (False, True, r"valid token, log in with `hf auth login` \(HTTP 401"),
    ],
)
def test_without_permission_nothing_is_committed(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer, token: str | bool, exists: bool, reason: str
) -> None:
    if exists:
        api.create_repo(repo_id)
    with pytest.raises(HubPushError, match=reason) as raised:
        publish_folder(direction_folder, repo_id, token=token)
    assert commits_sent(hub) == 0
    assert "Nothing was" in str(raised.value) or "unknown" in str(raised.value)
    assert str(token) not in str(raised.value)
    assert len(hub.log(path="/preupload/")) <= 1  # not retried


@pytest.mark.parametrize("repo_id", ["a/b/c", "alice/with space", "-x", ""])
def test_an_invalid_repository_id_is_found_before_any_request(
    direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    with pytest.raises(HubPushError, match="repository id is not valid"):
        publish_folder(direction_folder, repo_id)
    assert hub.log() == []


def test_a_folder_that_is_no_direction_is_found_before_any_request(
    tmp_path: Path, repo_id: str, hub: HubServer
) -> None:
    with pytest.raises(HubPushError, match=r"it has no adapter_config\.json"):
        publish_folder(tmp_path, repo_id)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(HubPushError, match=r"no file of the folder matches \*\.bin"):
        publish_folder(tmp_path, repo_id, allow_patterns=["*.bin"])
    assert hub.log() == []


@pytest.mark.usefixtures("offline")
def test_offline_nothing_is_sent(direction_folder: Path, repo_id: str, hub: HubServer) -> None:
    with pytest.raises(HubPushError, match="offline"):
        publish_folder(direction_folder, repo_id)
    assert hub.log() == []


def test_a_card_with_unusable_metadata_is_refused(
    api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer
) -> None:
    (direction_folder / "README.md").write_text("---\n- a\n- list\n---\n")
    with pytest.raises(HubPushError, match=r"README\.md.*metadata must be a mapping"):
        publish_folder(direction_folder, repo_id)
    assert commits_sent(hub) == 0
    assert not hub.log(path="/preupload/")


@pytest.mark.usefixtures("plain_lfs")
def test_plain_lfs_works_as_well(api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer) -> None:
    publish_folder(direction_folder, repo_id)
    assert hub.log(method="PUT", path="/put")
    assert not hub.log(path="/cas/")
    assert titles(api, repo_id) == ["Upload direction"]
    assert_published(api, repo_id)


@pytest.mark.usefixtures("plain_lfs")
def test_an_expired_upload_url_is_replaced(api: HfApi, direction_folder: Path, repo_id: str, hub: HubServer) -> None:
    hub.fault("status", status=403, method="PUT", path="^/put", origin="storage", body="Request has expired")
    publish_folder(direction_folder, repo_id)
    assert len(hub.log(path="/info/lfs/objects/batch")) == 2
    assert titles(api, repo_id) == ["Upload direction"]


def test_a_base_model_that_only_this_machine_has_is_warned_of(
    api: HfApi, direction_folder: Path, repo_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = direction_folder / "adapter_config.json"
    for base, warned in (("google-bert/bert-base-cased", False), (str(direction_folder), True)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))
        caplog.clear()
        publish_folder(direction_folder, repo_id)
        assert ("Others will have to pass `base_model=`" in caplog.text) is warned
    assert str(direction_folder) in caplog.text


def test_a_file_that_is_lost_before_the_upload_is_named(direction_folder: Path, repo_id: str) -> None:
    weights = direction_folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    parts = [Part(direction_folder, repo_id, "model", UPLOADED["model"])]
    push = Push(HfApi(), parts, repo_id, None, None, "again", False, "model")
    push.check()
    weights.unlink()
    with pytest.raises(HubPushError, match=r"adapter_model.safetensors' is not a file.*\nNothing was committed"):
        push.run()
    weights.write_bytes(content)
    assert publish_folder(direction_folder, repo_id).oid == HfApi().repo_info(repo_id).sha


@pytest.mark.parametrize(
    ("config", "base_id", "reason"),
    [
        ("{", None, "adapter_config.json cannot be read"),
        ("[]", None, "adapter_config.json is not a JSON object"),
        ("{}", "a/b/c", "the repository id is not valid"),
        ("{}", "/home/me/base", "the repository id is not valid"),
    ],
)
def test_a_config_or_base_that_is_unusable_is_found_before_any_request(
    direction_folder: Path, repo_id: str, hub: HubServer, config: str, base_id: str | None, reason: str
) -> None:
    (direction_folder / "adapter_config.json").write_text(config)
    with pytest.raises(HubPushError, match=reason):
        publish_folder(direction_folder, repo_id, base_id=base_id)
    assert hub.log() == []


def test_the_command_to_push_again_names_the_base(direction_folder: Path, repo_id: str) -> None:
    with pytest.raises(HubPushError, match=rf"gradiend-hub push .* {repo_id} --base-id alice/base"):
        publish_folder(direction_folder, repo_id, token=TOKENS.bob, base_id="alice/base")
    with pytest.raises(HubPushError, match="a data set has no base model"):
        publish_folder(direction_folder, repo_id, repo_type="dataset", base_id="alice/base")
