"""What others have measured: found by pull request or in the repository, named by the Hub, and a stranger's all the same."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import CommitOperationAdd, HfApi

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.fields import StoredFields
from gradiend_hub.artifact.files import REPORT_FILE
from gradiend_hub.cards import render_card
from gradiend_hub.cards.summary import summarize
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation import measurements as module
from gradiend_hub.evaluation.measurements import Measurements, find_measurements
from gradiend_hub.hub import resolve_folder
from gradiend_hub_cli.info import describe
from tests.adapter.support import config_for, random_direction
from tests.hub_server import HubServer
from tests.hub_server.process import TOKENS
from tests.models import build
from tests.reports import full_report

CLASSES = ["3SG", "3PL"]
FILLERS = {"3SG": ["he", "she"], "3PL": ["they"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A direction of the small BERT with its author's report."""
    model = build("bert")
    direction = random_direction(model)
    place = tmp_path / "direction"
    config = config_for(direction, model, feature_classes=CLASSES, fillers=FILLERS, objective="masked_lm")
    config.base_model_name_or_path = "us/base"
    config.save_pretrained(str(place))
    direction.save(place)
    full_report(CLASSES, FILLERS, base_model="us/base").save(place)
    return place


@pytest.fixture
def published(folder: Path, repo_id: str, hub: HubServer) -> str:
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


def test_a_summary_says_how_many_others_have_measured(folder: Path) -> None:
    config = GradiendConfig.from_pretrained(str(folder))
    assert summarize(folder, config, Report.find(folder)).others == 0
    (folder / "reports").mkdir()
    for name in ("bob", "carol"):
        (folder / "reports" / f"{name}.json").write_bytes((folder / REPORT_FILE).read_bytes())
    (folder / "reports" / "mallory.json").write_text("{}")  # no report
    assert summarize(folder, config, Report.find(folder)).others == 2


def report_of(repo_id: str, **changes: Any) -> bytes:
    """Somebody's report as JSON."""
    report = full_report(CLASSES, FILLERS, base_model="us/base")
    report.direction, report.direction_revision = repo_id, HfApi().repo_info(repo_id).sha
    for name, value in changes.items():
        setattr(report, name, value)
    with tempfile.TemporaryDirectory() as place:
        report.save(place)
        return (Path(place) / REPORT_FILE).read_bytes()


def add(repo_id: str, name: str, content: bytes, *, token: str = TOKENS.bob, merged: bool = False) -> None:
    """Propose a file, or put it into the repository."""
    HfApi(token=token).create_commit(
        repo_id, [CommitOperationAdd(name, content)], commit_message="Add", create_pr=not merged
    )


def measured(repo_id: str) -> Measurements:
    found = resolve_folder(repo_id)
    return find_measurements(found, StoredFields.read(found.folder))


def test_who_has_measured_and_where(published: str, hub: HubServer) -> None:
    add(published, "reports/bobs.json", report_of(published))
    add(published, "reports/old.json", report_of(published, direction_revision="0" * 40))
    add(published, "reports/own.json", report_of(published), token=TOKENS.alice, merged=True)
    found = measured(published)
    assert found.problems == [] and found.results == []
    assert [(m.by, m.file, m.pull_request, m.same_weights) for m in found.reports] == [
        ("alice", "reports/own.json", None, True),
        ("bob", "reports/bobs.json", 1, True),
        ("bob", "reports/old.json", 2, None),
    ]
    assert found.reports[1].source == "bob (pull request 1)"
    HfApi().upload_file(path_or_fileobj=b"other", path_in_repo="adapter_model.safetensors", repo_id=published)
    assert [m.same_weights for m in measured(published).reports] == [False, False, None]


def test_a_report_that_both_hold_counts_once(published: str) -> None:
    content = report_of(published)
    add(published, "reports/bobs.json", content)
    add(published, "reports/bobs.json", content, token=TOKENS.alice, merged=True)
    (one,) = measured(published).reports
    assert one.pull_request is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "no report"),
        (b"[]", "no report"),
        (b"x" * 2_000_001, "too large"),
        ({"direction": "alice/another"}, "report of alice/another"),
        ({"direction": None}, "report of no named direction"),
        ({"feature_classes": ["a", "b"]}, "not credible"),
        ("correlation", "not credible"),
    ],
)
def test_what_is_no_measurement_of_it_is_left_out_with_a_reason(
    published: str, content: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REPORT_BYTES", 2_000_000)
    if isinstance(content, dict):
        content = report_of(published, **content)
    elif content == "correlation":
        fields = json.loads(report_of(published))
        fields["splits"]["test"]["encoder"]["correlation"] = 1.5
        content = json.dumps(fields).encode()
    add(published, "reports/x.json", content)
    found = measured(published)
    assert found.reports == [] and len(found.problems) == 1 and reason in found.problems[0]


def test_results_in_the_hubs_form(published: str) -> None:
    entry = {
        "dataset": {"id": "us/rows", "task_id": "default"},
        "value": 0.93,
        "source": {"url": "https://x", "user": "bob"},
    }
    add(published, ".eval_results/rows.yaml", yaml.safe_dump([entry, {**entry, "value": 0.9}]).encode())
    add(published, ".eval_results/broken.yaml", b"- {dataset: 3}")
    add(published, ".eval_results/deep.yaml", b"[" * 20_000)
    found = measured(published)
    assert [(r.dataset.id, r.value, r.by, r.pull_request) for r in found.results] == [
        ("us/rows", 0.93, "bob", 1),
        ("us/rows", 0.9, "bob", 1),
    ]
    assert len(found.problems) == 2 and all("no list of evaluation results" in problem for problem in found.problems)


def test_a_hub_that_does_not_answer_is_said(published: str, hub: HubServer) -> None:
    resolve_folder(published)
    hub.fault(action="status", status=503, path="/discussions", times=100)
    found = measured(published)
    assert found.reports == [] and "is not known" in found.problems[0]


def test_reports_on_disk_are_on_the_card(folder: Path) -> None:
    assert "Measured by others" not in str(render_card(folder))
    report = full_report(CLASSES, FILLERS, base_model="us/base")
    point = report.splits["test"].at(1.0)
    (folder / "reports").mkdir()
    report.save(folder / "reports" / "mine.json")
    card = str(render_card(folder))
    assert "## Measured by others" in card and "| reports/mine&#46;json |" in card.replace(".json", "&#46;json")
    assert f"{point.probability['3PL']['3SG']:.3f} [" in card[card.index("## Measured by others") :]
    assert describe(str(folder)).others.reports[0].by is None


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    Report(CLASSES, "us/base").save(tmp_path / "secret.json")
    (folder / "reports").mkdir()
    (folder / "reports" / "x.json").symlink_to(tmp_path / "secret.json")
    found = describe(str(folder)).others
    assert found.reports == [] and "is a link to" in found.problems[0]
