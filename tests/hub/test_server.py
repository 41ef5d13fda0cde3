"""The test server is a Hub as far as the real client can tell; if this fails, no other Hub test means anything."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import datasets
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import TOKENS, HubServer

pytestmark = TOLERATE_LFS_UPLOAD

ODD_NAME = "sub/ü dir/na me+#.txt"


@pytest.fixture
def repo(api: HfApi, repo_id: str) -> str:
    """An empty model repository."""
    return api.create_repo(repo_id).repo_id


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def add(api: HfApi, repo: str, name: str, content: bytes = b"x", **options: object) -> str:
    """Commit one file; the commit."""
    operation = CommitOperationAdd(name, content)
    return api.create_commit(repo, [operation], commit_message=f"add {name}", **options).oid


def test_the_client_talks_to_this_server(api: HfApi, hub: HubServer) -> None:
    assert hub.url == constants.ENDPOINT
    assert api.whoami()["name"] == "alice"
    assert [organization["name"] for organization in api.whoami()["orgs"]] == ["acme"]
    assert api.whoami(token=hub.tokens.bob)["name"] == "bob"
    with pytest.raises(HfHubHTTPError) as error:
        api.whoami(token="hf_unknown")
    assert status_of(error) == 401


def test_repositories_are_created_by_those_who_may(api: HfApi, repo: str) -> None:
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert status_of(error) == 409
    assert api.create_repo(repo.split("/")[1], exist_ok=True).repo_id == repo
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo.replace("alice", "bob"))
    assert status_of(error) == 403


@pytest.mark.usefixtures("transfer")
def test_a_folder_goes_up_and_comes_back(api: HfApi, repo: str, hub: HubServer, tmp_path: Path) -> None:
    hub.configure(lfs_threshold=50_000, multipart_threshold=100_000, part_size=64_000)
    contents = {
        "config.json": b'{"a": 1}',
        "empty.txt": b"",
        ODD_NAME: b"odd",
        "one.safetensors": os.urandom(60_000),
        "sub/parts.bin": os.urandom(150_000),
        "large.txt": b"0123456789" * 6_000,
    }
    for name, content in contents.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    commit = api.upload_folder(repo_id=repo, folder_path=tmp_path / "up")
    assert api.upload_folder(repo_id=repo, folder_path=tmp_path / "up").oid == commit.oid  # unchanged: no commit
    down = Path(snapshot_download(repo, cache_dir=tmp_path / "cache"))
    assert {name: (down / name).read_bytes() for name in contents} == contents
    rows = {row.path: row for row in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert {name for name in contents if rows[name].lfs} == {"one.safetensors", "sub/parts.bin", "large.txt"}
    for name in ("one.safetensors", "large.txt"):
        assert rows[name].lfs.sha256 == hashlib.sha256(contents[name]).hexdigest()
        assert rows[name].size == len(contents[name])
        assert rows[name].last_commit.oid == commit.oid
    assert len(hub.log(method="PUT", path="/part")) == (3 if constants.HF_HUB_DISABLE_XET else 0)
    assert hub.log(path="/cas/v1/shards") == [] or not constants.HF_HUB_DISABLE_XET
    assert [record for record in hub.log() if record["origin"] == "storage" and record["token"]] == []
    assert hub.errors() == ""


def test_trees_and_paths(api: HfApi, repo: str, hub: HubServer) -> None:
    names = ["a/b/1.txt", "a/2.txt", "3.txt", "4.txt"]
    api.create_commit(repo, [CommitOperationAdd(name, name.encode()) for name in names], commit_message="four")
    hub.configure(page_size=2)
    hub.clear()
    hub.configure(page_size=2)
    assert {row.path for row in api.list_repo_tree(repo, recursive=True)} == {*names, "a", "a/b", ".gitattributes"}
    assert len(hub.log(path="/tree/")) == 4
    assert [row.path for row in api.list_repo_tree(repo, "a")] == ["a/2.txt", "a/b"]
    assert [row.path for row in api.get_paths_info(repo, ["3.txt", "a", "none"])] == ["3.txt", "a"]
    with pytest.raises(EntryNotFoundError):
        [*api.list_repo_tree(repo, "none")]
    siblings = {sibling.rfilename: sibling for sibling in api.repo_info(repo, files_metadata=True).siblings}
    assert siblings["3.txt"].size == 5


def test_the_cache_asks_once_and_a_commit_not_at_all(api: HfApi, repo: str, hub: HubServer, tmp_path: Path) -> None:
    commit = add(api, repo, "weights.safetensors", os.urandom(1000))
    path = hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path)
    assert commit in path
    hub.clear()
    assert hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path) == path
    assert [record["method"] for record in hub.log()] == ["HEAD"]
    assert hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path, revision=commit) == path
    assert len(hub.log()) == 1


def test_what_is_missing_is_said_and_remembered(api: HfApi, repo: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "none.txt", cache_dir=tmp_path)
    assert [*tmp_path.rglob(".no_exist/*/none.txt")]
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, ".gitattributes", revision="none")
    assert api.file_exists(repo, ".gitattributes")
    assert not api.file_exists(repo, "none.txt")
    assert api.revision_exists(repo, "main")
    assert not api.revision_exists(repo, "none")


def test_branches_tags_and_commits(api: HfApi, repo: str) -> None:
    first = add(api, repo, "v.txt", b"1")
    api.create_tag(repo, tag="v1", tag_message="first")
    api.create_branch(repo, branch="dev/x")
    second, third = add(api, repo, "v.txt", b"2"), add(api, repo, "v.txt", b"3", revision="dev/x")
    expected = {"v1": b"1", first: b"1", "main": b"2", second: b"2", "dev/x": b"3", third: b"3"}
    assert {
        revision: Path(hf_hub_download(repo, "v.txt", revision=revision)).read_bytes() for revision in expected
    } == expected
    refs = api.list_repo_refs(repo)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "dev/x": third}
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["add v.txt", "add v.txt", "initial commit"]
    for create in (lambda: api.create_branch(repo, branch="dev/x"), lambda: api.create_tag(repo, tag="v1")):
        with pytest.raises(HfHubHTTPError) as error:
            create()
        assert status_of(error) == 409


def test_delete_and_copy_in_one_commit(api: HfApi, repo: str) -> None:
    add(api, repo, "weights.safetensors", b"w" * 100)
    add(api, repo, ODD_NAME)
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("sub/"),
        CommitOperationCopy("weights.safetensors", "copy.safetensors"),
    ]
    api.create_commit(repo, operations, commit_message="mixed")
    assert {*api.list_repo_files(repo)} == {".gitattributes", "weights.safetensors", "copy.safetensors", "new.txt"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("none.txt", repo)


def test_a_private_repository_is_hidden(api: HfApi, repo: str, tmp_path: Path) -> None:
    api.update_repo_settings(repo, private=True)
    assert api.repo_info(repo).private
    for token, status in ((False, 401), (TOKENS.bob, 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.repo_info(repo, token=token)
        assert status_of(error) == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(repo, ".gitattributes", token=token, cache_dir=tmp_path)
        assert repo not in [model.id for model in api.list_models(search=repo, token=token)]


def test_a_gated_repository_shows_itself_but_not_its_files(api: HfApi, repo: str, tmp_path: Path) -> None:
    add(api, repo, "weights.safetensors")
    api.update_repo_settings(repo, gated="manual")
    assert api.repo_info(repo, token=False).gated == "manual"
    for token, status in ((False, 401), (TOKENS.bob, 403)):
        with pytest.raises(GatedRepoError) as error:
            hf_hub_download(repo, "weights.safetensors", token=token, cache_dir=tmp_path)
        assert status_of(error) == status
    api.grant_access(repo, "bob")
    assert Path(hf_hub_download(repo, "weights.safetensors", token=TOKENS.bob, cache_dir=tmp_path)).exists()


@pytest.mark.parametrize(("token", "status"), [(TOKENS.alice_read, 403), (TOKENS.bob, 403), (False, 401)])
def test_writing_needs_the_permission(api: HfApi, repo: str, token: str | bool, status: int) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        add(api, repo, "x.txt", token=token)
    assert status_of(error) == status


def test_of_eight_writers_on_one_parent_exactly_one_wins(api: HfApi, repo: str) -> None:
    head, results = api.repo_info(repo).sha, []

    def write(number: int, parent: str | None) -> None:
        try:
            add(api, repo, f"{number}.txt", parent_commit=parent)
            results.append(200)
        except HfHubHTTPError as error:
            results.append(error.response.status_code)

    for parent, expected in ((head, [200] + [412] * 7), (None, [200] * 8)):
        results.clear()
        threads = [threading.Thread(target=write, args=(number, parent)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == expected
    assert len(api.list_repo_files(repo)) == 9


def test_a_pull_request_is_opened_and_read(api: HfApi, repo: str) -> None:
    commit = api.create_commit(
        repo, [CommitOperationAdd("pr.txt", b"pr")], commit_message="mine", create_pr=True, token=TOKENS.bob
    )
    assert commit.pr_revision == f"refs/pr/{commit.pr_num}"
    assert Path(hf_hub_download(repo, "pr.txt", revision=commit.pr_revision)).read_bytes() == b"pr"
    assert not api.file_exists(repo, "pr.txt")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == [commit.pr_revision]


def test_a_card_is_checked_pushed_and_found(api: HfApi, repo: str) -> None:
    card = "---\nlicense: mit\nlibrary_name: gradiend_hub\ntags: [gradiend]\nbase_model: acme/base\n---\n# Card\n"
    ModelCard(card).push_to_hub(repo)
    assert ModelCard.load(repo).data.license == "mit"
    for tag in ("gradiend", "gradiend_hub", "base_model:acme/base"):
        assert repo in [model.id for model in api.list_models(author="alice", search=repo, filter=tag)]
    assert repo not in [
        model.id for model in api.list_models(author="alice", search=repo, filter=["gradiend", "other"])
    ]
    with pytest.raises(ValueError, match="mapping"):
        add(api, repo, "README.md", b"---\n- a list\n---\n")


def test_a_dataset_is_pushed_and_loaded(api: HfApi, repo_id: str) -> None:
    rows = {"text": ["a", "b"], "label": [0, 1]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).push_to_hub(repo_id)
    loaded = datasets.load_dataset(repo_id)["train"]
    assert loaded[:] == rows
    assert api.dataset_info(repo_id).id == repo_id
    assert not api.repo_exists(repo_id)


def test_a_pointer_to_nothing_is_refused(api: HfApi, repo: str) -> None:
    operation = CommitOperationAdd("ghost.safetensors", b"never sent")
    operation._upload_mode, operation._is_uploaded, operation._should_ignore = "lfs", True, False
    with pytest.raises(BadRequestError, match="a file that does not exist"):
        api.create_commit(repo, [operation], commit_message="ghost")


def test_the_file_system_reads_ranges(api: HfApi, repo: str) -> None:
    add(api, repo, "small.txt", b"0123456789")
    add(api, repo, "large.safetensors", b"0123456789")
    files = HfFileSystem(skip_instance_cache=True)
    assert f"{repo}/small.txt" in files.ls(repo, detail=False)
    for name in ("small.txt", "large.safetensors"):
        assert files.cat_file(f"{repo}/{name}", start=3, end=6) == b"345"


@pytest.mark.usefixtures("plain_lfs")
def test_a_flipped_byte_reaches_the_client(api: HfApi, repo: str, hub: HubServer, tmp_path: Path) -> None:
    add(api, repo, "weights.safetensors", bytes(1000))
    hub.fault("corrupt", path="^/get", origin="storage", after_bytes=7)
    content = Path(hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path)).read_bytes()
    assert content == bytes(7) + b"\xff" + bytes(992)


def test_exec_runs_a_command_against_a_server_of_its_own(hub: HubServer, tmp_path: Path) -> None:
    code = (
        "import os, urllib.request; url = os.environ['HF_ENDPOINT'];"
        "headers = {'Authorization': 'Bearer ' + os.environ['HF_TOKEN']};"
        "request = urllib.request.Request(url + '/api/whoami-v2', headers=headers);"
        "print(url, os.environ['HF_HOME'], urllib.request.urlopen(request).status); raise SystemExit(7)"
    )
    command = [sys.executable, "-m", "tests.hub_server", "exec", "--data", str(tmp_path), "--", sys.executable, "-c"]
    process = subprocess.run([*command, code], capture_output=True, text=True, check=False)
    url, home, status = process.stdout.split()
    assert (process.returncode, status, process.stderr) == (7, "200", "")
    assert url != hub.url
    assert Path(home).is_relative_to(tmp_path)
    with pytest.raises(ConnectionError):
        connect(url)


def connect(url: str) -> None:
    """Raise ConnectionError if nobody listens there."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)):
        pass


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.hub_server import HubServer;"
        "server = HubServer(Path(sys.argv[1])); server.clear(); print(server.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        connect(url)
        parent.kill()
    deadline = time.monotonic() + 20
    with pytest.raises(ConnectionError):
        while time.monotonic() < deadline:
            connect(url)


def test_a_server_started_again_has_its_repositories(tmp_path: Path) -> None:
    content = os.urandom(1000)
    with HubServer(tmp_path / "data") as server:
        api = HfApi(endpoint=server.url)
        api.create_repo("alice/x", private=True)
        add(api, "alice/x", "weights.safetensors", content)
    with HubServer(tmp_path / "data") as server:
        api = HfApi(endpoint=server.url)
        assert api.repo_info("alice/x").private
        path = api.hf_hub_download("alice/x", "weights.safetensors", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == content
