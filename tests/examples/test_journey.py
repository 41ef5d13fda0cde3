"""The journey of a direction between people, from end to end against a Hub."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from gradiend_hub.artifact.fields import StoredFields
from gradiend_hub.evaluation.measurements import find_measurements
from gradiend_hub.hub import resolve_folder
from tests.conftest import ROOT
from tests.hub_server import HubServer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")]


@pytest.fixture
def journey(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("HF_TOKEN", "hf_alice_write")  # which the journey changes
    yield importlib.import_module("journey")
    sys.modules.pop("journey", None)


def test_two_authors_and_a_reader(
    journey: Any, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice, bob, carol = map(journey.Person, journey.OFFLINE_TOKENS)
    assert [person.name for person in (alice, bob, carol)] == ["alice", "bob", "carol"]
    journey.travel(tmp_path, alice, bob, carol, "travel", 48)
    shown = capsys.readouterr().out
    for step in ("search", "info", "apply", "evaluate", "merge", "collection"):
        assert f"$ carol: gradiend-hub {step} " in shown
    assert "Measured by 2: the author, carol (pull request 1)" in " ".join(shown.split())
    card = ModelCard.load("carol/travel-rewritten")
    assert card.data.base_model == ["alice/travel-base", card.data.base_model[1]]
    best = card.data.base_model[1]
    assert best in ("alice/travel-number", "bob/travel-number-small")
    found = resolve_folder(best)
    (one,) = find_measurements(found, StoredFields.read(found.folder)).reports
    assert (one.by, one.pull_request, one.same_weights) == ("carol", None, True)
    _, merged, pushed, _ = HfApi().list_repo_commits(best)  # the card's, the measurement's, the push, and the Hub's own
    assert pushed.commit_id in card.text and "#1" in merged.title
    assert "Measured by 2: the author, carol (reports/carols-pronouns" in shown.replace("&#46;", ".")
