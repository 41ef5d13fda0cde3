"""`search_directions`: what is found, by whose figures, and what a stranger's summary can do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import build_hf_headers, get_session
from typer.testing import CliRunner

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE, SUMMARY_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.summary import MOST_SUMMARY_BYTES, Summary
from gradiend_hub.cards import write_card
from gradiend_hub.cards.summary import summarize
from gradiend_hub.errors import ConfigError, HubPushError, HubSearchError
from gradiend_hub.evaluation import Report
from gradiend_hub.hub import publish_folder, search_directions
from gradiend_hub_cli import app
from tests.conftest import ROOT
from tests.hub_server import HubServer

STORED = ROOT / "tests" / "artifact" / "schema_1"
NUMBER = Summary(
    ["3SG", "3PL"], "us/base", task="fill-mask", correlation=0.9, before={"-1.0": 0.1, "1.0": 0.1},
    effect={"-1.0": 0.5, "1.0": 0.6}, quality={"-1.0": 0.995, "1.0": 0.99},
)  # fmt: skip


def publish(folder: Path, repo_id: str, summary: Summary | str | None, base: str = "us/base", **card: Any) -> None:
    """Publish a folder that is a direction as far as the Hub can see."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text("{}")
    tags = card.pop("tags", ["gradiend", "feature-direction"])
    fields = {"base_model": base, "pipeline_tag": "fill-mask", "tags": tags, **card}
    (folder / CARD_FILE).write_text(f"---\n{json.dumps(fields)}\n---\n")
    if isinstance(summary, Summary):
        summary.save(folder)
    elif summary is not None:
        (folder / SUMMARY_FILE).write_text(summary)
    HfApi().create_repo(repo_id, exist_ok=True)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


@pytest.fixture
def some(hub: HubServer, tmp_path: Path) -> None:
    publish(tmp_path / "a", "alice/srch-number", NUMBER)
    weak = replace(
        NUMBER, feature_classes=["female", "male"], effect={"-1.0": 0.2, "1.0": 0.9}, quality={"-1.0": 1.0, "1.0": 1.0}
    )
    publish(tmp_path / "b", "alice/srch-gender", weak, base="us/other")
    publish(tmp_path / "c", "alice/srch-unmeasured", Summary(["3SG", "3PL"]))
    publish(tmp_path / "d", "alice/srch-old", None)
    publish(tmp_path / "e", "alice/srch-rewritten", None, tags=["gradiend-rewritten"])


def found(**options: Any) -> list[str]:
    return sorted(
        one.repo_id.removeprefix("alice/srch-") for one in search_directions("srch-", author="alice", **options)
    )


def test_what_is_found(some: None) -> None:
    assert found() == ["gender", "number", "old", "unmeasured"]
    assert found(base_model="us/other") == ["gender"]
    assert found(feature="3sg") == ["number", "unmeasured"]
    assert found(min_effect=0.5) == ["number"]
    assert found(max_damage=0.005) == ["gender"]
    assert [one.repo_id for one in search_directions("srch-gend", author="alice")] == ["alice/srch-gender"]
    assert len(found(limit=2)) == 2 and search_directions(author="nobody") == []
    ranked = [one.repo_id for one in search_directions("srch-", author="alice", sort="effect")]
    assert ranked[:2] == ["alice/srch-number", "alice/srch-gender"]
    assert next(one.repo_id for one in search_directions("srch-", author="alice", sort="damage")) == "alice/srch-gender"
    one = search_directions("srch-number", author="alice")[0]
    assert one.summary == NUMBER and one.base_model == "us/base" and one.task == "fill-mask" and one.commit


def count(hub: HubServer, repo_id: str, **counts: int) -> None:
    """Let the Hub have counted downloads and likes."""
    url = f"{hub.url}/api/models/{repo_id}/settings"
    get_session().put(url, json=counts, headers=build_hf_headers()).raise_for_status()


def test_the_hubs_own_filters_and_orders(hub: HubServer, tmp_path: Path) -> None:
    other = replace(NUMBER, feature_classes=["female", "male"])
    publish(tmp_path / "a", "alice/ordr-number", NUMBER)
    publish(tmp_path / "b", "alice/ordr-gender", other)
    publish(
        tmp_path / "c", "alice/ordr-causal", replace(NUMBER, task="text-generation"), pipeline_tag="text-generation"
    )
    for place, name in enumerate(("number", "causal", "gender")):
        count(hub, f"alice/ordr-{name}", downloads=place, likes=10 - place)

    def ranked(sort: Any = "downloads", **options: Any) -> list[str]:
        ordered = search_directions("ordr-", author="alice", sort=sort, **options)
        return [one.repo_id.removeprefix("alice/ordr-") for one in ordered]

    assert ranked() == ["gender", "causal", "number"] and ranked("likes") == ["number", "causal", "gender"]
    assert ranked("likes", limit=2) == ["number", "causal"] and ranked("likes", feature="3sg") == ["number", "causal"]
    assert {*ranked("created_at")} == {*ranked("last_modified")} == {"number", "causal", "gender"}
    assert ranked(task="text-generation") == ["causal"] and ranked(task="fill-mask") == ["gender", "number"]
    assert ranked(task="text-generation", min_effect=0.5) == ["causal"] and ranked(task="text-classification") == []
    assert ranked(task="text-generation", feature="male") == [] and ranked(task="fill-mask", feature="MALE") == [
        "gender"
    ]
    first = search_directions("ordr-causal", author="alice")[0]
    assert (first.downloads, first.likes, first.task) == (1, 9, "text-generation")


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        json.dumps({"feature_classes": ["a", "b"], "correlation": 7}),
        json.dumps({"feature_classes": ["a", "b"], "effect": {"1.0": 3.0}}),
        json.dumps({"feature_classes": ["a\u001b[2J", "b"]}),
        json.dumps({"feature_classes": ["a", "a"]}),
        json.dumps({"feature_classes": ["a", "b"], "schema_version": 99}),
        json.dumps({"feature_classes": ["a", "b"], "effect": {"x": 0.9, "y": 0.95}}),
        json.dumps({"feature_classes": ["a", "b"], "quality": {"-1.0": 1e308, "1.0": 1.0}}),
        json.dumps({"feature_classes": ["a", "b"], "size": -1}),
        json.dumps({"feature_classes": ["a", "b"], "base_model": "x" * MOST_SUMMARY_BYTES}),
    ],
)
def test_a_strangers_summary_is_data_or_nothing(text: str, hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    publish(tmp_path / "x", repo_id, text)
    hub.clear()
    (one,) = search_directions(repo_id)
    assert one.summary is None
    if len(text) > MOST_SUMMARY_BYTES:
        assert not hub.log(path=f"/resolve/{one.commit}/{SUMMARY_FILE}")
    assert search_directions(repo_id, min_effect=0.0) == []


def test_bad_questions(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"min_effect": 1.5}, {"max_damage": -0.1}, {"limit": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: expected"):
            search_directions(**options)
    monkeypatch.setattr("gradiend_hub.hub.search.is_offline_mode", lambda: True)
    with pytest.raises(HubSearchError, match="HF_HUB_OFFLINE=1"):
        search_directions()


def test_the_command(some: None) -> None:
    result = CliRunner().invoke(app, ["search", "srch-", "--author", "alice", "--feature", "3SG", "--json"])
    assert result.exit_code == 0, result.output
    assert {one["repo_id"] for one in json.loads(result.stdout)["directions"]} == {
        "alice/srch-number",
        "alice/srch-unmeasured",
    }
    result = CliRunner().invoke(app, ["search", "srch-", "--author", "alice", "--feature", "nothing"])
    assert result.exit_code == 0 and "No direction was found" in result.output


def test_the_summary_of_a_direction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = next(path for path in sorted(STORED.iterdir()) if (path / WEIGHTS_FILE).is_file())
    shutil.copytree(kind, tmp_path / "x")
    config, report = GradiendConfig.from_pretrained(str(tmp_path / "x")), Report.find(tmp_path / "x")
    made = summarize(tmp_path / "x", config, report)
    made.save(tmp_path / "x")
    assert Summary.load(tmp_path / "x" / SUMMARY_FILE) == made
    assert made.feature_classes == config.feature_classes and made.size == (kind / WEIGHTS_FILE).stat().st_size
    long = replace(
        made, feature_classes=["a" * 900, "b" * 900], base_model="c" * 900, base_revision="d" * 900, task="e" * 900
    )
    with caplog.at_level("WARNING"):
        long.save(tmp_path / "x")
    assert (
        "shorter names" in caplog.text and not (tmp_path / "x" / SUMMARY_FILE).exists()
    )  # nor that of a former direction


def test_the_base_that_a_push_names_is_in_the_summary(tmp_path: Path, hub: HubServer, repo_id: str) -> None:
    kind = next(path for path in sorted(STORED.iterdir()) if (path / WEIGHTS_FILE).is_file())
    shutil.copytree(kind, tmp_path / "x")
    config = GradiendConfig.from_pretrained(str(tmp_path / "x"))
    summarize(tmp_path / "x", config, Report.find(tmp_path / "x")).save(tmp_path / "x")
    write_card(tmp_path / "x")
    publish_folder(tmp_path / "x", repo_id, base_id="us/base")
    path = HfApi().hf_hub_download(repo_id, SUMMARY_FILE)
    assert Summary.load(path).base_model == "us/base"


@pytest.mark.parametrize("name", [SUMMARY_FILE, f"lora/{CONFIG_FILE}"])
@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_what_stands_beside_is_looked_at_before_a_push(
    name: str, text: str, tmp_path: Path, hub: HubServer, repo_id: str
) -> None:
    kind = next(path for path in sorted(STORED.iterdir()) if (path / WEIGHTS_FILE).is_file())
    shutil.copytree(kind, tmp_path / "x")
    write_card(tmp_path / "x")
    (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "x" / name).write_text(text)
    hub.clear()
    with pytest.raises(HubPushError, match=name):
        publish_folder(tmp_path / "x", repo_id, base_id="us/base")
    assert hub.log() == []
