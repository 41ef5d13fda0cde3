"""The report on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.artifact.files import REPORT_FILE
from gradiend_hub.errors import ArtifactError, SchemaVersionError
from gradiend_hub.evaluation import Report, StrengthPoint
from tests.reports import full_report


def report() -> Report:
    """Every kind of field, a class outside ASCII, and a strength without neutral text."""
    made = full_report(["a", "ß"], {"a": ["der"], "ß": ["die", "das"]}, base_revision="0123abcd")
    split = made.splits["test"]
    bare = StrengthPoint(9.0, split.at(1.0).probability, None, None, None, None)
    made.splits["test"] = replace(split, curve=[*split.curve, bare], search=split.curve[:1])
    return made


def test_round_trip(tmp_path: Path) -> None:
    report().save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report()
    assert loaded.splits["test"].at(-1.0).quality == report().splits["test"].at(-1.0).quality
    first = (tmp_path / REPORT_FILE).read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / REPORT_FILE).read_bytes() == first
    assert "ß" in first.decode()
    with pytest.raises(StopIteration):
        loaded.splits["test"].at(0.25)


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
        lambda fields: json.dumps({**fields, "splits": {"eval": {"encoder": {}}}}),
        lambda fields: json.dumps({**fields, "splits": []}),
        lambda fields: json.dumps({**fields, "steps": "many"}),
        lambda fields: json.dumps({**fields, "steps": True}),
        lambda fields: json.dumps({**fields, "energy_kwh": math.nan}),
        lambda fields: json.dumps({**fields, "energy_kwh": 10**400}),
        lambda fields: json.dumps({**fields, "history": [{"loss": math.inf}]}),
        lambda fields: json.dumps({**fields, "history": [{"loss": 0.25}]}).replace("0.25", "1e999"),
        lambda fields: json.dumps({**fields, "steps": 2**63}),
        lambda fields: json.dumps({**fields, "feature_classes": []}),
        lambda fields: json.dumps({**fields, "splits": {"eval": fields["splits"]["eval"] | {"break_point": [1.0]}}}),
        lambda fields: json.dumps(fields).replace('"intervals": {', '"intervals": {"nll": [0.5], ', 1),
        lambda fields: json.dumps({**fields, "examples": "[" * 100_000}).replace('"[', "[").replace('["', "["),
        lambda fields: json.dumps({**fields, "layers": [{"layer": "a"}]}),
        lambda fields: json.dumps({**fields, "usage": {"code": 3}}),
        lambda fields: "\ud800" and b"\xff\xfe\x00".decode("latin1"),
    ],
)
def test_damaged_reports(tmp_path: Path, change: Any) -> None:
    report().save(tmp_path)
    path = tmp_path / REPORT_FILE
    path.write_text(change(json.loads(path.read_text())), encoding="latin1")
    with pytest.raises(ArtifactError, match=r"gradiend_report.json is missing or not a report of this library"):
        Report.load(tmp_path)


def test_a_field_of_a_newer_version_is_left_out(tmp_path: Path) -> None:
    report().save(tmp_path)
    path = tmp_path / REPORT_FILE
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "of_the_future": {"x": [1]}}))
    assert Report.load(tmp_path) == report()


def test_missing_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing or not a report"):
        Report.load(tmp_path)


def test_a_report_of_an_older_version_lacks_the_newer_fields(tmp_path: Path) -> None:
    """Only the fields of the first published report, which had no defaults for what was added since."""
    encoder = {
        "correlation": 0.9, "accuracy": 1.0, "auc": 1.0, "class_means": {"a": 1, "b": -0.5}, "rows": {"a": 2, "b": 2},
        "class_stds": {"a": 0.0, "b": 0.0}, "neutral_abs_mean": None, "neutral_rows": 0,
    }  # fmt: skip
    point = {"strength": 0.0, "probability": {}, "nll": None, "accuracy": None, "lm_score": None, "lm_score_low": None}
    split = {"encoder": encoder, "curve": [point], "search": [], "scored_tokens": 0}
    fields = {"feature_classes": ["a", "b"], "base_model": "org/base", "splits": {"eval": split}, "schema_version": 1}
    (tmp_path / REPORT_FILE).write_text(json.dumps(fields))
    loaded = Report.load(tmp_path)
    measured = loaded.splits["eval"]
    assert (measured.control, measured.completions, measured.break_point, loaded.side_effects) == ([], [], None, [])
    assert measured.encoder.spearman is None
    assert type(measured.encoder.class_means["a"]) is float


def test_wrong_values_are_named_with_their_place(tmp_path: Path) -> None:
    report().save(tmp_path)
    path = tmp_path / REPORT_FILE
    fields = json.loads(path.read_text())
    fields["splits"]["eval"]["curve"][1]["intervals"] = {"kl": [0.1, "high"]}
    path.write_text(json.dumps(fields))
    place = r"report.splits\['eval'\].curve\[1\].intervals\['kl'\]\[1\]: expected a number, found 'high'"
    with pytest.raises(ArtifactError, match=place):
        Report.load(tmp_path)


def test_what_follows_from_a_point() -> None:
    chances = {"a": {"a": 0.5, "b": 0.1}, "b": {"a": 0.2, "b": 0.6}}
    up, zero, down = (
        StrengthPoint(s, chances, 2.0, None, None, None, intervals={"b on a": [0.0, 0.3]}) for s in (2.0, 0.0, -1.0)
    )
    assert (up.effect, zero.effect, down.effect) == (0.2, None, 0.1)
    assert (up.effect_interval, down.effect_interval) == (None, [0.0, 0.3])
    assert up.perplexity == pytest.approx(7.389056)
    one_class = StrengthPoint(1.0, {"a": {"a": 0.5, "b": 0.1}}, 1e4, None, None, None)
    assert one_class.effect is None  # there are no rows of b
    assert one_class.perplexity == math.inf
