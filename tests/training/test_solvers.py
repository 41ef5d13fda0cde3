"""Solvers, runs and pruning as the trainer offers them, end to end on the bundled masked model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback

from gradiend_hub import Direction, GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.data import read_rows
from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.evaluation import Report
from gradiend_hub.objectives import Example, other_examples
from gradiend_hub.solvers import DAMPINGS
from gradiend_hub.training import cost
from gradiend_hub.training.streams import row_sampler
from tests.training.support import CLASSES, arguments, trainer_of
from tests.training.test_trainer import StopAt, same_direction


def trained(
    base: Path, folder: Path, data: Any, *, density: float = 1.0, source: str = "alternative", **args: Any
) -> GradiendTrainer:
    options = {"max_steps": 24, "logging_steps": 5, **args}
    config = {"layers": "3", "density": density, "source": source}
    trainer = trainer_of(base, folder, data, args=arguments(folder, **options), **config)
    trainer.train()
    return trainer


def correlation(trainer: GradiendTrainer) -> float:
    """On rows that it has not seen, from its encodings alone."""
    return float(trainer._read_encoder(trainer._run.data.eval_rows)["correlation"])


@pytest.mark.parametrize("solver", ["closed_form", "ridge"])
def test_a_solver_without_an_optimizer(masked_path: Path, pronouns: Any, tmp_path: Path, solver: str) -> None:
    trainer = trained(masked_path, tmp_path / "through", pronouns, solver=solver)
    assert correlation(trainer) > 0.9
    assert trainer.report.training["solver"] == solver
    # another learning rate and seed of the solver's start mean nothing; a resumed run ends in the same bits
    folder = tmp_path / "stopped"
    args = {"max_steps": 24, "save_strategy": "steps", "save_steps": 8, "solver": solver, "learning_rate": 7.0}
    stopped = trainer_of(masked_path, folder, pronouns, args=arguments(folder, **args), layers="3",
                         callbacks=[StopAt(16)])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer_of(masked_path, folder, pronouns, args=arguments(folder, **args), layers="3")
    resumed.train(resume_from_checkpoint=True)
    assert same_direction(resumed.direction, trainer.direction)


def test_runs_share_a_stream_and_the_best_is_kept(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    rates = [1e-5, 0.1]  # at the first nothing is learned
    trainer = trained(masked_path, tmp_path / "both", pronouns, num_runs=2, learning_rates=rates, density=0.05)
    direction = trainer.direction
    runs = trainer.report.seeds
    assert [run["seed"] for run in runs] == [42, 43, 42, 43]
    assert [run["learning_rate"] for run in runs] == [1e-5, 1e-5, 0.1, 0.1]
    best = max(runs, key=lambda run: run["correlation"])
    assert [run for run in runs if run["chosen"]] == [best] and best["learning_rate"] == 0.1
    alone = trained(masked_path, tmp_path / "alone", pronouns, density=0.05)  # the third run, by itself
    solver: Any = trainer.model
    solutions = [trainer._run.read(solution, trainer.scope).solution for solution in solver.solutions()]
    other = torch.cat([part.decoder for part in alone.direction.parameters.values()])
    torch.testing.assert_close(solutions[2].decoder, other, rtol=1e-3, atol=1e-8)
    assert direction.encoder_bias == solutions[runs.index(best)].encoder_bias
    assert 0 <= trainer.report.training["encoder_overlap"] <= 1


def test_pruning_before_training(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    trainer = trained(masked_path, tmp_path, pronouns, density=0.01)
    whole = sum(p.numel() for n, p in trainer.base_model.named_parameters() if ".layer.3." in n)
    assert trainer.direction.entries == trainer.model.size == round(0.01 * whole)
    assert all(part.indices is not None for part in trainer.direction.parameters.values())
    assert correlation(trainer) > 0.9
    trainer.save_model(str(tmp_path / "saved"))
    assert Report.load(tmp_path / "saved").training["density"] == 0.01
    model = GradiendModel.from_pretrained(tmp_path / "saved")
    assert model.receipt.entries == trainer.direction.entries
    assert model.verify().passed
    snr = trained(masked_path, tmp_path / "snr", pronouns, density=0.01, importance="snr", importance_rows=16)
    assert snr.direction.entries == trainer.direction.entries
    assert not same_direction_names(snr.direction, trainer.direction)


def same_direction_names(first: Direction, second: Direction) -> bool:
    """Whether both keep the same coordinates."""
    kept = [{n: p.indices for n, p in d.parameters.items() if p.indices is not None} for d in (first, second)]
    return kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])


def test_identity_rows_are_learned_as_silence(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    """They are a third kind of batch whose label and target are 0; none of them is at a filler of the rows."""
    rows = read_rows(pronouns["train"].select(range(320)), CLASSES)
    trainer = trained(masked_path, tmp_path / "a", pronouns, solver="ridge", max_steps=12, identity_rows=40)
    assert trainer.report.training["identity_rows"] == 40
    solver: Any = trainer.model
    assert solver.labels[:12].tolist() == [1, -1, 0] * 4 or solver.labels[:12].tolist() == [-1, 1, 0] * 4
    fillers = {i for row in rows for i in trainer.objective.outputs(row, row.factual)}
    examples = other_examples(trainer.objective, rows[:50])
    assert len(examples) > 40 and all(e.factual == e.alternative for e in examples)
    assert fillers.isdisjoint(e.factual.labels[0] for e in examples)
    diff = trained(masked_path, tmp_path / "b", pronouns, source="diff", max_steps=6, identity_rows=20)
    assert diff.report.training["identity_rows"] == 20  # such a row's own `diff` is zero; its factual part is read


def test_a_dry_run_of_more_identity_rows_than_others(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    """A batch of them has no gradient to tell, so that none of them stands for a typical one."""
    args = arguments(tmp_path, solver="closed_form", identity_rows=2000, max_steps=5)
    rows = pronouns["train"].select(range(100))
    trainer = trainer_of(masked_path, tmp_path, pronouns, args=args, layers="3", train_dataset=rows)
    assert trainer.dry_run().steps == 5


def test_a_dry_run_takes_the_memory_of_identity_rows_into_account(
    causal_path: Path, pronouns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A causal model reads a row up to its slot, and an identity row up to any token of the text."""
    seen: list[Any] = []
    estimate = cost.estimate
    monkeypatch.setattr(cost, "estimate", lambda *given: seen.append(given[-1]) or estimate(*given))
    args = arguments(tmp_path, solver="closed_form", identity_rows=400, max_steps=5)
    rows = [row | {"masked": row["masked"] + " And so it went on." * 3} for row in pronouns["train"].select(range(32))]
    trainer = trainer_of(causal_path, tmp_path, pronouns, args=args, layers="3", train_dataset=rows)
    trainer.dry_run()
    dataset, batches = trainer._run.data.dataset, list(row_sampler(trainer._run))
    tokens = [len(some) * max(dataset.examples[i].cost for i in some) for some in batches]
    assert seen[0].largest.factual.inputs["input_ids"].numel() == max(tokens)


def test_early_stopping_by_correlation_keeps_the_best(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    args = arguments(
        tmp_path, max_steps=80, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
        load_best_model_at_end=True, per_device_train_batch_size=8,
    )  # fmt: skip
    stop = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.001)
    trainer = trainer_of(masked_path, tmp_path, pronouns, args=args, layers="3", callbacks=[stop])
    trainer.train()
    evaluated = {r["step"]: r["eval_correlation"] for r in trainer.state.log_history if "eval_correlation" in r}
    assert trainer.state.global_step < 80
    assert trainer.state.best_metric == evaluated[trainer.state.best_global_step] == max(evaluated.values())
    assert correlation(trainer) == pytest.approx(trainer.state.best_metric, abs=1e-6)


@pytest.mark.slow
def test_a_gradient_store_replaces_the_base_model(
    masked_path: Path, pronouns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"gradient_store": str(tmp_path / "store"), "data_seed": 2, "identity_rows": 30, "max_steps": 33}
    plain = trained(masked_path, tmp_path / "plain", pronouns, **{**store, "gradient_store": None})
    first = trained(masked_path, tmp_path / "first", pronouns, **store)
    assert same_direction(first.direction, plain.direction)  # the first epoch, bit for bit

    def none_left(*_: Any, **__: Any) -> None:
        raise AssertionError("a gradient was computed again")

    with monkeypatch.context() as patch:
        patch.setattr("gradiend_hub.gradients.faults.read_pair", none_left)
        again = trained(masked_path, tmp_path / "again", pronouns, **store)
        assert same_direction(again.direction, plain.direction)
        other = trained(masked_path, tmp_path / "other", pronouns, **{**store, "solver": "closed_form", "seed": 9})
        longer = trained(
            masked_path, tmp_path / "longer", pronouns, **{**store, "max_steps": 70}
        )  # two epochs and more
    assert correlation(other) > 0.85 and correlation(longer) > 0.9
    with pytest.raises(TrainingError, match=r"was written for something else: .*composition is"):
        trained(masked_path, tmp_path / "wrong", pronouns, **{**store, "data_seed": 1})
    with pytest.raises(TrainingError, match=r"was written for something else: .*scope is"):
        trained(masked_path, tmp_path / "narrow", pronouns, **store, density=0.5)


def test_a_dry_run_predicts_and_changes_nothing(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    options = {"max_steps": 12, "gradient_store": str(tmp_path / "store")}
    trainer = trainer_of(masked_path, tmp_path / "a", pronouns, args=arguments(tmp_path / "a", **options), layers="3")
    predicted = trainer.dry_run()
    assert not (tmp_path / "store").exists() and not list((tmp_path / "a").iterdir())
    assert predicted.steps == 12
    # weights, their derivatives and two moments; four means of halves; two flags of a byte
    assert predicted.state_bytes == pytest.approx((3 * 4 + 4 + 0.5) * 4 * trainer.scope.size, rel=0.001)
    assert predicted.learning_seconds == pytest.approx(12 * predicted.step_seconds)
    assert predicted.later_seconds.keys() == {"choosing the direction", "saving", "evaluating"}
    assert predicted.seconds == pytest.approx(predicted.learning_seconds + sum(predicted.later_seconds.values()))
    assert predicted.saved_bytes == 12 * trainer.scope.size  # no checkpoints are asked for
    trainer.train()
    later = trainer_of(masked_path, tmp_path / "d", pronouns, layers="3", test_dataset=pronouns["test"].select(range(8)),
                       args=arguments(tmp_path / "d", **options, eval_strategy="steps", eval_steps=4)).dry_run()  # fmt: skip
    assert later.reads == 0  # all of them are in the store
    assert later.later_seconds.keys() == {*predicted.later_seconds, "between the steps", "testing"}
    assert later.learning_seconds == pytest.approx(12 * later.learn_seconds)
    assert "12 of them from the store" in str(later)
    stored = sum(f.stat().st_size for f in (tmp_path / "store").glob("*.safetensors"))
    assert predicted.store_bytes == pytest.approx(stored, rel=0.01)
    plain = trained(masked_path, tmp_path / "b", pronouns, max_steps=12)
    trainer_again = trained(masked_path, tmp_path / "c", pronouns, **options)
    assert same_direction(trainer_again.direction, plain.direction)


def test_rows_without_a_finite_loss_are_named_and_left_out(
    masked_path: Path, pronouns: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pronouns["train"].select(range(120)).to_list()
    trainer = trainer_of(masked_path, tmp_path, pronouns, train_dataset=rows, layers="3",
                         args=arguments(tmp_path, max_steps=8))  # fmt: skip
    rare = trainer.objective.tokenizer("zebra", add_special_tokens=False).input_ids[0]
    assert all(rare not in e.factual.inputs["input_ids"] for e in trainer.train_dataset.examples)
    bad = trainer.train_dataset.examples[7].factual
    ids = bad.inputs["input_ids"]
    slots = replace(bad, inputs={**bad.inputs, "input_ids": (*ids[:-1], rare, ids[-1])}, cost=bad.cost + 1)
    trainer.train_dataset.examples[7] = Example(slots, replace(slots, labels=bad.labels))
    embeddings = trainer.base_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _m, args, out: out.masked_fill((args[0] == rare)[..., None], torch.nan))
    with caplog.at_level("WARNING"):
        trainer.train()
    named = [r.message for r in caplog.records if "Row left out" in r.message]
    assert len(named) == 1 and "its loss is not finite" in named[0] and "zebra"[:2] in named[0]
    assert all(p.decoder.isfinite().all() for p in trainer.direction.parameters.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"solver": "adam"},
            "Arguments.solver: expected one of autoencoder, closed_form, ridge, found 'adam'",
        ),
        ({"solver": "ridge", "num_runs": 2}, "has no seeds"),
        ({"num_runs": 0}, "num_runs: expected an integer of 1 or more, found 0"),
        ({"num_runs": 2.5}, "num_runs: expected an integer of 1 or more, found 2.5"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected an integer of 1 or more"),
        ({"max_length": -3}, "max_length: expected .*an integer of 1 or more"),
        ({"controls": -1}, "controls: expected an integer of 0 or more"),
        ({"learning_rates": [0.1, -1.0]}, r"learning_rates\[1\]: expected a number > 0"),
        ({"learning_rates": [float("nan")]}, r"learning_rates\[0\]: expected a number > 0, found nan"),
        ({"learning_rates": []}, "learning_rates: expected a list of positive numbers"),
        ({"learning_rates": 0.1}, "learning_rates: expected a list of positive numbers, found 0.1"),
        ({"learning_rate": 0.0, "learning_rates": [0.1]}, "learning_rate: expected a number > 0"),
        ({"bf16": True}, "bf16=True has no meaning for a direction: the solver works in float32"),
        (
            {"torch_compile": True},
            "torch_compile=True has no meaning for a direction: the base model runs as it is given",
        ),
        ({"decoder": "kind"}, "decoder: expected one of"),
        ({"final_density": 0.0}, r"final_density: expected a number in \(0, 1\]"),
        ({"goal": "harm"}, "goal: expected one of strengthen, debias"),
        ({"importance": "l2"}, "importance: expected one of mean, snr"),
        ({"gradient_store_dtype": "int8"}, "gradient_store_dtype: expected one of float32"),
        ({"identity_rows": -1}, "identity_rows: expected an integer of 0 or more"),
    ],
)
def test_what_cannot_work(
    masked_path: Path, pronouns: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        GradiendTrainer(
            masked_path, GradiendConfig(feature_classes=CLASSES), arguments(tmp_path, **options),
            train_dataset=pronouns["train"].select(range(60)),
        )  # fmt: skip


@pytest.fixture
def run(masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> Callable[..., GradiendTrainer]:
    """Trains on two layers, with sentences whose damage a decoder may avoid."""
    sentences = neutral.filter(lambda row: row["split"] == "test").select(range(12))

    def trained(name: str, **args: Any) -> GradiendTrainer:
        options = arguments(tmp_path / name, max_steps=24, controls=0, quality_tokens=100, **args)
        trainer = trainer_of(masked_path, tmp_path / name, pronouns, neutral, args=options, layers="2-3",
                             neutral_train_dataset=sentences,
                             eval_dataset=pronouns["validation"].select(range(16)))  # fmt: skip
        trainer.train()
        return trainer

    return trained


def test_a_damage_aware_decoder(run: Callable[..., GradiendTrainer]) -> None:
    plain, mean, fisher = (run(name, decoder=name) for name in ("solver", "mean", "damage_aware"))
    closed = run("closed", solver="closed_form")
    scale = closed.direction.norm(1, 0) / mean.direction.norm(1, 0)  # its own feature values are ±0.9 on training rows
    assert 0.3 < scale < 1.3
    for name, part in closed.direction.parameters.items():  # class means are those of the closed form
        found = mean.direction.parameters[name]
        torch.testing.assert_close(found.decoder * scale, part.decoder, rtol=1e-4, atol=1e-7)
        assert found.encoder is not None and torch.equal(found.encoder, plain.direction.parameters[name].encoder)
    fisher_direction = fisher.direction
    by_damping = fisher.report.training["effect_by_damping"]
    biases = ("with bias", "without bias")
    assert fisher_direction.has_bias == (by_damping[biases[0]] >= by_damping[biases[1]])
    tried = {damping: effect for damping, effect in by_damping.items() if damping not in biases}
    assert list(tried) == [str(damping) for damping in DAMPINGS[: len(tried)]]
    assert len(tried) == len(DAMPINGS) or list(tried.values())[-1] < max(tried.values())
    assert not same_direction(fisher_direction, mean.direction)
    assert fisher_direction.norm(1, 0) == pytest.approx(mean.direction.norm(1, 0), rel=1e-4)


@pytest.mark.slow
def test_a_damage_aware_decoder_may_be_cut(run: Callable[..., GradiendTrainer]) -> None:
    sparse = run("sparse", decoder="damage_aware", final_density=0.02)
    assert sparse.direction.entries == round(0.02 * sparse.scope.size)
    assert sparse.evaluate()["eval_correlation"] > 0.9
    sparse.save_model()
    assert GradiendModel.from_pretrained(sparse.args.output_dir).verify().passed


def test_what_is_kept_in_the_end_is_the_largest(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    whole = trained(masked_path, tmp_path / "whole", pronouns, density=0.1)
    part = trained(masked_path, tmp_path / "part", pronouns, density=0.1, final_density=0.25)
    kept = part.direction.to_sparse(entries=part.direction.entries)
    expected = whole.direction.to_sparse(entries=round(0.25 * whole.scope.size))
    assert same_direction_names(kept, expected)


def test_fisher_needs_sentences(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs neutral_train_dataset"):
        trained(masked_path, tmp_path, pronouns, decoder="damage_aware")
