"""Strengths by row: every row gets what it would get by itself, or an error says why it cannot."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from gradiend_hub.errors import ConfigError, EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, random_direction, same_bits
from tests.models import ARCHITECTURES, SEQ2SEQ, build, inputs, output

STRENGTHS = [0.5, 0.0, 0.5]


def some_rows(architecture: str, rows: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: values[list(rows)] for name, values in inputs(architecture, dtype).items()}


def logits(model: nn.Module, **batch: Any) -> torch.Tensor:
    with torch.no_grad():
        result = model(**batch)
    if isinstance(result, torch.Tensor):
        return result
    found: torch.Tensor = result["logits"] if "logits" in result else result["last_hidden_state"]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_equal_separate_runs(architecture: str, dtype: torch.dtype) -> None:
    """Bit for bit, for every architecture and all of its parameters; the weights are as before afterwards."""
    base = build(architecture, dtype)
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=0.7)
    before, plain = bits(model), output(model, architecture, dtype)
    found = output(model, architecture, dtype, strengths=STRENGTHS)
    for strength, rows in ((0.5, [0, 2]), (0.0, [1])):
        with model.strength_at(strength):
            assert torch.equal(found[rows], logits(model, **some_rows(architecture, rows, dtype)))
    assert not torch.equal(found, plain)
    assert same_bits(bits(model), before)
    assert torch.equal(output(model, architecture, dtype), plain)
    assert model.strengths == {"default": 0.7}


def test_strengths_from_the_input() -> None:
    """A direction that depends on the context: the strength is a function of the tokens."""
    base = build("llama")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    calls = []

    def strengths(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        calls.append(input_ids.shape)
        return torch.where(input_ids[:, 0] > 40, 1.0, -1.0)

    chosen = [1.0 if int(first) > 40 else -1.0 for first in inputs("llama")["input_ids"][:, 0]]
    assert torch.equal(output(model, "llama", strengths=strengths), output(model, "llama", strengths=chosen))
    assert calls == [(3, 7)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "t5", "mamba"])
@pytest.mark.parametrize("sample", [False, True])
def test_several_directions_and_generation(architecture: str, sample: bool) -> None:
    """Every group of rows is generated with a cache of its own."""
    base = build(architecture)
    first, second = random_direction(base, seed=1), random_direction(base, "sparse", seed=2)
    model = GradiendModel.from_direction(base, first, config_for(first), adapter_name="a")
    model.add_direction("b", second, config_for(second))
    model.set_strength({"b": 0.0})
    by_name = {"a": [1.0, 0.0, 1.0], "b": [0.0, 2.0, 0.0]}
    batch = {k: v for k, v in inputs(architecture).items() if not (architecture in SEQ2SEQ and k != "input_ids")}
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": sample, "pad_token_id": 0}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    together = model.generate(**batch, **options, strengths=by_name)
    torch.manual_seed(0)
    for rows in ([0, 2], [1]):
        part = {name: values[rows] for name, values in batch.items()}
        with model.strength_at({name: values[rows[0]] for name, values in by_name.items()}):
            alone = model.generate(**part, **options)
        assert torch.equal(together.sequences[rows], alone.sequences)
        for step, scores in enumerate(alone.scores):
            assert torch.equal(together.scores[step][rows], scores)
    assert model.strengths == {"a": 0.0, "b": 0.0}
    with pytest.raises(ConfigError, match="dictionary by name"):
        model(**inputs(architecture), strengths=[1.0, 1.0, 1.0])


def test_rows_that_end_early_are_padded() -> None:
    base = build("gpt2")
    direction = random_direction(base, scale=0.2)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    alone = {}
    for strength in (0.0, 1.0):
        with model.strength_at(strength):
            alone[strength] = model.generate(**some_rows("gpt2", [0, 1]), **options)
    ends = int(alone[1.0][0, 9])  # a token that the rows of one strength meet sooner
    for strength in alone:
        with model.strength_at(strength):
            row = 0 if strength else 1
            alone[strength] = model.generate(**some_rows("gpt2", [row]), **options, eos_token_id=ends)
    together = model.generate(**some_rows("gpt2", [0, 1]), **options, eos_token_id=ends, strengths=[1.0, 0.0])
    assert alone[0.0].shape[1] != alone[1.0].shape[1]
    for row, strength in enumerate([1.0, 0.0]):
        size = alone[strength].shape[1]
        assert torch.equal(together[row, :size], alone[strength][0])
        assert not together[row, size:].any()


def test_sequences_that_are_returned_for_one_row() -> None:
    base = build("gpt2")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    options: dict[str, Any] = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "pad_token_id": 0}
    together = model.generate(**inputs("gpt2"), **options, strengths=STRENGTHS)
    assert together.shape[0] == 6
    with model.strength_at(0.5):
        alone = model.generate(**some_rows("gpt2", [0, 2]), **options)
    assert torch.equal(together[[0, 1, 4, 5]], alone)


def test_a_cache_goes_on_with_the_same_strengths() -> None:
    base = build("llama")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    ids = inputs("llama")["input_ids"]
    whole = model(input_ids=ids, strengths=STRENGTHS).logits
    start = model(input_ids=ids[:, :5], strengths=STRENGTHS, use_cache=True)
    assert start.past_key_values.get_seq_length() == 5
    rest = model(input_ids=ids[:, 5:], strengths=STRENGTHS, past_key_values=start.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 5:], atol=1e-5, rtol=1e-4)
    with pytest.raises(EditError, match="other strengths"):
        model(input_ids=ids[:, 5:], strengths=[1.0, 2.0, 1.0], past_key_values=start.past_key_values)
    with pytest.raises(EditError, match="cache of the whole batch"):
        model(input_ids=ids, strengths=STRENGTHS, past_key_values=DynamicCache())


def test_inputs_that_are_not_the_rows_first() -> None:
    """Positions of three kinds, or of one row for all; a square batch, whose positions look like rows."""
    base = build("llama")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    ids = torch.arange(9).view(3, 3) + 5
    plain = model(input_ids=ids, strengths=STRENGTHS).logits
    for positions in (torch.arange(3)[None], torch.arange(3).expand(3, 3)):
        assert torch.equal(model(input_ids=ids, position_ids=positions, strengths=STRENGTHS).logits, plain)
    embedded = model.get_input_embeddings()(ids)
    with model.strength_at(0.0):
        embedded = model.get_input_embeddings()(ids)
    assert model(inputs_embeds=embedded, strengths=STRENGTHS).logits.shape == plain.shape
    assert torch.equal(model(ids, strengths=STRENGTHS).logits, plain)


def test_what_cannot_be_joined_is_refused() -> None:
    base = build("bert")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
    before, batch = bits(model), inputs("bert")
    with pytest.raises(EditError, match="loss is a mean"):
        model(**batch, labels=batch["input_ids"], strengths=STRENGTHS)
    assert model(**batch, labels=batch["input_ids"], strengths=[0.5] * 3).loss.ndim == 0  # one group is the batch
    with pytest.raises(EditError, match="no row for each"):
        model(**(batch | {"attention_mask": torch.ones(2, 7)}), strengths=STRENGTHS)
    with model.disable_adapter(), pytest.raises(ConfigError, match="disabled"):
        model(**batch, strengths=STRENGTHS)
    assert same_bits(bits(model), before)
    hidden = model(**batch, strengths=STRENGTHS, output_hidden_states=True).hidden_states
    with model.strength_at(0.5):
        alone = model(**some_rows("bert", [0, 2]), output_hidden_states=True).hidden_states
    assert all(torch.equal(found[[0, 2]], layer) for found, layer in zip(hidden, alone, strict=True))


@pytest.mark.parametrize(
    "strengths", [[1.0], [1.0, 2.0, float("nan")], ["a", "b", "c"], {"other": [1.0] * 3}, 1.0, 1, [[1.0]] * 3]
)
def test_unusable_strengths(strengths: Any) -> None:
    base = build("bert")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
    before = bits(model)
    with pytest.raises(ConfigError, match="strengths"):
        model(**inputs("bert"), strengths=strengths)
    assert same_bits(bits(model), before)


def test_threads_with_strengths_by_row() -> None:
    base = build("bert")
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    batches = [[0.0, 0.5, -1.5], [1.0, -1.0, 0.25], [2.0, 0.0, 0.0]]
    expected = [output(model, "bert", strengths=strengths) for strengths in batches]
    wrong: list[int] = []

    def work(place: int) -> None:
        for _ in range(5):
            if not torch.equal(output(model, "bert", strengths=batches[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
