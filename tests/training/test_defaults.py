"""What a training does if nobody names a solver, a decoder or a rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.errors import ConfigError
from gradiend_hub.training.data import MeasuredRows, TrainingData, decided
from gradiend_hub.training.inherited import OF_OPTIMIZERS

TEXTS = tuple(f"text {i}" for i in range(100))


def data_of(rows: int = 16, texts: int = 100, spared: int = 0, test_texts: int | None = None) -> TrainingData:
    """So many validation rows and sentences; a test set has the measured sentences unless it has some of its own."""
    measured = TEXTS[:texts]
    of_test = measured if test_texts is None else tuple(f"test {i}" for i in range(test_texts))
    return TrainingData(
        SimpleNamespace(), [], eval_sets={"": [SimpleNamespace()] * rows}, texts=measured,
        fisher_texts=tuple(f"spared {i}" for i in range(spared)), test=MeasuredRows([], of_test),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "config", "data", "decoder", "rank"),
    [
        ({}, {}, {}, "natural", 8),
        ({"rank": 4}, {}, {}, "natural", 4),
        ({}, {}, {"texts": 1, "spared": 50}, "natural", 8),
        ({}, {}, {"spared": 49}, "solver", None),
        ({"decoder": "natural"}, {}, {"spared": 1}, "natural", 8),
        ({}, {}, {"texts": 99}, "solver", None),
        ({"rank": 4}, {}, {"texts": 99}, "solver", 4),
        ({}, {}, {"texts": 0, "spared": 40}, "solver", None),  # nothing to choose by
        ({}, {}, {"rows": 15}, "solver", None),
        ({}, {}, {"rows": 0}, "solver", None),
        ({"solver": "autoencoder"}, {}, {}, "solver", None),
        ({"solver": "ridge", "rank": 2}, {}, {}, "solver", 2),
        ({"final_density": 0.1}, {}, {}, "solver", None),
        ({}, {"density": 0.1}, {}, "solver", None),
        ({"decoder": "mean"}, {}, {}, "mean", None),
        ({"decoder": "solver"}, {}, {}, "solver", None),
        ({"decoder": "natural"}, {}, {"rows": 0}, "natural", 8),
        ({"decoder": "damage_aware"}, {}, {}, "damage_aware", None),
        ({"decoder": "fisher", "solver": "autoencoder"}, {}, {"rows": 3}, "damage_aware", None),
    ],
)
def test_the_decoder_follows_from_arguments_and_data(
    options: dict[str, Any],
    config: dict[str, Any],
    data: dict[str, int],
    decoder: str,
    rank: int | None,
    tmp_path: Path,
) -> None:
    given = GradiendTrainingArguments(str(tmp_path), use_cpu=True, **options)
    before, read = (given.decoder, given.rank), data_of(**data)
    found, divided = decided(given, GradiendConfig(feature_classes=["a", "b"], **config), read)
    assert (found.decoder, found.rank) == (decoder, rank)
    assert (given.decoder, given.rank) == before
    learns = decoder in ("natural", "damage_aware")
    if read.fisher_texts or not learns:
        assert divided is read
        return
    assert sorted([*divided.texts, *divided.fisher_texts]) == sorted(read.texts)  # each in one of both
    assert len(divided.fisher_texts) == 50
    assert divided.test is not None and [*divided.test.texts] == [*divided.texts]


def test_no_more_sentences_are_set_aside_than_are_read(tmp_path: Path) -> None:
    read = replace(data_of(), texts=[f"text {i}" for i in range(1000)])
    divided = decided(GradiendTrainingArguments(str(tmp_path), use_cpu=True), GradiendConfig(), read)[1]
    assert len(divided.fisher_texts) == 250 and sorted([*divided.texts, *divided.fisher_texts]) == sorted(read.texts)


def test_what_was_learned_from_measures_nothing_else(tmp_path: Path) -> None:
    """The same sentences as neutral text of the test, and among a damage set, are left out there, too."""
    read = replace(
        data_of(), test=MeasuredRows([], list(TEXTS)), damage_sets={"chat": ["a", TEXTS[1]], "same": [TEXTS[1]]}
    )
    divided = decided(GradiendTrainingArguments(str(tmp_path), use_cpu=True), GradiendConfig(), read)[1]
    assert divided.test is not None and {*divided.test.texts} == {*divided.texts}
    assert divided.damage_sets["chat"] == ["a"] and divided.damage_sets["same"] == [TEXTS[1]]  # which has no other


def test_sentences_of_the_test_stay(tmp_path: Path) -> None:
    read = data_of(test_texts=7)
    divided = decided(GradiendTrainingArguments(str(tmp_path), use_cpu=True), GradiendConfig(), read)[1]
    assert divided.test is not None and read.test is not None and [*divided.test.texts] == [*read.test.texts]


@pytest.mark.parametrize("decoder", ["natural", "damage_aware"])
def test_a_decoder_that_is_asked_for_needs_sentences(decoder: str, tmp_path: Path) -> None:
    args = GradiendTrainingArguments(str(tmp_path), use_cpu=True, decoder=decoder)
    with pytest.raises(ConfigError, match=rf"decoder='{decoder}' needs neutral_train_dataset.*at least 100.*found 99"):
        decided(args, GradiendConfig(), data_of(texts=99))


def test_a_trainer_shows_what_was_decided(masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    """Its own arguments, and so report and card; the sentences that are spared measure nothing."""
    args = GradiendTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = GradiendTrainer(
        masked_path, GradiendConfig(feature_classes=["3SG", "3PL"]), args, train_dataset=pronouns["train"].select(range(40)),
        eval_dataset=pronouns["validation"].select(range(40)), neutral_dataset=neutral.select(range(101)),
    )  # fmt: skip
    assert (args.solver, args.decoder, args.rank) == ("closed_form", "auto", None)
    assert (trainer.args.decoder, trainer.args.rank) == ("natural", 8)
    said = trainer.report.training
    assert (said["solver"], said["decoder"], said["rank"]) == ("closed_form", "natural", 8)
    assert said["spared_sentences"] == 50 and said["learning_rate"] is None
    usual = trainer.report.default_arguments
    assert usual is not None and {"solver", "decoder", "rank"} <= {*usual}
    data = trainer._run.data
    assert {*data.texts}.isdisjoint(data.fisher_texts) and (len(data.texts), len(data.fisher_texts)) == (51, 50)
    assert data.texts[0] == neutral[0]["text"] and data.fisher_texts[0] == neutral[1]["text"]


@pytest.mark.parametrize("solver", ["closed_form", "ridge", "autoencoder"])
def test_fields_of_the_optimizer_are_the_autoencoders(
    solver: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"learning_rate": 0.05, "warmup_steps": 3, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    assert given.keys() <= OF_OPTIMIZERS
    GradiendTrainingArguments(str(tmp_path), use_cpu=True, solver=solver, **given)
    said = f"Without effect with solver='{solver}', which has no optimizer: {', '.join(sorted(given))}."
    assert (said in caplog.text) == (solver != "autoencoder")
