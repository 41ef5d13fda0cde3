"""The public surface, and what importing the package costs."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import gradiend_hub
from tests.conftest import ROOT


def imported_by(*statements: str) -> list[set[str]]:
    """Modules that each statement adds to a fresh interpreter, beyond those of torch, transformers and peft."""
    steps = "".join(f"\n{s}\nseen.append([*sys.modules])" for s in ("import transformers.modeling_utils", *statements))
    script = f"import json, sys, torch, peft\nseen = []{steps}\nprint(json.dumps(seen))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stages = [set(names) for names in json.loads(done.stdout)]
    return [after - before for before, after in itertools.pairwise(stages)]


def test_public_names() -> None:
    for name in gradiend_hub.__all__:
        assert getattr(gradiend_hub, name) is not None
    private = {"annotations", "TYPE_CHECKING", "Any", "Path", "adapter"}
    public = {n for n, v in vars(gradiend_hub).items() if n[0] != "_" and not isinstance(v, ModuleType)} - private
    lazy = {"GradiendTrainer", "GradiendTrainingArguments"}
    assert public | lazy | {"__version__"} == set(gradiend_hub.__all__)
    assert sorted(gradiend_hub.__all__, key=str.lower) == sorted(set(gradiend_hub.__all__), key=str.lower)


def test_a_name_that_is_not_there() -> None:
    try:
        gradiend_hub.Nope  # noqa: B018
    except AttributeError as error:
        assert "'gradiend_hub' has no attribute 'Nope'" in str(error)
    else:
        raise AssertionError("expected an AttributeError")


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert gradiend_hub.__version__ == version("gradiend_hub")


def test_importing_registers_the_method_and_little_else() -> None:
    """The trainer, data sets, solvers and everything heavy come when they are asked for."""
    registered = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; assert 'GRADIEND' in [*known]"
    first, _, later = imported_by("import gradiend_hub", registered, "from gradiend_hub import GradiendTrainer")
    assert "gradiend_hub.adapter" in first
    heavy = {"transformers.trainer", "datasets", "evaluate", "sklearn", "scipy", "matplotlib", "pandas", "typer"}
    assert not heavy & first
    parts = ("trainer", "data", "solvers", "evaluation", "objectives", "gradients")
    assert not {f"gradiend_hub.{part}" for part in parts} & first
    assert {"gradiend_hub.training.trainer", "transformers.trainer"} <= later


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_template(tmp_path: Path) -> None:
    """Built from what git tracks, without a warning about what is left out."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    shipped = [name for name in tracked if name.startswith(("gradiend_hub/", "gradiend_hub_cli/", "model_cards/"))]
    for name in (*shipped, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--verbose",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        tmp_path,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "absent from the `packages` configuration" not in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == {name.replace("model_cards/", "gradiend_hub/model_cards/", 1) for name in shipped}
