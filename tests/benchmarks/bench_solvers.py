"""What each decoder changes, and what that costs: effect at 1 % damage, and damage at equal effect.

    python -m tests.benchmarks.bench_solvers [--features N] [--rows N] [--texts N] [masked | causal | FOLDER OF A BASE] ...

Pronoun number is read from the bundled rows; gender (he / she) and sentiment (tested on words that no training row has)
are built as in the examples of these names, of words that are one token of the base model. A direction is learned on train
rows, F is estimated on a quarter of the neutral texts, dampings are compared on another quarter and on validation rows, as
the trainer does it, and all figures are of test rows and of the other half. Both signs of a dose count. Intervals are 95 %
of a bootstrap over rows and scored tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from torch import Tensor
from transformers import AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, Row, TextFilters, read_rows
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher, read_pair, select_parameters
from gradiend_hub.objectives import Objective, examples_of, make_objective
from gradiend_hub.solvers import Sketching, Solution, Solver, make_solver
from gradiend_hub.training.batches import TransitionBatchSampler, TransitionDataset
from gradiend_hub.training.data import TrainingData
from gradiend_hub.training.decoders import best_damped
from gradiend_hub.training.run import TrainingRun
from gradiend_hub.training.solutions import as_direction

from .measure import EXAMPLES, MODELS, MORE_TEXT, interleaved, line, read_jsonl, skipped

ALLOWED = 0.01
"""Damage: relative rise of the negative log-likelihood of neutral text."""

STEPS, BATCH = 60, 16
ROWS_PER_CLASS, TEXTS = 40, 200
"""Of the test split and of the neutral texts; half of that for choosing the damping."""

SEARCH = 6
GRID = (0.2, 0.35, 0.5, 0.7, 1.0, 1.2)
"""Doses that are measured, relative to the one of about the allowed damage."""

RESAMPLES = 300
DENSITY = 0.01

Kept = tuple[Solution, Scope]


# ------------------------------------------------------------------------------------------------------ what is learned


@dataclass(frozen=True)
class Feature:
    """Two classes with the words that are read at a slot, and rows by split."""

    name: str
    words: dict[str, list[str]]
    rows: dict[str, list[Row]]

    @property
    def classes(self) -> list[str]:
        return list(self.words)


def features(objective: Objective) -> Iterator[Feature]:
    """Number, gender and sentiment, with words of one token only, so that a row is one input of the model."""
    data = EXAMPLES / "data" / "pronouns"
    number = {s: read_rows(read_jsonl(data / f"{s}.jsonl"), ["3SG", "3PL"], what=s) for s in SPLITS}
    yield Feature("number", {"3SG": ["he", "she", "it"], "3PL": ["they"]}, number)
    sys.path.insert(0, str(EXAMPLES))
    import common  # type: ignore[import-not-found]
    import english_gender  # type: ignore[import-not-found]
    import sentiment  # type: ignore[import-not-found]

    text = str(MORE_TEXT) if MORE_TEXT.is_file() else list(common.bundled_sentences())
    pronouns = {name: listed.split()[0] for name, listed in english_gender.WORDS.items()}
    for name, given, split_by in (("gender", pronouns, "random"), ("sentiment", sentiment.WORDS, "word")):
        words = {c: [w for w in listed.split() if _is_token(objective, w)] for c, listed in given.items()}
        config = FeatureDataConfig(
            words, split_by=split_by, max_per_word=50 if split_by == "word" else None, max_per_class=400, language="en",
            splits={"train": 0.6, "validation": 0.2, "test": 0.2},
            filters=TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False),
        )  # fmt: skip
        built = FeatureDatasetBuilder(config).build(text)
        rows = {s: [r for r in read_rows(built.rows[s], list(words), what=s) if _reads(objective, r)] for s in SPLITS}
        yield Feature(name, words, rows)


def some(feature: Feature, split: str, each: int) -> list[Row]:
    """Rows of each class, as many of each."""
    by_class = ([r for r in feature.rows[split] if r.factual_class == c] for c in feature.classes)
    return [row for own in by_class for row in spread(own, each)]


SPLITS = ("train", "validation", "test")


def _is_token(objective: Objective, word: str) -> bool:
    try:
        return len(objective.fill("It was said that [MASK]", word).word) == 1
    except DataError:
        return False


def _reads(objective: Objective, row: Row) -> bool:
    """Whether the words of the row are one token each at its slot, after at least three other words."""
    before = row.masked.split("[MASK]")[0]
    try:
        tokens = [objective.fill(row.masked, word).word for word in (row.factual, row.alternative)]
        return len(before.split()) >= 3 and all(len(t) == 1 for t in tokens)
    except DataError:
        return False


def learn(
    base: torch.nn.Module, objective: Objective, scope: Scope, data: TransitionDataset, *,
    names: Collection[str] = ("mean", "autoencoder"), rank: int | None = None, steps: int | None = None,
) -> dict[str, Solution]:  # fmt: skip
    """Solutions on one stream of gradients: the autoencoder's, class means, and, of a rank, those by `sketches`."""
    solvers: dict[str, Solver] = {}
    if "mean" in names:
        solvers["mean"] = make_solver("closed_form", scope.size)
    if "sketches" in names:
        sketching = Sketching({name: tuple(p.shape) for name, p in scope.parameters.items()}, rank or 1)
        solvers["sketches"] = make_solver("closed_form", scope.size, sketching=sketching)
    if "autoencoder" in names:
        trained = solvers["autoencoder"] = make_solver("autoencoder", scope.size)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps or STEPS)

    def batches() -> Iterator[list[int]]:
        sampler = TransitionBatchSampler(data, BATCH)
        while True:
            yield from sampler
            sampler.set_epoch(sampler.epoch + 1)

    with GradientReader(base, scope, reuse=True) as reader:
        for batch in islice(batches(), steps or STEPS):
            s, t = read_pair(reader, objective, objective.collate_pairs([data.examples[i] for i in batch]))
            for solver in solvers.values():
                solver.observe(s, t, data.labels[batch[0]])
            if "autoencoder" in solvers:
                optimizer.step()
                schedule.step()
    found = {name: solver.solutions()[0] for name, solver in solvers.items()}
    if {"mean", "autoencoder"} <= found.keys():
        # w_d of the autoencoder belongs to the sign that its h happens to have
        own = found["autoencoder"]
        found["autoencoder"] = own.with_gain(float(torch.sign(own.decoder @ found["mean"].decoder)))
    return found


# ------------------------------------------------------------------------------------------------------- what is measured


@dataclass
class Curve:
    """One decoder at rising doses, the first of which is 0: the effect on every row [D, R], the loss of every token [D, T].

    Rows are of both classes, each read under the sign that should move it.
    """

    effects: np.ndarray
    losses: np.ndarray

    def means(self, rows: np.ndarray | None = None, tokens: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Effect and damage by dose, of all or of resampled rows and tokens."""
        effect = self.effects.mean(1) if rows is None else self.effects[:, rows].mean(1)
        nll = self.losses.mean(1) if tokens is None else self.losses[:, tokens].mean(1)
        return effect, nll / nll[0] - 1

    def effect_at(self, damage: float = ALLOWED, **resampled: Any) -> float:
        """The best effect among doses up to `damage`, between measured doses by interpolation."""
        effects, damages = self.means(**resampled)
        best = effects[0]
        for i in range(1, len(effects)):
            if damages[i] > damage:
                share = (damage - damages[i - 1]) / max(damages[i] - damages[i - 1], 1e-12)
                return float(max(best, effects[i - 1] + share * (effects[i] - effects[i - 1])))
            best = max(best, effects[i])
        return float(best)

    def damage_at(self, effect: float, **resampled: Any) -> float:
        """The damage of the first dose that reaches `effect`; NaN if none does."""
        effects, damages = self.means(**resampled)
        for i in range(1, len(effects)):
            if effects[i] >= effect:
                share = (effect - effects[i - 1]) / max(effects[i] - effects[i - 1], 1e-12)
                return float(damages[i - 1] + share * (damages[i] - damages[i - 1]))
        return float("nan")


@dataclass(frozen=True)
class Laboratory:
    """A base model with the texts and the number of test rows of each class that it is measured on."""

    base: torch.nn.Module
    objective: Objective
    scope: Scope
    texts: Sequence[str]
    rows: int

    @classmethod
    def of(cls, folder: Path, texts: Sequence[str], rows: int, dtype: torch.dtype = torch.float32) -> Laboratory:
        base = load_base_model(folder, dtype=dtype)
        objective = make_objective(base, AutoTokenizer.from_pretrained(folder))
        return cls(base, objective, Scope.dense(select_parameters(base)), texts, rows)

    def curve(self, feature: Feature, solution: Solution, kept: Mapping[str, Tensor]) -> Curve:
        """Doses up to 1.2 times the one of about the allowed damage, which is looked for first."""
        scope = self.scope.keep(dict(kept)) if kept else self.scope
        config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
        model = GradiendModel.from_direction(self.base, as_direction(solution, scope), config)
        rows = some(feature, "test", self.rows)
        first = np.array([row.factual_class == feature.classes[0] for row in rows])
        try:
            probe = StrengthProbe(model, self.objective, rows, self.texts, tokens=1, exhaustive=True)

            def at(dose: float) -> tuple[np.ndarray, np.ndarray]:
                up, down = (probe.values(sign * dose) for sign in (1, -1))
                return np.where(first, down.probability[:, 1], up.probability[:, 0]), (
                    up.sets["neutral"].nll + down.sets["neutral"].nll
                ) / 2

            with model.strength_at(1.0):
                dose = 1 / (256 * model.receipt.relative_norm)
            before = at(0.0)[1].mean()
            for _ in range(SEARCH):
                damage = at(dose)[1].mean() / before - 1
                if 0.7 * ALLOWED < damage < 1.4 * ALLOWED:
                    break
                dose *= min(max((ALLOWED / max(damage, 1e-9)) ** 0.5, 0.25), 8.0)
            effects, losses = zip(*(at(share * dose) for share in (0.0, *GRID)), strict=True)
        finally:
            model.unload()
        return Curve(np.array(effects), np.array(losses))


def bootstrap(curves: Mapping[str, Curve]) -> dict[str, dict[str, Any]]:
    """Per decoder: effect at the allowed damage; damage at the mean decoder's effect there, as a share of its damage; and
    the gain in effect as a share of the gain of "fisher".
    """
    rng = np.random.default_rng(0)
    mean, fisher = curves["mean"], curves["fisher"]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in curves}
    for trial in range(RESAMPLES + 1):
        drawn: dict[str, Any] = {}
        if trial:
            rows, tokens = mean.effects.shape[1], mean.losses.shape[1]
            drawn = {"rows": rng.integers(rows, size=rows), "tokens": rng.integers(tokens, size=tokens)}
        effect, whole = mean.effect_at(**drawn), fisher.effect_at(**drawn)
        damage = mean.damage_at(effect, **drawn)
        for name, curve in curves.items():
            own, before = curve.effect_at(**drawn), curve.means(**drawn)[0][0]
            gained = (own - before) / max(whole - before, 1e-12)
            found[name].append((own, curve.damage_at(effect, **drawn) / damage, gained))
    records = {}
    for name, values in found.items():
        record: dict[str, Any] = {"before": float(curves[name].means()[0][0])}
        for what, column in zip(("effect", "damage_ratio", "gain_ratio"), np.array(values).T, strict=True):
            record |= {
                what: None if np.isnan(column[0]) else float(column[0]),
                f"{what}_interval": _interval(column[1:]),
            }
        records[name] = record
    return records


def _interval(values: np.ndarray) -> list[float] | None:
    """95 % of the resamples; none where a twentieth of them never reach the effect."""
    if np.isnan(values).mean() > 0.05:
        return None
    return [round(float(x), 4) for x in np.nanquantile(values, (0.025, 0.975))]


def bench_base(
    name: str, folder: Path, progress: Callable[[str], None], count: int = 3, coarse: bool = False,
    rows_per_class: int = ROWS_PER_CLASS, texts: int = TEXTS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Records of the first `count` features on one base model; `coarse`: in bfloat16, too, for the first one."""
    neutral = read_jsonl(EXAMPLES / "data" / "pronouns" / "neutral.jsonl")
    early = [r["text"] for r in neutral if r["split"] == "validation"]
    laboratory = Laboratory.of(
        folder, spread([r["text"] for r in neutral if r["split"] == "test"], texts), rows_per_class
    )
    base, objective, scope = laboratory.base, laboratory.objective, laboratory.scope
    with GradientReader(base, scope) as reader:
        fisher = diagonal_fisher(reader, objective, early[::2])
    args = GradiendTrainingArguments("unused", decoder="solver", use_cpu=True)
    records = []
    for feature in islice(features(objective), count):
        rows = feature.rows["train"]
        data = TransitionDataset(rows, examples_of(objective, rows), feature.classes, "alternative")
        solutions = learn(base, objective, scope, data)
        config = GradiendConfig(feature_classes=feature.classes, fillers=feature.words)
        measured = {"": some(feature, "validation", rows_per_class // 2)}
        learned_from = TrainingData(data, rows, feature.words, measured, spread(early[1::2], texts // 2))
        effect = TrainingRun(base, objective, config, args, scope, learned_from).effect
        (aware, _), tried = best_damped(solutions["mean"], scope, fisher, effect=effect)
        (sparse, few), tried_sparse = best_damped(solutions["mean"], scope, fisher, density=DENSITY, effect=effect)
        progress(f"{name} {feature.name}, effect by damping: {tried}; at 1 %: {tried_sparse}")
        noise = torch.randn(scope.size, generator=torch.Generator().manual_seed(0))
        decoders: dict[str, tuple[Solution, Mapping[str, Tensor]]] = {
            "mean": (solutions["mean"], {}),
            "fisher": (aware, {}),
            "fisher, 1 %": (sparse, few.kept),
            "autoencoder": (solutions["autoencoder"], {}),
            "random": (Solution(noise, 0.0, noise), {}),
        }
        curves = {decoder: laboratory.curve(feature, *what) for decoder, what in decoders.items()}
        if coarse and not records:
            twin = Laboratory.of(folder, laboratory.texts, rows_per_class, torch.bfloat16)
            curves |= {f"{of}, bf16": twin.curve(feature, *decoders[of]) for of in ("fisher", "fisher, 1 %")}
        sizes = {"rows": curves["mean"].effects.shape[1], "tokens": curves["mean"].losses.shape[1]}
        records += [
            {"base": name, "objective": objective.name, "feature": feature.name, "decoder": decoder, **sizes, **record}
            for decoder, record in bootstrap(curves).items()
        ]
        progress(table(records))
    return records


# ----------------------------------------------------------------------------------------------------- what is reported


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the common table: what decoders do to each base model and feature, and what eight runs cost."""
    disable_progress_bars()
    bases = {name: folder for name, folder in MODELS.items() if folder.is_dir() and not (quick and name == "minilm")}
    silent: Callable[[str], None] = lambda text: None  # noqa: E731
    found = [
        r for name, folder in bases.items() for r in bench_base(name, folder, silent, 1 if quick else 3, not quick)
    ]
    return [one for r in found for one in lines(r)] + [cost_of_runs(*item) for item in bases.items()]


def lines(r: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a record, with the targets of the damage-aware decoder."""
    kind, names = r["decoder"], {"model": r["base"], "feature": r["feature"], "decoder": r["decoder"]}
    note = f"{r['feature']}, {kind}"
    target = ("≤ 0.25" if r["objective"] == "causal_lm" else "≤ 0.6") if kind == "fisher" else ""
    shown = [
        line("effect at 1 % damage", r["effect"], "probability", note=note, interval=r["effect_interval"], **names)
    ]
    what = "damage at equal effect, of the mean decoder's"
    if r["damage_ratio"] is None:
        shown.append(skipped(what, "the effect is never reached", note=note, **names))
    else:
        shown.append(line(what, r["damage_ratio"], "×", target, note=note, interval=r["damage_interval"], **names))
    if kind.startswith("fisher, "):
        what = "gain in effect at 1 % damage, of the dense fp32 decoder's"
        shown.append(line(what, r["gain_ratio"], "×", "≥ 0.9", note=note, interval=r["gain_ratio_interval"], **names))
    return shown


def cost_of_runs(name: str, folder: Path, runs: int = 8) -> dict[str, Any]:
    """A gradient pair and the solver's step for it: several runs of the autoencoder beside one, at 1 % density."""
    laboratory = Laboratory.of(folder, (), 0)
    feature = next(features(laboratory.objective))
    rows = feature.rows["train"][:64]
    data = TransitionDataset(rows, examples_of(laboratory.objective, rows), feature.classes, "alternative")
    chosen = next(iter(TransitionBatchSampler(data, BATCH)))
    batch = laboratory.objective.collate_pairs([data.examples[i] for i in chosen])
    generator = torch.Generator().manual_seed(0)
    kept = {
        parameter: torch.rand(p.numel(), generator=generator).lt(DENSITY).nonzero().squeeze(1)
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
        f"{runs} runs beside one, 1 % of the coordinates", times.ratios["several"], "×", "≤ 1.3", model=name,
        ours=times.medians["several"], other=times.medians["one"],
    )  # fmt: skip


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The records as Markdown."""
    shown = [
        "| base | feature | decoder | effect before | effect at 1 % damage | damage at the mean decoder's effect | gain |",
        "|---|---|---|---|---|---|---|",
    ]

    def cell(r: Mapping[str, Any], what: str, digits: int, unit: str = "") -> str:
        if r[what] is None:
            return "never reached"
        interval = r[f"{what}_interval"]
        ends = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
        return f"{r[what]:.{digits}f}{unit}{ends}"

    for r in found:
        cells = [r["base"], r["feature"], r["decoder"], f"{r['before']:.3f}", cell(r, "effect", 3)]
        cells += [cell(r, "damage_ratio", 2, "×"), cell(r, "gain_ratio", 2, "×")]
        shown.append(f"| {' | '.join(cells)} |")
    return "\n".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", default=list(MODELS), help="masked, causal, or folders of base models")
    parser.add_argument("--features", type=int, default=3, help="of number, gender and sentiment, the first so many")
    parser.add_argument("--rows", type=int, default=ROWS_PER_CLASS, help="test rows of each class")
    parser.add_argument("--texts", type=int, default=TEXTS, help="neutral texts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    for base_name in options.bases:
        measured = bench_base(
            Path(base_name).name, MODELS.get(base_name, Path(base_name)),
            lambda text: print(text, file=sys.stderr, flush=True),
            options.features, coarse=True, rows_per_class=options.rows, texts=options.texts,
        )  # fmt: skip
        print(table(measured) + "\n" + json.dumps(measured), flush=True)
