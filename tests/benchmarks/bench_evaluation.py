"""The evaluation of a direction, beside the bare batched forward passes that it consists of.

Every batch that `evaluate_direction` gives to the base model is recorded, and run again with nothing around it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gradiend_hub.base_models import load_base_model
from gradiend_hub.config import GradiendConfig
from gradiend_hub.data import Row, read_rows, read_texts
from gradiend_hub.direction import Direction, ParameterDirection
from gradiend_hub.evaluation import CURVE, StrengthProbe, control_curves, evaluate_direction
from gradiend_hub.gradients import select_parameters
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, Slots, make_objective

from .learner_job import CLASSES, read_jsonl
from .measure import interleaved, line, skipped

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data" / "pronouns"
MODELS = {
    "bundled masked": ROOT / "examples" / "base_models" / "masked",
    "bundled causal": ROOT / "examples" / "base_models" / "causal",
    "MiniLM": ROOT.parent / "shared" / "models" / "minilm-mlm",
}
FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    lines: list[dict[str, Any]] = []
    for name, path in MODELS.items():
        if not path.exists():
            lines.append(skipped("evaluation", f"there is no {path.name} in {path.parent}", model=name))
        elif not (quick and name == "MiniLM"):
            lines += evaluation(name, path, quick)
    return lines


def evaluation(name: str, path: Path, quick: bool) -> list[dict[str, Any]]:
    """A whole evaluation, and the share of it that goes to random controls."""
    model, objective = prepared(path)
    size = 40 if quick else 200
    rows = read_rows(read_jsonl(DATA / "test.jsonl"), CLASSES)
    rows = [row for c in CLASSES for row in [r for r in rows if r.factual_class == c][: size // 2]]
    texts = read_texts([r for r in read_jsonl(DATA / "neutral.jsonl") if r["split"] == "test"])[:size]
    batches = recorded(objective, lambda: whole(model, objective, rows, texts))
    base = model.get_base_model()

    @torch.inference_mode()
    def plain() -> None:
        for batch in batches:
            base(**batch.inputs)

    @torch.inference_mode()
    def slots_only() -> None:
        for batch in batches:
            objective.log_probs(base, batch)

    works = {"plain": plain, "slots": slots_only, "ours": lambda: whole(model, objective, rows, texts)}
    times = interleaved(works, 1 if quick else 3)
    probe = StrengthProbe(model, objective, rows, texts, batch_size=64)
    probe.measure(0.0)
    start = time.process_time()
    control_curves(probe, CURVE)
    control = time.process_time() - start
    model.unload()
    took = {n: f"{seconds:.2f} s" for n, seconds in times.medians.items()}
    what = f"{len(rows)} rows, {len(texts)} neutral texts, {len(CURVE)} strengths, 3 controls, {len(batches)} batches"
    return [
        line("evaluation / bare forwards", times.ratios["ours"], "×", "≤ 2", model=name, ours=took["ours"],
             other=took["plain"], note=f"{what}; model(**inputs) with all its logits"),
        line("evaluation / forwards with logits at slots only", times.medians["ours"] / times.medians["slots"], "×",
             model=name, ours=took["ours"], other=took["slots"], note="the encodings are forward-mode derivatives"),
        line("3 random controls / evaluation", control / times.medians["ours"], "×", model=name, ours=f"{control:.2f} s",
             other=took["ours"]),
    ]  # fmt: skip


def whole(model: GradiendModel, objective: Objective, rows: list[Row], texts: list[str]) -> None:
    """What `trainer.evaluate` does on a test split."""
    evaluate_direction(model, objective, rows, texts, strengths=CURVE, batch_size=64)


def prepared(path: Path) -> tuple[GradiendModel, Objective]:
    """A dense random direction with an encoder: the work is that of a learned one."""
    base = load_base_model(path)
    generator = torch.Generator().manual_seed(0)

    def part(parameter: torch.Tensor) -> ParameterDirection:
        scale = 1e-3 * float(parameter.detach().norm()) / parameter.numel() ** 0.5
        values = scale * torch.randn(3, parameter.numel(), generator=generator)
        return ParameterDirection(tuple(parameter.shape), values[0], values[1], values[2])

    direction = Direction({n: part(p) for n, p in select_parameters(base).items()})
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS)
    model = GradiendModel.from_direction(base, direction, config)
    return model, make_objective(base, model.tokenizer)


def recorded(objective: Objective, work: Any) -> list[Slots]:
    """Every batch whose log-probabilities are asked for while the work runs."""
    original, batches = objective.log_probs, []

    def recording(model: torch.nn.Module, slots: Slots) -> torch.Tensor:
        batches.append(slots)
        return original(model, slots)

    objective.log_probs = recording  # type: ignore[method-assign]
    try:
        work()
    finally:
        del objective.log_probs  # type: ignore[method-assign]
    return batches
