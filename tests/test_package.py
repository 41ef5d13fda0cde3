"""The public surface, and what importing the package costs."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest

import gradiend_hub
from tests.conftest import ROOT

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "datasets",
    "evaluate",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "PIL",
    "spacy",
    "gradio",
}


def imported_by(*statements: str) -> list[set[str]]:
    """Modules that each statement adds to a fresh interpreter."""
    script = "import json, sys\nseen = [[*sys.modules]]"
    script += "".join(f"\n{statement}\nseen.append([*sys.modules])" for statement in statements)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", f"{script}\nprint(json.dumps(seen))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    stages = [set(names) for names in json.loads(done.stdout.splitlines()[-1])]
    return [after - before for before, after in itertools.pairwise(stages)]


def test_public_names() -> None:
    for name in gradiend_hub.__all__:
        assert getattr(gradiend_hub, name) is not None
    assert {*gradiend_hub.__all__} <= {*dir(gradiend_hub)}
    private = {"annotations", "TYPE_CHECKING", "attach", "import_after"}
    public = {n for n, v in vars(gradiend_hub).items() if n[0] != "_" and not isinstance(v, ModuleType)} - private
    assert public | {"__version__"} == set(gradiend_hub.__all__)
    assert sorted(gradiend_hub.__all__, key=str.lower) == sorted(set(gradiend_hub.__all__), key=str.lower)


@pytest.mark.parametrize("package", ["gradiend_hub", "gradiend_hub.data", "gradiend_hub.evaluation"])
def test_names_that_are_imported_when_they_are_used(package: str) -> None:
    module = importlib.import_module(package)
    assert {*module.__all__} <= {*dir(module)}
    assert not [name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)]


def test_a_name_that_is_not_there() -> None:
    try:
        gradiend_hub.Nope  # noqa: B018
    except AttributeError as error:
        assert "'gradiend_hub' has no attribute 'Nope'" in str(error)
    else:
        raise AssertionError("expected an AttributeError")


def test_what_is_installed_says_what_it_is() -> None:
    found = [d for d in distributions(name="gradiend_hub") if ROOT.as_uri() in (d.read_text("direct_url.json") or "")]
    if not found:
        pytest.skip("what is installed here is another checkout")
    installed = found[0]
    assert installed.version == gradiend_hub.__version__
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    assert {"plots", "data", "explorer", "all"} <= {*(installed.metadata.get_all("Provides-Extra") or [])}


REGISTERED = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; assert 'GRADIEND' in [*known]"


def test_importing_loads_next_to_nothing_and_registers_with_peft() -> None:
    """The method is there as soon as anybody imports PEFT; the trainer, data sets and solvers when they are used."""
    first, probing, of_peft, later = imported_by(
        "import gradiend_hub",
        "import importlib.util; importlib.util.find_spec('peft')",  # as `is_peft_available` does
        REGISTERED,
        "from gradiend_hub import GradiendTrainer",
    )
    own = {name.removeprefix("gradiend_hub.") for name in first if name.startswith("gradiend_hub.")}
    assert own == {"errors", "lazy", "printable", "registration"}
    assert not HEAVY & (first | probing)
    (plain,) = imported_by("import peft, transformers.modeling_utils")
    assert "gradiend_hub.adapter" in of_peft
    assert not (HEAVY | {"transformers.trainer", "typer"}) & (of_peft - plain)
    parts = ("training", "data", "solvers", "evaluation", "objectives", "gradients", "cards", "plots", "model")
    assert not {f"gradiend_hub.{part}" for part in parts} & of_peft
    assert {"gradiend_hub.training.trainer", "transformers.trainer"} <= later


FORKED = """
import json, os, sys, traceback
import torch, transformers, datasets, safetensors.torch, huggingface_hub, accelerate
import transformers.generation.utils, transformers.models.auto.modeling_auto  # most of what PEFT imports itself
assert not [name for name in sys.modules if name.split(".")[0] in ("peft", "gradiend_hub")]
for code in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Runs each piece of code in a process of its own, forked from one that has imported nothing of PEFT's or ours."""


@pytest.mark.slow
def test_whatever_is_imported_first_the_method_is_registered() -> None:
    orders = [
        ["import peft", "import gradiend_hub"],
        ["import gradiend_hub", "import peft.peft_model"],
        ["import gradiend_hub.adapter"],
        ["from gradiend_hub import GradiendConfig"],
        ["import gradiend_hub", "from transformers.integrations.peft import PeftAdapterMixin", "import peft"],
        *([f"import gradiend_hub.{room}"] for room in ("scope", "gradients", "evaluation")),
    ]
    codes = ["\n".join([*statements, REGISTERED]) for statements in orders]
    codes.append("import peft\n" + REGISTERED)  # of which only the import of gradiend_hub makes a method
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, json.dumps(codes)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0"] * len(orders) + ["256"], done.stderr


def without(libraries: Sequence[str], statement: str) -> str:
    """Return what a statement raises in a process that does not have some libraries."""
    script = f"import sys\nsys.modules.update(dict.fromkeys({libraries!r}))\n"
    script += f"try:\n    {statement}\nexcept Exception as error:\n    print(type(error).__name__, error)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("library", "extra", "statement"),
    [
        ("ahocorasick_rs", "data", "from gradiend_hub.data import FeatureDatasetBuilder"),
        ("matplotlib", "plots", "from gradiend_hub.plots.style import figure; figure()"),
        ("gguf", "gguf", "from gradiend_hub.lazy import require; require('gguf', 'Writing GGUF files')"),
    ],
)
def test_a_library_of_an_extra_is_asked_for_by_the_extra_s_name(library: str, extra: str, statement: str) -> None:
    said = without([library], statement)
    assert said.startswith("MissingLibraryError ")
    assert said.strip().endswith(f"needs {library}, which is not installed: pip install 'gradiend_hub[{extra}]'")


def test_learning_loading_and_applying_need_no_extra() -> None:
    statement = "import gradiend_hub_cli.apply, gradiend_hub_cli.info, gradiend_hub_cli.merge, gradiend_hub_cli.push"
    statement += (
        ", gradiend_hub_cli.train, gradiend_hub_cli.evaluate, gradiend_hub_cli.verify, gradiend_hub_cli.explore"
    )
    extras = ("sklearn", "codecarbon", "matplotlib", "PIL", "ahocorasick_rs", "spacy", "gradio", "gguf")
    statement += "; from gradiend_hub import GradiendModel, GradiendTrainer; import gradiend_hub.evaluation.selftest"
    assert without(extras, statement) == ""


def test_the_command_line_imports_what_the_command_needs() -> None:
    artifact = ROOT / "tests" / "artifact" / "schema_1" / "masked_sparse"
    run = "from gradiend_hub_cli import app\ntry:\n    app({!r})\nexcept SystemExit as end:\n    assert not end.code"
    helped, told = imported_by(run.format(["--help"]), run.format(["info", str(artifact)]))
    assert not HEAVY & (helped | told)
    assert "gradiend_hub_cli.info" in told


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_template(tmp_path: Path) -> None:
    """Built from what git tracks, without a warning about what is left out."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    shipped = [name for name in tracked if name.startswith(("gradiend_hub/", "gradiend_hub_cli/"))]
    shipped += [name for name in tracked if name.startswith("model_cards/") and not name.endswith(".md")]
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
