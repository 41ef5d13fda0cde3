"""Collections: made and extended once, by who may, with a word on what was added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.hub import resolve_folder
from gradiend_hub.hub.collections import add_to_collection
from gradiend_hub.hub.publish import publish_directions
from gradiend_hub_cli import app
from tests.hub_server import HubServer
from tests.hub_server.process import TOKENS

from .conftest import TOLERATE_LFS_UPLOAD, write_direction


@pytest.fixture
def two(hub: HubServer, repo_id: str) -> list[str]:
    names = [f"{repo_id}-a", f"{repo_id}-b"]
    for name in names:
        HfApi().create_repo(name)
    return names


def test_it_is_made_and_extended_and_nothing_is_there_twice(two: list[str]) -> None:
    title = f"Directions of {two[0]}".replace("/", " ")
    first = add_to_collection(title, two[:1], note="number")
    assert (first.added, first.present) == (two[:1], [])
    second = add_to_collection(title, [*two, two[1]])
    assert (second.slug, second.added, second.present) == (first.slug, two[1:], two[:1])
    third = add_to_collection(first.slug, two)
    assert third.added == [] and third.present == two
    found = HfApi().get_collection(first.slug)
    assert [(item.item_id, item.item_type, item.note) for item in found.items] == [
        (two[0], "model", "number"),
        (two[1], "model", None),
    ]
    assert found.url == first.url and found.owner["name"] == "alice"  # type: ignore[index]
    shared = add_to_collection(f"acme/{title}", two[:1], private=True)
    assert shared.slug.startswith("acme/") and HfApi().get_collection(shared.slug).private


def test_who_may_not_and_what_is_not_there(two: list[str], hub: HubServer) -> None:
    slug = add_to_collection(f"Mine of {two[0]}".replace("/", " "), two[:1]).slug
    with pytest.raises(HubPushError, match="the token may not write"):
        add_to_collection(slug, two, token=TOKENS.bob)
    with pytest.raises(HubPushError, match=f"no such collection or repository.*Added before that: {two[1]}"):
        add_to_collection(slug, [two[1], "alice/nothing-here"])
    with pytest.raises(HubPushError, match="no such collection"):
        add_to_collection("alice/other-0123456789abcdef01234567", two)
    hub.clear()
    for collection, ids, note in (
        ("x", ["no/such/id"], None),
        ("x", [], None),
        ("/", two, None),
        ("x", two, "n" * 501),
    ):
        with pytest.raises(ConfigError):
            add_to_collection(collection, ids, note=note)
    assert hub.log() == []


def test_offline_says_so(two: list[str], offline: None) -> None:
    with pytest.raises(HubPushError, match="HF_HUB_OFFLINE=1"):
        add_to_collection("x", two)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two directions in the folder of a suite, which has files of its own."""
    for seed, name in enumerate(("a_b", "c__d")):
        write_direction(tmp_path / "suite" / name, seed=seed)
    (tmp_path / "suite" / "gradiend_suite.json").write_text("{}")
    (tmp_path / "suite" / "notes").mkdir()
    return tmp_path / "suite"


@TOLERATE_LFS_UPLOAD
def test_a_suite_in_one_repository(suite: Path, repo_id: str, hub: HubServer) -> None:
    done = publish_directions(suite, repo_id, allow_unmeasured=True)
    assert list(done) == [f"{repo_id}/a_b", f"{repo_id}/c__d"]
    assert len(HfApi().list_repo_commits(repo_id)) == 3
    assert publish_directions(suite, repo_id, allow_unmeasured=True).keys() == done.keys()
    assert len(HfApi().list_repo_commits(repo_id)) == 3  # nothing is committed twice
    for name in ("a_b", "c__d"):
        found = resolve_folder(repo_id, subfolder=name, required=("adapter_config.json", "adapter_model.safetensors"))
        assert (found.folder / "adapter_model.safetensors").read_bytes() == (
            suite / name / "adapter_model.safetensors"
        ).read_bytes()
    assert not any("suite.json" in name or "notes" in name for name in HfApi().list_repo_files(repo_id))


@TOLERATE_LFS_UPLOAD
def test_a_suite_as_a_collection(suite: Path, repo_id: str, hub: HubServer) -> None:
    title = f"Suite of {repo_id}".replace("/", " ")
    options = ["--collection", title, "--allow-unmeasured", "--json"]
    result = CliRunner().invoke(app, ["push", str(suite), repo_id, *options])
    assert result.exit_code == 0, result.output
    names = [f"{repo_id}-a_b", f"{repo_id}-c__d"]
    assert list(json.loads(result.stdout)["directions"]) == names
    assert add_to_collection(title, names).present == names


def test_what_is_no_suite(suite: Path, repo_id: str, hub: HubServer, tmp_path: Path) -> None:
    write_direction(suite / "notes" / "checkpoint-5", seed=3)  # of a training that was interrupted
    for place in ("notes", "a_b"):
        with pytest.raises(ConfigError, match="There is no direction in"):
            publish_directions(suite / place, repo_id)
    (suite / "a b").mkdir()
    (suite / "a-b").mkdir()
    for name in ("a b", "a-b"):
        (suite / name / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="the same name"):
        publish_directions(suite, repo_id)
    assert hub.log() == []


def test_the_command(two: list[str]) -> None:
    title = f"Command of {two[0]}".replace("/", " ")
    result = CliRunner().invoke(app, ["collection", "add", title, *two, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["added"] == two
    result = CliRunner().invoke(app, ["collection", "add", title, *two])
    assert "0 added, 2 there already" in result.output
