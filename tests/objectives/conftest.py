"""A small classifier of words, trained for a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .tagging import tagged, tagger_records, train_tagger


@pytest.fixture(scope="session")
def tagger(masked_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first layers of the bundled masked model with a head that is trained for a moment; rows and neutral rows."""
    sentences, folder = tagged(240), tmp_path_factory.mktemp("tagger")
    train_tagger(masked_path, folder, sentences)
    return folder, *tagger_records(sentences)
