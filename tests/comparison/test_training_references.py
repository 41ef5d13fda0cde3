"""What a training leaves for comparisons: controls, halves and the gradient, against plain recomputation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import REFERENCES_FILE
from gradiend_hub.artifact.references import References
from gradiend_hub.comparison.members import Member
from gradiend_hub.evaluation import Report
from gradiend_hub.gradients import GradientReader, read_pair
from gradiend_hub.solvers import Contrasts, Shard, Sketching, SketchSolver, SplitMeans
from tests.training.support import arguments, trainer_of

STEPS = 12


def trained(base: Any, folder: Path, data: Any, neutral: Any = None, **options: Any) -> Any:
    config = {name: options.pop(name) for name in ("source", "target", "scope", "density") if name in options}
    more = {name: options.pop(name) for name in ("neutral_train_dataset",) if name in options}
    defaults = {
        "solver": "closed_form",
        "max_steps": STEPS,
        "save_strategy": "steps",
        "per_device_train_batch_size": 16,
    }
    args = arguments(folder, **defaults | options)
    trainer = trainer_of(base, folder, data, neutral, args=args, **config, **more)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def closed(masked_path: Path, pronouns: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A closed-form training on one layer. Tests only read it."""
    return trained(masked_path, tmp_path_factory.mktemp("closed") / "out", pronouns, scope=["*.layer.2.*"])


def batches_by_hand(trainer: Any) -> list[tuple[torch.Tensor, float, list[int]]]:
    """Target gradients of the batches without a row of an earlier one, read anew."""
    found, dataset, seen = [], trainer.train_dataset, set()
    with GradientReader(trainer.base_model, trainer.scope) as reader:
        for step, rows in enumerate(trainer.get_train_dataloader()):
            if step == STEPS:
                break
            if seen & {*rows["rows"]}:
                continue
            seen |= {*rows["rows"]}
            batch = trainer.objective.collate_pairs([dataset.examples[i] for i in rows["rows"]])
            config = trainer.gradiend_config
            pair = read_pair(reader, trainer.objective, batch, source=config.source, target=config.target)
            found.append((pair[1], dataset.labels[rows["rows"][0]], rows["rows"]))
    return found


def test_contrasts_are_means_of_the_stream(closed: Any) -> None:
    batches = batches_by_hand(closed)
    found = closed.model.split_means.contrasts()
    assert found is not None and found.rows == sum(len(rows) for _, _, rows in batches)
    assert 128 < found.rows < 16 * STEPS  # the smaller class came round again, and those batches do not count
    by_class = [torch.stack([t for t, label, _ in batches if label == sign]).mean(0) for sign in (1, -1)]
    assert torch.allclose(found.mean, (by_class[0] - by_class[1]) / 2, rtol=1e-4, atol=1e-7)
    assert torch.equal(found.controls[0], found.half)
    assert torch.equal(found.controls[1], (found.first - found.second) / 2)


def test_each_half_is_a_direction_of_rows_of_its_own(closed: Any) -> None:
    means, batches = closed.model.split_means, batches_by_hand(closed)
    of_half: dict[int, list[int]] = {0: [], 1: []}
    parts: dict[tuple[int, int], list[torch.Tensor]] = {}
    seen = [0, 0]
    for vector, label, rows in batches:
        of = 0 if label > 0 else 1
        half = means._half(of, seen[of])
        seen[of] += 1
        of_half[half] += rows
        parts.setdefault((of, half), []).append(vector)
    assert not {*of_half[0]} & {*of_half[1]}
    contrasts, total = means.contrasts(), torch.zeros(())
    for half, found in enumerate((contrasts.first, contrasts.second)):
        plus, minus = (torch.stack(parts[of, half]).mean(0) for of in (0, 1))
        assert torch.allclose(found, (plus - minus) / 2, rtol=1e-4, atol=1e-7)
        total = total + (1 - 2 * half) * (plus + minus) / 4
    assert torch.allclose(contrasts.half, total, rtol=1e-4, atol=1e-7)


def test_rows_that_were_seen_count_once() -> None:
    means = SplitMeans(Shard(3), 8)
    for rows in ([0, 1], [2, 3]):
        means.observe(torch.ones(3), 1.0, rows)
        means.observe(-torch.ones(3), -1.0, [r + 4 for r in rows])
    before = means.means.clone()
    means.observe(torch.full((3,), 9.0), 1.0, [1, 2])
    means.observe(torch.full((3,), 9.0), 0.0, [1])
    assert torch.equal(means.means, before) and means.counts.tolist() == [[1, 1], [1, 1]]
    contrasts = means.contrasts()
    assert isinstance(contrasts, Contrasts) and contrasts.mean.tolist() == [1, 1, 1]
    assert max(float(c.abs().max()) for c in contrasts.controls) == 0


def test_too_few_batches_have_no_contrasts() -> None:
    means = SplitMeans(Shard(3), 4)
    means.observe(torch.ones(3), 1.0, [0])
    means.observe(torch.ones(3), -1.0, [1])
    assert means.contrasts() is None


def gradient_of(trainer: Any, references: References) -> Direction | None:
    """The plain gradient that the references of a trained direction stand for."""
    config = trainer.gradiend_config
    found = Member("it", trainer.direction, config, references=references).gradient
    if found is None:
        return None
    direction, factor = found
    parts = direction.parameters.items()
    return Direction({n: ParameterDirection(p.shape, p.decoder, indices=p.indices) for n, p in parts}) * factor


def test_an_artifact_has_its_references(closed: Any) -> None:
    folder = Path(closed.args.output_dir)
    references, report = References.find(folder), Report.load(folder).references
    assert references is not None and report is not None
    assert 128 < report.rows <= 16 * STEPS and 0.5 < report.split_half["cosine"] < 1
    assert len(references.controls) == 2 and all(c.entries == 4096 for c in references.controls)
    assert len(report.control["cosine"]) == 2 and {"overlap 1000", "spearman"} <= report.control.keys()
    # a closed form's decoder is the class-mean gradient itself, so that a factor says it all
    assert references.gradient is None and references.gradient_scale is not None
    gradient = gradient_of(closed, references)
    plain = closed.scope.split(closed.model.split_means.contrasts().mean)
    found = torch.cat([part.decoder for part in gradient.parameters.values()])
    exact = torch.cat([plain[name] for name in gradient.parameters])
    assert float(found @ exact / found.norm() / exact.norm()) > 0.97
    assert float(found @ exact) == pytest.approx(float(found @ found), rel=1e-4)  # as long as it is right


def test_the_controls_are_the_largest_entries_of_coin_directions(closed: Any) -> None:
    references = References.find(Path(closed.args.output_dir))
    whole = closed.model.split_means.contrasts().half
    for name, part in references.controls[0].parameters.items():
        found = closed.scope.split(whole)[name]
        assert torch.equal(part.decoder, found[part.indices.long()])
    kept = torch.cat([p.decoder for p in references.controls[0].parameters.values()])
    assert float(kept.abs().min()) >= float(whole.abs().topk(4097).values[-1])


def test_a_damage_aware_decoder_keeps_the_plain_gradient(
    masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path
) -> None:
    trainer = trained(
        masked_path, tmp_path / "out", pronouns, decoder="damage_aware", final_density=0.02, scope=["*.layer.1.*"],
        neutral_train_dataset=neutral.select(range(8)),
    )  # fmt: skip
    references, report = References.find(tmp_path / "out"), trainer.report.references
    assert references.gradient is not None and references.gradient_scale is None and report.gradient_cosine < 0.99
    plain = trainer.model.split_means.contrasts().mean
    direction = trainer.direction
    exact = sum(
        float(part.decoder.double() @ trainer.scope.split(plain)[name][part.indices.long()].double())
        for name, part in direction.parameters.items()
    )
    assert direction.inner(references.gradient, 1.0, 0.0) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(("source", "target"), [("factual", "diff"), ("diff", "diff"), ("alternative", "factual")])
def test_the_gradient_raises_the_first_class(
    source: str, target: str, masked_path: Path, pronouns: Any, tmp_path: Path
) -> None:
    trainer = trained(
        masked_path, tmp_path / "out", pronouns, source=source, target=target, max_steps=8, scope=["*.layer.3.*"]
    )
    references = References.find(tmp_path / "out")
    gradient = gradient_of(trainer, references)
    if target != "diff":
        assert gradient is None and trainer.report.references.gradient_cosine is None
        return
    assert trainer.gradiend_config.decoder_sign * trainer.direction.inner(gradient, 1.0, 0.0) > 0
    # an edit along the gradient makes words of the first class likelier
    rows = [r for r in pronouns["validation"] if r["factual_class"] == "3PL"][:12]
    examples = [trainer.objective.example(trainer.objective.read(row)) for row in rows]
    batch = trainer.objective.collate_pairs(examples)
    parameters = dict(trainer.base_model.named_parameters())

    def odds() -> float:
        with torch.no_grad():
            factual, alternative = trainer.objective.losses(trainer.base_model.eval(), batch)
        return float((factual - alternative).mean())  # log-odds of 3SG, the alternative of these rows

    before = odds()
    with torch.no_grad():
        for name, part in gradient.parameters.items():
            parameters[name] += 0.01 * part.dense(part.decoder) / gradient.norm()
    assert odds() > before


def test_a_training_may_go_without(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    trainer = trained(masked_path, tmp_path / "out", pronouns, comparable=False, max_steps=4, scope=["*.layer.0.*"])
    assert not (tmp_path / "out" / REFERENCES_FILE).exists() and trainer.report.references is None
    assert not hasattr(trainer.model, "split_means")


def test_references_travel_with_the_direction(closed: Any, tmp_path: Path) -> None:
    model = GradiendModel.from_pretrained(closed.args.output_dir, base_model=closed.base_model)
    model.save_pretrained(tmp_path / "copy")
    model.unload()
    one, other = (Path(f, REFERENCES_FILE).read_bytes() for f in (closed.args.output_dir, tmp_path / "copy"))
    assert one == other


def test_by_sketches_the_references_are_those_of_the_whole_gradients_at_a_rank(
    closed: Any, masked_path: Path, pronouns: Any, tmp_path: Path
) -> None:
    """A low-rank direction has its null and its ceiling, too, from the same halves of the same rows."""
    low = trained(masked_path, tmp_path / "low", pronouns, scope=["*.layer.2.*"], rank=16)
    whole, sketched = closed.model.contrasts(), low.model.contrasts()
    assert sketched.rows == whole.rows
    assert all(getattr(part, "rank", 0) <= 16 for vector in sketched.controls for part in vector.parts.values())
    flat = {name: _flat(getattr(sketched, name), low.scope) for name in ("mean", "first", "second", "half")}
    for name, found in flat.items():
        assert torch.cosine_similarity(found, getattr(whole, name), dim=0) > 0.9, name
    mean = (flat["first"] + flat["second"]) / 2  # the halves make up the whole, which is the decoder's own
    assert torch.cosine_similarity(mean, flat["mean"], dim=0) > 0.99
    folder = Path(low.args.output_dir)
    references, report = References.find(folder), Report.load(folder).references
    exact = Report.load(Path(closed.args.output_dir)).references
    assert references is not None and report is not None and exact is not None
    assert report.split_half["cosine"] == pytest.approx(exact.split_half["cosine"], abs=0.15)
    assert max(map(abs, report.control["cosine"])) < report.split_half["cosine"]
    assert len(references.controls) == 2 and all(c.entries == 4096 for c in references.controls)
    largest = _flat(sketched.half, low.scope).abs().topk(4096).values
    kept = torch.cat([part.decoder for part in references.controls[0].parameters.values()])
    torch.testing.assert_close(kept.abs().sort(descending=True).values, largest)


def _flat(vector: Any, scope: Any) -> torch.Tensor:
    return torch.cat([
        (part if isinstance(part, torch.Tensor) else part.dense()).flatten()
        for part in (vector.parts[name] for name in scope.parameters)
    ])  # fmt: skip


def test_a_checkpoint_from_before_there_were_halves(caplog: pytest.LogCaptureFixture) -> None:
    solver = SketchSolver(Sketching({"a": (40, 50)}, 2), 2000)
    old = {name: values.clone() for name, values in solver.state_dict().items()}
    solver.split_means = SplitMeans(Shard(solver.sketching.size), 4)
    solver.load_state_dict(old)
    assert solver.contrasts() is None and solver.state_dict().keys() == old.keys()
    assert "no halves of the rows" in caplog.text
