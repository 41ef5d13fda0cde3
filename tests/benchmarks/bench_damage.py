"""Damage by where it is read: neutral text, the rows' own text, another source; and effects where all of it is held.

    python -m tests.benchmarks.bench_damage [--features N] [--rows N] [--texts N] [--steps N] [--damping X]
        [--decoders A,B] [--forms dense,1 %,rank 8] [--bias with,without] [BASE] ...

Decoders of one stream of gradients, `autoencoder`, `mean`, `diagonal` (the mean's, divided by the Fisher information of
neutral text and of training rows' own text; its damping is chosen on validation rows, unless given), and, at rank 8 alone,
`natural` (the mean's by Kronecker factors, chosen on validation rows by sign), in the forms in which a direction is stored.
CPU seconds are those of the stream, which all decoders share, and of the decoder's own making. Each is measured at two doses
per sign: the largest at which the NLL of neutral text rises by 1 %, and the largest at which no set rises by more: neutral
text, another source, and the rows' own text without the classes' outputs. All figures are of test rows and of text that
nothing was learned from, with 95 % intervals by text.

`--bias with,without` measures each decoder with and without its bias b_d (without it, the edit at −s is minus that at s),
and prints the difference of their effects row by row. By default `diagonal` and `natural` have it where validation rows say
that it is better, as in a training; the others have it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from torch import Tensor

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainingArguments
from gradiend_hub.evaluation import StrengthPoint, StrengthProbe
from gradiend_hub.evaluation.encoder import measure_encoder
from gradiend_hub.evaluation.intervals import mean_interval, spread
from gradiend_hub.evaluation.sets import damage_items
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher
from gradiend_hub.objectives import CausalLMObjective, examples_of
from gradiend_hub.solvers import Solution, damage_aware, effect_shares
from gradiend_hub.training.batches import TransitionDataset
from gradiend_hub.training.data import TrainingData
from gradiend_hub.training.decoders import best_damped, cut_to_rank, pruned
from gradiend_hub.training.run import TrainingRun, as_direction

from . import bench_solvers
from .bench_solvers import DENSITY, EXAMPLES, Feature, Kept, Laboratory, features, learn, some
from .measure import MODELS, MORE_TEXT, line, read_jsonl

ALLOWED = 0.01
"""Damage: relative rise of a negative log-likelihood."""

OWN_TOKENS = 1000
READINGS = 7
"""Doses of each sign and rule that are tried."""

PROMPTS = 3

DECODERS = ("autoencoder", "mean", "diagonal", "natural")
FORMS = ("dense", "1 %", "rank 8")
BIASES = ("chosen", "with", "without")
RANK = 8


@dataclass(frozen=True)
class Held:
    """A decoder at one sign and rule: the dose, the figures there, and what limits the dose."""

    dose: float
    point: StrengthPoint
    limit: str


def rise(point: StrengthPoint, name: str, *, collateral: bool = False) -> float:
    """Relative rise of an NLL on a damage set, all outputs or all but the classes'."""
    of = point.damage[name]
    quality = of.collateral_quality if collateral else of.quality
    assert quality is not None
    return 1 / quality - 1


def counted(point: StrengthPoint, names: Sequence[str]) -> dict[str, float]:
    """Rises of what counts on some damage sets."""
    return {name: rise(point, name, collateral=name == "own") for name in names}


def largest(probe: StrengthProbe, sign: int, first: float, names: Sequence[str]) -> Held:
    """Find the largest dose at which no set rises by more than allowed, to about 3 % of the damage."""
    low, high, dose = (0.0, 0.0), (math.inf, math.inf), first
    best: StrengthPoint | None = None
    for _ in range(READINGS):
        point = probe.measure_dose(sign * dose)
        damage = max(counted(point, names).values())
        if damage <= ALLOWED:
            low, best = (dose, damage), point
        else:
            high = (dose, damage)
        if best is not None and low[1] > 0.97 * ALLOWED:
            break
        if best is None or high[0] == math.inf:
            dose *= min(max(math.sqrt(0.985 * ALLOWED / max(damage, 1e-6)), 0.2), 4.0)
        elif low[1] > 0:
            power = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
            dose = low[0] * (0.985 * ALLOWED / low[1]) ** (1 / power)
        else:
            dose = math.sqrt(low[0] * high[0])
    assert best is not None, f"no dose of {READINGS} is within the damage that is allowed"
    rises = counted(best, names)
    return Held(low[0], best, max(rises, key=lambda name: rises[name]))


def by_row(probe: StrengthProbe, sign: int, dose: float) -> list[list[float]]:
    """Group and probability of the wanted class of each row that the sign should move; of a probe that reads everything."""
    wanted = 0 if sign > 0 else 1
    moved = probe.items.row_class != wanted
    found = probe.values(sign * dose).probability[moved, wanted]
    return [[int(g), round(float(p), 5)] for g, p in zip(probe.items.row_group[moved], found, strict=True)]


def measured(
    laboratory: Laboratory, feature: Feature, solution: Solution, scope: Scope, others: Sequence[str], write: bool
) -> dict[str, Any]:
    """Records of one decoder: by rule and sign."""
    config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
    model = GradiendModel.from_direction(laboratory.base, as_direction(solution, scope), config)
    rows = some(feature, "test", laboratory.rows)
    try:
        prompts = spread(laboratory.objective.chat_prompts(), max(len(others) // 2, 1))  # none without a chat template
        sets = damage_items(model, laboratory.objective, {"other": others} | ({"chat": prompts} if prompts else {}))
        probe = StrengthProbe(
            model, laboratory.objective, rows, laboratory.texts, own=OWN_TOKENS, others=sets, exhaustive=True
        )
        names = list(probe.scored)
        base = probe.measure_dose(0.0)
        report = measure_encoder(model, laboratory.objective, rows, laboratory.texts)
        encoder = {name: getattr(report, name) for name in ("correlation", "auc", "neutral_abs_mean")}
        record: dict[str, Any] = {"scored": probe.scored, "rules": {}, "encoder": encoder}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            record["bytes"] = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        with model.strength_at(1.0):
            first = 1 / (256 * model.receipt.relative_norm)
        for sign, side in ((1, "+"), (-1, "-")):
            wanted, other = feature.classes[::sign]
            record[f"before {side}"] = base.reading(wanted, other).value
            for rule, of in (("neutral", ["neutral"]), ("every set", names)):
                held = largest(probe, sign, first, of)
                first = held.dose
                effect = held.point.reading(wanted, other)
                record["rules"][f"{rule} {side}"] = {
                    "effect": effect.value,
                    "interval": effect.interval,
                    "limit": held.limit,
                    "dose": held.dose,
                    "rise": {name: rise(held.point, name) for name in names},
                    "collateral": {name: rise(held.point, name, collateral=True) for name in names},
                    "collateral interval of own": held.point.damage["own"].intervals.get("collateral_quality"),
                    "by row": by_row(probe, sign, held.dose),
                }
        if write and isinstance(laboratory.objective, CausalLMObjective):
            ends = {s: record["rules"][f"every set {s}"]["dose"] for s in "+-"}
            prompts = [str(prompt) for prompt in laboratory.objective.prompts(rows)][:PROMPTS]
            record["written"] = {
                prompt: {
                    str(dose): _continued(model, laboratory, prompt, dose) for dose in (-ends["-"], 0.0, ends["+"])
                }
                for prompt in prompts
            }
    finally:
        model.unload()
    return record


def _continued(model: GradiendModel, laboratory: Laboratory, prompt: str, dose: float) -> str:
    with model.strength_at(dose), torch.inference_mode():
        (answer,) = laboratory.objective.complete(laboratory.base, [prompt], tokens=24)
    return answer.continuation or ""


@dataclass
class Learned:
    """What one stream of gradients gives: solutions, and what the decoders that are made of the mean's need."""

    run: TrainingRun
    solutions: Mapping[str, Solution]
    fisher: Callable[[], Tensor]
    damping: float | None
    progress: Callable[[str], None]

    def make(self, decoder: str, form: str, bias: str) -> Kept:
        """A decoder in a form, with its encoder oriented and scaled by validation rows."""
        scope, density = self.run.scope, DENSITY if form == "1 %" else 1.0
        solution = self.solutions[decoder if decoder == "autoencoder" else "mean"]
        if bias == "without":
            solution = replace(solution, decoder_bias=torch.zeros_like(solution.decoder_bias))
        elif bias == "chosen" and decoder in ("diagonal", "natural"):
            solution, effects = self.run.with_or_without_bias(solution)
            self.progress(f"{decoder}: effect {effects}")
        if decoder == "diagonal":
            solution, kept = self._diagonal(solution, density)
        else:
            solution, kept = pruned(solution, scope, solution.decoder.abs(), density)
        if form == "rank 8":
            solution = cut_to_rank(solution, kept, RANK)
        read = self.run.read(solution, kept)
        if decoder == "natural":
            finished = self.run.finished(read, None)
            self.progress(f"natural: effect by damping and sign {finished.effects}")
            return finished.solution, kept
        return read.solution, kept

    def _diagonal(self, mean: Solution, density: float) -> Kept:
        scope, fisher = self.run.scope, self.fisher()
        if self.damping is not None:
            shares = effect_shares(mean, fisher, self.damping)
            return pruned(damage_aware(mean, fisher, self.damping), scope, shares, density)
        chosen, tried = best_damped(mean, scope, fisher, density=density, effect=self.run.effect)
        self.progress(f"diagonal at density {density:g}: effect by damping {tried}")
        return chosen


def learned(
    laboratory: Laboratory, feature: Feature, early: Sequence[str], texts: int, damping: float | None,
    progress: Callable[[str], None],
) -> Learned:  # fmt: skip
    """Learn a feature from one stream of gradients; dampings are compared on other rows and texts than are measured on."""
    base, objective, scope = laboratory.base, laboratory.objective, laboratory.scope
    train = feature.rows["train"]
    data = TransitionDataset(train, examples_of(objective, train), feature.classes, "alternative")
    spared, own = spread(early[::2], texts), spread(train, texts)
    config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
    validation = {"": some(feature, "validation", laboratory.rows // 2)}
    known = TrainingData(data, train, feature.words, validation, spread(early[1::2], texts // 2), fisher_texts=spared)
    args = GradiendTrainingArguments("unused", use_cpu=True, solver="closed_form", decoder="natural", rank=RANK)
    run = TrainingRun(base, objective, config, args, scope, known)

    def fisher() -> Tensor:
        with GradientReader(base, scope) as reader:
            return diagonal_fisher(reader, objective, spared, own)

    return Learned(run, learn(base, objective, scope, data), fisher, damping, progress)


def bench_base(
    name: str, folder: Path, progress: Callable[[str], None], *, count: int = 2, rows: int = 40, texts: int = 120,
    damping: float | None = None, decoders: Sequence[str] = ("autoencoder", "mean", "diagonal"),
    forms: Sequence[str] = ("dense",), biases: Sequence[str] = ("chosen",),
) -> list[dict[str, Any]]:  # fmt: skip
    """Records of the first `count` features on one base model."""
    neutral = read_jsonl(EXAMPLES / "data" / "pronouns" / "neutral.jsonl")
    early, late = ([r["text"] for r in neutral if r["split"] == split] for split in ("validation", "test"))
    laboratory = Laboratory.of(folder, spread(late, texts), rows)
    others = spread(_other_text(), texts)
    records: list[dict[str, Any]] = []
    for feature in islice(features(laboratory.objective), count):
        start = time.process_time()
        known = learned(laboratory, feature, early, texts, damping, progress)
        stream = time.process_time() - start
        for decoder, form, bias in product(decoders, forms, biases):
            if decoder == "natural" and form != "rank 8":
                continue
            start = time.process_time()
            solution, scope = known.make(decoder, form, bias)
            seconds = stream + time.process_time() - start
            write = not records or decoder == "mean"
            found = measured(laboratory, feature, solution, scope, others, write)
            cell = {"base": name, "feature": feature.name, "decoder": decoder, "form": form, "bias": bias}
            records.append(cell | {"seconds": seconds} | found)
            progress(table(records[-1:]))
    return records


def _other_text() -> list[str]:
    """Text of another source than the neutral sentences."""
    if MORE_TEXT.is_file():
        with gzip.open(MORE_TEXT, "rt", encoding="utf-8") as lines:
            return [json.loads(text)["text"] for text in islice(lines, 5000, 60000, 550)]
    rows = read_jsonl(EXAMPLES / "data" / "pronouns" / "train.jsonl")[
        ::9
    ]  # prose; the neutral sentences are a dictionary's
    return [row["masked"].replace("[MASK]", row["factual"]) for row in rows]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as Markdown; each cell has the figures of the + sign and of the − sign."""
    shown = [
        "| base | feature | decoder | form | b_d | r / AUC / neutral \\|h\\| | MB | CPU s | before | "
        "effect at 1 % of neutral text | own text | own, without class words | other "
        "source | effect with every set held to 1 % | limited by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def both(r: Mapping[str, Any], rule: str, read: Callable[[Mapping[str, Any]], str]) -> str:
        return " / ".join(read(r["rules"][f"{rule} {side}"]) for side in "+-")

    def effect(of: Mapping[str, Any]) -> str:
        return f"{of['effect']:.3f} [{of['interval'][0]:.3f}, {of['interval'][1]:.3f}]"

    for r in records:
        figures = " / ".join(f"{value:.3f}" for value in r["encoder"].values())
        cells = [r["base"], r["feature"], r["decoder"], r["form"], r["bias"], figures, f"{r['bytes'] / 1e6:.2f}"]
        cells += [f"{r['seconds']:.0f}", f"{r['before +']:.3f} / {r['before -']:.3f}"]
        cells += [both(r, "neutral", effect)]
        for kind, name in (("rise", "own"), ("collateral", "own"), ("rise", "other")):
            cells.append(both(r, "neutral", lambda of, kind=kind, name=name: f"{100 * of[kind][name]:+.2f} %"))  # type: ignore[misc]
        cells += [both(r, "every set", effect), both(r, "every set", lambda of: of["limit"])]
        shown.append(f"| {' | '.join(cells)} |")
    return "\n".join(shown)


def compared_biases(records: Sequence[Mapping[str, Any]]) -> str:
    """The effect without the bias less that with it, of decoders measured in both ways, as Markdown."""
    shown = [
        "| base | feature | decoder | form | neutral text at 1 % | every set at 1 % |",
        "|---|---|---|---|---|---|",
    ]
    named = {tuple(r[key] for key in ("base", "feature", "decoder", "form", "bias")): r for r in records}
    for (*name, bias), other in named.items():
        one = named.get((*name, "with"))
        if bias != "without" or one is None:
            continue
        cells = []
        for rule in ("neutral", "every set"):
            ends = [_difference(one["rules"][f"{rule} {side}"], other["rules"][f"{rule} {side}"]) for side in "+-"]
            cells.append(" / ".join(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in ends))
        shown.append(f"| {' | '.join([*name, *cells])} |")
    return "\n".join(shown)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean of the second's effect less the first's on the same rows, and its 95 % interval by group."""
    groups, before = np.array(one["by row"]).T
    values = np.array(other["by row"])[:, 1] - before
    low, high = mean_interval(values, groups.astype(int))
    return float(values.mean()), low, high


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the common table: effect where every damage set is held, of each decoder."""
    disable_progress_bars()
    bases = {name: folder for name, folder in MODELS.items() if folder.is_dir() and not (quick and name == "minilm")}
    lines = []
    for name, folder in bases.items():
        for r in bench_base(name, folder, lambda text: None, count=1 if quick else 2, rows=20 if quick else 40):
            note = f"{r['feature']}, {r['decoder']}; 'neutral' holds neutral text alone"
            for rule, of in r["rules"].items():
                lines.append(
                    line(
                        f"effect at 1 % damage, {rule}",
                        of["effect"],
                        "probability",
                        model=name,
                        note=note,
                        limit=of["limit"],
                    )
                )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", default=list(MODELS), help="masked, causal, or folders of base models")
    parser.add_argument("--features", type=int, default=2, help="of number and gender, the first so many")
    parser.add_argument("--rows", type=int, default=40, help="test rows of each class")
    parser.add_argument("--texts", type=int, default=120, help="texts of each set")
    parser.add_argument("--steps", type=int, default=bench_solvers.STEPS, help="batches of 16 rows to learn from")
    parser.add_argument("--damping", type=float, help="of the diagonal decoder; by default chosen on validation rows")
    parser.add_argument("--decoders", default="autoencoder,mean,diagonal", help=f"of {', '.join(DECODERS)}")
    parser.add_argument("--forms", default="dense", help=f"of {', '.join(FORMS)}".replace("%", "%%"))
    parser.add_argument("--bias", default="chosen", help=f"of {', '.join(BIASES)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    bench_solvers.STEPS = options.steps
    for base_name in options.bases:
        found = bench_base(
            Path(base_name).name, MODELS.get(base_name, Path(base_name)),
            lambda text: print(text, file=sys.stderr, flush=True),
            count=options.features, rows=options.rows, texts=options.texts, damping=options.damping,
            decoders=options.decoders.split(","), forms=options.forms.split(","), biases=options.bias.split(","),
        )  # fmt: skip
        if "," in options.bias:
            print(compared_biases(found))
        print(table(found) + "\n" + json.dumps(found), flush=True)
