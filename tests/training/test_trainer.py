"""Training end to end on the bundled models: from rows to an artifact on the Hub, and every mistake on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from packaging.version import Version
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

from gradiend_hub import Direction, GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.artifact.direction import ParameterDirection
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    HTML_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import TextRow
from gradiend_hub.errors import (
    ArtifactNotFoundError,
    BaseModelError,
    BaseModelMismatchError,
    ConfigError,
    DataError,
    HubPushError,
)
from gradiend_hub.evaluation import Report
from gradiend_hub.gradients import GradientReader, Scope, read_pair, select_parameters
from gradiend_hub.hub import retry
from gradiend_hub.objectives import make_objective
from tests.models import build
from tests.objectives.tokenizers import causal_tokenizer
from tests.training.support import CLASSES, STEPS, arguments, trainer_of

KINDS = ("factual", "alternative", "diff")
ARTIFACT = {
    CONFIG_FILE,
    WEIGHTS_FILE,
    ENCODER_FILE,
    BASE_FILE,
    REPORT_FILE,
    PROBES_FILE,
    CARD_FILE,
    REFERENCES_FILE,
    SUMMARY_FILE,
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.0)


@pytest.fixture(scope="session")
def run(masked_path: Path, pronouns: Any, neutral: Any, tmp_path_factory: pytest.TempPathFactory) -> GradiendTrainer:
    """A masked model's direction, trained, evaluated and saved. Tests may read it and push it, and change nothing."""
    folder = tmp_path_factory.mktemp("run") / "out"
    args = arguments(folder, per_device_train_batch_size=8)
    trainer = trainer_of(masked_path, folder, pronouns, neutral, args=args)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


@pytest.fixture
def masked(masked_path: Path) -> Any:
    return load_base_model(masked_path)


@pytest.fixture
def causal(causal_path: Path) -> Any:
    return load_base_model(causal_path)


def same_direction(first: Direction, second: Direction) -> bool:
    if first.encoder_bias != second.encoder_bias or first.parameters.keys() != second.parameters.keys():
        return False
    pairs = ((first.parameters[n], second.parameters[n]) for n in first.parameters)
    parts = ("decoder", "decoder_bias", "encoder")
    return all(torch.equal(getattr(a, part), getattr(b, part)) for a, b in pairs for part in parts)


def probability(model: Any, rows: Any, tokenizer: Any, words: dict[str, list[str]], of: str) -> dict[str, float]:
    """Mean probability of each class's words at the mask of the rows whose factual class is `of`; plain transformers."""
    chosen = [row["masked"] for row in rows if row["factual_class"] == of]
    batch = tokenizer(
        [text.replace("[MASK]", tokenizer.mask_token) for text in chosen], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        probabilities = model(**batch).logits[batch.input_ids == tokenizer.mask_token_id].softmax(-1)
    ids = {name: tokenizer.convert_tokens_to_ids(words[name]) for name in words}
    return {name: float(probabilities[:, ids[name]].sum(-1).mean()) for name in words}


# ------------------------------------------------------------------------------------------------------ end to end


def test_a_direction_is_learned(run: GradiendTrainer, pronouns: Any) -> None:
    split = run.report.splits["eval"]
    assert split.encoder.correlation > 0.9
    assert split.encoder.class_means["3SG"] > 0.5 > -0.5 > split.encoder.class_means["3PL"]
    assert split.at(1.0).probability["3PL"]["3SG"] > 1.5 * split.at(0.0).probability["3PL"]["3SG"]
    assert split.at(-1.0).probability["3SG"]["3PL"] > 1.5 * split.at(0.0).probability["3SG"]["3PL"]
    assert {name: sorted(words) for name, words in (run.gradiend_config.fillers or {}).items()} == {
        "3SG": ["he", "it", "she"],
        "3PL": ["they"],
    }
    trained_on = pronouns["train"].select(range(320))["factual_class"]
    assert run.report.data["train_rows"] == {name: trained_on.count(name) for name in CLASSES}
    assert (run.report.steps, run.report.base_model) == (STEPS, Path(run.base_model.name_or_path).name)
    assert run.report.seconds.keys() == {"train", "evaluate eval"}


def test_the_artifact_on_disk(run: GradiendTrainer, masked: Any, pronouns: Any) -> None:
    folder = Path(run.args.output_dir)
    assert {p.name for p in folder.iterdir()} == {*ARTIFACT, HTML_FILE, "assets"}
    assert Report.load(folder) == run.report
    config = GradiendConfig.from_pretrained(str(folder))
    assert config.strength_unit == run.gradiend_config.strength_unit != 1.0
    assert config.objective == "masked_lm"
    assert same_direction(Direction.load(folder, config), run.direction)
    # and it does what the report says, to a model that plain transformers runs
    model = GradiendModel.from_pretrained(folder, masked, strength=-1.0)
    rows = pronouns["validation"].select(range(40))
    found = probability(model, rows, model.tokenizer, config.fillers or {}, "3SG")["3PL"]
    assert found == pytest.approx(run.report.splits["eval"].at(-1.0).probability["3SG"]["3PL"], rel=1e-3)
    model.unload()


def test_causal_model(causal: Any, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=8)
    trainer = trainer_of(causal, tmp_path, pronouns, neutral, args=args)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_correlation"] > 0.9
    assert metrics["eval_quality"] > 0.98
    split = trainer.report.splits["eval"]
    assert metrics["eval_probability_3PL"] == split.at(-1.0).probability["3SG"]["3PL"]
    assert metrics["eval_probability_3PL"] > 2 * split.at(0.0).probability["3SG"]["3PL"]
    assert metrics["eval_probability_3SG"] > 1.5 * split.at(0.0).probability["3PL"]["3SG"]
    trainer.save_model()
    assert GradiendConfig.from_pretrained(str(tmp_path)).objective == "causal_lm"


# ------------------------------------------------------------------------------------------------------- the signs


@pytest.fixture(scope="module")
def class_gradients(masked_path: Path, pronouns: Any) -> tuple[Any, dict[tuple[str, str], dict[str, torch.Tensor]]]:
    """A base model, and by (factual class, "factual" or "alternative") its mean gradient over some rows."""
    base = load_base_model(masked_path)
    objective = make_objective(base, AutoTokenizer.from_pretrained(masked_path))
    scope = Scope.dense(select_parameters(base, layers="2-3"))
    means: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    with GradientReader(base, scope) as reader:
        for name in CLASSES:
            rows = [r for r in pronouns["train"].select(range(160)) if r["factual_class"] == name][:48]
            batch = [objective.example(TextRow.read(r)) for r in rows]
            g_f, g_a = read_pair(
                reader, objective, objective.collate_pairs(batch), source="factual", target="alternative"
            )
            means[name, "factual"], means[name, "alternative"] = scope.split(g_f), scope.split(g_a)
            means[name, "diff"] = scope.split(g_f - g_a)
    return base, means


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_positive_strength_is_the_first_class(class_gradients: Any, pronouns: Any, source: str, target: str) -> None:
    """The sign convention for a perfect autoencoder, h = label and t̂ = the mean target of its class."""
    base, means = class_gradients
    target_of = {label_of(source, name): means[name, target] for name in CLASSES}
    parts = {
        name: ParameterDirection(
            tuple(base.get_parameter(name).shape),
            (target_of[1.0][name] - target_of[-1.0][name]) / 2,
            (target_of[1.0][name] + target_of[-1.0][name]) / 2,
        )
        for name in target_of[1.0]
    }
    config = GradiendConfig(
        feature_classes=CLASSES, fillers={"3SG": ["he", "she", "it"], "3PL": ["they"]}, source=source, target=target
    )
    check_signs(base, Direction(parts), config, pronouns)


@pytest.mark.slow
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_positive_strength_is_the_first_class_after_training(
    masked_path: Path, pronouns: Any, tmp_path: Path, source: str, target: str
) -> None:
    """What a trained encoder and decoder make of it; the dose is a fixed share of the weights, not a chosen one."""
    # the factual gradient vanishes where the model is right: alone, it is too little for the autoencoder's few steps
    solver = "closed_form" if source == target == "factual" else "autoencoder"
    args = arguments(tmp_path, solver=solver)
    trainer = trainer_of(masked_path, tmp_path, pronouns, args=args, source=source, target=target)
    trainer.train()
    check_signs(trainer.base_model, trainer.direction, trainer.gradiend_config, pronouns)


def label_of(source: str, factual_class: str) -> float:
    other = CLASSES[1 - CLASSES.index(factual_class)]
    return TextRow("[MASK]", "f", "a", factual_class, other).label(CLASSES, source)


def check_signs(base: Any, direction: Direction, config: GradiendConfig, pronouns: Any) -> None:
    """Read plain probabilities at both signs of an edit of ‖Δ‖ = 0.01 ‖W‖."""
    weights = (base.get_parameter(name).detach().norm() ** 2 for name in direction.parameters)
    config.strength_unit = 1.0
    config.strength_unit = 0.01 * float(sum(weights)) ** 0.5 / direction.norm(*config.coefficients(1.0))
    rows, tokenizer = pronouns["test"].select(range(60)), AutoTokenizer.from_pretrained(base.name_or_path)

    def chances(strength: float) -> dict[tuple[str, str], float]:
        model = GradiendModel.from_direction(base, direction, config, strength=strength)
        try:
            read = {of: probability(model, rows, tokenizer, config.fillers or {}, of) for of in CLASSES}
            return {(of, wanted): read[of][wanted] for of in CLASSES for wanted in CLASSES}
        finally:
            model.unload()

    up, zero, down = chances(1.0), chances(0.0), chances(-1.0)
    for of in CLASSES:
        assert up[of, "3SG"] / up[of, "3PL"] > down[of, "3SG"] / down[of, "3PL"]
    assert up["3PL", "3SG"] > zero["3PL", "3SG"]
    assert down["3SG", "3PL"] > zero["3SG", "3PL"]


# ------------------------------------------------------------------------------------------- stopping and going on


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Interrupts a run as a user's Ctrl-C does, right after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="resumed to other bits: see lower_bounds.txt"
)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_resumed_run_ends_in_the_same_bits(
    request: pytest.FixtureRequest, kind: str, pronouns: Any, tmp_path: Path
) -> None:
    path = request.getfixturevalue(f"{kind}_path")
    options = {
        "max_steps": 14,
        "save_strategy": "steps",
        "save_steps": 4,
        "per_device_train_batch_size": 4,
        "save_total_limit": 2,
    }

    def fresh(folder: str, **more: Any) -> GradiendTrainer:
        rows = pronouns["train"].select(range(20))  # more steps than one epoch has
        args = arguments(tmp_path / folder, **options)
        return trainer_of(path, tmp_path, pronouns, args=args, train_dataset=rows, layers="3", **more)

    through = fresh("through")
    through.train()
    stopped = fresh("stopped", callbacks=[StopAt(8)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = fresh("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 14
    assert same_direction(resumed.direction, through.direction)
    from_path = fresh("stopped", callbacks=None)
    from_path.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-12"))
    assert same_direction(from_path.direction, through.direction)
    assert not same_direction(resumed.direction, stopped.direction)
    # only checkpoints hold state, and pickles of it never leave the folder by a push
    resumed.save_model()
    assert {p.name for p in (tmp_path / "stopped").iterdir() if p.is_file()} == ARTIFACT - {REFERENCES_FILE}
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_same_seed_same_bits_and_another_seed_another_direction(masked: Any, pronouns: Any, tmp_path: Path) -> None:
    def trained(seed: int, name: str) -> Direction:
        args = arguments(tmp_path / name, max_steps=4, seed=seed, per_device_train_batch_size=4)
        trainer = trainer_of(masked, tmp_path, pronouns, args=args, layers="3")
        trainer.train()
        return trainer.direction

    first, again, other = trained(1, "a"), trained(1, "b"), trained(2, "c")
    assert same_direction(first, again)
    assert not same_direction(first, other)


def test_the_base_model_is_as_before(masked: Any, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    required = {name: p.requires_grad for name, p in masked.named_parameters()}
    trainer = trainer_of(masked, tmp_path, pronouns, neutral, args=arguments(tmp_path, max_steps=4), layers="3")
    trainer.train()
    trainer.save_model()
    after = masked.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: p.requires_grad for name, p in masked.named_parameters()} == required
    assert all(p.grad is None for p in masked.parameters())


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Which events a callback sees, and what is logged."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.events.append("begin")

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(logs)

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        self.events.append("evaluate")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.events.append("end")


def test_callbacks_and_logs(masked: Any, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, logging_steps=2)
    trainer = trainer_of(masked, tmp_path, pronouns, neutral, args=args, layers="3", callbacks=[recorder])
    trainer.train()
    assert recorder.events == ["begin", "evaluate", "evaluate", "end"]
    losses = [log["loss"] for log in recorder.logs if "loss" in log]
    assert len(losses) == 2
    encodings = [log for log in recorder.logs if "eval_correlation" in log]
    assert len(encodings) == 2
    assert "eval_quality" not in encodings[0]  # the strength curve is not measured while training
    assert not trainer.report.splits
    assert trainer.gradiend_config.strength_unit == 1.0


def test_the_unit_is_chosen_on_the_trainers_own_rows_only(run: GradiendTrainer, pronouns: Any, neutral: Any) -> None:
    unit, band = run.gradiend_config.strength_unit, run.gradiend_config.safe_band
    metrics = run.evaluate(
        pronouns["test"].select(range(30)), metric_key_prefix="test", neutral_dataset=neutral.select(range(12, 18))
    )
    split = run.report.splits.pop("test")
    run.report.seconds.pop("evaluate test")
    assert (run.gradiend_config.strength_unit, run.gradiend_config.safe_band) == (unit, band)
    assert split.search == []
    assert metrics["test_correlation"] == split.encoder.correlation > 0.9
    assert split.scored != run.report.splits["eval"].scored
    assert all(key.startswith("test_") or key == "epoch" for key in metrics)


# ------------------------------------------------------------------------------------------------------------ the Hub


def test_pushed_and_loaded_again(run: GradiendTrainer, hub: Any, repo_id: str, pronouns: Any, masked: Any) -> None:
    """The repository holds the artifact in one commit, and what is loaded from it encodes to the same bits."""
    run.args.hub_model_id = repo_id
    info = run.push_to_hub()
    api = HfApi()
    commits = api.list_repo_commits(repo_id)
    assert commits[0].commit_id == info.oid
    assert [c.title for c in commits if c.title != "initial commit"] == ["End of training"]
    assets = {f"assets/{p.name}" for p in Path(run.args.output_dir, "assets").iterdir()}
    assert "assets/strength.png" in assets
    assert set(api.list_repo_files(repo_id)) - {".gitattributes"} == {*ARTIFACT, HTML_FILE, *assets}
    rows = pronouns["test"].select(range(12))
    local = GradiendModel.from_direction(run.base_model, run.direction, run.gradiend_config)
    expected = local.encode(rows)
    local.unload()
    loaded = GradiendModel.from_pretrained(repo_id, masked)
    assert torch.equal(loaded.encode(rows), expected)
    assert loaded.strengths == {"default": 1.0}
    again = GradiendModel.from_pretrained(Path(run.args.output_dir), load_base_model(masked.name_or_path))
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), again.parameters(), strict=True))
    assert run.push_to_hub().oid == info.oid  # nothing to do


def test_merged_and_loaded_by_plain_transformers(run: GradiendTrainer, masked: Any, tmp_path: Path) -> None:
    model = GradiendModel.from_pretrained(Path(run.args.output_dir), masked, strength=-1.0)
    ids = torch.tensor([[2, 100, 4, 200, 3]])
    with torch.no_grad():
        live = model(input_ids=ids).logits
        model.merge_and_unload().save_pretrained(tmp_path)
        plain = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert torch.equal(plain(input_ids=ids).logits, live)
        assert not torch.equal(load_base_model(run.base_model.name_or_path)(input_ids=ids).logits, live)


def test_a_push_that_is_not_allowed(run: GradiendTrainer, hub: Any) -> None:
    """The artifact stays, and the message says how to push it."""
    folder = Path(run.args.output_dir)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != CARD_FILE}
    run.args.hub_model_id = "bob/not-yours"
    with pytest.raises(HubPushError, match=r"may not write there") as error:
        run.push_to_hub()
    assert f"gradiend-hub push {folder} bob/not-yours" in str(error.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != CARD_FILE} == before
    run.args.hub_model_id = None
    with pytest.raises(HubPushError, match=r"No repository was named.*gradiend-hub push .* USER/NAME"):
        run.push_to_hub()


def test_a_direction_that_is_not_measured_is_not_published(
    masked: Any, pronouns: Any, hub: Any, repo_id: str, tmp_path: Path
) -> None:
    args = arguments(tmp_path / "out", max_steps=2, hub_model_id=repo_id)
    trainer = trainer_of(masked, tmp_path, pronouns, args=args, layers="3")
    for unlearned in (trainer.save_model, trainer.evaluate, lambda: trainer.push_to_hub(allow_unmeasured=True)):
        with pytest.raises(ConfigError, match=r"Nothing has been learned yet. Call trainer.train\(\) first"):
            unlearned()
    trainer.train()
    with pytest.raises(ConfigError, match=r"unmeasured.*trainer.evaluate\(\) first.*allow_unmeasured=True"):
        trainer.push_to_hub()
    assert not HfApi().repo_exists(repo_id)
    with pytest.raises(ConfigError, match="blocking=False"):
        trainer.push_to_hub(blocking=False)
    trainer.push_to_hub(allow_unmeasured=True, commit_message="as it is", private=True)
    info = HfApi().repo_info(repo_id)
    assert info.private
    card = Path(HfApi().hf_hub_download(repo_id, CARD_FILE)).read_text()
    assert "**Unmeasured.**" in card


# --------------------------------------------------------------------------------------------------------- bad input


def test_an_output_directory_that_is_not_empty(masked: Any, pronouns: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    trainer = trainer_of(masked, tmp_path, pronouns, args=arguments(tmp_path, max_steps=2), layers="3")
    with pytest.raises(ConfigError, match=r"is not empty \(thesis.tex\). Use overwrite_output_dir=True"):
        trainer.train()
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match=r"train\(resume_from_checkpoint=True\) to go on with its last checkpoint"):
        trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-3")
    args = arguments(tmp_path, max_steps=2, overwrite_output_dir=True)
    trainer_of(masked, tmp_path, pronouns, args=args, layers="3").train()
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hub_strategy": "every_save"}, "hub_strategy='every_save'.*only 'end' is supported"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 has .*raise per_device_train_batch_size"),
        ({"quality_floor": 1.0}, "quality_floor: expected a number between 0 and 1, found 1.0"),
        ({"quality_floor": 0.0}, "quality_floor: expected a number between 0 and 1, found 0.0"),
    ],
)
def test_arguments_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GradiendTrainingArguments(output_dir=str(tmp_path), **options)


def changed(pronouns: Any, **values: str) -> list[dict[str, Any]]:
    """A few good rows, the second with another value."""
    rows = [dict(row) for row in pronouns["train"].select(range(6))]
    rows[1] |= values
    return rows


def test_rows_that_cannot_be_used(masked: Any, causal: Any, pronouns: Any, tmp_path: Path) -> None:
    """Each is found before any training, with one sentence that says what to do."""
    singular = [row for row in pronouns["train"].select(range(20)) if row["factual_class"] == "3SG"]
    long = " ".join(["the"] * 150) + " [MASK] ran."
    cases: tuple[tuple[Any, Any, str], ...] = (
        (masked, singular, "class '3PL' has no rows"),
        (
            masked,
            changed(pronouns, factual="漢"),
            r"'漢' is unknown to the tokenizer of .*masked. Choose another filler",
        ),
        (masked, changed(pronouns, masked="They ran."), r"No slot: expected exactly one \[MASK\] in 'They ran.'"),
        (masked, changed(pronouns, masked=long), r"slot is token 151, but .*masked reads 128: truncation could cut"),
        (masked, changed(pronouns, factual_class="2SG"), r"unknown class '2SG'"),
        (masked, [], "train_dataset has no rows"),
    )
    for base, rows, message in cases:
        with pytest.raises(DataError, match=message):
            trainer_of(base, tmp_path, pronouns, train_dataset=rows)
    assert not list(tmp_path.iterdir())


def test_other_things_that_cannot_work(masked: Any, causal: Any, pronouns: Any, tmp_path: Path) -> None:
    cases: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
        (str(tmp_path / "gone"), {}, BaseModelError, "There is no base model at"),
        (
            build("clip_text"),
            {"processing_class": "unused"},
            BaseModelError,
            "has no head that an objective is known for",
        ),
        (masked, {"processing_class": causal_tokenizer("byte_bpe")}, BaseModelError, "has no mask token"),
        (
            causal,
            {"objective": "masked_lm"},
            BaseModelError,
            "so it fills no masks",
        ),
        (masked, {"objective": "nope"}, ConfigError, "Unknown objective 'nope'"),
        (masked, {"config": GradiendConfig()}, ConfigError, "feature_classes must name two classes"),
        (masked, {"feature_classes_are": 1}, TypeError, "feature_classes_are"),
        (masked, {"scope": "nope"}, ConfigError, "scope: 'nope' matches no parameter"),
    )
    for base, options, error, message in cases:
        with pytest.raises(error, match=message):
            trainer_of(base, tmp_path, pronouns, **options)
    trainer = trainer_of(masked, tmp_path, pronouns, layers="3", eval_dataset=None)
    with pytest.raises(ConfigError, match=r"evaluate\(\) needs an eval_dataset"):
        trainer.evaluate()


def test_what_is_loaded_must_fit(run: GradiendTrainer, masked: Any, causal: Any, hub: Any, tmp_path: Path) -> None:
    folder = Path(run.args.output_dir)
    with pytest.raises(BaseModelMismatchError):
        GradiendModel.from_pretrained(folder, causal)
    api = HfApi()
    api.create_repo("alice/not-a-direction", exist_ok=True)
    with pytest.raises(ArtifactNotFoundError):
        GradiendModel.from_pretrained("alice/not-a-direction", masked)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="A strength or feature factor must be a finite number"):
            GradiendModel.from_pretrained(folder, masked, strength=strength)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    config = json.loads((moved / CONFIG_FILE).read_text())
    (moved / CONFIG_FILE).write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(BaseModelError, match="gone"):
        GradiendModel.from_pretrained(moved)
