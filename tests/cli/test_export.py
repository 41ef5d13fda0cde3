"""`gradiend-hub export`: a LoRA for llama.cpp beside the direction, and what is left when something cannot be written."""

from __future__ import annotations

import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gradiend_hub import GradiendModel
from gradiend_hub.cards import write_card
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.claims import measured_again
from gradiend_hub.objectives import make_objective

from .conftest import Run


@pytest.fixture
def copy(causal_direction: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "direction"
    shutil.copytree(causal_direction, folder)
    return folder


def test_a_lora_for_llama_cpp_in_the_repository(run: Run, copy: Path, tmp_path: Path) -> None:
    """The card tells how to use it, `verify --full` compares it, and what a person has written stays."""
    pytest.importorskip("gguf", reason="pip install gguf")
    write_card(copy)
    assert "llama" not in (copy / "README.md").read_text().partition("## Use")[2].partition("\n## ")[0]
    made = run("export", copy, copy / "gguf", "--format", "gguf-lora")
    assert made.exit_code == 0, made.stderr
    files = sorted(path.relative_to(copy).as_posix() for path in (copy / "gguf").iterdir())
    assert files == ["gguf/minus.gguf", "gguf/plus.gguf"]  # its decoder has a bias
    card = (copy / "README.md").read_text()
    assert "--lora-scaled gguf/plus.gguf:1.0" in card and "ADAPTER ./gguf/plus.gguf" in card
    assert "`gguf/minus.gguf` at 1 is strength −1" in card
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    objective, report = make_objective(model.get_base_model(), model.tokenizer), Report(["3SG", "3PL"], "base")

    def found() -> dict[str, str]:
        return {check.name: check.found for check in measured_again(model, objective, report, copy, 1e-3)}

    assert found() == dict.fromkeys(files, "the direction")
    shutil.copyfile(copy / files[0], copy / files[1])
    assert found()[files[1]].startswith("differs by")
    (copy / files[1]).write_bytes((copy / files[0]).read_bytes()[:4096])
    assert found() == {files[0]: "the direction", files[1]: "none of it"}
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / files[0]).read_bytes() == (copy / files[0]).read_bytes()
    refused = run("export", copy, copy / "gguf", "--format", "gguf-lora", "--strength", "2", "--overwrite")
    assert refused.exit_code == 1 and "at strength 1" in " ".join(refused.stderr.split())
    (copy / "README.md").write_text(card + "Mine.\n")
    assert run("export", copy, copy / "gguf", "--format", "gguf-lora", "--overwrite").exit_code == 0
    assert (copy / "README.md").read_text().endswith("Mine.\n")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Inside, writing more to a file fails, as it does on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", ["lora", "gguf-lora", "task-vector"])
def test_nothing_is_half_written(run: Run, copy: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("gguf", reason="pip install gguf")
    before = sorted(tmp_path.rglob("*"))
    with files_no_larger_than(30_000):
        full = run("export", copy, tmp_path / "out", "--format", form)
    assert full.exit_code == 1 and re.search("File too large|No space left", full.stderr), full.stderr
    assert sorted(tmp_path.rglob("*")) == before
    kept = tmp_path / "kept"
    assert run("export", copy, kept, "--format", form).exit_code == 0
    old = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert run("export", copy, kept, "--format", form).exit_code == 1  # not empty
    with files_no_larger_than(30_000):
        assert run("export", copy, kept, "--format", form, "--strength", "2", "--overwrite").exit_code == 1
    for extra in (
        ("--strength", "1e300"),
        ("--strength", "nan"),
        ("--strength", "0"),
        ("--base", str(tmp_path / "no")),
    ):
        refused = run("export", copy, kept, "--format", form, "--overwrite", *extra)
        assert refused.exit_code in (1, 2) and refused.stderr and "Traceback" not in refused.stderr, extra
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == old
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", copy):
        assert run("export", copy, place, "--format", form, "--overwrite").exit_code == 1
    assert (tmp_path / "file").read_text() == "mine"
