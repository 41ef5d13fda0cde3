"""The evaluation of a direction, beside the bare batched forward passes that it consists of, and beside the reference's.

Every batch that is given to the base model is recorded, and run again with nothing around it. The reference package runs
where `GRADIEND_REFERENCE_PYTHON` names its interpreter (see the README here).

    python -m tests.benchmarks.bench_evaluation [masked | causal | FOLDER OF A BASE] ...

prints only how many tokens an evaluation forwards, by what it measures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, read_rows, read_texts
from gradiend_hub.evaluation import (
    CURVE,
    EvaluationSettings,
    StrengthProbe,
    control_curves,
    evaluate_direction,
    measure,
)
from gradiend_hub.evaluation.generation import GenerationProbe
from gradiend_hub.gradients import select_parameters
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Batch, Objective, examples_of, make_objective
from gradiend_hub.training.batches import TransitionDataset
from gradiend_hub.training.solutions import as_direction

from .bench_learner import DATA, LONGEST, REFERENCE_PYTHON, make_job, reference_on
from .bench_solvers import Laboratory, learn
from .learner_job import CLASSES
from .measure import MODELS, interleaved, line, plain_and_slots, read_jsonl, skipped

FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All lines of this module."""
    lines: list[dict[str, Any]] = []
    for name, path in MODELS.items():
        if not path.exists():
            lines.append(skipped("evaluation", f"there is no {path.name} in {path.parent}", model=name))
        elif not (quick and name == "minilm"):
            lines += evaluation(name, path, 40 if quick else 100)
            lines += against_reference(name, path, 20 if quick else 50)
            lines += tokens(name, path, 40 if quick else 100)
    if not quick and "causal" in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            lines += evaluation("135M shapes, random", random_135m(Path(folder)), 48)
    return lines


def evaluation(name: str, path: Path, size: int) -> list[dict[str, Any]]:
    """A whole evaluation on `size` rows and neutral texts, and the share of it that goes to random controls."""
    model, objective = prepared(path)
    rows, texts = sample(size)
    batches = recorded(objective, lambda: whole(model, objective, rows, texts))
    base = model.get_base_model()

    works = plain_and_slots(base, objective, batches)
    works["ours"] = lambda: whole(model, objective, rows, texts)
    times = interleaved(works, 1, warm_up=False)  # recording was one
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


def against_reference(name: str, path: Path, size: int) -> list[dict[str, Any]]:
    """The same rows, neutral texts and number of strengths for both; neither encodes, controls or completes anything."""
    what = "strength curve: reference's evaluate_decoder / ours"
    if not REFERENCE_PYTHON:
        return [skipped(what, "GRADIEND_REFERENCE_PYTHON is not set; see tests/benchmarks/README.md", model=name)]
    grid = [0.01 * 2**-power for power in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(name, Path(folder), steps=1, seeds=1, evaluate="decoder", eval_rows=size)
        theirs = reference_on({**job, "max_length": LONGEST, "decoder_grid": grid}, Path(folder))
        rows = read_rows([row for row in read_jsonl(job["rows"][0]) if row["split"] == "test"], CLASSES)
    texts = read_texts(read_jsonl(job["neutral"])[: job["neutral_texts"]])
    if [theirs[f"decoder_{of}"] for of in ("points", "rows", "texts")] != [len(grid) + 1, len(rows), len(texts)]:
        raise RuntimeError(f"The reference did another job: {theirs}.")
    model, objective = prepared(path)

    def curve() -> None:
        probe = StrengthProbe(model, objective, rows, texts, tokens=1)  # one draw of masks, as in the reference
        for strength in (0.0, *grid):
            probe.measure(strength)

    batches = recorded(objective, curve)
    bare = plain_and_slots(model.get_base_model(), objective, batches)["slots"]
    times = interleaved({"slots": bare, "ours": curve}, 1, warm_up=False)
    model.unload()
    ours, passes, reference = times.medians["ours"], times.medians["slots"], theirs["decoder_cpu_s"]
    return [
        line(what, reference / ours, "×", "≥ 5", model=name, ours=f"{ours:.2f} s", other=f"{reference:.2f} s",
             note=f"{len(rows)} rows, {len(texts)} neutral texts, {len(grid) + 1} strengths; its defaults"),
        line("strength curve: reference's evaluate_decoder / bare forwards of ours", reference / passes, "×", model=name,
             ours=f"{passes:.2f} s", other=f"{reference:.2f} s", note="the most that the line above can reach"),
    ]  # fmt: skip


def random_135m(folder: Path) -> Path:
    """A causal model with the shapes of SmolLM2-135M and random weights, and a bundled tokenizer."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODELS["causal"]).save_pretrained(folder)
    return folder


def tokens(name: str, path: Path, size: int) -> list[dict[str, Any]]:
    """Tokens that the base model is given by an evaluation that chooses the unit, padding included.

    Beside it, the same without what damage is read on since neutral text is not all: own text, and continuations. And the
    least that it could be: all rows and texts once for the base model and for each of ±1.
    """
    model, objective = learned(path)
    rows, texts = sample(size)
    found = forwarded(model, objective, rows, texts, EvaluationSettings())
    total, floor = sum(found.values()), 3 * whole_reading(model, objective, rows, texts)
    before = sum(forwarded(model, objective, rows, texts, EvaluationSettings(own_tokens=0, generation=False)).values())
    model.unload()
    note = ", ".join(f"{phase} {count / 1000:.0f}k" for phase, count in found.most_common())
    return [
        line("tokens forwarded by an evaluation / by one without own text and continuations", total / before, "×",
             model=name, ours=f"{total / 1000:.0f}k", other=f"{before / 1000:.0f}k",
             note=f"{len(rows)} rows, {len(texts)} neutral texts, unit chosen; {note}"),
        line("tokens forwarded by an evaluation / by three whole readings", total / floor, "×", model=name,
             ours=f"{total / 1000:.0f}k", other=f"{floor / 1000:.0f}k", note="the base model and ±1"),
    ]  # fmt: skip


def forwarded(
    model: GradiendModel, objective: Objective, rows: list[Row], texts: list[str], settings: EvaluationSettings
) -> Counter[str]:
    """Tokens by what they are read for, of an evaluation that chooses the unit."""
    model.active_peft_config.strength_unit, model.active_peft_config.break_point = 1.0, None
    with counting(model.get_base_model()) as found:
        evaluate_direction(model, objective, rows, texts, settings, choose_unit_for="strengthen")
    return found


def whole_reading(model: GradiendModel, objective: Objective, rows: list[Row], texts: list[str]) -> int:
    """Tokens of one reading of everything that an evaluation reads at the strengths that it publishes."""
    settings = EvaluationSettings()
    probe = StrengthProbe(
        model, objective, rows, texts, tokens=settings.tokens, own=settings.own_tokens, batch_size=settings.batch_size
    )
    with counting(model.get_base_model()) as found:
        probe.measure(0.0)
    return sum(found.values())


PHASES = {
    "measure_encoder": "encodings", "damage_items": "replies", "calibrate": "unit", "_curve": "curve",
    "control_curves": "controls", "complete": "completions", "decide": "decisions", "measure_lora": "LoRA",
}  # fmt: skip
"""What `evaluate_direction` calls, and how it is named here."""


@contextmanager
def counting(base: nn.Module) -> Iterator[Counter[str]]:
    """Inside, tokens of every forward pass count for what `evaluate_direction` is measuring."""
    found, phases = Counter[str](), ["other"]

    def count(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        found[phases[-1]] += (given["input_ids"] if "input_ids" in given else args[0]).numel()

    def in_phase(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def counted(*args: Any, **given: Any) -> Any:
            phases.append(name)
            try:
                return work(*args, **given)
            finally:
                phases.pop()

        return counted

    with ExitStack() as stack:
        stack.callback(base.register_forward_pre_hook(count, with_kwargs=True).remove)
        stack.enter_context(patch.object(GenerationProbe, "_write", in_phase("continuations", GenerationProbe._write)))
        for attribute, name in PHASES.items():
            stack.enter_context(patch.object(measure, attribute, in_phase(name, getattr(measure, attribute))))
        yield found


def sample(size: int) -> tuple[list[Row], list[str]]:
    """Test rows, half of each class, and neutral texts."""
    rows = read_rows(read_jsonl(DATA / "test.jsonl"), CLASSES)
    texts = read_texts([r for r in read_jsonl(DATA / "neutral.jsonl") if r["split"] == "test"])
    return [row for c in CLASSES for row in [r for r in rows if r.factual_class == c][: size // 2]], texts[:size]


def whole(model: GradiendModel, objective: Objective, rows: list[Row], texts: list[str]) -> None:
    """What `trainer.evaluate` does on a test split."""
    evaluate_direction(model, objective, rows, texts, EvaluationSettings(strengths=CURVE))


def learned(path: Path) -> tuple[GradiendModel, Objective]:
    """The class means of a few batches: what is searched for goes by what a direction does."""
    laboratory, rows = Laboratory.of(path, [], 0), read_rows(read_jsonl(DATA / "train.jsonl"), CLASSES)
    data = TransitionDataset(rows, examples_of(laboratory.objective, rows), CLASSES, "alternative")
    solution = learn(laboratory.base, laboratory.objective, laboratory.scope, data, steps=12)["mean"]
    config = GradiendConfig(feature_classes=CLASSES, fillers=FILLERS)
    model = GradiendModel.from_direction(laboratory.base, as_direction(solution, laboratory.scope), config)
    return model, laboratory.objective


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


def recorded(objective: Objective, work: Any) -> list[Batch]:
    """Every batch whose log-probabilities are asked for while the work runs."""
    original, batches = objective.log_probs, []

    def recording(model: torch.nn.Module, slots: Batch) -> torch.Tensor:
        batches.append(slots)
        return original(model, slots)

    objective.log_probs = recording  # type: ignore[method-assign]
    try:
        work()
    finally:
        del objective.log_probs  # type: ignore[method-assign]
    return batches


if __name__ == "__main__":
    torch.set_num_threads(1)
    for base_name in sys.argv[1:] or ["masked", "causal"]:
        for found in tokens(Path(base_name).name, MODELS.get(base_name, Path(base_name)), 100):
            print(
                f"{found['model']}: {found['ours']} / {found['other']} = {found['value']:.2f}; {found['note']}",
                flush=True,
            )
