"""Suites: many directions from one stream, each the same as from its own gradients, and resumable at any point."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CARD_FILE, PROBES_FILE
from gradiend_hub.artifact.references import References
from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.gradients import GradientReader, read_pair
from gradiend_hub.solvers import ClosedFormSolver
from gradiend_hub.training import DirectionSuite
from gradiend_hub.training.suite_rows import SharedRows, pairs_of, redrawn
from tests.training.support import arguments

WORDS = {"man": ["man", "boy", "king"], "woman": ["woman", "girl", "queen"], "thing": ["house", "ship", "horse"]}
FRAMES = [
    "In the evening the {} was near to us and we saw it well.", "We were told that the {} had been there before.",
    "Nobody in the village knew the {} of that day.", "Last year the {} was far away from the town.",
    "They said the {} would be there in the morning.", "I saw the {} in the garden when the sun was low.",
    "Then they came to the {} that we had seen.", "It was the {} of which he had spoken to me.",
]  # fmt: skip
FIELDS = {"scope": ["*.layer.2.*"]}


def rows(frames: list[str] = FRAMES) -> list[dict[str, str]]:
    """Every text with every word, and a row for each alternative class."""
    found = []
    for frame in frames:
        for place in range(3):
            for of, to in permutations(WORDS, 2):
                found.append({"masked": frame.format("[MASK]"), "factual": WORDS[of][place], "factual_class": of,
                              "alternative": WORDS[to][place], "alternative_class": to})  # fmt: skip
    return found


def suite(base: Any, folder: Path, **options: Any) -> DirectionSuite:
    args = arguments(folder, solver="closed_form", max_steps=-1, per_device_train_batch_size=6, controls=1)
    return DirectionSuite(base, args, **{"train_dataset": rows(FRAMES[:6]), "config": FIELDS, **options})


@pytest.fixture(scope="module")
def base(masked_path: Path) -> Any:
    return load_base_model(masked_path)


@pytest.fixture(scope="module")
def made(base: Any, tmp_path_factory: pytest.TempPathFactory) -> DirectionSuite:
    """All pairs and a merged one, not evaluated. Tests only read it."""
    found = suite(
        base, tmp_path_factory.mktemp("suite") / "out", merged={"person": ["man", "woman"]},
        pairs=[("man", "woman"), ("man", "thing"), ("person", "thing")],
    )  # fmt: skip
    found.train()
    return found


def loaded(folder: Path) -> Direction:
    return Direction.load(folder, GradiendConfig.from_pretrained(str(folder)))


def same(one: Path, other: Path) -> bool:
    first, second = loaded(one).parameters, loaded(other).parameters
    return first.keys() == second.keys() and all(
        torch.equal(first[n].decoder, second[n].decoder) and torch.equal(first[n].encoder, second[n].encoder)
        for n in first
    )


def test_each_direction_is_that_of_its_own_gradients(made: DirectionSuite, base: Any) -> None:
    trainer = made._trainer(next(pair for pair in made.pairs if pair.name == "person_thing"))
    solver = ClosedFormSolver(trainer.scope.size)
    members = {"man": "person", "woman": "person", "thing": "thing"}
    with GradientReader(base, trainer.scope) as reader:
        for batch in made.rows.batches(6, trainer.args.row_seed):
            for alternative, numbers in batch.rows.items():
                if members[alternative] == members[batch.factual_class]:
                    continue
                examples = [trainer.objective.example(trainer.objective.read(made.rows.records[i])) for i in numbers]
                pair = read_pair(reader, trainer.objective, trainer.objective.collate_pairs(examples))
                solver.observe(*pair, 1.0 if members[alternative] == "person" else -1.0)
    expected = trainer.scope.split(solver.solutions()[0].decoder)
    found = loaded(made.folders["person_thing"])
    flat = [torch.cat([side[n].double() for n in expected]) for side in (
        expected, {n: p.decoder for n, p in found.parameters.items()})]  # fmt: skip
    cosine = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    assert cosine == pytest.approx(1, abs=1e-5)


def test_every_direction_is_an_artifact_with_references(made: DirectionSuite) -> None:
    assert {*made.folders} == {"man_woman", "man_thing", "person_thing"} and not made.pending
    for folder in made.folders.values():
        assert (folder / PROBES_FILE).is_file() and References.find(folder) is not None
        assert not list(folder.glob("*suite_state*"))


def test_a_suite_that_was_killed_goes_on_to_the_same_bits(
    made: DirectionSuite, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "merged": {"person": ["man", "woman"]},
        "pairs": [("man", "woman"), ("man", "thing"), ("person", "thing")],
    }
    first = suite(base, tmp_path / "out", **options)
    done = []

    def killed(self: DirectionSuite, trainer: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(trainer)
        finish(self, trainer)

    finish = DirectionSuite._finish
    monkeypatch.setattr(DirectionSuite, "_finish", killed)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.undo()
    again = suite(base, tmp_path / "out", **options)
    assert [pair.name for pair in again.pending] == ["man_thing", "person_thing"]
    monkeypatch.setattr(DirectionSuite, "_stream", lambda *_: pytest.fail("what was learned is kept"))
    again.train()
    monkeypatch.undo()
    # killed within the stream, with one direction saved
    for file in again.folders["man_thing"].iterdir():
        file.unlink() if file.is_file() else None
    once_more = suite(base, tmp_path / "out", **options)
    once_more.train()
    assert all(same(made.folders[name], again.folders[name]) for name in made.folders)
    with pytest.raises(ConfigError, match="of other directions, rows or arguments"):
        suite(base, tmp_path / "out", pairs="all").train()


@pytest.mark.parametrize(
    "place", ["saving:save_direction", "saving:write_probes", "saving:render_artifact", "suite:save_file"]
)
def test_a_kill_at_any_step_of_saving_leaves_a_direction_to_be_finished(
    place: str, made: DirectionSuite, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"pairs": [("man", "woman")]}
    module, name = place.split(":")
    if name == "save_direction":  # the first file of an artifact
        monkeypatch.setattr("gradiend_hub.evaluation.Report.save", killed)
    else:
        monkeypatch.setattr(f"gradiend_hub.training.{module}.{name}", killed)
    first = suite(base, tmp_path / "out", **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.undo()
    again = suite(base, tmp_path / "out", **options)
    assert [pair.name for pair in again.pending] == ["man_woman"]
    if module == "saving":
        monkeypatch.setattr(DirectionSuite, "_stream", lambda *_: pytest.fail("what was learned is kept"))
    folder = again.train()["man_woman"]
    assert not again.pending and (folder / CARD_FILE).is_file() and same(made.folders["man_woman"], folder)
    assert not [file for file in folder.rglob("*") if "suite_state" in file.name]


def test_a_folder_of_another_suite_is_refused_or_begun_anew(base: Any, masked_path: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pairs": [("man", "woman")]}
    first = suite(base, tmp_path / "out", **options)
    first._claim()
    other = load_base_model(masked_path)
    with torch.no_grad():
        other.get_parameter("bert.embeddings.word_embeddings.weight").mul_(1.01)
    with pytest.raises(ConfigError, match="a suite of another base model"):
        suite(other, tmp_path / "out", **options)._claim()
    folder = first.folders["man_woman"]
    folder.mkdir()
    (folder / PROBES_FILE).write_text("{}")
    fewer = suite(base, tmp_path / "out", train_dataset=rows(FRAMES[:5]), **options)
    with pytest.raises(ConfigError, match="rows or arguments"):
        fewer._claim()
    assert not fewer.pending
    fewer.args.overwrite_output_dir = True
    fewer._claim()
    assert [pair.name for pair in fewer.pending] == ["man_woman"]
    (tmp_path / "out" / "gradiend_suite.json").write_text("{cut off")
    with pytest.raises(ConfigError, match="holds a suite"):
        first._claim()


def test_directions_of_low_rank_are_cut_from_whole_ones(made: DirectionSuite, base: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, solver="closed_form", max_steps=-1, per_device_train_batch_size=6, controls=0, rank=2)
    pairs = [("man", "woman")]
    found = DirectionSuite(base, args, train_dataset=rows(FRAMES[:6]), config=FIELDS, pairs=pairs).train()["man_woman"]
    cut, whole = loaded(found), loaded(made.folders["man_woman"]).to_rank(2)
    assert {part.rank for part in cut.parameters.values() if len(part.shape) > 1} == {2}
    cosine = whole.inner(cut, 1.0, 0.0) / (whole.norm(1.0, 0.0) * cut.norm(1.0, 0.0))
    assert cosine == pytest.approx(1, abs=1e-4)


def test_a_suite_is_measured(base: Any, neutral: Any, tmp_path: Path) -> None:
    found = suite(base, tmp_path / "out", pairs=[("man", "woman")], eval_dataset=rows(FRAMES[6:]), identities=True,
                  neutral_dataset=neutral.select(range(8)))  # fmt: skip
    found.train()
    config = GradiendConfig.from_pretrained(str(found.folders["man_woman"]))
    assert config.strength_unit != 1.0 and config.feature_classes == ["man", "woman"]


@pytest.mark.slow
def test_a_suite_of_natural_decoders(base: Any, neutral: Any, tmp_path: Path) -> None:
    """The default, of each direction by itself: cut to a rank from whole means, then measured."""
    args = arguments(
        tmp_path, solver="closed_form", decoder="auto", max_steps=-1, per_device_train_batch_size=6, controls=0
    )
    found = DirectionSuite(
        base, args, train_dataset=rows(FRAMES[:6]), config=FIELDS, pairs=[("man", "woman")], eval_dataset=rows(FRAMES[5:]),
        neutral_dataset=neutral.select(range(100)),
    )  # fmt: skip
    folder = found.train()["man_woman"]
    said = Report.load(folder).training
    assert (said["decoder"], said["rank"], said["spared_sentences"]) == ("natural", 8, 50)
    assert {"plain", "natural"} <= said["effect_by_damping"].keys()
    assert {part.rank for part in loaded(folder).parameters.values() if len(part.shape) > 1} <= {8, 16}
    assert References.find(folder) is not None


def test_pairs_are_named() -> None:
    classes = ["a", "b", "c"]
    assert [p.name for p in pairs_of(classes)] == ["a_b", "a_c", "b_c"]
    rest = pairs_of(classes, "rest")
    assert [p.name for p in rest] == ["a_not-a", "b_not-b", "c_not-c"]
    assert rest[1].of({"factual_class": "a", "alternative_class": "b"}) == {
        "factual_class": "not b", "alternative_class": "b"}  # fmt: skip
    assert rest[1].of({"factual_class": "a", "alternative_class": "c"}) is None
    merged = pairs_of(classes, "all", {"ab": ["a", "b"], "C": ["c"]})
    assert [p.name for p in merged][-1] == "ab_C" and merged[-1].members == {"a": "ab", "b": "ab", "c": "C"}


@pytest.mark.parametrize(
    ("pairs", "merged", "said"),
    [
        ("some", None, "'all', 'rest' or a list"),
        ([("a", "x")], None, "no class 'x'"),
        ([("a",)], None, "two class names"),
        (["ab"], None, "two class names"),
        ([("a", "ab")], {"ab": ["a", "b"]}, "share 'a'"),
        ([("a", "b"), ("a", "b")], None, "a name of its own"),
        ([], None, "at least one direction"),
        ("all", {"a": ["b"]}, "a new name"),
        ("all", {"ab": "ab"}, "a new name"),
        ("all", {"ab": ["a", "z"]}, "a new name"),
        ("all", {"ab": []}, "a new name"),
        ("all", {"ab": 3}, "a new name"),
        ("all", {"ab": {"a": "b"}}, "a new name"),
        ("all", {"ab": [["a", "b"]]}, "a new name"),
        ("all", ["ab"], "a list of classes for each"),
        (None, None, "'all', 'rest' or a list"),
        (3, None, "'all', 'rest' or a list"),
        ({"a": "b"}, None, "'all', 'rest' or a list"),
        ([3], None, "two class names"),
        ([{"a": "b"}], None, "two class names"),
        ([("a", ["b"])], None, "no class"),
        ([("a", "a")], None, "share 'a'"),
    ],
)
def test_pairs_that_cannot_be_meant_are_refused(pairs: Any, merged: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pairs_of(["a", "b", "c"], pairs, merged)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"config": {"density": 0.1}}, "share their coordinates"),
        ({"config": {"feature_classes": ["a", "b"]}}, "name them in pairs"),
        ({"train_dataset": []}, "at least two classes"),
    ],
)
def test_what_a_suite_cannot_do_is_refused(options: Any, said: str, base: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        suite(base, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="closed_form or ridge"):
        DirectionSuite(base, arguments(tmp_path / "out"), train_dataset=rows())
    with pytest.raises(DataError, match="train_dataset, row 0: expected the columns"):
        suite(base, tmp_path / "out", train_dataset=[{"text": "x"}])


def test_a_text_comes_once_with_all_of_its_alternatives() -> None:
    shared = SharedRows(rows())
    batches = shared.batches(5, seed=1)
    numbers = [i for batch in batches for of in batch.rows.values() for i in of]
    assert sorted(numbers) == list(range(len(shared.records)))
    for batch in batches:
        assert len({len(of) for of in batch.rows.values()}) == 1 and len(batch.rows) == 2
        for texts in zip(*batch.rows.values(), strict=True):
            assert len({shared.records[i]["masked"] + shared.records[i]["factual"] for i in texts}) == 1
    assert shared.batches(5, seed=1) == batches and shared.batches(5, seed=2) != batches


def test_splits_are_drawn_anew_for_each_seed() -> None:
    records = rows()
    for by, column in (("word", "factual"), ("text", "masked")):
        splits = [redrawn(records, seed, by=by, shares={"train": 0.6, "test": 0.4}) for seed in (0, 1, 2)]
        for found in splits:
            assert sum(map(len, found.values())) == len(records)
            assert not {r[column] for r in found["train"]} & {r[column] for r in found["test"]}
        assert len({frozenset(r[column] for r in found["test"]) for found in splits}) > 1
    with pytest.raises(ConfigError, match="'text' or 'word'"):
        redrawn(records, 0, by="letter")
    with pytest.raises(DataError, match="too few"):
        redrawn(records, 0, by="word", shares=dict.fromkeys("abcde", 0.2))
