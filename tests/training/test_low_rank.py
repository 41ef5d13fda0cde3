"""Directions of low rank, learned by sketches or cut in the end, on the bundled masked model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradiend_hub import Direction, GradiendConfig, GradiendModel
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.evaluation import Report
from gradiend_hub.solvers import SketchSolver, Solution
from gradiend_hub.training.natural import Edits, Outcome
from gradiend_hub.training.run import TrainingRun
from tests.training.support import arguments, trainer_of
from tests.training.test_solvers import correlation, trained
from tests.training.test_trainer import StopAt


def whole(direction: Direction, what: str = "decoder") -> Tensor:
    """A vector of a direction with all its coordinates, in one order of the parameters."""
    parts = [direction.parameters[name] for name in sorted(direction.parameters)]
    return torch.cat([part.dense(getattr(part, what)).flatten() for part in parts])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


def test_learned_by_sketches(
    masked_path: Path, pronouns: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nearly what whole class means are, resumed bit for bit, and saved by factors."""
    trainer = trained(masked_path, tmp_path / "through", pronouns, solver="closed_form", rank=8)
    assert isinstance(trainer.model, SketchSolver)
    assert correlation(trainer) > 0.9
    exact = trained(masked_path, tmp_path / "exact", pronouns, solver="closed_form", comparable=False)
    assert cosine(whole(trainer.direction), whole(exact.direction)) > 0.97
    for part in trainer.direction.parameters.values():
        assert isinstance(part.decoder, Factors) == (len(part.shape) > 1)
        assert part.rank in (None, 8)
    folder = tmp_path / "stopped"
    args = {"max_steps": 24, "save_strategy": "steps", "save_steps": 8, "solver": "closed_form", "rank": 8}
    stopped = trainer_of(masked_path, folder, pronouns, args=arguments(folder, **args), layers="3",
                         callbacks=[StopAt(16)])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    other = trainer_of(masked_path, folder, pronouns, args=arguments(folder, **args | {"rank": 4}), layers="3")
    with pytest.raises(TrainingError, match="rank is '8', expected '4'"):
        other.train(resume_from_checkpoint=True)
    resumed = trainer_of(masked_path, folder, pronouns, args=arguments(folder, **args), layers="3")
    resumed.train(resume_from_checkpoint=True)
    assert all(
        torch.equal(whole(resumed.direction, what), whole(trainer.direction, what))
        for what in ("decoder", "decoder_bias", "encoder")
    )
    trainer.save_model(str(tmp_path / "saved"))
    assert Report.load(tmp_path / "saved").training["rank"] == 8
    loaded = GradiendModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(whole(loaded.direction), whole(trainer.direction))
    stored = (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size
    assert stored < 0.2 * 8 * whole(trainer.direction).numel()
    rows = list(pronouns["validation"].select(range(8)))
    mine = trainer._run.encode(trainer._best().solution, trainer._run.data.eval_rows[:8])[0]
    capsys.readouterr()
    torch.testing.assert_close(loaded.encode(rows), mine, rtol=1e-3, atol=1e-3)
    assert "one at a time" not in capsys.readouterr().err  # the side-cars of norms do not hide them


@pytest.mark.parametrize("pair", [("factual", "diff"), ("diff", "diff"), ("alternative", "alternative")])
def test_every_source_and_target(masked_path: Path, pronouns: Any, tmp_path: Path, pair: tuple[str, str]) -> None:
    source, target = pair
    found = []
    for number, options in enumerate(({"rank": 6}, {"comparable": False})):
        args = arguments(tmp_path / str(number), max_steps=8, solver="closed_form", **options)
        trainer = trainer_of(
            masked_path, tmp_path, pronouns, args=args, layers="3", source=source, target=target,
            train_dataset=pronouns["train"].select(range(64)),
        )  # fmt: skip
        trainer.train()
        found.append(trainer.direction)
    assert cosine(whole(found[0]), whole(found[1])) > 0.9


def test_gradients_out_of_a_store(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    """The sketches of whole gradients are those of their factors, but for the weight of batches that are not full."""
    options = {"solver": "closed_form", "rank": 4, "max_steps": 6}
    store = str(tmp_path / "store")
    first = trained(masked_path, tmp_path / "first", pronouns, gradient_store=store, **options)
    again = trained(masked_path, tmp_path / "again", pronouns, gradient_store=store, **options)
    assert torch.equal(whole(first.direction), whole(again.direction))
    by_factors = trained(masked_path, tmp_path / "factors", pronouns, **options)
    assert cosine(whole(first.direction), whole(by_factors.direction)) > 0.98


def test_identity_rows_need_no_gradient(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    plain = trained(masked_path, tmp_path / "plain", pronouns, solver="closed_form", rank=4, max_steps=-1)
    drawn = trained(
        masked_path, tmp_path / "drawn", pronouns, solver="closed_form", rank=4, max_steps=-1, identity_rows=60
    )
    assert int(drawn.model.counts[2]) > 0 == int(plain.model.counts[2])
    assert cosine(whole(plain.direction, "encoder"), whole(drawn.direction, "encoder")) > 1 - 1e-5
    bias = [float(whole(trainer.direction, "decoder_bias").norm()) for trainer in (drawn, plain)]
    assert bias[0] < bias[1]


@pytest.mark.parametrize("solver", ["autoencoder", "ridge"])
def test_what_other_solvers_learn_is_cut(masked_path: Path, pronouns: Any, tmp_path: Path, solver: str) -> None:
    trainer = trained(masked_path, tmp_path / "cut", pronouns, solver=solver, rank=4)
    plain = trained(masked_path, tmp_path / "plain", pronouns, solver=solver)
    assert {part.rank for part in trainer.direction.parameters.values()} == {None, 4}
    assert correlation(trainer) > 0.9
    for what in ("decoder", "encoder"):
        mine, theirs = whole(trainer.direction, what), whole(plain.direction, what)
        matrices = [p for p in plain.direction.parameters.values() if len(p.shape) > 1]
        assert cosine(mine, theirs) > 0.8
        name, part = next((n, p) for n, p in plain.direction.parameters.items() if p is matrices[0])
        u, s, v = torch.linalg.svd(part.dense(getattr(part, what)), full_matrices=False)
        best = (u[:, :4] * s[:4]) @ v[:4]
        cut = trainer.direction.parameters[name]
        assert cosine(cut.dense(getattr(cut, what)).flatten(), best.flatten()) > 1 - 1e-4


class NoLongVector(TorchDispatchMode):
    """Refuses to allocate as many numbers as a vector over all coordinates has; the base model's own are no allocation."""

    def __init__(self, size: int, model: torch.nn.Module) -> None:
        super().__init__()
        self.size = size
        self.known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.size / 100:
                try:
                    storage = tensor.untyped_storage()
                    own, stored = storage.data_ptr() in self.known, storage.nbytes()
                except RuntimeError:  # a wrapper of torch.func's, whose own tensor is seen, too
                    continue
                if not own:
                    self.largest = max(self.largest, stored // 4)
                    # of the storage itself, pytest would print each byte
                    assert stored < 4 * self.size, f"{function} allocates {stored:,} bytes"
        return result


@pytest.fixture
def long_vectors(masked_path: Path, pronouns: Any, tmp_path: Path) -> Iterator[Any]:
    """Makes a trainer of some rank on all blocks, and what refuses vectors of its length."""

    def make(**options: Any) -> tuple[Any, NoLongVector]:
        args = arguments(tmp_path, max_steps=4, solver="closed_form", per_device_train_batch_size=4, **options)
        trainer = trainer_of(
            masked_path, tmp_path, pronouns, args=args, train_dataset=pronouns["train"].select(range(16)),
            eval_dataset=pronouns["validation"].select(range(8)),
        )  # fmt: skip
        return trainer, NoLongVector(trainer.scope.size, trainer.base_model)

    yield make


def test_no_vector_of_all_coordinates_is_ever_allocated(long_vectors: Any) -> None:
    """Learning, orienting and encoding, down to the finished direction."""
    trainer, refuses = long_vectors(rank=2)
    assert trainer.model.sums.numel() < trainer.scope.size
    with refuses:
        trainer.train()
        direction = trainer.direction
    assert 0 < refuses.largest < trainer.scope.size
    assert sum(part.decoder.numel() for part in direction.parameters.values()) < trainer.scope.size / 10


def test_whole_class_means_would_be_noticed(long_vectors: Any) -> None:
    trainer, refuses = long_vectors(comparable=False)
    with pytest.raises(AssertionError, match="allocates"), refuses:
        trainer.train()


def test_dry_run(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    def predicted(**options: Any) -> Any:
        args = arguments(tmp_path, max_steps=8, solver="closed_form", **options)
        return trainer_of(masked_path, tmp_path, pronouns, args=args).dry_run()

    low, full = predicted(rank=2), predicted(comparable=False)
    assert low.state_bytes < full.state_bytes / 5
    assert low.gradient_bytes < full.gradient_bytes / 20
    assert low.saved_bytes <= full.saved_bytes
    assert low.steps == full.steps == 8
    assert "choosing the decoder" not in low.later_seconds


def test_a_dry_run_counts_the_choice_among_decoders(
    masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path
) -> None:
    args = arguments(tmp_path, max_steps=8, solver="closed_form", decoder="natural", rank=2)
    trainer = trainer_of(
        masked_path, tmp_path, pronouns, neutral, args=args, layers="3", neutral_train_dataset=neutral.select(range(10)),
        eval_dataset=pronouns["validation"].select(range(20)),
    )  # fmt: skip
    seconds = trainer.dry_run().later_seconds
    assert seconds["choosing the decoder"] > 0 and "saving" in seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected"),
        ({"rank": -2}, "rank: expected"),
        ({"rank": 2.5}, "rank: expected"),
        ({"rank": True}, "rank: expected"),
        ({"rank": 4, "final_density": 0.1}, "rank=4 and final_density=0.1: choose one"),
        ({"decoder": "natural", "final_density": 0.1}, "natural.* has a rank, and final_density=0.1 keeps few"),
        (
            {"decoder": "damage_aware", "rank": 4, "solver": "closed_form"},
            "Use decoder='natural'|Use decoder=\"natural\"",
        ),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize("solver", ["closed_form", "autoencoder"])
def test_ranks_that_do_not_fit_the_scope(masked_path: Path, pronouns: Any, tmp_path: Path, solver: str) -> None:
    args = arguments(tmp_path, solver=solver, rank=300)
    with pytest.raises(
        ConfigError, match="rank: expected 1…224, the longest smaller side of a matrix in scope, found 300"
    ):
        trainer_of(masked_path, tmp_path, pronouns, args=args)
    args = arguments(tmp_path, solver=solver, rank=4)
    config = GradiendConfig(feature_classes=["3SG", "3PL"], density=0.1, layers="3")
    with pytest.raises(ConfigError, match=r"rank=4 and density=0\.1: choose one"):
        trainer_of(masked_path, tmp_path, pronouns, args=args, config=config)
    config = GradiendConfig(feature_classes=["3SG", "3PL"], scope="*.bias")
    with pytest.raises(
        ConfigError, match=r"rank=4: expected a matrix in scope, found vectors alone, .*LayerNorm\.bias"
    ):
        trainer_of(masked_path, tmp_path, pronouns, args=args, config=config)


def test_fewer_rows_than_the_rank(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    """The mean of four rows of a few tokens each has no more ranks than tokens; the rest is zero, not noise."""
    args = arguments(tmp_path, max_steps=-1, solver="closed_form", rank=64)
    rows = pronouns["train"].filter(lambda row: row["factual_class"] == "3SG").select(range(2))
    others = pronouns["train"].filter(lambda row: row["factual_class"] == "3PL").select(range(2))
    trainer = trainer_of(masked_path, tmp_path, pronouns, args=args, layers="3", train_dataset=[*rows, *others])
    trainer.train()
    assert whole(trainer.direction).isfinite().all()
    exact = trainer_of(
        masked_path, tmp_path / "exact", pronouns, layers="3", train_dataset=[*rows, *others],
        args=arguments(tmp_path / "exact", max_steps=-1, solver="closed_form", comparable=False),
    )  # fmt: skip
    exact.train()
    assert cosine(whole(trainer.direction), whole(exact.direction)) > 0.999


def test_rows_without_a_finite_gradient_leave_no_trace(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    """As in pairs: the row is named and left out, and the direction is that of the others."""
    rows = list(pronouns["train"].select(range(24)))
    tail = " One more sentence makes it longer than all of the others are." * 3
    spoiled = [{**row, "masked": row["masked"] + tail} if i == 5 else row for i, row in enumerate(rows)]

    def learned(folder: str, data: list[dict[str, Any]]) -> Any:
        args = arguments(tmp_path / folder, max_steps=-1, solver="closed_form", rank=4, per_device_train_batch_size=1)
        trainer = trainer_of(
            masked_path, tmp_path, pronouns, args=args, layers="3", train_dataset=data,
            eval_dataset=pronouns["validation"].select(range(16)),
        )  # fmt: skip
        if folder == "bad":  # a position that this row alone reaches has no finite embedding
            lengths = [example.cost for example in trainer.train_dataset.examples]
            position = lengths[5] - 1
            assert max(lengths[:5] + lengths[6:]) <= position
            with torch.no_grad():
                trainer.base_model.bert.embeddings.position_embeddings.weight[position] = float("nan")
        trainer.train()
        return trainer

    bad = learned("bad", spoiled)
    assert len(bad._skipped.rows) == 1
    good = learned("good", [row for i, row in enumerate(rows) if i != 5])
    # rows of the smaller class are read again, so that one more or less may be
    assert abs(int(bad.model.counts.sum()) - int(good.model.counts.sum())) <= 1
    assert whole(bad.direction).isfinite().all()
    assert cosine(whole(bad.direction), whole(good.direction)) > 0.95


@pytest.mark.slow
def test_a_natural_decoder(masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    """It keeps the rank, is measured beside the plain one, and is no worse on what it was chosen by."""
    args = arguments(tmp_path, max_steps=12, solver="closed_form", rank=8, decoder="natural", quality_tokens=120)
    with pytest.raises(ConfigError, match="decoder='natural' needs neutral_train_dataset"):
        trainer_of(masked_path, tmp_path, pronouns, neutral, args=args, layers="3")
    trainer = trainer_of(
        masked_path, tmp_path, pronouns, neutral, args=args, layers="3",
        neutral_train_dataset=neutral.select(range(20, 40)), eval_dataset=pronouns["validation"].select(range(12)),
    )  # fmt: skip
    trainer.train()
    direction = trainer.direction
    assert not trainer._run._probes
    assert {part.rank for part in direction.parameters.values()} == {None, 8}
    effects = trainer.report.training["effect_by_damping"]
    assert {"plain +", "plain -", "10/10 +", "10/10 -", "natural", "plain"} <= effects.keys()
    options = {"solver": "closed_form", "rank": 8, "max_steps": 12}
    plain = trainer_of(
        masked_path, tmp_path / "plain", pronouns, args=arguments(tmp_path / "plain", **options), layers="3",
        eval_dataset=pronouns["validation"].select(range(12)),
    )  # fmt: skip
    plain.train()
    assert torch.equal(whole(direction, "encoder"), whole(plain.direction, "encoder"))
    kinds = [kind for kind in ("plain", "natural", "natural, one for both signs") if kind in effects]
    chosen = max(kinds, key=effects.__getitem__)
    assert torch.equal(whole(direction), whole(plain.direction)) == (chosen == "plain")
    without = effects["without bias"] > effects["with bias"]
    assert (len(kinds) == 3) == without  # one decoder for both signs needs edits that are opposites
    assert direction.has_bias == (chosen == "natural" or not without)


@pytest.mark.parametrize("better", ["with", "without"])
def test_the_bias_stays_where_it_has_more_effect(
    masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    """Without it, the edit at −1 is minus that at 1, and one LoRA holds both signs."""

    def measure(run: TrainingRun, edits: Edits, starts: Mapping[int, Any], solution: Solution) -> dict[int, Outcome]:
        return {sign: Outcome(0.1 + 0.5 * effect(run, solution), 1.0) for sign in starts}  # whatever the damping

    def effect(run: TrainingRun, solution: Solution, *_: Any) -> float:
        return float((solution.decoder_bias is None) == (better == "without"))

    monkeypatch.setattr(TrainingRun, "effect", effect)
    monkeypatch.setattr(TrainingRun, "_measure", measure)
    trainer = trainer_of(
        masked_path, tmp_path, pronouns, neutral, layers="3",
        args=arguments(tmp_path, max_steps=4, solver="closed_form", rank=4, decoder="natural", controls=0),
        neutral_train_dataset=neutral.select(range(20, 30)), eval_dataset=pronouns["validation"].select(range(12)),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model = GradiendModel.from_pretrained(tmp_path / "saved")
    assert trainer.direction.has_bias == model.direction.has_bias == (better == "with")
    written = model.to_lora(tmp_path / "lora")
    assert len(written.places) == (2 if better == "with" else 1)
