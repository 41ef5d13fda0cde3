"""A strength that changes while a model generates, against models whose weights are W + σΔ by hand at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from gradiend_hub.adapter.side_path import SidePath
from gradiend_hub.errors import ConfigError, EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits
from tests.adapter.test_side_path import IDS, learned
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
STEPS = 5
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def model_of(architecture: str = "llama", low_rank: bool = True, strength: float = 0.3) -> GradiendModel:
    base = build(architecture)
    direction = learned(base) if low_rank else random_direction(base, "dense", scale=0.3, bias=False)
    return GradiendModel.from_direction(base, direction, config_for(direction), strength=strength)


def by_hand(
    model: GradiendModel, schedule: Callable[[int], float], *, cached: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy text and logits `[rows, steps, vocabulary]` of models whose weights hold the edit of each step."""
    direction, config = model._direction("default"), model.peft_config["default"]
    base = build(type(model.get_base_model()).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower())
    tokens, logits, cache = IDS, [], DynamicCache(config=base.config)
    for step in range(STEPS):
        at = edited(base, [(direction, *config.coefficients(schedule(step)))])
        with torch.no_grad():
            new = tokens if step == 0 or not cached else tokens[:, -1:]
            out = at(input_ids=new, past_key_values=cache, use_cache=True) if cached else at(input_ids=new)
        logits.append(out.logits[:, -1])
        allowed = logits[-1].index_fill(-1, torch.tensor([base.config.eos_token_id]), -torch.inf)  # min_new_tokens
        tokens = torch.cat([tokens, allowed.argmax(-1, keepdim=True)], dim=1)
    return tokens, torch.stack(logits, dim=1)


@pytest.mark.parametrize("low_rank", [True, False], ids=["beside", "merged"])
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "read anew"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_step_is_computed_at_its_strength(architecture: str, cached: bool, low_rank: bool) -> None:
    model = model_of(architecture, low_rank)
    assert SidePath.fits(model.base_model, ["default"]) is low_rank
    before = bits(model)

    def schedule(step: int) -> float:
        return (1.0, 1.0, -2.0, 0.0, 0.5)[step]

    found = model.generate(input_ids=IDS, schedule=lambda step, _: schedule(step), use_cache=cached, **GREEDY)
    tokens, logits = by_hand(model, schedule, cached=cached)
    torch.testing.assert_close(torch.stack(found.logits, dim=1), logits, atol=2e-5, rtol=1e-4)
    assert torch.equal(found.sequences, tokens)
    other = by_hand(model, schedule, cached=not cached)[1]  # the two policies do differ
    assert float((other - logits)[:, 2:].abs().max()) > 1e-3
    assert same_bits(bits(model), before) and model.strength == 0.3


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(strength=st.floats(-2, 2).filter(lambda s: abs(s) > 1e-3), beams=st.integers(1, 3), rows=st.integers(1, 4))
def test_a_constant_schedule_is_the_constant_strength(strength: float, beams: int, rows: int) -> None:
    model = model_of()
    options = {**GREEDY, "num_beams": beams, "output_logits": False}
    mine = model.generate(input_ids=IDS[:rows], schedule=lambda *_: strength, **options).sequences
    by_row = model.generate(input_ids=IDS[:rows], strengths=[strength] * rows, **options).sequences
    assert torch.equal(mine, by_row)
    with model.strength_at(strength):
        assert torch.equal(mine, model.generate(input_ids=IDS[:rows], **options).sequences)


def test_what_the_schedule_is_asked() -> None:
    model = model_of()
    asked: list[tuple[int, torch.Tensor]] = []

    def schedule(step: int, tokens: torch.Tensor) -> list[float]:
        asked.append((step, tokens.clone()))
        return [0.5 * row for row in range(len(tokens))]  # a row each

    found = model.generate(input_ids=IDS, schedule=schedule, **GREEDY).sequences
    assert [step for step, _ in asked] == list(range(STEPS))  # one for each forward
    for step, tokens in asked:
        assert torch.equal(tokens, found[:, : IDS.shape[1] + step])
    assert torch.equal(found, model.generate(input_ids=IDS, strengths=[0.0, 0.5, 1.0, 1.5], **GREEDY).sequences)


def test_a_strength_by_what_was_written() -> None:
    """Each row has the strength that its own text asks for."""
    model = model_of()
    chosen: dict[int, list[float]] = {}

    def schedule(step: int, tokens: torch.Tensor) -> torch.Tensor:
        strengths = torch.where(tokens[:, -1] % 2 == 0, 2.0, -2.0)
        chosen[step] = strengths.tolist()
        return strengths

    batch = model.generate(input_ids=IDS, schedule=schedule, **GREEDY).sequences
    assert len({tuple(row) for row in zip(*chosen.values(), strict=True)}) > 1
    for row in range(len(IDS)):
        assert torch.equal(
            model.generate(input_ids=IDS[row : row + 1], schedule=schedule, **GREEDY).sequences[0], batch[row]
        )


def test_beside_other_stopping_criteria_and_directions() -> None:
    class AfterTwo(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= IDS.shape[1] + 2)

    model = model_of()
    two = learned(model.get_base_model(), 2)
    model.add_direction("two", two, config_for(two))
    options = {k: v for k, v in GREEDY.items() if k != "min_new_tokens"}
    found = model.generate(
        input_ids=IDS,
        schedule=lambda *_: {"two": -1.0},
        stopping_criteria=StoppingCriteriaList([AfterTwo()]),
        **options,
    ).sequences
    assert found.shape[1] == IDS.shape[1] + 2
    with model.strength_at({"default": 0.3, "two": -1.0}):
        assert torch.equal(found, model.generate(input_ids=IDS, **{**options, "max_new_tokens": 2}).sequences)


def test_encoder_decoder() -> None:
    model = model_of("t5", low_rank=False)
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    found = model.generate(input_ids=IDS, schedule=lambda *_: 0.8, **options)
    with model.strength_at(0.8):
        assert torch.equal(found, model.generate(input_ids=IDS, **options))


def test_bad_input() -> None:
    model, merged = model_of(), model_of(low_rank=False)
    before = bits(model), bits(merged)
    for schedule, said in (
        (lambda *_: float("nan"), "finite number"),
        (lambda *_: [1.0, 2.0, 3.0], "each of 4 rows, found"),
        (lambda *_: {"nobody": 1.0}, "no direction 'nobody'"),
        (lambda step, _: 1.0 if step < 2 else float("inf"), "step 2"),
        (0.5, "expected a function of step and tokens, found float"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.generate(input_ids=IDS, schedule=schedule, **GREEDY)
    with pytest.raises(ConfigError, match="either `strengths` or `schedule`"):
        model.generate(input_ids=IDS, schedule=lambda *_: 1.0, strengths=[1.0] * 4, **GREEDY)
    with pytest.raises(ConfigError, match="batch of prompts"):
        model.generate(schedule=lambda *_: 1.0, **GREEDY)
    with pytest.raises(EditError, match=r"not low-rank.*one number for all rows"):
        merged.generate(input_ids=IDS, schedule=lambda *_: [1.0, 2.0, 1.0, 1.0], **GREEDY)
    with model.disable_adapter(), pytest.raises(ConfigError, match="disabled"):
        model.generate(input_ids=IDS, schedule=lambda *_: 1.0, **GREEDY)
    assert same_bits(bits(model), before[0]) and same_bits(bits(merged), before[1])
    assert model.strength == merged.strength == 0.3 and not model.get_base_model()._forward_pre_hooks
