"""README's block on comparisons, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.artifact.files import CARD_FILE
from tests.conftest import ROOT


def test_the_block_runs_as_a_whole(
    compared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "DirectionSet" in block]
    for name, of in (("out/number", "number"), ("out/gender", "gender"), ("someone/bert-tense", "aware")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(compared[of])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    ds, both = names["ds"], names["both"]
    assert ds.names == ("number", "gender", "bert-tense")
    assert both.report.weights == {"number": 1.0, "gender": -0.5}
    printed = capsys.readouterr().out
    assert "cancellation" in printed and "expected damage" in printed
    assert "Unmeasured" in (tmp_path / "out" / "both" / CARD_FILE).read_text(encoding="utf-8")
