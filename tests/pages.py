"""What pages show is run as it stands: commands in this process, Python in one of its own; the Hub is that of the tests."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from gradiend_hub.hub.publish import publish_folder
from tests.cli.conftest import invoke
from tests.conftest import BASE_MODELS, ROOT
from tests.hub_server import TOKENS

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BASE = "alice/BASE"
"""What `USER/BASE` of the pages is here."""
FEWER = {
    "args.max_steps": 60,
    "eval_dataset.split": "validation[:96]",
    "test_dataset.split": "test[:64]",
    "neutral_dataset.split": "neutral[:60]",
    "test_neutral_dataset.split": "neutral[200:260]",
    "args.save_strategy": "no",
}
"""Settings of `examples/train.yaml` with which it takes seconds."""


def fewer() -> list[str]:
    """The same, as options."""
    return [word for name, value in FEWER.items() for word in ("--set", f"{name}={value}")]


def publish(folder: Path, **names: str) -> None:
    """Publish the bundled masked model, and a direction of it under the names of their owners.

    Args:
        folder: of the direction.
        **names: owner → name of the repository.
    """
    HfApi().create_repo(BASE, exist_ok=True)
    HfApi().upload_folder(repo_id=BASE, folder_path=BASE_MODELS / "masked")
    for owner, name in names.items():
        publish_folder(folder, f"{owner}/{name}", base_id=BASE, token=getattr(TOKENS, owner), overwrite=True)


def ours(text: str) -> str:
    """The text of a page with an account of the tests' Hub in the place of the reader's."""
    return re.sub(r"\b(USER|someone)/", "alice/", text)


def joined(blocks: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Python blocks go on from each other; those without a command between them run as one."""
    code, waiting = "", False
    for kind, block in blocks:
        if kind == "bash":
            if waiting:
                yield "python", code
            yield kind, block
            waiting = False
        else:
            code, waiting = f"{code}\n{block}", True
    if waiting:
        yield "python", code


def run_blocks(blocks: Sequence[tuple[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page in a folder that has the examples."""
    monkeypatch.chdir(folder)
    for kind, block in joined([(kind, ours(block)) for kind, block in blocks]):
        if kind == "python":
            check_runs([sys.executable, "-c", block], folder)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                run_line(words, folder)


def run_line(words: list[str], folder: Path) -> None:
    """Run one line of a page; a training of the pronouns reads fewer rows, since README's first screen reads all."""
    if words[1:3] == ["train", "examples/train.yaml"] and "--dry-run" not in words:
        words = [*words, *fewer()]
    if words[0] != "gradiend-hub":
        check_runs([sys.executable, *words[1:]] if words[0] == "python" else words, folder)
        return
    done = invoke(*words[1:])
    assert done.exit_code == 0, f"{words}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"


def check_runs(command: list[str], folder: Path) -> None:
    """Run a program, which has to end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
