"""The bundled pronoun set: its files are those of its card, and its recipe finds the slots that it says."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "data"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("build_pronouns")
    for name in ("build_pronouns", "pronoun_templates"):
        del sys.modules[name]


def test_files_have_the_digests_of_the_card() -> None:
    card = (FOLDER / "pronouns" / "README.md").read_text(encoding="utf-8")
    stated = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\w+\.jsonl)$", card, re.M)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (FOLDER / "pronouns").glob("*.jsonl")}
    assert found == stated
    assert len(found) == 4


def test_the_recipe_takes_the_last_slot_whose_number_is_told(recipe: Any) -> None:
    sentences = [
        "The boys of the village came home because they were hungry.",
        "The king was glad that he saw where he had left the ring.",
        "The king was glad that he saw the queen where it pleased.",
        "The dog of the farmer barked because it was hungry.",
        "The dog of the farmer barked because it, too, was hungry.",
        "The boys of the king saw that he was hungry.",
        "The king was told by the boys that he was late.",  # the nearest cue tells another number
        "The king of the boys saw them and he was late.",  # forms of both classes
        "The king was told that he's late for the dance.",
        "So then they came home to the town.",  # nothing tells the number
        "The boys said they were late.", "The boys of the town and they.", "The boys saw; they left.",
    ]  # fmt: skip
    assert recipe.real_slots(sentences, recipe.PLURAL_CUES) == {
        "3SG": [
            ("The king was glad that he saw where [MASK] had left the ring.", "he"),
            ("The king was glad that [MASK] saw the queen where it pleased.", "he"),
            ("The dog of the farmer barked because [MASK] was hungry.", "it"),
            ("The boys of the king saw that [MASK] was hungry.", "he"),
        ],
        "3PL": [
            ("The boys of the village came home because [MASK] were hungry.", "they"),
            ("The boys said [MASK] were late.", "they"),
        ],
    }
