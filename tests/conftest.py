"""Fixtures of all tests. The Hub server starts here, before anything can read where the Hub is."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hub_server import HubServer
from tests.hub_server.process import client_environment

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ROOT = Path(__file__).parents[1]
BASE_MODELS = ROOT / "examples" / "base_models"
PRONOUNS = ROOT / "examples" / "data" / "pronouns"
BUNDLED = "it belongs to the repository"

assert "huggingface_hub" not in sys.modules, "huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported"

_cleanup = contextlib.ExitStack()
atexit.register(_cleanup.close)
_directory = Path(_cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True)))
_server = _cleanup.enter_context(HubServer(_directory / "server"))

_environment = client_environment(os.environ, _server.url, _directory / "home")
for _name in os.environ.keys() - _environment.keys():
    del os.environ[_name]
os.environ.update(_environment, HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch takes its number of threads from here, too
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_finish() -> None:
    """What has been imported stays: it isn't looked through by every collection, one of which ends each training."""
    import hypothesis  # noqa: F401  # looks at its referrers, which are not seen any more

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hub() -> HubServer:
    """The Hub that every client in this process talks to: `url`, `tokens`, `fault()`, `configure()`, `log()`."""
    return _server


@pytest.fixture(autouse=True)
def _pristine_hub(request: pytest.FixtureRequest) -> Iterator[None]:
    """No faults, settings and log entries of one test reach another one."""
    used = "hub" in request.fixturenames
    if used:
        _server.clear()
    yield
    if used:
        _server.clear()


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """A repository name of Alice that no other test uses; nothing is created."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_").lower())[:40].strip("-")
    return f"alice/{name}-{uuid.uuid4().hex[:8]}"


def _present(path: Path, origin: str) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is missing: {origin}")
    return path


@pytest.fixture(scope="session")
def masked_path() -> Path:
    """The bundled tiny masked language model."""
    return _present(BASE_MODELS / "masked" / "config.json", BUNDLED).parent


@pytest.fixture(scope="session")
def causal_path() -> Path:
    """The bundled tiny causal language model."""
    return _present(BASE_MODELS / "causal" / "config.json", BUNDLED).parent


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """A real pretrained masked language model, kept beside the repository on some machines."""
    return _present(ROOT.parent / "shared" / "models" / "minilm-mlm", "only some machines have it")


@pytest.fixture(scope="session")
def pronouns() -> DatasetDict:
    """The bundled 3SG/3PL rows: train, validation and test."""
    from datasets import Dataset, DatasetDict

    folder = _present(PRONOUNS, BUNDLED)
    splits = ("train", "validation", "test")
    return DatasetDict({split: Dataset.from_json(str(folder / f"{split}.jsonl")) for split in splits})


@pytest.fixture(scope="session")
def neutral() -> Dataset:
    """The bundled texts without a pronoun."""
    from datasets import Dataset

    folder = _present(PRONOUNS, BUNDLED)
    return Dataset.from_json(str(folder / "neutral.jsonl"))
