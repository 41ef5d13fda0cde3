"""A strength that changes while a model writes: by the step, and by what it has written.

python examples/schedule.py

Makes a low-rank direction of the bundled causal model (the gradient of log P(they) − log P(he) at a few prompts), and lets
the model go on with prompts: at one strength; with a strength that is turned round after some tokens; and with one that
follows the text, pushing each row the other way as soon as it has used a pronoun. Beside each stands what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors

BASE = Path(__file__).parent / "base_models" / "causal"
PROMPTS = ["the boy was tired because", "the girls were happy when", "the player went home after"]
STEPS = 12


def make_direction(base: Any, tokenizer: Any) -> Direction:
    """The gradient of every linear weight in the blocks at rank 4, a twentieth of the weight's norm."""
    names = [
        n
        for n, p in base.named_parameters()
        if p.ndim == 2 and not any(e in n for e in ("embed", "wte", "wpe", "head"))
    ]
    he, they = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" he", " they"))
    for prompt in PROMPTS:
        logs = base(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1].log_softmax(-1)
        (logs[they] - logs[he]).backward()
    parts = {}
    for name in names:
        weight = base.get_parameter(name)
        wanted = weight.grad * (0.05 * weight.detach().norm() / weight.grad.norm())
        parts[name] = ParameterDirection(tuple(weight.shape), Factors.nearest(wanted, 4))
    base.zero_grad(set_to_none=True)
    return Direction(parts)


def main() -> None:
    """Print continuations by schedule, and the seconds that each took."""
    logging.set_verbosity_error()
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    config = GradiendConfig(feature_classes=["they", "he"], target="diff", decoder_sign=1)
    model = GradiendModel.from_direction(base, make_direction(base, tokenizer), config, strength=0.0)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    pronouns = torch.tensor(tokenizer([" he", " she", " it", " they"], add_special_tokens=False)["input_ids"]).flatten()

    def turned(step: int, tokens: torch.Tensor) -> float:
        return 1.0 if step < STEPS // 2 else -1.0

    def following(step: int, tokens: torch.Tensor) -> torch.Tensor:
        written = torch.isin(tokens[:, -STEPS:], pronouns).sum(-1)
        return 1.0 - 2.0 * (written % 2)

    schedules: dict[str, Callable[..., Any] | None] = {
        "strength 0": None,
        "strength 1": lambda step, tokens: 1.0,
        "strength −1": lambda step, tokens: -1.0,
        f"1, then −1 from step {STEPS // 2}": turned,
        "turned at every pronoun": following,
    }
    options = {
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, schedule in schedules.items():
        started = time.process_time()
        found = model.generate(**inputs, **options, **({"schedule": schedule} if schedule else {}))
        seconds = time.process_time() - started
        print(f"\n{name} ({seconds:.2f} CPU s)")
        for text in tokenizer.batch_decode(found, skip_special_tokens=True):
            print("   ", text)


if __name__ == "__main__":
    main()
