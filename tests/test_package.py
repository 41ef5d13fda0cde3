"""The public surface, and what importing the package costs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from types import ModuleType

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
    private = {"annotations", "TYPE_CHECKING", "Any", "adapter"}
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
    assert {"gradiend_hub.trainer", "transformers.trainer"} <= later
