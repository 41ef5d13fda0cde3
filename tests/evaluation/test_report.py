"""The report on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.constants import REPORT_FILE
from gradiend_hub.errors import ArtifactError, SchemaVersionError
from gradiend_hub.evaluation import EncoderReport, Report, SplitReport, StrengthPoint


def report() -> Report:
    encoder = EncoderReport(0.98, 1.0, 1.0, {"a": 0.9, "ß": -0.8}, {"a": 0.1, "ß": 0.2}, 0.12, {"a": 3, "ß": 4}, 7)
    chances = {"a": {"a": 0.5, "ß": 0.1}, "ß": {"a": 0.2, "ß": 0.6}}
    curve = [
        StrengthPoint(-1.0, chances, 3.1, 0.4, 0.99, 0.985),
        StrengthPoint(0.0, chances, 3.0, 0.41, 1.0, 1.0),
        StrengthPoint(1.0, chances, None, None, None, None),
    ]
    return Report(
        ["a", "ß"], "org/base", "0123abcd", "3 tensors", 12, {"seed": 0}, {"train_rows": {"a": 3}},
        {"eval": SplitReport(encoder, curve, curve[:1], 2048)}, {"train": 1.5}, {"torch": "2"},
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    report().save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report()
    assert loaded.splits["eval"].at(-1.0).lm_score == 0.99
    first = (tmp_path / REPORT_FILE).read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / REPORT_FILE).read_bytes() == first
    assert "ß" in first.decode()
    with pytest.raises(StopIteration):
        loaded.splits["eval"].at(0.5)


def test_numbers_that_are_not_json_are_not_written(tmp_path: Path) -> None:
    broken = report()
    broken.seconds["train"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(tmp_path)
    assert not (tmp_path / REPORT_FILE).exists()


def test_report_of_a_newer_version(tmp_path: Path) -> None:
    report().save(tmp_path)
    path = tmp_path / REPORT_FILE
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "schema_version": 2, "more": 1}))
    with pytest.raises(SchemaVersionError, match="has schema 2; this version of gradiend_hub reads 1"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: "{not json",
        lambda fields: "[]",
        lambda fields: "3",
        lambda fields: json.dumps({k: v for k, v in fields.items() if k != "splits"}),
        lambda fields: json.dumps({k: v for k, v in fields.items() if k != "schema_version"}),
        lambda fields: json.dumps({**fields, "schema_version": "one"}),
        lambda fields: json.dumps({**fields, "unknown": 1}),
        lambda fields: json.dumps({**fields, "splits": {"eval": {"encoder": {}}}}),
        lambda fields: json.dumps({**fields, "splits": []}),
        lambda fields: "\ud800" and b"\xff\xfe\x00".decode("latin1"),
    ],
)
def test_damaged_reports(tmp_path: Path, change: Any) -> None:
    report().save(tmp_path)
    path = tmp_path / REPORT_FILE
    path.write_text(change(json.loads(path.read_text())), encoding="latin1")
    with pytest.raises(ArtifactError, match=r"gradiend_report.json is missing or not a report of this library"):
        Report.load(tmp_path)


def test_missing_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing or not a report"):
        Report.load(tmp_path)
