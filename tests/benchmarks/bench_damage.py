"""Damage by where it is read: neutral text, the rows' own text, another source; and effects where all of it is held.

    python -m tests.benchmarks.bench_damage [--features A,B] [--rows N] [--texts N] [--tokens N] [--steps N] [--damping X]
        [--decoders A,B] [--forms dense,1 %,rank 8] [--bias with,without] [BASE] ...

Decoders of one stream of gradients, `autoencoder`, `mean`, `diagonal` (the mean's, divided by the Fisher information of
neutral text and of training rows' own text; its damping is chosen on validation rows, unless given), and, at rank 8 alone,
`natural` (as `solver="closed_form", decoder="natural", rank=8` learns it: class means by sketches, Kronecker factors, chosen
on validation rows by sign), in the forms in which a direction is stored. At rank 8, `mean` is by sketches, too.
CPU seconds are those of the stream, which all decoders share, and of the decoder's own making. Each is measured at two doses
per sign: the largest at which the NLL of neutral text rises by 1 %, and the largest at which no set rises by more: neutral
text, another source, for a model with a chat template its own replies to prompts, and the rows' own text without the
classes' outputs. "Damage at equal effect" is the largest damage of all sets where the effect is what the first
`autoencoder` has at the latter dose. All figures are of test rows and of text that nothing was learned from, with 95 %
intervals by text. `tests.benchmarks.learning_memory` measures peak memory.

`--bias with,without` measures each decoder with and without its bias b_d (without it, the edit at −s is minus that at s),
and prints the difference of their effects row by row. By default `diagonal` and `natural` have it where validation rows say
that it is better, as in a training; the others have it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from torch import Tensor

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainingArguments
from gradiend_hub.data import Row
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.encoder import measure_encoder
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.evaluation.probe import SCORED_TOKENS
from gradiend_hub.evaluation.sets import damage_items
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher
from gradiend_hub.objectives import CausalLMObjective, examples_of
from gradiend_hub.solvers import Solution, damage_aware, effect_shares
from gradiend_hub.training.batches import TransitionDataset
from gradiend_hub.training.data import TrainingData
from gradiend_hub.training.decoders import best_damped, cut_to_rank, pruned
from gradiend_hub.training.run import TrainingRun
from gradiend_hub.training.solutions import as_direction

from . import bench_solvers
from .bench_solvers import DENSITY, EXAMPLES, Feature, Kept, Laboratory, features, learn, some
from .damage_search import Side, rise
from .damage_tables import compared_biases, continuations, table
from .measure import MODELS, MORE_TEXT, line, read_jsonl

OWN_TOKENS = 1000
PROMPTS = 3

DECODERS = ("autoencoder", "mean", "diagonal", "natural")
FEATURES = ("number", "gender", "sentiment")
FORMS = ("dense", "1 %", "rank 8")
BIASES = ("chosen", "with", "without")
RANK = 8


@dataclass
class Bench:
    """Measures decoders of one feature on the same rows and texts; what the base model says is read once."""

    laboratory: Laboratory
    feature: Feature
    others: Sequence[str]
    tokens: int
    probes: list[StrengthProbe] = field(default_factory=list)
    effects: dict[str, float] = field(default_factory=dict)
    """Of the first autoencoder, by sign, with every set held."""

    @property
    def rows(self) -> list[Row]:
        return some(self.feature, "test", self.laboratory.rows)

    def probe(self, model: GradiendModel) -> StrengthProbe:
        if not self.probes:
            objective = self.laboratory.objective
            prompts = spread(objective.chat_prompts(), max(len(self.others) // 2, 1))  # none without a chat template
            sets = damage_items(model, objective, {"other": self.others} | ({"chat": prompts} if prompts else {}))
            probe = StrengthProbe(
                model, objective, self.rows, self.laboratory.texts, tokens=self.tokens,
                own=min(self.tokens, OWN_TOKENS), others=sets, exhaustive=True,
            )  # fmt: skip
            self.probes.append(probe.subset(len(self.rows), self.tokens))
        return self.probes[0].aside(model)

    def measured(self, decoder: str, solution: Solution, scope: Scope, write: bool) -> dict[str, Any]:
        """Records of one decoder: by rule and sign."""
        feature, laboratory = self.feature, self.laboratory
        config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
        model = GradiendModel.from_direction(laboratory.base, as_direction(solution, scope), config)
        try:
            probe = self.probe(model)
            report = measure_encoder(model, laboratory.objective, self.rows, laboratory.texts)
            encoder = {name: getattr(report, name) for name in ("correlation", "auc", "neutral_abs_mean")}
            record: dict[str, Any] = {"scored": probe.scored, "rules": {}, "encoder": encoder}
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                record["bytes"] = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
            with model.strength_at(1.0):
                first = 1 / (256 * model.receipt.relative_norm)
            for sign, name in ((1, "+"), (-1, "-")):
                side = Side(probe, sign, feature.classes)
                record[f"before {name}"] = side.effect(probe.measure_dose(0.0))
                first = self._side(record, decoder, side, name, first)
            if write and isinstance(laboratory.objective, CausalLMObjective):
                record["written"] = self._written(model, record["rules"])
        finally:
            model.unload()
        return record

    def _side(self, record: dict[str, Any], decoder: str, side: Side, name: str, first: float) -> float:
        """Measure one sign. Returns its largest dose with every set held."""
        names = list(side.probe.scored)
        for rule, of in (("neutral", ["neutral"]), ("every set", names)):
            held = side.largest(first, of)
            first = held.dose
            effect = held.point.reading(*self.feature.classes[:: side.sign])
            record["rules"][f"{rule} {name}"] = {
                "effect": effect.value,
                "interval": effect.interval,
                "limit": held.limit,
                "dose": held.dose,
                "rise": {one: rise(held.point, one) for one in names},
                "collateral": {one: rise(held.point, one, collateral=True) for one in names},
                "collateral interval of own": held.point.damage["own"].intervals.get("collateral_quality"),
                "by row": side.by_row(held.dose),
            }
        if decoder == "autoencoder":
            self.effects.setdefault(name, record["rules"][f"every set {name}"]["effect"])
        wanted = self.effects.get(name)
        record[f"damage at equal effect {name}"] = None if wanted is None else side.damage_at(wanted, names)
        return first

    def _written(self, model: GradiendModel, rules: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """Continuations of a few prompts by the base model and at both largest doses with every set held."""
        objective, base = self.laboratory.objective, self.laboratory.base
        prompts = [str(prompt) for prompt in objective.prompts(self.rows)][:PROMPTS]
        doses = {"-": -rules["every set -"]["dose"], "0": 0.0, "+": rules["every set +"]["dose"]}
        found: dict[str, dict[str, str]] = {prompt: {} for prompt in prompts}
        for name, dose in doses.items():
            with model.strength_at(dose), torch.inference_mode():
                for prompt, answer in zip(prompts, objective.complete(base, prompts, tokens=24), strict=True):
                    found[prompt][name] = answer.continuation or ""
        return found


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
        if decoder == "natural":
            finished = self.run.finished(self.run.read(self.solutions["sketches"], scope), None)
            self.progress(f"natural: effect by damping and sign {finished.effects}")
            return finished.solution, scope
        by_sketches = decoder == "mean" and form == "rank 8"
        name = "sketches" if by_sketches else "autoencoder" if decoder == "autoencoder" else "mean"
        solution, kept = self.solutions[name], scope
        if bias == "without":
            solution = replace(solution, decoder_bias=None)
        elif bias == "chosen" and decoder == "diagonal":
            solution, effects = self.run.with_or_without_bias(solution)
            self.progress(f"{decoder}: effect {effects}")
        if decoder == "diagonal":
            solution, kept = self._diagonal(solution, density)
        elif not by_sketches:
            solution, kept = pruned(solution, scope, solution.decoder.abs(), density)
        if form == "rank 8" and not by_sketches:
            solution = cut_to_rank(solution, kept, RANK)
        return self.run.read(solution, kept).solution, kept

    def _diagonal(self, mean: Solution, density: float) -> Kept:
        scope, fisher = self.run.scope, self.fisher()
        if self.damping is not None:
            shares = effect_shares(mean, fisher, self.damping)
            return pruned(damage_aware(mean, fisher, self.damping), scope, shares, density)
        chosen, tried = best_damped(mean, scope, fisher, density=density, effect=self.run.effect)
        self.progress(f"diagonal at density {density:g}: effect by damping {tried}")
        return chosen


def learned(
    laboratory: Laboratory, feature: Feature, early: Sequence[str], texts: int, tokens: int, damping: float | None,
    names: Collection[str], progress: Callable[[str], None],
) -> Learned:  # fmt: skip
    """Learn a feature from one stream of gradients; dampings are compared on other rows and texts than are measured on."""
    base, objective, scope = laboratory.base, laboratory.objective, laboratory.scope
    train = feature.rows["train"]
    data = TransitionDataset(train, examples_of(objective, train), feature.classes, "alternative")
    spared = spread(early[::2], texts)
    config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
    validation = {"": some(feature, "validation", laboratory.rows // 2)}
    prompts = spread(objective.chat_prompts(), max(texts // 4, 1))
    known = TrainingData(
        data, train, feature.words, validation, spread(early[1::2], texts // 2), fisher_texts=spared,
        damage_sets={"chat": prompts} if prompts else {},
    )  # fmt: skip
    args = GradiendTrainingArguments(
        "unused", use_cpu=True, solver="closed_form", decoder="natural", rank=RANK, quality_tokens=tokens
    )
    run = TrainingRun(base, objective, config, args, scope, known)

    def fisher() -> Tensor:
        read = run.spared
        with GradientReader(base, scope) as reader:
            return diagonal_fisher(reader, objective, *read)

    return Learned(run, learn(base, objective, scope, data, names=names, rank=RANK), fisher, damping, progress)


def bench_base(
    name: str, folder: Path, progress: Callable[[str], None], *, wanted: Collection[str] = FEATURES[:2], rows: int = 40,
    texts: int = 120, tokens: int = SCORED_TOKENS, damping: float | None = None,
    decoders: Sequence[str] = ("autoencoder", "mean", "diagonal"), forms: Sequence[str] = ("dense",),
    biases: Sequence[str] = ("chosen",),
) -> list[dict[str, Any]]:  # fmt: skip
    """Records of the features of these names on one base model."""
    neutral = read_jsonl(EXAMPLES / "data" / "pronouns" / "neutral.jsonl")
    early, late = ([r["text"] for r in neutral if r["split"] == split] for split in ("validation", "test"))
    laboratory = Laboratory.of(folder, spread(late, texts), rows)
    others = spread(_other_text(), texts)
    records: list[dict[str, Any]] = []
    for feature in features(laboratory.objective):
        if feature.name not in wanted:
            continue
        start = time.process_time()
        known = learned(laboratory, feature, early, texts, tokens, damping, _solvers(decoders, forms), progress)
        stream, bench = time.process_time() - start, Bench(laboratory, feature, others, tokens)
        for decoder, form, bias in product(decoders, forms, biases):
            if decoder == "natural" and (form != "rank 8" or bias != "chosen"):
                continue
            start = time.process_time()
            solution, scope = known.make(decoder, form, bias)
            seconds = stream + time.process_time() - start
            found = bench.measured(decoder, solution, scope, write=decoder in ("autoencoder", "natural"))
            cell = {"base": name, "feature": feature.name, "decoder": decoder, "form": form, "bias": bias}
            records.append(cell | {"seconds": seconds} | found)
            progress(table(records[-1:]))
    return records


def _solvers(decoders: Sequence[str], forms: Sequence[str]) -> set[str]:
    """Names of the solutions that decoders are made of: at 135M parameters, those of all would take 20 GB."""
    found = {"autoencoder"} & {*decoders}
    if "natural" in decoders or ("mean" in decoders and "rank 8" in forms):
        found.add("sketches")
    if "diagonal" in decoders or ("mean" in decoders and {*forms} != {"rank 8"}):
        found.add("mean")
    return found


def _other_text() -> list[str]:
    """Text of another source than the neutral sentences."""
    if MORE_TEXT.is_file():
        with gzip.open(MORE_TEXT, "rt", encoding="utf-8") as lines:
            return [json.loads(text)["text"] for text in islice(lines, 5000, 60000, 550)]
    rows = read_jsonl(EXAMPLES / "data" / "pronouns" / "train.jsonl")[
        ::9
    ]  # prose; the neutral sentences are a dictionary's
    return [row["masked"].replace("[MASK]", row["factual"]) for row in rows]


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the common table: effect where every damage set is held, of each decoder."""
    disable_progress_bars()
    bases = {name: folder for name, folder in MODELS.items() if folder.is_dir() and not (quick and name == "minilm")}
    lines = []
    for name, folder in bases.items():
        for r in bench_base(
            name, folder, lambda text: None, wanted=FEATURES[: 1 if quick else 2], rows=20 if quick else 40
        ):
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
    parser.add_argument("--features", default="number,gender", help=f"of {', '.join(FEATURES)}")
    parser.add_argument("--rows", type=int, default=40, help="test rows of each class")
    parser.add_argument("--texts", type=int, default=120, help="texts of each set")
    parser.add_argument("--tokens", type=int, default=SCORED_TOKENS, help="scored tokens of each set, about")
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
            wanted=options.features.split(","), rows=options.rows, texts=options.texts, tokens=options.tokens,
            damping=options.damping, decoders=options.decoders.split(","),
            forms=options.forms.split(","), biases=options.bias.split(","),
        )  # fmt: skip
        if "," in options.bias:
            print(compared_biases(found))
        print(continuations(found))
        print(table(found) + "\n" + json.dumps(found), flush=True)
