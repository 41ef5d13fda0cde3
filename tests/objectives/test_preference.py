"""Preference pairs: tokens, losses and readings beside plain transformers, the whole way, and unusable data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.data.preference import Chat, PreferenceRow
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report, StrengthProbe
from gradiend_hub.gradients import FactorReader, Scope, directional_derivatives, read_factors
from gradiend_hub.objectives import PreferenceObjective, make_objective, objective_name, own_replies
from gradiend_hub.scope import select_parameters
from tests.training.support import arguments

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
PAIRS = [
    {
        "prompt": f"The man asked where the {thing} was.",
        "chosen": f" She said that {a}.",
        "rejected": f" They said that {b}.",
    }
    for thing in ("house", "horse", "book", "door", "king", "sword", "river", "city")
    for a, b in (("it was there", "it was lost"), ("he had seen it", "he had sold it"))
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"].strip()}],
        "rejected": [{"role": "assistant", "content": pair["rejected"].strip()}],
    }
    for pair in PAIRS
]


@pytest.fixture
def base(causal_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(causal_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(causal_path)


@pytest.fixture
def chat_tokenizer(tokenizer: Any) -> Any:
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def objective_of(base: Any, tokenizer: Any, **options: Any) -> PreferenceObjective:
    found = make_objective(base, tokenizer, name="preference", options=options)
    assert isinstance(found, PreferenceObjective)
    return found


# -- what is read -------------------------------------------------------------------------------------------------------


def test_tokens_of_plain_texts_are_those_of_the_whole_text(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    for pair in PAIRS[:4]:
        row = objective.read(pair)
        for text in (row.factual, row.alternative):
            sample = objective.sample(row, text)
            whole = tokenizer(pair["prompt"] + text).input_ids
            prompt = tokenizer(pair["prompt"]).input_ids
            assert list(sample.labels) == whole[len(prompt) :]
            assert [*sample.inputs["input_ids"], sample.labels[-1]] == whole
            assert list(sample.positions) == list(range(len(prompt) - 1, len(whole) - 1))


def test_messages_go_through_the_template_with_the_end_of_the_answer(base: Any, chat_tokenizer: Any) -> None:
    objective = objective_of(base, chat_tokenizer)
    row = objective.read(CHATS[0])
    assert objective.chat
    sample = objective.sample(row, row.factual)
    text = f"<user> {PAIRS[0]['prompt']}</s>\n<assistant> {PAIRS[0]['chosen'].strip()}</s>"
    assert [*sample.inputs["input_ids"], sample.labels[-1]] == chat_tokenizer(text).input_ids
    assert chat_tokenizer.decode(list(sample.labels)).strip() == PAIRS[0]["chosen"].strip() + "</s>"
    assert sample.labels[-1] == chat_tokenizer.eos_token_id
    assert objective.read(json.loads(json.dumps(objective.record(row)))) == row


def test_layouts_of_records() -> None:
    read = PreferenceRow.read
    explicit = {
        "prompt": "p",
        "factual": "a",
        "alternative": "b",
        "factual_class": "polite",
        "alternative_class": "curt",
    }
    assert read({"prompt": "p", "polite": "a", "curt": "b"}) == read(explicit)
    assert read({"prompt": "p", "chosen": "a", "rejected": "b", "score": 3}).factual_class == "chosen"
    assert read(explicit).record() == explicit
    implicit = read({"chosen": "The sky is blue now", "rejected": "The sky is black now"})  # words may begin alike
    assert (implicit.input, implicit.factual, implicit.alternative) == ("The sky is", " blue now", " black now")
    question = {"role": "user", "content": "q"}
    chats = {
        "chosen": [question, {"role": "assistant", "content": "a"}],
        "rejected": [question, {"role": "assistant", "content": "b"}],
    }
    row = read(chats)
    assert (row.input, row.factual) == (Chat([("user", "q")]), Chat([("assistant", "a")]))
    assert row.swapped.swapped == row
    assert read({"prompt": "q", **chats}) == row  # UltraFeedback: the question as text beside whole conversations
    answers = {name: messages[1:] for name, messages in chats.items()}
    assert read({"prompt": "q", **answers}) == row
    assert read({"prompt": [question], "chosen": "a", "rejected": "b"}).input == row.input


@pytest.mark.parametrize("per_token", [True, False])
def test_losses_and_encodings_are_plain_autograds(base: Any, tokenizer: Any, per_token: bool) -> None:
    objective = objective_of(base, tokenizer, per_token=per_token)
    rows = [objective.read(pair) for pair in PAIRS[:3]]
    tangents = {name: torch.randn_like(p) / p.numel() for name, p in select_parameters(base).items()}
    examples = [objective.example(row) for row in rows]
    found = directional_derivatives(base, objective, [e.factual for e in examples], tangents)
    losses = objective.losses(base, objective.collate_pairs(examples))
    for i, pair in enumerate(PAIRS[:3]):
        for loss, text in zip(losses, (pair["chosen"], pair["rejected"]), strict=True):
            ids = tokenizer(pair["prompt"] + text, return_tensors="pt").input_ids
            start = len(tokenizer(pair["prompt"]).input_ids)
            labels = ids.clone()
            labels[:, :start] = -100
            plain = base(input_ids=ids, labels=labels).loss  # transformers' own: the mean over the completion's tokens
            plain = plain if per_token else plain * (ids.shape[1] - start)
            assert loss[i].item() == pytest.approx(plain.item(), rel=1e-4)
            if text == pair["chosen"]:
                gradients = torch.autograd.grad(plain, [base.get_parameter(name) for name in tangents])
                expected = sum((g * t).sum().item() for g, t in zip(gradients, tangents.values(), strict=True))
                assert float(found[i]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("per_token", [True, False])
def test_factors_are_of_the_same_loss(base: Any, tokenizer: Any, per_token: bool) -> None:
    """What low-rank learning sums is the gradient of the reduced loss."""
    objective = objective_of(base, tokenizer, per_token=per_token)
    batch = objective.collate_pairs([objective.example(objective.read(pair)) for pair in PAIRS[:3]])
    name, found = "model.layers.1.mlp.down_proj.weight", []
    weight = base.get_parameter(name)
    with FactorReader(base, Scope.dense({name: weight})) as reader:
        read_factors(reader, objective, batch, {"factual": lambda _, part: found.append(part.dense())})
    weight.requires_grad_(True)
    loss = objective.losses(base, batch)[0].sum()
    torch.testing.assert_close(found[0], torch.autograd.grad(loss, weight)[0], rtol=1e-3, atol=1e-6)


def test_a_class_s_probability_is_its_share_of_the_pair(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer, per_token=False)
    rows = objective.prepare([objective.read(pair) for pair in PAIRS])
    assert len(rows) == 2 * len(PAIRS)
    scope = select_parameters(base)
    name = next(iter(scope))
    direction = Direction({name: ParameterDirection(tuple(scope[name].shape), torch.randn(scope[name].numel()) * 0.01)})
    config = GradiendConfig(feature_classes=["chosen", "rejected"], decoder_sign=1, objective="preference")
    model = GradiendModel.from_direction(base, direction, config)
    probe = StrengthProbe(model, objective, rows, batch_size=3)
    point = probe.measure(0.7)
    shares, odds = [], []
    with torch.no_grad(), model.strength_at(0.7):
        for pair in PAIRS:
            chances = []
            for text in (pair["chosen"], pair["rejected"]):
                ids = tokenizer(pair["prompt"] + text, return_tensors="pt").input_ids
                start = len(tokenizer(pair["prompt"]).input_ids)
                logits = base(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
                chances.append(float(logits.gather(1, ids[0, start:, None]).sum()))
            shares.append(float(torch.tensor(chances).softmax(0)[0]))
            odds.append(chances[0] - chances[1])
    mean = sum(shares) / len(shares)
    assert point.probability["rejected"]["chosen"] == pytest.approx(mean, abs=1e-4)
    assert point.probability["chosen"]["rejected"] == pytest.approx(1 - mean, abs=1e-4)
    assert point.readings["share"] == sum(o > 0 for o in odds) / len(odds)
    assert point.readings["log-odds"] == pytest.approx(sum(odds) / len(odds), abs=1e-3)
    model.unload()


def test_short_answers_are_read_by_class(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    row = objective.read({"prompt": "Is it here? I say", "factual": " yes", "alternative": " no", "factual_class": "yes",
                          "alternative_class": "no"})  # fmt: skip
    readings = objective.readings(row, {"yes": [" yes", " it is"], "no": [" no"]})
    assert sum(len(of) for reading in readings for of in reading.outputs) == 3


# -- choosing, options --------------------------------------------------------------------------------------------------


def test_columns_choose_the_objective(base: Any) -> None:
    assert objective_name(base) == "causal_lm"
    assert objective_name(base, columns=["prompt", "chosen", "rejected", "id"]) == "preference"
    assert objective_name(base, columns=["chosen", "rejected"]) == "preference"
    assert objective_name(base, columns=["prompt", "polite", "curt"]) == "preference"
    columns = ["masked", "factual", "alternative", "factual_class", "alternative_class"]
    assert objective_name(base, columns=columns) == "causal_lm"


def test_options_are_checked(base: Any, tokenizer: Any) -> None:
    assert objective_of(base, tokenizer, per_token=False).options == {"per_token": False, "chat": False}
    with pytest.raises(ConfigError, match="no option 'per_tokens'"):
        objective_of(base, tokenizer, per_tokens=False)
    with pytest.raises(ConfigError, match="must be true or false"):
        objective_of(base, tokenizer, per_token=1)
    with pytest.raises(ConfigError, match="no option 'per_token'"):
        make_objective(base, tokenizer, name="causal_lm", options={"per_token": True})


# -- the whole way ------------------------------------------------------------------------------------------------------


def test_pairs_train_evaluate_save_load_apply_and_merge(causal_path: Path, chat_tokenizer: Any, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()
    neutral = [
        *({"text": text} for text in ("The old house was dark.", "In the morning we went to the city.") * 4),
        *own_replies(
            base, chat_tokenizer, [[{"role": "user", "content": "Where is the sea?"}], "The old man"], tokens=6
        ),
    ]
    assert {"prompt", "completion"} <= neutral[-1].keys()
    args = arguments(tmp_path, solver="closed_form", max_steps=-1, per_device_train_batch_size=4)
    trainer = GradiendTrainer(
        base,
        GradiendConfig(feature_classes=["chosen", "rejected"]),
        args,
        train_dataset=CHATS[:12],
        eval_dataset=CHATS[12:],
        neutral_dataset=neutral,
        processing_class=chat_tokenizer,
    )
    assert trainer.objective.name == "preference"
    assert trainer.gradiend_config.objective_options == {"per_token": True, "chat": True}
    assert trainer.gradiend_config.fillers is None
    assert len(trainer.train_dataset) == 24
    trainer.train()
    assert trainer.evaluate()["eval_correlation"] > 0.9
    trainer.save_model()

    report = Report.load(tmp_path)
    split = report.splits["eval"]
    down, zero, up = (split.at(s).readings["log-odds per token"] for s in (-1.0, 0.0, 1.0))
    assert down < zero < up
    assert split.completions and isinstance(split.completions[0].by_strength["1.0"], str)
    assert split.completions[0].text == CHATS[12]["prompt"][0]["content"]
    assert report.examples[0]["prompt"] == CHATS[0]["prompt"]
    card = (tmp_path / CARD_FILE).read_text("utf-8")
    assert "pipeline_tag: text-generation" in card and "&#96;" not in card
    assert "where the completion is of chosen" in " ".join(card.split())

    model = GradiendModel.from_pretrained(tmp_path, strength=0.0, processing_class=chat_tokenizer)
    h = model.encode(CHATS[12:])
    assert (h > 0).all()
    swapped = [PreferenceRow.read(row).swapped.record() for row in CHATS[12:]]
    assert (model.encode(swapped) < 0).all()
    assert model.verify().passed
    plain = AutoModelForCausalLM.from_pretrained(causal_path, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        model.set_strength(1.0)
        for name, part in model.direction.parameters.items():
            plain.get_parameter(name).add_(part.dense(part.delta(*model.active_peft_config.coefficients(1.0))))
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert type(model.merge_and_unload()) is type(plain)


# -- unusable data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "are the same, 'same'"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, "'chosen' is empty behind the prompt 'p'"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "must be a text or a list of messages"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "'chosen' must be a text or a list"),
        ({"prompt": "p", "chosen": [{"role": "assistant"}], "rejected": "b"}, "expected messages"),
        ({"prompt": "p", "a": "x", "b": "y", "c": "z"}, "two named like the classes"),
        ({"chosen": "Alpha", "rejected": "Beta"}, "do not begin alike"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "\n\t "}, "'rejected' is empty"),
        ({"prompt": "p", "chosen": [], "rejected": "b"}, "'chosen' is empty"),
        (
            {
                "prompt": "p",
                "chosen": [{"role": "user", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            "'chosen' begins with a message of the role 'user'; expected 'assistant'",
        ),
        (
            {"prompt": "p", "factual": "a", "alternative": "b", "factual_class": "x", "alternative_class": "x"},
            "both completions are of the class 'x'",
        ),
        (
            {"prompt": "p", "factual": "a", "alternative": "b", "factual_class": "", "alternative_class": "x"},
            "must be a non",
        ),
    ],
)
def test_unusable_records_are_named(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PreferenceRow.read(record)


def test_a_missing_template_is_named(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    with pytest.raises(DataError, match=r"has no chat template.*give prompts and completions as plain text"):
        objective.example(objective.read(CHATS[0]))


def test_a_template_that_rewrites_the_prompt_is_named(base: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages|length }}{% for m in messages %} {{ m.content }}{% endfor %}"
    objective = objective_of(base, tokenizer)
    with pytest.raises(DataError, match="otherwise when an answer follows"):
        objective.example(objective.read(CHATS[0]))
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(DataError, match="no system message"):
        objective.example(objective.read(CHATS[0]))


def test_a_role_that_the_template_leaves_out_is_named(base: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}> {{ m.content }}\n"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    objective = objective_of(base, tokenizer)
    answers = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "Yes."), ("rejected", "No."))
    }
    prompt = [{"role": "narrator", "content": "It rains."}, {"role": "user", "content": "Go out?"}]
    with pytest.raises(
        DataError, match=r"leaves out what the role 'narrator' says.*Use the roles system, user, assistant"
    ):
        objective.example(objective.read({"prompt": prompt, **answers}))
    objective.example(objective.read({"prompt": prompt[1:], **answers}))


def test_completions_that_the_model_reads_alike_are_named(base: Any, chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = TEMPLATE.replace("m.content", "m.content|trim")  # as many templates do
    objective = objective_of(base, chat_tokenizer)
    answers = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "Yes."), ("rejected", "Yes. "))
    }
    row = objective.read({"prompt": [{"role": "user", "content": "Go out?"}], **answers})
    with pytest.raises(DataError, match=r"train_dataset, row 1: .* reads both completions of 'Go out\?' alike"):
        objective.prepare([objective.read(CHATS[0]), row], what="train_dataset")


@pytest.mark.parametrize(("prompt", "completion"), [("Where? ", "Here."), ("Where?", " Here."), ("Where?\n", "Here.")])
def test_white_space_between_prompt_and_completion_is_read_once(
    base: Any, tokenizer: Any, prompt: str, completion: str
) -> None:
    objective = objective_of(base, tokenizer)
    sample = objective.example(objective.read({"prompt": prompt, "chosen": completion, "rejected": "No."})).factual
    whole = tokenizer(prompt + completion).input_ids
    assert [*sample.inputs["input_ids"], sample.labels[-1]] == whole
    assert tokenizer.decode(list(sample.labels)).strip() == "Here."


def test_a_prompt_whose_last_word_goes_on_in_the_completion_is_named(base: Any, tokenizer: Any) -> None:
    objective = objective_of(base, tokenizer)
    row = objective.read({"prompt": "We went to the ho", "chosen": "use.", "rejected": "rse."})
    with pytest.raises(DataError, match=r"merges .* into one token"):
        objective.example(row)


def test_completions_longer_than_the_model_reads_are_left_out_up_to_a_hundredth(
    base: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    objective = objective_of(base, tokenizer)
    long = {"prompt": "The king said", "chosen": " that he went" * 100, "rejected": " no."}
    rows = [objective.read(pair) for pair in random.Random(0).choices(PAIRS, k=100)]
    with caplog.at_level("WARNING"):
        kept = objective.prepare([*rows, objective.read(long)], what="train_dataset")
    assert "train_dataset: 1 of 101 pairs have a completion longer" in caplog.text
    assert all(len(objective.sample(row, row.factual).inputs["input_ids"]) <= objective.max_length for row in kept)
    with pytest.raises(DataError, match=r"2 of 102 pairs.*Shorten the completions"):
        objective.prepare([*rows, objective.read(long), objective.read(long)])
    cut = objective.read({"prompt": "The king said that he went. " * 60, "chosen": " Yes.", "rejected": " No."})
    sample = objective.example(cut).factual
    assert len(sample.inputs["input_ids"]) == objective.max_length
    assert sample.inputs["input_ids"][0] == tokenizer.bos_token_id


def test_a_neutral_prompt_needs_a_completion(base: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="own_replies"):
        objective_of(base, tokenizer).read_neutral({"prompt": "Where?"})
