"""What CodeCarbon has metered is in the report and on the card."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.evaluation import Report

from .support import arguments, trainer_of


@pytest.mark.parametrize("started", [True, False], ids=["metered", "not started"])
def test_metered_energy_is_reported(
    masked_path: Path, tmp_path: Path, pronouns: Any, neutral: Any, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """A tracker that could not start says nothing, and stops no training."""
    codecarbon = pytest.importorskip("codecarbon")
    offline = partial(codecarbon.OfflineEmissionsTracker, country_iso_code="SWE", log_level="error")
    monkeypatch.setattr(codecarbon, "EmissionsTracker", offline)  # the other one asks the network where it is
    if not started:
        monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "start", lambda self: None)
    args = arguments(tmp_path / "out", max_steps=2, report_to="codecarbon")
    trainer = trainer_of(masked_path, tmp_path / "out", pronouns, neutral, args=args)
    trainer.train()
    trainer.save_model()
    energy = Report.load(tmp_path / "out").energy_kwh
    card = (tmp_path / "out" / CARD_FILE).read_text(encoding="utf-8")
    if started:
        assert energy is not None and 0 < energy < 1
        assert f"| energy of the training | {energy:.3g} kWh" in card
    else:
        assert energy is None
        assert "| energy of the training | not measured |" in card
