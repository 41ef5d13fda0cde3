"""The notebooks run from top to bottom, show what their text promises, and hold outputs that are real and short."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's own packages
NOTEBOOKS = sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))
CHECKS = {
    "first_look": """
assert correlation > 0.8
they = {key: words["they"] for key, words in guesses.items()}
assert they["boy", -1.0] > they["boy", 0.0] and they["boys", 0.0] > they["boys", 1.0]
""",
    "own_feature": """
assert report.converged and report.splits["test"].encoder.correlation > 0.8
was = {key: words["was"] for key, words in chances.items()}
for noun in ("boy", "boys"):
    assert was[noun, -1.0] < was[noun, 0.0] < was[noun, 1.0]
""",
    "compare_and_combine": """
cosine = directions.similarity("cosine")
shared, alone = cosine["number", "verbs"], cosine["number", "gender"]
assert shared.value > max(shared.null, 2 * abs(alone.value))
assert predicted["number", "verbs"].value > 0 and measured["number", "verbs"].value > 0
assert both.report.weights == {"number": -0.5, "gender": 1.0} and model.strength == 1.0
""",
}


def execute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook after a run, in a folder that has the examples, with its check as the last cell."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[name]))
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def test_every_notebook_is_checked() -> None:
    assert {*CHECKS} == {*NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_and_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute(name, tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "display_data" for output in outputs)  # no bars
    if name == "first_look":
        card = (tmp_path / "out/first-look/README.md").read_text(encoding="utf-8")
        assert re.search(r"^gradiend-hub apply .*\[MASK\]", card, re.MULTILINE)
        funnel = next(cell.outputs[0].text for cell in notebook.cells if "data.funnel" in cell.source)
        assert funnel.startswith("read")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_is_real_and_short(name: str) -> None:
    """Of one run from top to bottom, without an error, an empty cell, a colour code, or a path of somebody's machine."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 3
    for output in outputs:
        assert output.output_type in ("stream", "execute_result")
        text = output.text if output.output_type == "stream" else str(output.data)
        assert len(text) < 4000
        assert "\x1b" not in text and not re.search(r"/(home|root|tmp|work|Users)/", text)
