"""Strengths by row: one forward gives what each row would get by itself, or says why it cannot."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import ConfigError, EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, random_direction, same_bits
from tests.models import build, inputs, output

STRENGTHS = [0.0, 0.5, -1.5]
REFUSED = {
    "deberta": ["rel_embeddings", "encoder.LayerNorm", "query_proj", "key_proj"],
    "opt": ["layers"],
    "mixtral": ["experts", "gate"],
    "qwen2_moe": ["experts", "gate", "shared_expert"],
    "mamba": ["mixer"],
    "t5": ["relative_attention_bias"],
    "vit": ["cls_token", "position_embeddings"],
    "clip_text": ["class_embedding"],
}
"""Parameters without an exact side path, by architecture: flattened batches, tensors without rows, bare parameters."""

EXACT = [
    "bert", "roberta", "distilbert", "deberta", "electra", "modernbert", "gpt2", "gpt_neox", "opt", "llama",
    "llama_tied", "qwen3", "gemma2", "gemma3", "mistral", "mixtral", "qwen2_moe", "mamba", "t5", "bart", "vit",
    "clip_text",
]  # fmt: skip


def without(direction: Direction, words: Sequence[str]) -> Direction:
    return Direction({n: p for n, p in direction.parameters.items() if not any(word in n for word in words)})


def each_by_itself(
    model: GradiendModel, architecture: str, strengths: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    rows = []
    for row, strength in enumerate(strengths):
        with model.strength_at(strength):
            rows.append(output(model, architecture, dtype)[row])
    return torch.stack(rows)


@pytest.mark.parametrize("architecture", EXACT)
def test_rows_equal_separate_runs(architecture: str) -> None:
    base = build(architecture)
    direction = without(random_direction(base, scale=0.02), REFUSED.get(architecture, []))
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=0.7)
    before = bits(model)
    plain = output(model, architecture)
    expected = each_by_itself(model, architecture, STRENGTHS, torch.float32)
    found = output(model, architecture, strengths=STRENGTHS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert same_bits(bits(model), before)
    assert torch.equal(output(model, architecture), plain)


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_parameters_without_a_side_path_are_refused(architecture: str) -> None:
    base = build(architecture)
    every = random_direction(base)
    for word in REFUSED[architecture]:
        names = [name for name in every.parameters if word in name]
        if not names:
            continue
        direction = Direction({name: every.parameters[name] for name in names})
        model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
        before = bits(model)
        with pytest.raises(EditError, match="set_strength"):
            output(model, architecture, strengths=STRENGTHS)
        assert same_bits(bits(model), before)
        base = model.unload()


def test_a_head_that_reads_the_embeddings_itself_is_noticed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 4)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embedding(input_ids) @ self.embedding.weight.T

    net = Net()
    direction = random_direction(net)
    model = GradiendModel.from_direction(net, direction, config_for(direction), strength=1.0)
    with pytest.raises(EditError, match="another module"):
        model(input_ids=torch.ones(2, 3, dtype=torch.long), strengths=[0.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    base = build("bert", dtype)
    direction = random_direction(base, scale=0.02)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    found = output(model, "bert", dtype, strengths=STRENGTHS)
    expected = each_by_itself(model, "bert", STRENGTHS, dtype)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    assert torch.equal(found[0], output(model, "bert", dtype)[0])


def test_strengths_from_the_input() -> None:
    """A direction that depends on the context: the strength is a function of the tokens."""
    base = build("llama")
    direction = random_direction(base, scale=0.02)
    model = GradiendModel.from_direction(base, direction, config_for(direction))
    calls = []

    def strengths(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        calls.append(input_ids.shape)
        return torch.where(input_ids[:, 0] > 40, 1.0, -1.0)

    found = output(model, "llama", strengths=strengths)
    chosen = [1.0 if int(first) > 40 else -1.0 for first in inputs("llama")["input_ids"][:, 0]]
    torch.testing.assert_close(found, each_by_itself(model, "llama", chosen, torch.float32), atol=2e-5, rtol=1e-4)
    assert calls == [(3, 7)]


def test_several_directions_and_generation() -> None:
    base = build("gpt2")
    first, second = random_direction(base, scale=0.05, seed=1), random_direction(base, "sparse", scale=0.05, seed=2)
    model = GradiendModel.from_direction(base, first, config_for(first), adapter_name="a")
    model.add_direction("b", second, config_for(second))
    model.set_strength({"b": 0.0})
    by_name = {"a": [1.0, 0.0, -1.0], "b": [0.0, 2.0, 1.0]}
    arguments = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    together = model.generate(**inputs("gpt2"), **arguments, strengths=by_name)
    for row in range(3):
        one = {name: values[row : row + 1] for name, values in inputs("gpt2").items()}
        with model.strength_at({"a": by_name["a"][row], "b": by_name["b"][row]}):
            alone = model.generate(**one, **arguments)
        assert torch.equal(together.sequences[row], alone.sequences[0])
        torch.testing.assert_close(together.scores[-1][row], alone.scores[-1][0], atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="dictionary by name"):
        model(**inputs("gpt2"), strengths=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "strengths", [[1.0], [1.0, 2.0, float("nan")], ["a", "b", "c"], {"other": [1.0] * 3}, 1.0, [[1.0]] * 3]
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
    direction = random_direction(base, scale=0.02)
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
