"""What the tests of `gradiend_hub.hub` share."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.hub import retry


def write_direction(folder: Path, seed: int | None = None) -> None:
    """Write config, weights, encoder and samples of a small direction; without a seed, one that no storage has seen."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    decoder, encoder = (torch.randn(37_000, generator=generator) for _ in range(2))
    samples = Fingerprint.of({"encoder.weight": torch.randn(370, 100, generator=generator)})
    direction = Direction({"encoder.weight": ParameterDirection((370, 100), decoder, None, encoder)}, 0.0, samples)
    direction.save(folder)
    config = GradiendConfig(feature_classes=["3SG", "3PL"], parameters=direction.spec(), has_bias=False)
    config.save_pretrained(str(folder))


def change_config(folder: Path, value: float) -> bytes:
    """Change a number in the config; its new content."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "strength": value}))
    return path.read_bytes()


def _saved() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_direction(Path(folder), seed=1)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "README.md"}


FILES = {
    "README.md": b"---\nlicense: mit\ntags: [gradiend]\n---\n# Plural\n",
    **_saved(),
    "assets/curve.png": random.Random(2).randbytes(2_000),
    "gradiend_probes.jsonl": b'{"text": "they"}\n',
    "gradiend_report.json": json.dumps(
        {
            "schema_version": 1,
            "feature_classes": ["3SG", "3PL"],
            "base_model": "us/base",
            "splits": {"test": {"encoder": None, "curve": [], "search": [], "scored": 0}},
        }
    ).encode(),
}
"""A direction as far as the Hub is concerned: large and small, binary and text, in folders and not."""


TOLERATE_LFS_UPLOAD = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
"""The client's own LFS upload uses a deprecated argument of its HTTP library."""

KNOWS_REVISIONS = pytest.mark.skipif(
    not hasattr(HfApi, "resolve_revision"), reason="huggingface_hub below 2.2 resolves no revision by itself"
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.0)


@pytest.fixture
def plain_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client transfers large files by Git LFS, as one without hf_xet does."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture(params=["xet", "lfs"])
def transfer(request: pytest.FixtureRequest) -> str:
    """Run the test with both ways to transfer large files; which one it is."""
    if request.param == "lfs":
        request.getfixturevalue("plain_lfs")
    return request.param


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client behaves as with HF_HUB_OFFLINE=1, which it reads at import only."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def api() -> HfApi:
    """A client with Alice's write token."""
    return HfApi()


@pytest.fixture
def direction_folder(tmp_path: Path) -> Path:
    """A saved direction, beside what must not be pushed."""
    folder = tmp_path / "my direction"
    litter = {"optimizer.pt": b"pickle", ".cache/x.json": b"{}", "checkpoint-2/adapter_config.json": b"{}"}
    for name, content in {**FILES, **litter}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
