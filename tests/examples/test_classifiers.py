"""The example of classifiers, one direction of it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_table_of_a_concept_direction(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", ["classifiers", "--only", "digits, concept", "--save", str(tmp_path)])
    importlib.import_module("classifiers").main()
    output = capsys.readouterr().out
    before, after = map(float, re.findall(r"P\(dim\) (\d\.\d+) → (\d\.\d+)", output)[0])
    assert after > before + 0.4
    flips = dict(re.findall(r"concept at ([-+]?\d+): .* decided otherwise (\d\.\d+)", output))
    assert float(flips["-1"]) < float(flips["0"]) / 4
    assert (tmp_path / "digits-concept" / "README.md").is_file()
