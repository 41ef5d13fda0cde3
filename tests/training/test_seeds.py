"""What issue and README promise of the bundled models: the default, and the papers' solver seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.data import read_rows
from gradiend_hub.evaluation import encoder_report

pytestmark = pytest.mark.slow

CLASSES = ["3SG", "3PL"]


def _trainer(base: Path, folder: Path, seed: int, rows: Any, neutral: Any, **options: Any) -> GradiendTrainer:
    usual = {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    args = GradiendTrainingArguments(str(folder), seed=seed, **usual, **options)
    return GradiendTrainer(
        base, GradiendConfig(feature_classes=list(CLASSES)), args, train_dataset=rows["train"],
        eval_dataset=rows["validation"], neutral_dataset=neutral.filter(lambda row: row["split"] == "validation"),
    )  # fmt: skip


@pytest.fixture(params=["masked", pytest.param("causal", marks=pytest.mark.release)])
def base(request: pytest.FixtureRequest, masked_path: Path, causal_path: Path) -> Path:
    return masked_path if request.param == "masked" else causal_path


@pytest.mark.parametrize(
    ("solver", "seed"),
    [
        ("closed_form", 0),
        *(pytest.param("autoencoder", seed, marks=[pytest.mark.release] if seed else []) for seed in range(5)),
    ],
)
def test_every_run_converges(base: Path, solver: str, seed: int, tmp_path: Path, pronouns: Any, neutral: Any) -> None:
    """The default, whose encoder is the closed form's, and the papers' solver, seed by seed."""
    trainer = _trainer(base, tmp_path, seed, pronouns, neutral, solver=solver, decoder="solver")
    trainer.train()
    model = GradiendModel.from_direction(trainer.base_model, trainer.direction, trainer.gradiend_config)
    labels = [row.label(CLASSES, "factual") for row in read_rows(pronouns["test"], CLASSES)]  # whatever the source
    measured = encoder_report(model.encode(pronouns["test"]), torch.tensor(labels), CLASSES)
    print(
        base.name, solver, seed, f"correlation {measured.correlation:.4f}", measured.class_means
    )  # shown by `pytest -s`
    assert measured.correlation >= 0.95
    assert measured.class_means["3SG"] > 0.5 and measured.class_means["3PL"] < -0.5


def test_strength_one_rewrites_and_spares_the_model(base: Path, tmp_path: Path, pronouns: Any, neutral: Any) -> None:
    trainer = _trainer(base, tmp_path, 0, pronouns, neutral)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(
        pronouns["test"],
        metric_key_prefix="test",
        neutral_dataset=neutral.filter(lambda row: row["split"] == "test"),
    )
    split = trainer.report.splits["test"]
    print(base.name, *(split.at(s) for s in (-1.0, 0.0, 1.0)), sep="\n")
    before, plural, singular = split.at(0.0), split.at(-1.0), split.at(1.0)
    assert plural.probability["3SG"]["3PL"] >= 2 * before.probability["3SG"]["3PL"]
    assert singular.probability["3PL"]["3SG"] >= 2 * before.probability["3PL"]["3SG"]
    assert plural.quality is not None and plural.quality >= 0.99
    assert singular.quality is not None and singular.quality >= 0.99
