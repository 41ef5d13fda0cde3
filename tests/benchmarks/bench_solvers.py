"""What each decoder changes, and what that costs: effect at 1 % damage, and damage at equal effect.

    python -m tests.benchmarks.bench_solvers [masked | causal | FOLDER OF A BASE MODEL] ...

Features and their splits are found in the bundled sentences: pronoun number, gender (he/she) and tense (was/is). A
direction is learned on train rows; F is estimated on a quarter of the neutral texts, its
damping chosen on another quarter and on validation rows; all figures are of test rows and of the other half. Both signs
of a dose count. Intervals are 95 % of a bootstrap over rows and neutral texts.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from gradiend_hub.base_models import load_base_model
from gradiend_hub.data import Row, TransitionBatchSampler, TransitionDataset, tokenize_rows
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher, read_pair, select_parameters
from gradiend_hub.gradients.directional import evaluating
from gradiend_hub.objectives import Objective, Slots, make_objective
from gradiend_hub.objectives.base import IGNORED
from gradiend_hub.solvers import Solution, choose_damping, effect_shares, make_solver

from .measure import interleaved, line, skipped

EXAMPLES = Path(__file__).parents[2] / "examples"
ALLOWED = 0.01
"""Damage: relative rise of the negative log-likelihood of neutral text."""

STEPS, BATCH = 60, 16
DOSES = 10
ROWS_PER_CLASS = 60
RESAMPLES = 300


@dataclass(frozen=True)
class Feature:
    """Two classes, each with its words. `paired[i]` of one class replaces `paired[i]` of the other."""

    name: str
    classes: tuple[str, str]
    words: Mapping[str, Sequence[str]]


FEATURES = (
    Feature("number", ("3SG", "3PL"), {"3SG": ("he", "she", "it"), "3PL": ("they",)}),
    Feature("gender", ("he", "she"), {"he": ("he",), "she": ("she",)}),
    Feature("tense", ("was", "is"), {"was": ("was",), "is": ("is",)}),
)


def read_jsonl(name: str) -> list[dict[str, str]]:
    lines = (EXAMPLES / "data" / "pronouns" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def feature_rows(feature: Feature, split: str) -> list[Row]:
    """Rows of a split: as they are for pronoun number, else sentences with one of the words, once, after three words."""
    records = read_jsonl(split)
    if feature.name == "number":
        keys = ("masked", "factual", "alternative", "factual_class", "alternative_class")
        return [Row(*(record[key] for key in keys)) for record in records]
    rows = []
    either = re.compile(rf"\b({'|'.join(feature.classes)})\b")
    for record in records:
        text = record["masked"].replace("[MASK]", record["factual"])
        found = either.findall(text)
        if len(found) == 1 and len(either.split(text)[0].split()) >= 3:
            own = found[0]
            other = next(c for c in feature.classes if c != own)
            rows.append(Row(either.sub("[MASK]", text), own, other, own, other))
    return rows


@dataclass
class Curve:
    """One decoder at rising doses: per dose the effect of every row [D, R] and the loss of every token [D, T].

    The first dose is 0. Columns of `effects` are rows of both classes, each read under the sign that should move it.
    """

    effects: np.ndarray
    losses: np.ndarray
    groups: np.ndarray
    """Index of the neutral text of each token."""

    def means(self, rows: np.ndarray | None = None, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Effect and damage by dose, of all or of resampled rows and texts."""
        effect = self.effects.mean(1) if rows is None else self.effects[:, rows].mean(1)
        nll = self.losses.mean(1) if weights is None else self.losses @ weights / weights.sum()
        return effect, nll / nll[0] - 1

    def effect_at(self, damage: float = ALLOWED, **resampled: Any) -> float:
        """The best effect among doses up to `damage`, between measured doses by interpolation."""
        effects, damages = self.means(**resampled)
        best = effects[0]
        for i in range(1, len(effects)):
            if damages[i] <= damage:
                best = max(best, effects[i])
                continue
            share = (damage - damages[i - 1]) / max(damages[i] - damages[i - 1], 1e-12)
            return float(max(best, effects[i - 1] + share * (effects[i] - effects[i - 1])))
        return float(best)

    def damage_at(self, effect: float, **resampled: Any) -> float:
        """The damage of the first dose that reaches `effect`; NaN if none does."""
        effects, damages = self.means(**resampled)
        for i in range(1, len(effects)):
            if effects[i] >= effect:
                share = (effect - effects[i - 1]) / max(effects[i] - effects[i - 1], 1e-12)
                return float(damages[i - 1] + share * (damages[i] - damages[i - 1]))
        return float("nan")


@dataclass
class Laboratory:
    """A base model whose parameters in scope are edited and restored."""

    base: nn.Module
    objective: Objective
    scope: Scope
    originals: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Laboratory:
        base = load_base_model(folder)
        objective = make_objective(base, AutoTokenizer.from_pretrained(folder))
        scope = Scope.dense(select_parameters(base))
        return cls(base, objective, scope, {n: p.detach().clone() for n, p in scope.parameters.items()})

    @contextmanager
    def edited(self, delta: Tensor | None, dtype: torch.dtype | None = None) -> Iterator[None]:
        """θ + delta in the scope; with a dtype, what such weights would hold, before and after the edit."""
        try:
            with torch.no_grad():
                for name, change in self.scope.dense_tensors(delta).items() if delta is not None else ():
                    old = self.originals[name]
                    new = old + change if dtype is None else (old.to(dtype).float() + change).to(dtype).float()
                    self.scope.parameters[name].copy_(new)
            yield
        finally:
            with torch.no_grad():
                for name, old in self.originals.items():
                    self.scope.parameters[name].copy_(old)


class Meter:
    """Measures decoders on fixed rows and fixed neutral texts."""

    def __init__(self, laboratory: Laboratory, feature: Feature, rows: Sequence[Row], texts: Sequence[str]) -> None:
        self.laboratory, self.feature = laboratory, feature
        objective = laboratory.objective
        self.rows = {c: [row for row in rows if row.factual_class == c][:ROWS_PER_CLASS] for c in feature.classes}
        self.wanted: dict[str, list[list[int]]] = {}
        self.batches: dict[str, list[Slots]] = {}
        for i, own in enumerate(feature.classes):
            chosen = self.rows[own]
            words = feature.words[feature.classes[1 - i]]
            self.wanted[own] = [[objective.filler_tokens(r.masked, w)[0] for w in words] for r in chosen]
            samples = [objective.tokenize(r.masked, r.factual, r.alternative).factual for r in chosen]
            self.batches[own] = [objective.collate(samples[j : j + 32]) for j in range(0, len(samples), 32)]
        rng = random.Random(0)
        draws = 1 if objective.name == "causal_lm" else 3
        scored = [
            (s, i) for _ in range(draws) for i, text in enumerate(texts) for s in objective.scored_text(text, rng)
        ]
        scored.sort(key=lambda pair: len(pair[0].input_ids))
        self.texts = [objective.collate([s for s, _ in scored[j : j + 32]]) for j in range(0, len(scored), 32)]
        self.groups = np.array([i for s, i in scored for _ in s.positions])
        self.text_count = len(texts)

    def effects(self, own: str) -> list[float]:
        """P(words of the other class) of each row of class `own`."""
        found: list[float] = []
        wanted = iter(self.wanted[own])
        for slots in self.batches[own]:
            for row in self.laboratory.objective.log_probs(self.laboratory.base, slots)[:, 0].exp():
                found.append(float(row[next(wanted)].sum()))
        return found

    def losses(self) -> np.ndarray:
        parts = []
        for slots in self.texts:
            log_probs = self.laboratory.objective.log_probs(self.laboratory.base, slots)
            real = slots.labels != IGNORED
            parts.append(-log_probs[real].gather(1, slots.labels[real].unsqueeze(1)).squeeze(1))
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def curve(self, solution: Solution, dtype: torch.dtype | None = None) -> Curve:
        """Doses from ‖Δ‖ = ‖W‖/500 times four while they cost next to nothing, then doubled, up to three times the allowed
        damage.
        """
        laboratory = self.laboratory
        norm = sum(float(p.square().sum()) for p in laboratory.originals.values()) ** 0.5
        first, second = self.feature.classes
        dose, effects, losses = 0.0, [], []
        with evaluating(laboratory.base):
            while len(effects) <= DOSES:
                raised, nll = [], np.zeros(())
                for sign, own in ((1, second), (-1, first)):
                    delta = dose * (sign * solution.decoder + solution.decoder_bias)
                    with laboratory.edited(delta, dtype):
                        raised += self.effects(own)
                        nll = nll + self.losses() / 2
                effects.append(raised)
                losses.append(nll)
                damage = np.mean(nll) / np.mean(losses[0]) - 1
                if damage > 3 * ALLOWED:
                    break
                start = norm / 500 / float(solution.decoder.norm())
                dose = start if dose == 0 else dose * (4 if damage < ALLOWED / 20 else 2)
        return Curve(np.array(effects), np.array(losses), self.groups)


def learn(laboratory: Laboratory, rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Solution]:
    """The solutions of closed form and autoencoder on one stream of gradients."""
    data = TransitionDataset(rows, tokenize_rows(laboratory.objective, rows), classes, "alternative")
    mean = make_solver("closed_form", laboratory.scope.size)
    trained = make_solver("autoencoder", laboratory.scope.size)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)

    def batches() -> Iterator[list[int]]:
        sampler = TransitionBatchSampler(data, BATCH)
        while True:
            yield from sampler
            sampler.set_epoch(sampler.epoch + 1)

    with GradientReader(laboratory.base, laboratory.scope) as reader:
        for batch in islice(batches(), STEPS):
            pairs = laboratory.objective.collate_pairs([data.examples[i] for i in batch])
            s, t = read_pair(reader, laboratory.objective, pairs)
            for solver in (mean, trained):
                solver.observe(s, t, data.labels[batch[0]])
            optimizer.step()
            schedule.step()
    own = trained.solutions()[0]
    # w_d of the autoencoder belongs to the sign that its h happens to have
    sign = float(torch.sign(own.decoder @ mean.solutions()[0].decoder))
    return {"mean": mean.solutions()[0], "autoencoder": own.with_gain(sign)}


def sparse(solution: Solution, scores: Tensor, density: float = 0.01) -> Solution:
    """Only the coordinates of the largest scores."""
    keep = torch.zeros_like(scores)
    keep[scores.topk(max(1, round(density * len(scores)))).indices] = 1
    return Solution(solution.encoder, 0.0, solution.decoder * keep, solution.decoder_bias * keep)


def bootstrap(curves: Mapping[str, Curve], text_count: int) -> dict[str, dict[str, Any]]:
    """Per decoder: effect at the allowed damage; damage at the mean decoder's effect there, as a share of its damage."""
    rng = np.random.default_rng(0)
    reference = curves["mean"]
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in curves}
    for trial in range(RESAMPLES + 1):
        drawn: dict[str, Any] = {}
        if trial:
            counts = np.bincount(rng.integers(text_count, size=text_count), minlength=text_count)
            drawn = {
                "rows": rng.integers(reference.effects.shape[1], size=reference.effects.shape[1]),
                "weights": counts[reference.groups].astype(float),
            }
        effect = reference.effect_at(**drawn)
        damage = reference.damage_at(effect, **drawn)
        for name, curve in curves.items():
            samples[name].append((curve.effect_at(**drawn), curve.damage_at(effect, **drawn) / damage))
    out = {}
    for name, values in samples.items():
        effects, ratios = np.array(values).T
        out[name] = {
            "base": float(curves[name].means()[0][0]),
            "effect": float(effects[0]),
            "effect_interval": np.nanquantile(effects[1:], (0.025, 0.975)).round(4).tolist(),
            "damage_ratio": float(ratios[0]),
            "damage_interval": _interval(ratios[1:]),
        }
    return out


def _interval(values: np.ndarray) -> list[float] | None:
    """95 % of the resamples; none where a twentieth of them never reach the effect."""
    if np.isnan(values).mean() > 0.05:
        return None
    low, high = np.nanquantile(values, (0.025, 0.975))
    return [round(float(low), 3), round(float(high), 3)]


def bench_base(
    name: str, folder: Path, progress: Callable[[str], None], features: Sequence[Feature] = FEATURES
) -> list[dict[str, Any]]:
    laboratory = Laboratory.of(folder)
    neutral = read_jsonl("neutral")
    early = [r["text"] for r in neutral if r["split"] == "validation"]
    late = [r["text"] for r in neutral if r["split"] == "test"]
    with GradientReader(laboratory.base, laboratory.scope) as reader:
        fisher = diagonal_fisher(reader, laboratory.objective, early[::2])
    results = []
    for feature in features:
        solutions = learn(laboratory, feature_rows(feature, "train"), feature.classes)
        mean = solutions["mean"]
        choosing = Meter(laboratory, feature, feature_rows(feature, "validation"), early[1::2])
        chosen, tried = choose_damping(mean, fisher, lambda s, m=choosing: m.curve(s).effect_at())
        damping = max(tried, key=lambda d: (tried[d], d))
        progress(f"{name} {feature.name} effect by damping: {tried}")
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(fisher), generator=generator)
        decoders: dict[str, tuple[Solution, torch.dtype | None]] = {
            "mean": (mean, None),
            "fisher": (chosen, None),
            "fisher, 1 %": (sparse(chosen, effect_shares(mean, fisher, damping)), None),
            "fisher, bf16": (chosen, torch.bfloat16),
            "autoencoder": (solutions["autoencoder"], None),
            "random": (Solution(noise, 0.0, noise, torch.zeros_like(noise)), None),
        }
        meter = Meter(laboratory, feature, feature_rows(feature, "test"), late)
        curves = {}
        for decoder, (solution, dtype) in decoders.items():
            curves[decoder] = meter.curve(solution, dtype)
            progress(f"{name} {feature.name} {decoder}: {curves[decoder].effect_at():.3f}")
        for decoder, figures in bootstrap(curves, meter.text_count).items():
            results.append(
                {
                    "base": name,
                    "feature": feature.name,
                    "decoder": decoder,
                    "damping": damping,
                    "tokens": len(meter.groups),
                }
                | {("before" if key == "base" else key): value for key, value in figures.items()}
            )
        progress(table(results))
    return results


def bases(names: Sequence[str] = ()) -> dict[str, Path]:
    """The bundled models, and MiniLM where it is kept beside the repository; or those that are named."""
    known = {name: EXAMPLES / "base_models" / name for name in ("masked", "causal")}
    minilm = EXAMPLES.parents[1] / "shared" / "models" / "minilm-mlm"
    if minilm.is_dir():
        known["minilm"] = minilm
    return {Path(n).name: known.get(n, Path(n)) for n in names} if names else known


def records(
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
    features: Sequence[Feature] = FEATURES,
) -> list[dict[str, Any]]:
    """One record by base model, feature and decoder."""
    return [r for name, folder in bases(names).items() for r in bench_base(name, folder, progress, features)]


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the common table: what decoders do to each base model and feature, and what eight runs cost."""
    found = records(("masked", "causal"), features=FEATURES[:1]) if quick else records()
    return [one for r in found for one in lines(r)] + [cost_of_runs(*item) for item in bases().items()]


def lines(r: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The two figures of a record, with the targets of the kinder decoder."""
    target = ("≤ 0.25" if r["base"] == "causal" else "≤ 0.6") if r["decoder"].startswith("fisher") else ""
    names = {"model": r["base"], "feature": r["feature"], "decoder": r["decoder"]}
    note = f"{r['feature']}, {r['decoder']}"
    ratio = None if np.isnan(r["damage_ratio"]) else r["damage_ratio"]
    return [
        line("effect at 1 % damage", r["effect"], "probability", note=note, interval=r["effect_interval"], **names),
        line(
            "damage at equal effect, of the mean decoder's",
            ratio,
            "x",
            target,
            note=note,
            interval=r["damage_interval"],
            **names,
        )
        if ratio is not None
        else skipped(
            "damage at equal effect, of the mean decoder's", "the effect is never reached", note=note, **names
        ),
    ]


def cost_of_runs(name: str, folder: Path, runs: int = 8) -> dict[str, Any]:
    """A gradient pair and the solver's step for it: several runs of the autoencoder beside one, at 1 % density."""
    laboratory = Laboratory.of(folder)
    rows = feature_rows(FEATURES[0], "train")[:64]
    examples = tokenize_rows(laboratory.objective, rows)
    data = TransitionDataset(rows, examples, FEATURES[0].classes, "alternative")
    chosen = next(iter(TransitionBatchSampler(data, BATCH)))
    batch = laboratory.objective.collate_pairs([examples[i] for i in chosen])
    generator = torch.Generator().manual_seed(0)
    kept = {
        parameter: torch.rand(p.numel(), generator=generator).lt(0.01).nonzero().squeeze(1)
        for parameter, p in laboratory.scope.parameters.items()
    }
    scope = laboratory.scope.keep(kept)
    with GradientReader(laboratory.base, scope) as reader:

        def step_of(count: int) -> Callable[[], None]:
            solver = make_solver("autoencoder", scope.size, seeds=range(count))
            optimizer = torch.optim.AdamW(solver.parameters(), lr=0.1, fused=True)

            def step() -> None:
                solver.observe(*read_pair(reader, laboratory.objective, batch), data.labels[chosen[0]])
                optimizer.step()

            return step

        times = interleaved({"one": step_of(1), "several": step_of(runs)}, 9)
    return line(
        f"{runs} runs beside one, 1 % of the coordinates", times.ratios["several"], "x", "≤ 1.3", model=name,
        ours=times.medians["several"], other=times.medians["one"],
    )  # fmt: skip


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The records as Markdown."""
    lines = [
        "| base | feature | decoder | effect before | effect at 1 % damage | damage at the mean decoder's effect |",
        "|---|---|---|---|---|---|",
    ]
    for r in found:
        low, high = r["effect_interval"]
        ratio = "never reached" if np.isnan(r["damage_ratio"]) else f"{r['damage_ratio']:.2f}×"
        interval = f" [{r['damage_interval'][0]:.2f}, {r['damage_interval'][1]:.2f}]" if r["damage_interval"] else ""
        effect = f"{r['effect']:.3f} [{low:.3f}, {high:.3f}]"
        names = f"{r['base']} | {r['feature']} | {r['decoder']}"
        lines.append(f"| {names} | {r['before']:.3f} | {effect} | {ratio}{interval} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(records(sys.argv[1:], lambda text: print(text, file=sys.stderr, flush=True))))
