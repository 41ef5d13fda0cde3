"""Directions of preference pairs: their sign for every source and target, and that of nothing nothing is learned."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.evaluation import StrengthProbe
from tests.training.support import arguments

CHEERFUL = Path(__file__).parents[2] / "examples" / "data" / "preferences" / "cheerful"


def pairs(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (CHEERFUL / f"{split}.jsonl").read_text("utf-8").splitlines()]


def trainer_of(base: Any, folder: Path, train: list[Any], **options: Any) -> GradiendTrainer:
    args = arguments(folder, solver="closed_form", max_steps=-1, logging_strategy="no",
                     per_device_train_batch_size=8)  # fmt: skip
    measured = {name: options.pop(name) for name in ("eval_dataset", "neutral_dataset") if name in options}
    config = GradiendConfig(feature_classes=["cheerful", "gloomy"], layers="1-3", **options)
    return GradiendTrainer(base, config, args, train_dataset=train, **measured)


@pytest.mark.parametrize(
    ("source", "target"),  # each once; all pairs are text's, in test_trainer.py
    [("alternative", "diff"), ("factual", "alternative"), ("diff", "factual")],
)
def test_positive_strength_prefers_the_first_class(causal_path: Path, tmp_path: Path, source: str, target: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()
    trainer = trainer_of(base, tmp_path, pairs("train")[::8], source=source, target=target)
    trainer.train()
    model = GradiendModel.from_direction(base, trainer.direction, trainer.gradiend_config)
    squares = [(float(p.decoder.square().sum()), p.decoder.numel()) for p in trainer.direction.parameters.values()]
    weights = sum(float(base.get_parameter(name).square().sum()) for name in trainer.direction.parameters)
    dose = 0.02 * math.sqrt(weights / sum(square for square, _ in squares))
    rows = trainer.objective.prepare([trainer.objective.read(row) for row in pairs("validation")[::4]])
    probe = StrengthProbe(model, trainer.objective, rows)
    down, zero, up = (probe.measure_dose(s * dose).readings["log-odds per token"] for s in (-1, 0, 1))
    assert down < zero < up
    model.unload()


def test_pairs_without_a_preference_are_not_learned(causal_path: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    dealt = [
        {"prompt": row["prompt"], "cheerful": row[first], "gloomy": row[second]}
        for row in pairs("train")[::3] + pairs("validation")
        for first, second in [rng.sample(["cheerful", "gloomy"], 2)]
    ]
    trainer = trainer_of(
        causal_path, tmp_path, dealt[:16], source="diff", eval_dataset=dealt[16:],
        neutral_dataset=[{"text": "The old house was dark."}, {"text": "He went to the city."}],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    assert trainer.report.converged is False
    assert trainer.report.verdict
