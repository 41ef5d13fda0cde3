"""The first notebook runs from top to bottom, and shows what its text promises."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_first_look(tmp_path: Path, masked_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / "first_look.ipynb", as_version=4)
    check = (
        "assert correlation > 0.8\n"
        "they = {key: words['they'] for key, words in guesses.items()}\n"
        "assert they['boy', -1.0] > they['boy', 0.0] and they['boys', 0.0] > they['boys', 1.0]"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    card = (tmp_path / "out/first-look/README.md").read_text(encoding="utf-8")
    assert re.search(r"^gradiend-hub apply .*\[MASK\]", card, re.MULTILINE)
    assert not any(
        output.output_type == "display_data" for cell in notebook.cells for output in cell.get("outputs", [])
    )
    funnel = next(cell.outputs[0].text for cell in notebook.cells if "data.funnel" in cell.source)
    assert funnel.startswith("read")
