"""What the Hub lists of a direction: benchmark results in its own form, and data sets with their commit."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import yaml

from gradiend_hub import GradiendConfig
from gradiend_hub.cards.eval_results import write_eval_results
from gradiend_hub.cards.metadata import metadata_of
from gradiend_hub.evaluation import BenchmarkResult, Report
from gradiend_hub.hub.local_files import UPLOADED, chosen_files
from tests.reports import full_report

CLASSES = ["3SG", "3PL"]


@pytest.fixture
def config() -> GradiendConfig:
    return GradiendConfig(feature_classes=CLASSES, strength=1.0, objective="masked_lm")


def ran(name: str, strength: float, source: str, **scores: float) -> BenchmarkResult:
    return BenchmarkResult(name, strength, scores, rows=2106, source=source)


def report_with(*results: BenchmarkResult) -> Report:
    report = full_report(CLASSES, {"3SG": ["he"], "3PL": ["they"]})
    report.side_effects = [*results]
    return report


def test_benchmarks_on_data_of_the_hub_are_written_as_the_hub_reads_them(
    config: GradiendConfig, tmp_path: Path
) -> None:
    hub = "McGill-NLP/stereoset:intrasentence@0123abc"
    report = report_with(
        ran("StereoSet intrasentence", 0.0, hub, icat=60.5, lms=80.0),
        ran("StereoSet intrasentence", 1.0, hub, icat=70.25, lms=79.0),
        ran("CrowS-Pairs", 1.0, "crows.csv (sha256 00)", stereotype=55.0),
        ran("WinoBias", -1.0, "alice/winobias", gap=3.0),
    )
    (path,) = write_eval_results(tmp_path, config, report)
    assert path.relative_to(tmp_path).as_posix() == ".eval_results/gradiend-stereoset-intrasentence.yaml"
    rows = yaml.safe_load(path.read_text())
    dataset = {"id": "McGill-NLP/stereoset", "task_id": "intrasentence_icat", "revision": "0123abc"}
    assert rows[0] == {
        "dataset": dataset,
        "value": 70.25,
        "notes": "StereoSet intrasentence, icat, at strength +1 on 2106 items; 60.5 for the base model",
    }
    if hasattr(huggingface_hub, "parse_eval_result_entries"):
        entries = huggingface_hub.parse_eval_result_entries(rows)
        assert [(one.dataset_id, one.value, one.dataset_revision) for one in entries] == [
            ("McGill-NLP/stereoset", 70.25, "0123abc"),
            ("McGill-NLP/stereoset", 79.0, "0123abc"),
        ]
    names = {file.name for file in chosen_files(tmp_path, UPLOADED["model"], None)}
    assert names == {".eval_results/gradiend-stereoset-intrasentence.yaml"}
    (tmp_path / ".eval_results" / "mine.yaml").write_text("[]")
    assert write_eval_results(tmp_path, config, report_with()) == []
    assert [one.name for one in (tmp_path / ".eval_results").iterdir()] == ["mine.yaml"]


def test_data_sets_are_named_with_their_commit(config: GradiendConfig) -> None:
    report = report_with()
    report.data["datasets"] = "alice/pronouns@0123abc"
    data = metadata_of(config, report).to_dict()  # type: ignore[no-untyped-call]
    assert data["datasets"] == ["alice/pronouns"]
    listed = [result["dataset"] for result in data["model-index"][0]["results"]]
    assert {(dataset["type"], dataset.get("revision")) for dataset in listed} == {("alice/pronouns", "0123abc")}
    report.data["datasets"] = ["alice/a", "alice/b"]
    data = metadata_of(config, report).to_dict()  # type: ignore[no-untyped-call]
    assert data["datasets"] == ["alice/a", "alice/b"]
    assert {result["dataset"]["type"] for result in data["model-index"][0]["results"]} == {"feature-rows"}
