"""What `transformers.Trainer` promises: kept, or refused by name before anything is learned."""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, Trainer, TrainingArguments

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import ConfigError, DataError, EditError
from gradiend_hub.evaluation import Report
from gradiend_hub.training import data as training_data
from gradiend_hub.training.inherited import HONOURED, REFUSED, WITHOUT_EFFECT
from tests.training.support import CLASSES, arguments, trainer_of

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "controls": 0}


@pytest.fixture(scope="module")
def base(masked_path: Path) -> Any:
    return load_base_model(masked_path)


def short(base: Any, folder: Path, rows: Any, *, args: dict[str, Any] | None = None, **options: Any) -> GradiendTrainer:
    """A trainer of four steps on the last layer, with sixteen validation rows."""
    given = {
        "train_dataset": rows["train"].select(range(40)), "eval_dataset": rows["validation"].select(range(16)), **options,
    }  # fmt: skip
    return trainer_of(base, folder, rows, args=arguments(folder, **SHORT | (args or {})), layers="3", **given)


# --------------------------------------------------------------------------------------------------------- arguments


def test_every_field_of_training_arguments_is_classified() -> None:
    """A new version of transformers may bring new ones: they must be looked at."""
    kinds = (HONOURED, REFUSED.keys(), WITHOUT_EFFECT)
    names = {f.name for f in fields(TrainingArguments)}
    assert {name: sum(name in kind for kind in kinds) for name in names} == dict.fromkeys(names, 1)
    assert "next" not in REFUSED and all(reason.endswith(".") for reason in REFUSED.values())


def another_value(name: str) -> Any:
    special: dict[str, Any] = {
        "accelerator_config": {"split_batches": True},
        "debug": "underflow_overflow",
        "train_sampling_strategy": "sequential",
        "deepspeed": {"zero_optimization": {}},
        "include_for_metrics": ["inputs"],
    }
    default = next(f.default for f in fields(TrainingArguments) if f.name == name)
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, (int, float)) else "other"


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & {f.name for f in fields(TrainingArguments)}))
def test_a_field_without_meaning_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=.* has no meaning for a direction: \w+ \w+"):
        GradiendTrainingArguments(str(tmp_path), **{name: another_value(name)})


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT & {f.name for f in fields(TrainingArguments)}))
def test_a_field_without_effect_is_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    value = 0 if name == "dataloader_num_workers" else another_value(name)
    more = {"dataloader_num_workers": 1} if name.startswith("dataloader_") else {}
    GradiendTrainingArguments(str(tmp_path), use_cpu=True, **{name: value} | more)
    assert name == "dataloader_pin_memory" or f"Without effect on a direction: {', '.join(sorted({name, *more}))}" in (
        caplog.text
    )


def test_arguments_can_be_copied(tmp_path: Path) -> None:
    """transformers stores some of them in another form than they are given in."""
    args = arguments(tmp_path, eval_strategy="steps", report_to="none", decoder="fisher")
    assert args.decoder == "damage_aware"
    assert replace(args) == copy.deepcopy(args) == GradiendTrainingArguments(**{f.name: getattr(args, f.name)
                                                                               for f in fields(args) if f.init})  # fmt: skip


@pytest.mark.parametrize("counted", ["all", "non_padding"])
def test_input_tokens_are_counted(base: Any, tmp_path: Path, pronouns: Any, counted: str) -> None:
    trainer = short(base, tmp_path, pronouns, args={"include_num_input_tokens_seen": counted, "logging_steps": 1})
    trainer.train()
    examples, batches = trainer.train_dataset.examples, list(itertools.islice(trainer.get_train_dataloader(), 4))
    lengths = [[examples[i].cost for i in batch["rows"]] for batch in batches]
    expected = sum(len(each) * max(each) if counted == "all" else sum(each) for each in lengths)
    assert trainer.state.num_input_tokens_seen == expected
    assert [log["num_input_tokens_seen"] for log in trainer.state.log_history][-1] == expected


def test_evaluation_before_the_first_step(base: Any, tmp_path: Path, pronouns: Any) -> None:
    trainer = short(base, tmp_path, pronouns, args={"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2})
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_correlation" in log] == [0, 2, 4]


@pytest.mark.parametrize(
    ("metric", "sets"),
    [("loss", {}), ("eval_loss", {}), ("mean_2SG", {}), ("b_correlation", {"a": 0}), ("quality", {})],
)
def test_a_metric_that_no_evaluation_has(base: Any, tmp_path: Path, pronouns: Any, metric: str, sets: Any) -> None:
    rows = pronouns["validation"].select(range(16))
    options = {"metric_for_best_model": metric, "eval_strategy": "steps", "eval_steps": 2}
    with pytest.raises(ConfigError, match=f"metric_for_best_model='{metric}': .* have .*correlation, .*mean_3PL"):
        short(base, tmp_path, pronouns, args=options, eval_dataset=dict.fromkeys(sets, rows) or rows)


# ------------------------------------------------------------------------------------------------------------ methods


@pytest.mark.parametrize(
    "method",
    ["get_eval_dataloader", "get_test_dataloader", "evaluation_loop", "prediction_step", "compute_loss",
     "hyperparameter_search"],
)  # fmt: skip
def test_methods_of_other_trainers_say_what_to_call(base: Any, tmp_path: Path, pronouns: Any, method: str) -> None:
    trainer = short(base, tmp_path, pronouns)
    with pytest.raises(ConfigError, match=rf"GradiendTrainer has no {method}\(\): \w+"):
        getattr(trainer, method)(None)


def test_signatures_are_those_of_trainer() -> None:
    for name in ("train", "evaluate", "predict", "save_model", "push_to_hub", "create_model_card"):
        own, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (GradiendTrainer, Trainer))
        named = [p for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
        taken = [own.get(p.name) for p in named]
        keywords = any(p.kind is p.VAR_KEYWORD for p in own.values())
        assert all(p is not None or keywords for p in taken), name
        assert [p.default for p in taken if p] == [p.default for p, mine in zip(named, taken, strict=True) if mine], (
            name
        )


def test_predict_encodes(base: Any, tmp_path: Path, pronouns: Any) -> None:
    trainer = short(base, tmp_path, pronouns, args={"max_steps": 16})
    trainer.train()
    rows = pronouns["test"].select(range(20))
    output = trainer.predict(rows)
    model = GradiendModel.from_direction(base, trainer.direction, trainer.gradiend_config)
    try:
        torch.testing.assert_close(torch.from_numpy(output.predictions), model.encode(rows))
    finally:
        model.unload()
    assert output.label_ids.tolist() == [1.0 if row["factual_class"] == "3SG" else -1.0 for row in rows]
    correlation = torch.corrcoef(torch.tensor([output.predictions.tolist(), output.label_ids.tolist()]))[0, 1]
    assert output.metrics["test_correlation"] == pytest.approx(float(correlation), abs=1e-5) and correlation > 0.5
    assert trainer.predict(rows.select([0]), metric_key_prefix="one").metrics["one_accuracy"] in (0.0, 1.0)


def test_several_evaluation_sets(base: Any, tmp_path: Path, pronouns: Any) -> None:
    sets = {"a": pronouns["validation"].select(range(16)), "b": pronouns["validation"].select(range(16, 32))}
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "keep_checkpoints": True,
        "load_best_model_at_end": True, "metric_for_best_model": "b_correlation",
    }  # fmt: skip
    trainer = short(base, tmp_path, pronouns, args=options, eval_dataset=sets)
    trainer.train()
    logged = [log for log in trainer.state.log_history if "eval_b_correlation" in log]
    assert [log["step"] for log in logged] == [2, 4]
    assert all(log["eval_correlation"] == log["eval_a_correlation"] != log["eval_b_correlation"] for log in logged)
    assert trainer.state.best_metric == max(log["eval_b_correlation"] for log in logged)
    both = trainer.evaluate()
    assert trainer.report.splits.keys() == {"eval", "eval_b"}
    assert (
        trainer.report.splits["eval"].search and not trainer.report.splits["eval_b"].search
    )  # the unit is of the first
    again = trainer.evaluate("b")
    assert again["eval_b_correlation"] == both["eval_b_correlation"]
    other = trainer.evaluate({"c": pronouns["test"].select(range(16))}, metric_key_prefix="test")
    assert "test_c_correlation" in other and "test_c" in trainer.report.splits
    with pytest.raises(ConfigError, match=r"the trainer has \['a', 'b'\], and no 'c'"):
        trainer.evaluate("c")


# --------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, "It is missing"),
        ({"train": []}, r"a dictionary with the keys \['train'\]: give one of its data sets"),
        (7, "Found int"),
    ],
)
def test_what_is_no_data_set(base: Any, tmp_path: Path, pronouns: Any, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"train_dataset must be an iterable of dictionaries.*{message}"):
        short(base, tmp_path, pronouns, train_dataset=kind)
    if not isinstance(kind, (dict, type(None))):
        with pytest.raises(ConfigError, match=f"eval_dataset must be .*{message}"):
            short(base, tmp_path, pronouns, eval_dataset=kind)


def test_named_data_are_opened(base: Any, tmp_path: Path, pronouns: Any) -> None:
    """A file, a folder with splits, a mapping, and a data frame: the same rows as from memory."""
    parts = {name: pronouns[name].select(range(40)) for name in ("train", "validation", "test")}
    for name, part in parts.items():
        (tmp_path / "rows").mkdir(exist_ok=True)
        part.to_json(tmp_path / "rows" / f"{name}.jsonl")
    folder = tmp_path / "rows"
    usual = short(base, tmp_path / "a", pronouns, train_dataset=parts["train"], eval_dataset=parts["validation"])
    ways = [
        {"train_dataset": str(folder), "eval_dataset": folder, "test_dataset": folder},
        {"train_dataset": folder / "train.jsonl", "eval_dataset": {"path": folder, "split": "validation"}},
        {"train_dataset": parts["train"].to_pandas(), "eval_dataset": parts["validation"].to_pandas()},
        {"train_dataset": parts["train"], "eval_dataset": {"own": str(folder / "validation.jsonl")}},
    ]
    for number, way in enumerate(ways):
        data = short(base, tmp_path / f"b{number}", pronouns, **way)._run.data
        assert data.rows == usual._run.data.rows
        assert data.eval_rows == usual._run.data.eval_rows
    usual.train()
    assert list(usual.predict(str(folder)).predictions) == list(usual.predict(parts["test"]).predictions)
    with pytest.raises(DataError, match=r"train_dataset: there is no file .*nothing.jsonl"):
        short(base, tmp_path, pronouns, train_dataset="nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("eval_dataset", "class", DataError), ("eval_dataset", "words", DataError), ("eval_dataset", "slot", DataError),
        ("test_dataset", "class", DataError), ("test_dataset", "words", DataError), ("test_dataset", "slot", DataError),
        ("test_dataset", "path", DataError), ("neutral_train_dataset", "path", DataError),
        ("test_neutral_dataset", "empty", DataError), ("neutral_train_dataset", "empty", DataError),
    ],
)  # fmt: skip
def test_all_data_is_checked_before_any_training(
    base: Any, tmp_path: Path, pronouns: Any, name: str, value: str, error: type[Exception]
) -> None:
    rows = pronouns["validation"].select(range(8)).to_list()
    changes = {"class": {"factual_class": "2SG"}, "words": {"factual": "漢"}, "slot": {"masked": "They ran."}}
    rows[3] |= changes.get(value, {})
    bad = {"path": "rows.jsonl", "empty": [{"text": ""}]}.get(value, rows)
    options = {name: bad} | (
        {"test_dataset": pronouns["test"].select(range(8))} if name == "test_neutral_dataset" else {}
    )
    with pytest.raises(error, match=name):
        short(base, tmp_path, pronouns, **options)
    assert not list(tmp_path.iterdir())


def endless(rows: Any) -> Iterator[dict[str, Any]]:
    yield from itertools.cycle(rows)


def test_an_endless_stream_is_read_as_far_as_the_steps_go(
    base: Any, tmp_path: Path, pronouns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pronouns["train"].select(range(200)).to_list()
    stream = IterableDataset.from_generator(endless, gen_kwargs={"rows": tuple(rows)})
    trainer = short(base, tmp_path, pronouns, args={"max_steps": 50}, train_dataset=stream)
    assert len(trainer.train_dataset) == 50 * 4
    few = short(base, tmp_path, pronouns, train_dataset=stream)
    assert len(few.train_dataset) == training_data.CALIBRATION_ROWS
    monkeypatch.setattr(training_data, "STREAM_LIMIT", 1000)
    for options in ({"args": {"max_steps": -1}, "train_dataset": stream}, {"eval_dataset": stream}):
        with pytest.raises(ConfigError, match=r"a stream of more than 1,000 rows.*stream.take\(COUNT\)"):
            short(base, tmp_path, pronouns, **options)
    whole = short(base, tmp_path, pronouns, args={"max_steps": -1}, train_dataset=iter(rows[:60]))
    assert len(whole.train_dataset) == 60


# ----------------------------------------------------------------------------------------------------------- identity


def test_a_configuration_serves_several_bases(base: Any, causal_path: Path, tmp_path: Path, pronouns: Any) -> None:
    config = GradiendConfig(feature_classes=list(CLASSES), layers="3")
    before = copy.deepcopy(config)
    first = trainer_of(base, tmp_path / "a", pronouns, config=config)
    second = trainer_of(causal_path, tmp_path / "b", pronouns, config=config)
    assert config == before
    assert first.gradiend_config.base_model_name_or_path == base.name_or_path
    assert second.gradiend_config.base_model_name_or_path == str(causal_path)
    assert (first.gradiend_config.objective, second.gradiend_config.objective) == ("masked_lm", "causal_lm")
    stored = replace(
        first.gradiend_config, strength_unit=3.0, safe_band=[-1.0, 1.0], parameters={"x": {"shape": [1], "entries": None}},
        objective=None, gradiend_version="0.0.1",
    )  # fmt: skip
    third = trainer_of(causal_path, tmp_path / "c", pronouns, config=stored)
    found = third.gradiend_config
    assert (found.base_model_name_or_path, found.strength_unit, found.safe_band, found.parameters) == (
        str(causal_path), 1.0, None, None,
    )  # fmt: skip


def test_the_name_that_others_know_a_base_by(
    base: Any, tmp_path: Path, pronouns: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer = short(base, tmp_path, pronouns)
    assert "base_model_id" in caplog.text and base.name_or_path in caplog.text
    caplog.clear()
    named = short(base, tmp_path, pronouns, args={"base_model_id": "alice/tiny"})
    assert "base_model_id" not in caplog.text
    assert (named.gradiend_config.base_model_name_or_path, named.report.base_model) == ("alice/tiny", "alice/tiny")
    assert trainer.gradiend_config.base_model_name_or_path == base.name_or_path


def test_a_base_without_a_name_needs_its_tokenizer(base: Any, tmp_path: Path, pronouns: Any) -> None:
    nameless = copy.deepcopy(base)
    nameless.config._name_or_path = nameless.name_or_path = ""
    with pytest.raises(ConfigError, match=r"its tokenizer is not known\. Give it as processing_class"):
        short(nameless, tmp_path, pronouns)


# ------------------------------------------------------------------------------------------------- what stays on disk


def test_training_leaves_the_direction_and_saving_removes_the_checkpoints(
    base: Any, tmp_path: Path, pronouns: Any
) -> None:
    rows = pronouns["validation"].select(range(6)).to_list()
    for keep in (False, True):
        folder = tmp_path / str(keep)
        options = {"save_strategy": "steps", "save_steps": 2, "keep_checkpoints": keep}
        trainer = short(base, folder, pronouns, args=options)
        trainer.train()
        assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-4"]
        state = {p.name for p in (folder / "checkpoint-4").iterdir()}
        assert state == {
            "model.safetensors", "gradiend_training.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "trainer_state.json",
        }  # fmt: skip
        loaded = GradiendModel.from_pretrained(folder, copy.deepcopy(base))
        assert torch.equal(loaded.encode(rows), torch.from_numpy(trainer.predict(rows).predictions))
        trainer.save_model()
        assert len(list(folder.glob("checkpoint-*"))) == keep


def test_what_fails_late_keeps_what_was_learned(
    base: Any, tmp_path: Path, pronouns: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pronouns["validation"].select(range(6)).to_list()
    trainer = short(
        base, tmp_path / "out", pronouns, test_dataset=pronouns["test"].select(range(8))
    )  # save_strategy: no
    trainer.train()
    assert not list((tmp_path / "out").iterdir())
    expected = trainer.predict(rows).predictions

    def fail(*_: Any, **__: Any) -> None:
        raise errors.pop()

    monkeypatch.setattr("gradiend_hub.training.measuring.evaluate_direction", fail)
    for error in (EditError("nothing works."), RuntimeError("a bug")):
        errors = [error]
        with pytest.raises(type(error), match=str(error)) as caught:
            trainer.evaluate_test()
        said = str(caught.value) + caplog.text
        assert f"What was learned is kept in {tmp_path / 'out'}" in said
        loaded = GradiendModel.from_pretrained(tmp_path / "out", copy.deepcopy(base))
        assert torch.equal(loaded.encode(rows), torch.from_numpy(expected))


FULL_DISK = """
import resource, sys
from pathlib import Path
from datasets import load_dataset
from gradiend_hub.errors import TrainingError
from tests.training.test_promises import short
trainer = short(sys.argv[1], Path(sys.argv[2]), load_dataset(sys.argv[3]))
trainer.train()
size = 4 * trainer.scope.size  # of a vector; a direction has three
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    trainer.save_model()
except TrainingError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
trainer.save_model()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error(masked_path: Path, tmp_path: Path) -> None:
    """A limit of the process on the size of files stands for it: writing fails in the middle of a file."""
    rows = masked_path.parents[1] / "data" / "pronouns"
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(masked_path), str(tmp_path / "out"), str(rows)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"The direction could not be saved in {tmp_path / 'out'}" in done.stdout
    assert "still in memory: make room, and call trainer.save_model" in done.stdout
    assert GradiendModel.from_pretrained(tmp_path / "out").direction.has_encoder


def test_an_output_directory_that_cannot_be_one(base: Any, tmp_path: Path, pronouns: Any) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"Nothing can be written in {folder}: .*[aA]nother"):
            short(base, folder, pronouns)


def test_a_disk_without_room_is_refused(
    base: Any, tmp_path: Path, pronouns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = short(base, tmp_path, pronouns).scope.size
    usage = type("Usage", (), {"free": 40 * size})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    short(base, tmp_path, pronouns)  # 12 bytes a coordinate, without checkpoints
    with pytest.raises(ConfigError, match=r"direction and checkpoints need .*save_strategy=\"no\""):
        short(
            base, tmp_path, pronouns, args={"save_strategy": "steps"}
        )  # two of 38 bytes for a moment, and the direction


# --------------------------------------------------------------------------------------------------------- not learned


def by_coin(rows: Any) -> Dataset:
    """The same rows with their classes drawn at random, and the words with them."""
    generator = torch.Generator().manual_seed(1)
    changed = []
    for row in rows:
        swap = bool(torch.rand((), generator=generator) < 0.5)
        names = ("factual_class", "alternative_class")
        changed.append({**row, **({a: row[b] for a, b in zip(names, names[::-1], strict=True)} if swap else {})})
    return Dataset.from_list(changed)


def test_a_null_is_not_learned_and_says_so(
    base: Any, tmp_path: Path, pronouns: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"train": by_coin(pronouns["train"].select(range(320))), "validation": by_coin(pronouns["validation"])}
    fillers = {name: ["he", "she", "it", "they"][i::2] for i, name in enumerate(CLASSES)}
    for solver in ("autoencoder", "closed_form"):
        folder = tmp_path / solver
        trainer = short(
            base,
            folder,
            rows,
            args={"max_steps": 20, "solver": solver},
            eval_dataset=rows["validation"],
            fillers=fillers,
        )
        trainer.train()
        trainer.save_model()
        report = Report.load(folder)
        assert report.converged is False and "validation rows: correlation" in report.verdict
        assert "Not learned, by its encodings of validation rows" in caplog.text
        read = trainer.predict(rows["validation"].select(range(60)))
        assert abs(read.predictions).mean() < 0.6 * 0.9  # it does not look confident


def test_what_is_learned_says_so(base: Any, tmp_path: Path, pronouns: Any) -> None:
    options = {"solver": "closed_form", "max_steps": 16, "per_device_train_batch_size": 16}
    trainer = short(base, tmp_path, pronouns, args=options, train_dataset=pronouns["train"].select(range(200)))
    trainer.train()
    assert (trainer.report.converged, trainer.report.verdict) == (True, "")
    without = short(base, tmp_path / "b", pronouns, args={"solver": "closed_form"}, eval_dataset=None)
    without.train()
    assert without.report.converged is not True  # training rows prove nothing


def test_a_tokenizer_travels_with_a_base_without_a_name(
    base: Any, tmp_path: Path, pronouns: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Learned, measured, saved and verified by the tokenizer that was given; readers give it, too."""
    nameless, tokenizer = copy.deepcopy(base), AutoTokenizer.from_pretrained(base.name_or_path)
    nameless.config._name_or_path = nameless.name_or_path = ""
    trainer = short(nameless, tmp_path, pronouns, processing_class=tokenizer)
    assert "This BertForMaskedLM has no name, so readers of the direction must have it" in caplog.text
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert GradiendConfig.from_pretrained(str(tmp_path)).base_model_name_or_path is None
    trainer.create_model_card(tags="mine", tasks=["fill-mask"], model_name="he or they", language="en")
    card = ModelCard.load(tmp_path / "README.md").data
    assert {"mine", "fill-mask", "gradiend"} <= {*card.tags} and (card.model_name, card.language) == (
        "he or they",
        "en",
    )
    model = GradiendModel.from_pretrained(tmp_path, copy.deepcopy(nameless), processing_class=tokenizer)
    assert model.verify().passed
    rows = pronouns["test"].select(range(6))
    assert torch.equal(model.encode(rows), torch.from_numpy(trainer.predict(rows).predictions))
